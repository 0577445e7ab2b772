//! Somebody else's program at an interface: it counts what it sees and lets everything pass on.
//!
//! Made by hand of six instructions, so that no compiler and nothing of Sluice's stands behind it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::netns::Netns;

/// Commands of bpf(2) (`enum bpf_cmd`).
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];
/// Behind Sluice's filters, whose priority is 1000.
const PRIORITY: u32 = 2_000;

/// Which way packets go at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From the wire, or from the pod.
    Ingress,
    /// There.
    Egress,
}

/// Runs one command on an attribute of 64-bit words.
fn bpf(command: libc::c_long, attr: &mut [u64]) -> io::Result<i64> {
    // SAFETY: the attribute is as long as it says, and every caller below puts addresses of values that outlive the call into it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn descriptor(result: i64) -> Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(result)?) })
}

/// Two halves of a word of an attribute.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One instruction: operation, destination and source register, immediate value.
fn instruction(code: u8, destination: u8, source: u8, immediate: i32) -> u64 {
    u64::from_le_bytes([code, destination | source << 4, 0, 0, 0, 0, 0, 0])
        | u64::from(immediate.cast_unsigned()) << 32
}

/// A program that counts packets and lets them pass on.
#[derive(Debug)]
pub struct Counting {
    map: OwnedFd,
    program: OwnedFd,
    pin: PathBuf,
    links: Vec<OwnedFd>,
}

impl Counting {
    /// Loads it, and pins it at a path on a bpffs, for `tc`. Dropping it removes the pin and its tcx links.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load(pin: &Path) -> Result<Self> {
        let map = bpf(MAP_CREATE, &mut [pair(ARRAY, 4), pair(8, 1), 0])
            .context("making somebody else's map")?;
        let map = descriptor(map)?;
        let code = [
            // r1 = the address of the map's only value, in two instructions
            instruction(0x18, 1, 2, map.as_raw_fd()),
            instruction(0, 0, 0, 0),
            // r0 = 1; *r1 += r0, atomically
            instruction(0xb7, 0, 0, 1),
            instruction(0xdb, 1, 0, 0),
            // return -1: TC_ACT_UNSPEC, TCX_NEXT
            instruction(0xb7, 0, 0, -1),
            instruction(0x95, 0, 0, 0),
        ];
        let license = c"GPL";
        let mut attr = [
            pair(SCHED_CLS, u32::try_from(code.len())?),
            code.as_ptr().expose_provenance() as u64,
            license.as_ptr().expose_provenance() as u64,
            0,
            0,
        ];
        let program = bpf(PROG_LOAD, &mut attr).context("loading somebody else's program")?;
        let program = descriptor(program)?;
        let mut path = pin.as_os_str().as_bytes().to_vec();
        path.push(0);
        bpf(
            OBJ_PIN,
            &mut [
                path.as_ptr().expose_provenance() as u64,
                pair(number(&program), 0),
            ],
        )
        .with_context(|| format!("pinning at {}", pin.display()))?;
        Ok(Self {
            map,
            program,
            pin: pin.to_owned(),
            links: Vec::new(),
        })
    }

    /// Attaches it by tcx, behind what is there.
    ///
    /// # Errors
    /// There is no such interface, or no tcx.
    pub fn attach_tcx(&mut self, netns: &Netns, ifindex: u32, side: Side) -> Result<()> {
        let kind = TCX[usize::from(side == Side::Egress)];
        let program = number(&self.program);
        let link = netns.run(|| bpf(LINK_CREATE, &mut [pair(program, ifindex), pair(kind, 0)]))?;
        let link = link.with_context(|| format!("attaching by tcx to interface {ifindex}"))?;
        self.links.push(descriptor(link)?);
        Ok(())
    }

    /// Attaches it as a clsact filter behind Sluice's; the qdisc must be there.
    ///
    /// # Errors
    /// `tc` refuses.
    pub fn attach_clsact(&self, netns: &Netns, device: &str, side: Side) -> Result<()> {
        let pin = self.pin.display();
        let side = match side {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        };
        tc(
            netns,
            &format!("filter add dev {device} {side} prio {PRIORITY} bpf da pinned {pin}"),
        )
        .map(drop)
    }

    /// Packets seen so far, at all places.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn packets(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = [
            pair(number(&self.map), 0),
            (&raw const key).expose_provenance() as u64,
            (&raw mut value).expose_provenance() as u64,
            0,
        ];
        bpf(MAP_LOOKUP_ELEM, &mut attr).context("reading somebody else's counter")?;
        Ok(value)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // The lab removes what stays.
        let _ = fs::remove_file(&self.pin);
    }
}

/// Runs `tc` with these words in a namespace, and answers what it printed.
///
/// # Errors
/// It failed: with its own words.
pub fn tc(netns: &Netns, words: &str) -> Result<String> {
    let output = netns
        .run(|| Command::new("tc").args(words.split(' ')).output())?
        .context("running tc (install iproute2)")?;
    ensure!(
        output.status.success(),
        "tc {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
