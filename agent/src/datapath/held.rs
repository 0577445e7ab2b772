//! What the agent holds a descriptor of, beside the pin: when somebody removes the pin, the object stays and is pinned again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::drift::{Found, Part};
use super::pins::Shape;
use super::sys::{self, LinkTarget, ObjectKind};

/// A map, program or link by a descriptor of the agent's own.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) kind: ObjectKind,
    pub(super) fd: OwnedFd,
    /// The kernel's number of it, by which links, filters and slots name it.
    pub(super) id: u32,
}

impl Held {
    /// Holds an object.
    pub(super) fn new(kind: ObjectKind, fd: OwnedFd) -> io::Result<Self> {
        let id = number(kind, fd.as_fd())?;
        Ok(Self { kind, fd, id })
    }

    /// Makes sure that this is what is pinned at a path. A foreign object there is told of and left alone.
    pub(super) fn keep_pinned(&self, path: &Path, found: &mut Found) {
        match self.try_keep(path) {
            Ok(None) => {}
            Ok(Some(what)) => found.mended(Part::Pin, what),
            Err(error) => found.failed(format_args!("pin {}", path.display()), error),
        }
    }

    fn try_keep(&self, path: &Path) -> io::Result<Option<String>> {
        let name = self.kind.name();
        let what = match sys::open_pin(path)? {
            None => format!("{name} {} was not pinned any more", path.display()),
            Some((kind, fd)) => {
                if kind == self.kind && number(kind, fd.as_fd())? == self.id {
                    return Ok(None);
                }
                if kind != self.kind || !alike(kind, self.fd.as_fd(), fd.as_fd())? {
                    return Err(io::Error::other(format!(
                        "a {} that is not Sluice's is pinned there; remove it and the {name} is pinned again",
                        kind.name()
                    )));
                }
                fs::remove_file(path)?;
                format!("another {name} was pinned at {}", path.display())
            }
        };
        sys::pin(self.fd.as_fd(), path)?;
        Ok(Some(what))
    }
}

/// The kernel's number of an object.
fn number(kind: ObjectKind, fd: BorrowedFd<'_>) -> io::Result<u32> {
    match kind {
        ObjectKind::Map => sys::map_info(fd).map(|info| info.id),
        ObjectKind::Program => sys::program_info(fd).map(|info| info.id),
        ObjectKind::Link => sys::link_info(fd).map(|info| info.id),
    }
}

/// Whether another object could be one that Sluice made: a map of the same shape, a program of the same maps, a link of the same kind.
/// Anything else at our place is somebody's mistake that a person should see.
fn alike(kind: ObjectKind, one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(match kind {
        ObjectKind::Map => Shape::of(&sys::map_info(one)?) == Shape::of(&sys::map_info(other)?),
        ObjectKind::Program => sys::program_info(one)?.maps == sys::program_info(other)?.maps,
        ObjectKind::Link => match (sys::link_info(one)?.target, sys::link_info(other)?.target) {
            // Of another cgroup, or of none any more: what an earlier mend left.
            (
                LinkTarget::Cgroup { attach_type, .. },
                LinkTarget::Cgroup {
                    attach_type: other, ..
                },
            ) => attach_type == other,
            (one, other) => one == other,
        },
    })
}
