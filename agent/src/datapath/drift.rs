//! Whether what the agent made is still there: pins, and the slots of the program array.
//!
//! The agent holds a descriptor of everything that it pinned. What somebody removes from the BPF file system therefore goes on
//! working, and is pinned again from the descriptor: without that, the next start would find half of it and lose connections.
//! What is asked here is answered by own descriptors and by pins, without CAP_SYS_ADMIN.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::load::LoadError;
use super::pins::{Pins, Shape, make_directory};
use super::programs::Programs;
use super::sys::{self, LinkTarget, ObjectKind};
use crate::problem::Problem;

/// What a mend was about; the label of its counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// A program at an interface was gone, or another one.
    Attachment,
    /// A socket program of the cgroup was gone, or another one.
    Cgroup,
    /// Something was not pinned any more.
    Pin,
    /// A slot of the program array was empty, or held another program.
    Program,
    /// An element of a map was not what the agent wrote.
    Map,
}

impl Part {
    /// Every part, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Attachment,
        Self::Cgroup,
        Self::Pin,
        Self::Program,
        Self::Map,
    ];

    /// The label of the metric, and the word that status shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attachment => "attachment",
            Self::Cgroup => "cgroup",
            Self::Pin => "pin",
            Self::Program => "program",
            Self::Map => "map",
        }
    }
}

/// Something that was not as the agent left it, and is again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repair {
    /// About what.
    pub part: Part,
    /// What was found, for people.
    pub what: String,
}

/// What a check found.
#[derive(Default, Debug)]
pub struct Found {
    /// Mended.
    pub repaired: Vec<Repair>,
    /// Not mended; looked at again with the next check.
    pub problems: Vec<Problem>,
}

impl Found {
    pub(super) fn mended(&mut self, part: Part, what: impl Into<String>) {
        let what = what.into();
        self.repaired.push(Repair { part, what });
    }

    pub(super) fn failed(&mut self, object: impl std::fmt::Display, error: impl std::fmt::Display) {
        let reason = format!("{error}; what is loaded works on, and this is tried again");
        self.problems.push(Problem::new(object, reason));
    }
}

/// Something that the agent holds and has pinned.
pub(super) struct Held<'a> {
    pub(super) kind: ObjectKind,
    pub(super) fd: BorrowedFd<'a>,
    /// The kernel's number of it.
    pub(super) id: u32,
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

/// Makes sure that `held` is what is pinned at a path. A foreign object there is told of and left alone.
pub(super) fn keep_pinned(path: &Path, held: &Held<'_>, found: &mut Found) {
    match try_keep(path, held) {
        Ok(None) => {}
        Ok(Some(what)) => found.mended(Part::Pin, what),
        Err(error) => found.failed(format_args!("pin {}", path.display()), error),
    }
}

fn try_keep(path: &Path, held: &Held<'_>) -> io::Result<Option<String>> {
    let name = held.kind.name();
    let what = match sys::open_pin(path)? {
        None => format!("{name} {} was not pinned any more", path.display()),
        Some((kind, fd)) => {
            if kind == held.kind && number(kind, fd.as_fd())? == held.id {
                return Ok(None);
            }
            if kind != held.kind || !alike(kind, held.fd, fd.as_fd())? {
                return Err(io::Error::other(format!(
                    "a {} that is not Sluice's is pinned there; remove it and the {name} is pinned again",
                    kind.name()
                )));
            }
            fs::remove_file(path)?;
            format!("another {name} was pinned at {}", path.display())
        }
    };
    sys::pin(held.fd, path)?;
    Ok(Some(what))
}

#[derive(Debug)]
struct Map {
    fd: OwnedFd,
    id: u32,
}

/// The pinned maps, each by a descriptor of its own.
#[derive(Debug)]
pub struct Maps {
    maps: BTreeMap<String, Map>,
}

impl Maps {
    /// Opens the pinned maps, which were just loaded.
    ///
    /// # Errors
    /// One is not there or cannot be read.
    pub fn open(pins: &Pins, names: &[(String, Shape)]) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Io {
            what: "opening the pinned maps",
            source,
        };
        let mut maps = BTreeMap::new();
        for (name, _) in names {
            let (_, fd) = sys::open_pin(&pins.map(name))
                .and_then(|pin| pin.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .map_err(failed)?;
            let id = sys::map_info(fd.as_fd()).map_err(failed)?.id;
            maps.insert(name.clone(), Map { fd, id });
        }
        Ok(Self { maps })
    }

    /// Checks directories, pins of maps, and the slots of the program array, and mends them.
    pub fn check(&self, pins: &Pins, programs: &Programs, found: &mut Found) {
        // The slots first: a packet that meets an empty one passes unjudged.
        self.check_slots(programs, found);
        for directory in pins.directories() {
            if let Err(error) = make_directory(&directory) {
                found.failed(format_args!("directory {}", directory.display()), error);
            }
        }
        for (name, map) in &self.maps {
            let held = Held {
                kind: ObjectKind::Map,
                fd: map.fd.as_fd(),
                id: map.id,
            };
            keep_pinned(&pins.map(name), &held, found);
        }
    }

    fn check_slots(&self, programs: &Programs, found: &mut Found) {
        let slots = match programs.slots() {
            Ok(slots) => slots,
            Err(error) => return found.failed("slots of the program arrays", error),
        };
        for (map, slot, name, fd) in slots {
            let Some(array) = self.maps.get(map) else {
                continue;
            };
            match mend_slot(array, slot, fd) {
                Ok(false) => {}
                Ok(true) => found.mended(
                    Part::Program,
                    format!("slot {slot} of the map {map} did not hold {name}"),
                ),
                Err(error) => found.failed(format_args!("slot {slot} of the map {map}"), error),
            }
        }
    }
}

/// Puts a program back into its slot where another, or none, is there. Whether it was so.
fn mend_slot(array: &Map, slot: u32, fd: BorrowedFd<'_>) -> io::Result<bool> {
    // Reading a program array tells the program's number.
    let now = sys::lookup::<u32, u32>(array.fd.as_fd(), &slot)?;
    if now == Some(sys::program_info(fd)?.id) {
        return Ok(false);
    }
    sys::update(array.fd.as_fd(), &slot, &fd.as_raw_fd().cast_unsigned(), 0)?;
    Ok(true)
}
