//! Where maps, stub programs and links outlive the daemon, on a BPF file system:
//!
//! | directory | what | goes |
//! | --- | --- | --- |
//! | `ROOT/vLAYOUT/maps` | the maps of one layout | when another layout has taken over |
//! | `ROOT/hooks/maps` | the gate ([`super::gate`]) | with `sluice cleanup` |
//! | `ROOT/hooks/programs` | the stubs | likewise |
//! | `ROOT/hooks/links` | tcx and cgroup links | with their interface |
//!
//! aya opens whatever lies at a pin. So everything there is opened and compared here first, and what was opened is
//! compared once more after aya did (see [`super::load`]).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent_common::gate::{self, GateWord};
use agent_common::layout;
use agent_common::limits::LAYOUT;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{self, ObjectKind};

/// Where the kernel's BPF file system is mounted by convention.
pub const BPF_FS: &str = "/sys/fs/bpf";
/// Where Sluice pins unless `--pin-root` says otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/sluice";
/// The directory of what agents of all layouts share, from layout 2 on.
pub(super) const HOOKS: &str = "hooks";
/// The directory of links: in [`HOOKS`], and of layout 1 in its own.
pub(super) const LINKS: &str = "links";
/// Pins are root's: whoever writes to the maps decides where packets go.
const DIRECTORY_MODE: u32 = 0o700;

/// Why the pins cannot be used. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No BPF file system, and none could be mounted.
    #[error("no BPF file system at {path}: {source}; mount one (mount -t bpf bpf {path})")]
    Mount {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be mounted.
        source: io::Error,
    },
    /// The pin root lies outside a BPF file system.
    #[error(
        "pin root {0} is not on a BPF file system; choose one under /sys/fs/bpf, or mount one there (mount -t bpf)"
    )]
    NotBpf(PathBuf),
    /// Another agent is at work here.
    #[error(
        "pin root {0} is in use by another agent; stop it, or give this one its own --pin-root"
    )]
    Busy(PathBuf),
    /// Pins of a version that this one cannot take over from.
    #[error(
        "pin root {root} holds pins of layout {found}, and this Sluice has layout v{LAYOUT} and no way from there; run the Sluice that made them or a later one, or remove {root} (its rules and connections end)"
    )]
    OtherLayout {
        /// The pin root.
        root: PathBuf,
        /// The other directory.
        found: String,
    },
    /// Something that differs from what this agent would make.
    #[error(
        "{path} is not what this Sluice uses: {}; remove {} (rules and connections of the earlier agent end)",
        differences.join(", "),
        directory.display()
    )]
    Differs {
        /// The pin.
        path: PathBuf,
        /// The directory of this layout, or of what all share: without it a start makes all of that anew.
        directory: PathBuf,
        /// What differs, each with both values.
        differences: Vec<String>,
    },
    /// The kernel refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl PinError {
    pub(super) fn io(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source: source.into(),
        }
    }
}

/// What two maps must have in common to be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// `bpf_map_type`.
    pub kind: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Entries (bytes for a ring buffer).
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

impl Shape {
    pub(super) const fn of(info: &sys::MapInfo) -> Self {
        Self {
            kind: info.kind,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.flags,
        }
    }

    /// What differs when `self` is pinned and `wanted` is needed.
    #[must_use]
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        [
            ("map type", self.kind, wanted.kind),
            ("key size", self.key_size, wanted.key_size),
            ("value size", self.value_size, wanted.value_size),
            ("max entries", self.max_entries, wanted.max_entries),
            ("flags", self.flags, wanted.flags),
        ]
        .into_iter()
        .filter(|(_, pinned, wanted)| pinned != wanted)
        .map(|(what, pinned, wanted)| format!("{what}: {pinned} pinned, {wanted} wanted"))
        .collect()
    }
}

/// The pin root, held by this agent alone.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// What the gate said when the root was opened.
    found: GateWord,
    /// Held as long as the agent lives; the kernel lets go when it dies.
    _lock: Flock<File>,
}

