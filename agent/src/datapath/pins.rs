//! Where maps, stub programs and links outlive the daemon: `ROOT/vLAYOUT/{maps,programs,links}` on a BPF file system.
//!
//! aya opens whatever lies at a pin. So everything there is opened and compared here first, and what was opened is
//! compared once more after aya did (see [`super::load`]).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent_common::limits::LAYOUT;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{self, ObjectKind};

/// Where the kernel's BPF file system is mounted by convention.
pub const BPF_FS: &str = "/sys/fs/bpf";
/// Where Sluice pins unless `--pin-root` says otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/sluice";
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
    /// Pins of another version.
    #[error(
        "pin root {root} holds pins of layout {found}, and this Sluice has layout v{LAYOUT}; run the Sluice that made them, or remove {root}/{found} (its rules and connections end)"
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
        /// The directory of this layout.
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
    fn io(path: &Path, source: impl Into<io::Error>) -> Self {
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
    directory: PathBuf,
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
        let own = format!("v{LAYOUT}");
        if let Some(found) = layouts(root)?.into_iter().find(|found| *found != own) {
            return Err(PinError::OtherLayout {
                root: root.to_path_buf(),
                found,
            });
        }
        let pins = Self {
            directory: root.join(own),
            _lock: lock,
        };
        for directory in pins.directories() {
            make_directory(&directory)?;
        }
        Ok(pins)
    }

    /// `ROOT/vLAYOUT`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Every directory of this layout, outer ones first.
    pub(super) fn directories(&self) -> [PathBuf; 4] {
        [
            self.directory.clone(),
            self.directory.join("maps"),
            self.directory.join("programs"),
            self.links(),
        ]
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    /// Where a stub is pinned.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("programs").join(name)
    }

    /// Where links are pinned.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.directory.join("links")
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
        PinError::Differs {
            path,
            directory: self.directory.clone(),
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
