//! Offloads of an interface: what it does to packets that the stack leaves to it, and what the stack may hand it in one piece.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::Error as Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::netns::Netns;

/// What can be switched (the kernel's `include/uapi/linux/ethtool.h`, each with its command to ask and its command to tell).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of what is sent (`tx`). Without it the device takes no segments together either.
    TxChecksum,
    /// TCP segments together, cut by the device (`tso`).
    Tso,
    /// Segments together through the stack, cut before the device (`gso`).
    Gso,
    /// Segments put together as they come in (`gro`).
    Gro,
}

impl Offload {
    /// All of them; those that others stand on first.
    pub const ALL: [Self; 4] = [Self::TxChecksum, Self::Tso, Self::Gso, Self::Gro];

    const fn commands(self) -> (u32, u32) {
        match self {
            Self::TxChecksum => (0x16, 0x17),
            Self::Tso => (0x1e, 0x1f),
            Self::Gso => (0x23, 0x24),
            Self::Gro => (0x2b, 0x2c),
        }
    }
}

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches offloads of an interface as `wanted` says, in [`Offload::ALL`]'s order, and tells which are then on: some stand on others.
///
/// # Errors
/// There is no such interface, or it cannot be asked.
pub fn set(netns: &Netns, device: &str, wanted: [bool; 4]) -> Result<[bool; 4]> {
    netns
        .run(|| set_here(device, wanted))?
        .with_context(|| format!("switching the offloads of {device}"))
}

fn set_here(device: &str, wanted: [bool; 4]) -> Result<[bool; 4]> {
    let mut on = [false; 4];
    for (offload, wanted) in Offload::ALL.into_iter().zip(wanted) {
        let (_, tell) = offload.commands();
        match call(device, tell, wanted.into()) {
            // What it stands on is off.
            Ok(_) | Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error).with_context(|| format!("{offload:?}")),
        }
    }
    for (offload, on) in Offload::ALL.into_iter().zip(&mut on) {
        let (ask, _) = offload.commands();
        *on = call(device, ask, 0).with_context(|| format!("{offload:?}"))? != 0;
    }
    Ok(on)
}

fn call(device: &str, command: u32, data: u32) -> Result<u32, Errno> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value { command, data };
    // SAFETY: ifreq is plain numbers and pointers, for which all zero bits are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: for these commands the kernel reads and writes one `ethtool_value` behind the pointer; both live longer than the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(result)?;
    Ok(value.data)
}
