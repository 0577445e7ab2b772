//! Socket programs of the cgroup, by pinned links `cgroup-HOOK`.
//!
//! They have no stub: a link's program is replaced by `BPF_LINK_UPDATE`, which is atomic for a socket call.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya_obj::generated::bpf_attach_type::{
    BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_CONNECT,
    BPF_CGROUP_INET6_GETPEERNAME, BPF_CGROUP_UDP4_RECVMSG, BPF_CGROUP_UDP4_SENDMSG,
    BPF_CGROUP_UDP6_RECVMSG, BPF_CGROUP_UDP6_SENDMSG,
};

use super::attach::AttachError;
use super::load::{LoadError, Programs};
use super::pins::Pins;
use super::sys::{self, LinkTarget, ObjectKind};

/// Programs and what they are attached as. What undoes a translation is attached before what does it, so that no socket
/// is translated one way only.
const PROGRAMS: [(&str, u32); 8] = [
    ("recvmsg4", BPF_CGROUP_UDP4_RECVMSG as u32),
    ("recvmsg6", BPF_CGROUP_UDP6_RECVMSG as u32),
    ("getpeername4", BPF_CGROUP_INET4_GETPEERNAME as u32),
    ("getpeername6", BPF_CGROUP_INET6_GETPEERNAME as u32),
    ("connect4", BPF_CGROUP_INET4_CONNECT as u32),
    ("connect6", BPF_CGROUP_INET6_CONNECT as u32),
    ("sendmsg4", BPF_CGROUP_UDP4_SENDMSG as u32),
    ("sendmsg6", BPF_CGROUP_UDP6_SENDMSG as u32),
];

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CgroupReport {
    /// Programs attached where none of ours was.
    pub attached: usize,
    /// Links of an earlier agent that have this agent's program now.
    pub replaced: usize,
}

/// Attaches the socket programs to a cgroup, or replaces those that an earlier agent attached there. Links to another cgroup
/// go when the new ones are in place.
///
/// # Errors
/// The directory is no cgroup, or the kernel refuses; what was attached before stays.
pub fn attach(
    pins: &Pins,
    programs: &Programs,
    cgroup: &Path,
) -> Result<CgroupReport, AttachError> {
    let opening = || AttachError::io(format!("opening cgroup {}", cgroup.display()));
    let directory = File::open(cgroup).map_err(opening())?;
    // The number that links tell: the inode's, on 64-bit machines (kernfs).
    let number = directory.metadata().map_err(opening())?.ino();
    let mut report = CgroupReport::default();
    for (name, attach_type) in PROGRAMS {
        let program = programs
            .socket(name)?
            .fd()
            .map_err(|source| LoadError::Program {
                program: name.to_owned(),
                source,
            })?
            .as_fd();
        let path = pins.links().join(format!("cgroup-{name}"));
        let failed = |what: &str| {
            AttachError::io(format!(
                "{what} socket program {name} at {}",
                path.display()
            ))
        };
        let pinned = sys::open_pin(&path).map_err(failed("opening"))?;
        if let Some((ObjectKind::Link, link)) = &pinned {
            let info = sys::link_info(link.as_fd()).map_err(failed("reading"))?;
            let same = LinkTarget::Cgroup {
                cgroup: number,
                attach_type,
            };
            if info.target == same {
                sys::link_update(link.as_fd(), program).map_err(failed("replacing"))?;
                report.replaced += 1;
                continue;
            }
        }
        let link = sys::link_create(
            program,
            directory.as_fd().as_raw_fd().cast_unsigned(),
            attach_type,
        )
        .map_err(failed("attaching"))?;
        if pinned.is_some() {
            fs::remove_file(&path).map_err(failed("removing the old"))?;
        }
        sys::pin(link.as_fd(), &path).map_err(failed("pinning"))?;
        report.attached += 1;
    }
    Ok(report)
}

/// Takes the socket programs away, wherever they are attached. Returns the pins that were removed.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach(pins: &Pins) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (name, _) in PROGRAMS {
        let path = pins.links().join(format!("cgroup-{name}"));
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}