impl Pins {
    /// Opens the pin root, or makes it; mounts the BPF file system where that is missing.
    ///
    /// # Errors
    /// See [`PinError`]: no BPF file system, another agent, pins of another layout.
    pub fn open(root: &Path) -> Result<Self, PinError> {
        ensure_bpf_fs(root)?;
        make_directory(root)?;
        let lock = File::open(root).map_err(|error| PinError::io(root, error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            if error == nix::errno::Errno::EWOULDBLOCK {
                PinError::Busy(root.to_path_buf())
            } else {
                PinError::io(root, error)
            }
        })?;
        let mut pins = Self {
            root: root.to_path_buf(),
            found: GateWord::default(),
            _lock: lock,
        };
        pins.found = pins.gate_word()?;
        pins.admit()?;
        let own = pins.directory();
        if ![0, LAYOUT].contains(&pins.found.layout()) {
            // Left by an agent that ended before its maps were in force: it is not known how full they are.
            remove_directory(&own)?;
        }
        for directory in pins.directories() {
            make_directory(&directory)?;
        }
        Ok(pins)
    }

    /// Refuses what this agent cannot take over from. Nothing is changed.
    fn admit(&self) -> Result<(), PinError> {
        let other = match self.found.layout() {
            LAYOUT => return Ok(()),
            // Nothing is in force; but layout 1 had no gate, and its links beside its maps.
            0 => layouts(&self.root)?
                .into_iter()
                .find(|name| self.root.join(name).join(LINKS).exists()),
            other if layout::known(other).is_some() => return Ok(()),
            other => Some(format!("v{other}")),
        };
        match other {
            None => Ok(()),
            Some(found) => Err(PinError::OtherLayout {
                root: self.root.clone(),
                found,
            }),
        }
    }

    /// What the pinned gate says, the default where there is none.
    fn gate_word(&self) -> Result<GateWord, PinError> {
        let path = self.map("gate_word");
        let failed = |source| PinError::io(&path, source);
        let Some((kind, fd)) = sys::open_pin(&path).map_err(failed)? else {
            return Ok(GateWord::default());
        };
        let info = (kind == ObjectKind::Map)
            .then(|| sys::map_info(fd.as_fd()))
            .transpose()
            .map_err(failed)?;
        if info.is_none_or(|info| (info.key_size, info.value_size) != (4, 8)) {
            let differences = vec!["not the word of a gate".to_owned()];
            return Err(self.differs(path, differences));
        }
        let word = sys::lookup::<u32, u64>(fd.as_fd(), &0).map_err(failed)?;
        Ok(GateWord(word.unwrap_or_default()))
    }

    /// The pin root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the gate said when the root was opened.
    #[must_use]
    pub const fn found(&self) -> GateWord {
        self.found
    }

