//! Whether what the agent made is still there: pins, and the slots of the program arrays.
//!
//! The agent holds a descriptor of everything that it pinned. What somebody removes from the BPF file system therefore goes on
//! working, and is pinned again from the descriptor: without that, the next start would find half of it and lose connections.
//! What is asked here is answered by own descriptors and by pins, without CAP_SYS_ADMIN.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::held::Held;
use super::load::LoadError;
use super::pins::{Pins, Shape, make_directory};
use super::programs::Programs;
use super::sys;
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
    /// A slot of a program array was empty, or held another program.
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

/// The pinned maps, each by a descriptor of its own.
#[derive(Debug)]
pub struct Maps {
    maps: BTreeMap<String, Held>,
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
            let (kind, fd) = sys::open_pinned(&pins.map(name)).map_err(failed)?;
            maps.insert(name.clone(), Held::new(kind, fd).map_err(failed)?);
        }
        Ok(Self { maps })
    }

    /// Checks directories, pins of maps, and the slots of the program arrays, and mends them.
    pub fn check(&self, pins: &Pins, programs: &Programs, found: &mut Found) {
        // The slots first: a packet that meets an empty one passes unjudged.
        self.check_slots(programs, found);
        for directory in pins.directories() {
            if let Err(error) = make_directory(&directory) {
                found.failed(format_args!("directory {}", directory.display()), error);
            }
        }
        for (name, map) in &self.maps {
            map.keep_pinned(&pins.map(name), found);
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
fn mend_slot(array: &Held, slot: u32, fd: BorrowedFd<'_>) -> io::Result<bool> {
    // Reading a program array tells the program's number.
    let now = sys::lookup::<u32, u32>(array.fd.as_fd(), &slot)?;
    if now == Some(sys::program_info(fd)?.id) {
        return Ok(false);
    }
    sys::update(array.fd.as_fd(), &slot, &fd.as_raw_fd().cast_unsigned(), 0)?;
    Ok(true)
}
