//! Frames made by hand, sent and received below IP with a packet socket (packet(7)).

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::lab::netns::Netns;
use crate::lab::process::wait_readable;

/// The longest frame that is received whole, in bytes: a GSO packet of 64 KiB and its link header.
const MAX_FRAME: usize = (64 << 10) + 64;

/// A packet socket on one interface: sees all frames that come in or go out there, and sends frames as they are.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
}

impl RawSocket {
    /// Opens a packet socket on `device` of a namespace.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| Self::open_here(device))?
    }

    fn open_here(device: &str) -> Result<Self> {
        let index =
            if_nametoindex(device).with_context(|| format!("finding the interface {device}"))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            flags,
            SockProtocol::EthAll,
        );
        let socket = socket.context("opening a packet socket")?;
        let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
        // SAFETY: sockaddr_ll is plain numbers, for which all zero bits are a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index)?;
        let size = libc::socklen_t::try_from(size_of_val(&address))?;
        // SAFETY: the kernel reads `size` bytes of `address`, which is that large and outlives the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        nix::Error::result(bound)
            .with_context(|| format!("binding a packet socket to {device}"))?;
        Ok(Self { socket })
    }

    /// Sends one frame, from its link header on.
    ///
    /// # Errors
    /// The link is down, or the frame is longer than its MTU allows.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).context("sending a frame")?;
        Ok(())
    }

    /// The first frame for which `wanted` says yes; nothing if none came before the deadline. Frames that this host sends
    /// are seen too.
    ///
    /// # Errors
    /// The link went away.
    pub fn receive(
        &self,
        deadline: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + deadline;
        let mut frame = vec![0; MAX_FRAME];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(n) if wanted(&frame[..n]) => {
                    frame.truncate(n);
                    return Ok(Some(frame));
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) if Instant::now() >= end => return Ok(None),
                Err(nix::Error::EAGAIN) => drop(wait_readable(&[self.socket.as_fd()], end)?),
                Err(e) => return Err(e).context("receiving a frame"),
            }
        }
    }
}

/// A broadcast ARP request from `sender` for `target` (RFC 826), the simplest frame that is always answered.
pub fn arp_request(sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    /// Ethernet, IPv4, six and four bytes of address, request.
    const HEADER: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const ETHERTYPE_ARP: [u8; 2] = [8, 6];
    let mut frame = vec![0xff; 6];
    frame.extend(sender_mac);
    frame.extend(ETHERTYPE_ARP);
    frame.extend(HEADER);
    frame.extend(sender_mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}
