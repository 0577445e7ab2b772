//! Socket programs of the cgroup, by pinned links `cgroup-HOOK`.
//!
//! What is attached is a stub of each hook, which goes on in the program that the gate holds ([`super::gate`]). Stubs are not pinned by
//! themselves: each agent puts its own into the links that are there by `BPF_LINK_UPDATE`, which is atomic for a socket call.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::attach::AttachError;
use super::drift::{Found, Part};
use super::gate::{SOCKETS, SocketHook};
use super::held::Held;
use super::load::LoadError;
use super::pins::Pins;
use super::programs::Programs;
use super::sys::{self, LinkTarget, ObjectKind};

/// Names of the pins begin so; the program's name follows.
pub(super) const PIN: &str = "cgroup-";

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CgroupReport {
    /// Stubs attached where none of ours was.
    pub attached: usize,
    /// Links of an earlier agent that have this agent's stub now.
    pub replaced: usize,
}

/// Whether a pin is of a program that undoes a translation: it goes last.
pub(super) fn undoes(pin: &str) -> bool {
    let name = pin.strip_prefix(PIN).unwrap_or_default();
    name.starts_with("recvmsg") || name.starts_with("getpeername")
}

/// The socket programs at their cgroup.
#[derive(Debug)]
pub struct Sockets {
    cgroup: PathBuf,
    /// Held beside their pins.
    links: BTreeMap<&'static str, Held>,
}

/// What a link to a cgroup says that it is attached to.
fn target(cgroup: &File, attach_type: u32) -> io::Result<LinkTarget> {
    // The number that links tell: the inode's, on 64-bit machines (kernfs).
    let cgroup = cgroup.metadata()?.ino();
    Ok(LinkTarget::Cgroup {
        cgroup,
        attach_type,
    })
}

fn program<'a>(programs: &'a Programs, name: &str) -> Result<BorrowedFd<'a>, LoadError> {
    let program = programs.socket(name)?.fd();
    let program = program.map_err(|source| LoadError::Program {
        program: name.to_owned(),
        source,
    })?;
    Ok(program.as_fd())
}

fn path(pins: &Pins, name: &str) -> PathBuf {
    pins.links().join(format!("{PIN}{name}"))
}

impl Sockets {
    /// Attaches the socket programs to a cgroup, or replaces those that an earlier agent attached there. Links to another cgroup
    /// go when the new ones are in place.
    ///
    /// # Errors
    /// The directory is no cgroup, or the kernel refuses; what was attached before stays.
    pub fn attach(
        pins: &Pins,
        programs: &Programs,
        cgroup: &Path,
    ) -> Result<(Self, CgroupReport), AttachError> {
        let opening = || AttachError::io(format!("opening cgroup {}", cgroup.display()));
        let directory = File::open(cgroup).map_err(opening())?;
        let mut report = CgroupReport::default();
        let mut links = BTreeMap::new();
        for SocketHook {
            name, attach_type, ..
        } in SOCKETS
        {
            let program = program(programs, name)?;
            let path = path(pins, name);
            let failed = |what: &str| {
                AttachError::io(format!(
                    "{what} socket program {name} at {}",
                    path.display()
                ))
            };
            let same = target(&directory, attach_type).map_err(opening())?;
            let pinned = sys::open_pin(&path).map_err(failed("opening"))?;
            let there = pinned.is_some();
            if let Some((ObjectKind::Link, fd)) = pinned {
                let info = sys::link_info(fd.as_fd()).map_err(failed("reading"))?;
                if info.target == same {
                    sys::link_update(fd.as_fd(), program).map_err(failed("replacing"))?;
                    report.replaced += 1;
                    let (kind, id) = (ObjectKind::Link, info.id);
                    links.insert(name, Held { kind, fd, id });
                    continue;
                }
            }
            let link = create(program, &directory, attach_type).map_err(failed("attaching"))?;
            if there {
                fs::remove_file(&path).map_err(failed("removing the old"))?;
            }
            sys::pin(link.fd.as_fd(), &path).map_err(failed("pinning"))?;
            report.attached += 1;
            links.insert(name, link);
        }
        let cgroup = cgroup.to_path_buf();
        Ok((Self { cgroup, links }, report))
    }

    /// Checks that each program is where it belongs, and its link pinned; mends what is not.
    pub fn check(&mut self, pins: &Pins, programs: &Programs, found: &mut Found) {
        for SocketHook {
            name, attach_type, ..
        } in SOCKETS
        {
            match self.mend(programs, name, attach_type) {
                Ok(None) => {}
                Ok(Some(what)) => found.mended(Part::Cgroup, what),
                Err(error) => found.failed(format_args!("socket program {name}"), error),
            }
            if let Some(link) = self.links.get(name) {
                link.keep_pinned(&path(pins, name), found);
            }
        }
    }

    /// Attaches one program again where it is gone. What was found, if anything was.
    fn mend(
        &mut self,
        programs: &Programs,
        name: &'static str,
        attach_type: u32,
    ) -> Result<Option<String>, AttachError> {
        let failed =
            |what: &str| AttachError::io(format!("{what} cgroup {}", self.cgroup.display()));
        let program = program(programs, name)?;
        let directory = File::open(&self.cgroup).map_err(failed("opening"))?;
        let same = target(&directory, attach_type).map_err(failed("reading"))?;
        if let Some(link) = self.links.get(name) {
            let info = sys::link_info(link.fd.as_fd()).map_err(failed("reading a link to"))?;
            if info.target == same {
                let wanted = sys::program_info(program).map_err(failed("reading a program of"))?;
                if info.program == wanted.id {
                    return Ok(None);
                }
                sys::link_update(link.fd.as_fd(), program)
                    .map_err(failed("replacing a program of"))?;
                return Ok(Some(format!("another program was in the link of {name}")));
            }
        }
        let link = create(program, &directory, attach_type).map_err(failed("attaching to"))?;
        self.links.insert(name, link);
        Ok(Some(format!("{name} was detached from its cgroup")))
    }
}

fn create(program: BorrowedFd<'_>, directory: &File, attach_type: u32) -> io::Result<Held> {
    let cgroup = directory.as_fd().as_raw_fd().cast_unsigned();
    let fd = sys::link_create(program, cgroup, attach_type)?;
    Held::new(ObjectKind::Link, fd)
}