    /// `ROOT/vLAYOUT`: the maps of this layout.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT}"))
    }

    /// `ROOT/hooks`: what agents of all layouts share.
    #[must_use]
    pub fn hooks(&self) -> PathBuf {
        self.root.join(HOOKS)
    }

    /// Every directory of an agent of this layout, outer ones first.
    pub(super) fn directories(&self) -> [PathBuf; 6] {
        let (own, hooks) = (self.directory(), self.hooks());
        [
            own.clone(),
            own.join("maps"),
            hooks.clone(),
            hooks.join("maps"),
            hooks.join("programs"),
            self.links(),
        ]
    }

    /// Where a map is pinned: the gate's beside the links, all others in the layout's directory.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        let directory = if gate::MAPS.contains(&name) {
            self.hooks()
        } else {
            self.directory()
        };
        directory.join("maps").join(name)
    }

    /// Where an agent of another layout has pinned a map.
    pub(super) fn map_of(&self, layout: u32, name: &str) -> PathBuf {
        self.root.join(format!("v{layout}")).join("maps").join(name)
    }

    /// Where a stub is pinned.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.hooks().join("programs").join(name)
    }

    /// Where links are pinned.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.hooks().join(LINKS)
    }

    /// Removes the maps of every other layout: nothing uses them any more. Returns the directories.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub(super) fn remove_others(&self) -> Result<Vec<PathBuf>, PinError> {
        let own = self.directory();
        let mut removed = Vec::new();
        for name in layouts(&self.root)? {
            let directory = self.root.join(name);
            if directory != own {
                remove_directory(&directory)?;
                removed.push(directory);
            }
        }
        Ok(removed)
    }

    /// Compares what is pinned with what is needed; returns the names of maps that are there. Nothing is changed.
    ///
    /// # Errors
    /// [`PinError::Differs`] names the first pin that cannot be used, and everything about it that differs.
    pub fn check(&self, maps: &[(String, Shape)]) -> Result<Vec<String>, PinError> {
        let mut present = Vec::new();
        for (name, wanted) in maps {
            let path = self.map(name);
            let Some((kind, fd)) =
                sys::open_pin(&path).map_err(|error| PinError::io(&path, error))?
            else {
                continue;
            };
            let differences = if kind == ObjectKind::Map {
                let info = sys::map_info(fd.as_fd()).map_err(|error| PinError::io(&path, error))?;
                Shape::of(&info).differences(wanted)
            } else {
                vec![format!("kind: {} pinned, map wanted", kind.name())]
            };
            if !differences.is_empty() {
                return Err(self.differs(path, differences));
            }
            present.push(name.clone());
        }
        Ok(present)
    }

    pub(super) fn differs(&self, path: PathBuf, differences: Vec<String>) -> PinError {
        // ROOT/vLAYOUT/maps/NAME, or ROOT/hooks/maps/NAME.
        let directory = path.ancestors().nth(2).unwrap_or(&self.root).to_path_buf();
        PinError::Differs {
            path,
            directory,
            differences,
        }
    }
}

/// Layout directories (`v` and a number) under a pin root, sorted.
fn layouts(root: &Path) -> Result<Vec<String>, PinError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(|error| PinError::io(root, error))? {
        let name = entry
            .map_err(|error| PinError::io(root, error))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if is_layout(&name) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a name under a pin root is that of a layout's directory.
pub(super) fn is_layout(name: &str) -> bool {
    name.strip_prefix('v')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn remove_directory(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io(path, error)),
        _ => Ok(()),
    }
}

pub(super) fn make_directory(path: &Path) -> Result<(), PinError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|error| PinError::io(path, error))
}

/// Whether the nearest ancestor of a path that exists is on a BPF file system.
fn on_bpf_fs(path: &Path) -> Result<bool, PinError> {
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else {
        return Ok(false);
    };
    let found = statfs(existing).map_err(|error| PinError::io(existing, error))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at [`BPF_FS`] where the root lies under it and nothing is mounted there yet.
fn ensure_bpf_fs(root: &Path) -> Result<(), PinError> {
    if on_bpf_fs(root)? {
        return Ok(());
    }
    let mount_point = Path::new(BPF_FS);
    if !root.starts_with(mount_point) {
        return Err(PinError::NotBpf(root.to_path_buf()));
    }
    mount(
        Some("bpf"),
        mount_point,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|error| PinError::Mount {
        path: mount_point.to_path_buf(),
        source: error.into(),
    })?;
    if on_bpf_fs(root)? {
        Ok(())
    } else {
        Err(PinError::NotBpf(root.to_path_buf()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_values() {
        let pinned = Shape {
            kind: 1,
            key_size: 4,
            value_size: 8,
            max_entries: 10,
            flags: 0,
        };
        let wanted = Shape {
            value_size: 16,
            flags: 1,
            ..pinned
        };
        assert_eq!(
            pinned.differences(&wanted),
            [
                "value size: 8 pinned, 16 wanted",
                "flags: 0 pinned, 1 wanted"
            ]
        );
        assert!(pinned.differences(&pinned).is_empty());
    }

    #[test]
    fn root_outside_a_bpf_file_system_is_refused_in_one_line() {
        let error = Pins::open(Path::new("/proc/sluice-test")).expect_err("refused");
        assert!(error.to_string().contains("not on a BPF file system"));
        assert!(!error.to_string().contains('\n'));
    }
}
