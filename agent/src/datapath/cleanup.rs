//! Taking everything of Sluice's away from a node: what is attached first, then pins.
//!
//! What is Sluice's, and nothing else:
//! - under the pin root, every directory of a layout (`v` and a number), and `hooks`, which layouts share, with all that is in them;
//! - the programs of the links that are pinned there: they are detached, whoever else holds the link;
//! - clsact filters of this network namespace with Sluice's kind, priority, handle and name;
//! - a clsact qdisc that such a filter says Sluice made, once no filter of anybody is left on it.
//!
//! Any of it may be missing, and nothing that fails keeps the rest from being removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::attach::Side;
use super::attach::clsact::Clsact;
use super::sys::{self, LinkTarget, ObjectKind};
use super::{cgroup, pins};

/// Why nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent is at work.
    #[error(
        "an agent is running with pin root {0}: stop it first (with --force, what it needs comes back within its --drift-interval)"
    )]
    Running(PathBuf),
    /// The pin root cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cleaned {
    /// What is gone now.
    pub removed: Vec<String>,
    /// What was looked at and is not Sluice's.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

impl Cleaned {
    /// Notes how a removal went. What is not there is neither removed nor a failure.
    pub fn note(&mut self, what: impl std::fmt::Display, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(what.to_string()),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && !crate::mutant::removed("missing-is-failed") => {}
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

/// The right to clean a pin root, held against agents that start meanwhile.
#[derive(Debug)]
pub struct Claim {
    root: PathBuf,
    /// None where there is no such directory, or an agent has it and `force` was given.
    _lock: Option<Flock<File>>,
}

impl Claim {
    /// Claims a pin root. Nothing is changed.
    ///
    /// # Errors
    /// An agent runs and `force` is not given, or the directory cannot be opened.
    pub fn new(root: &Path, force: bool) -> Result<Self, CleanupError> {
        let failed = |source| CleanupError::Io {
            path: root.to_path_buf(),
            source,
        };
        let lock = match File::open(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
            Ok(directory) => match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Some(lock),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if force => None,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(CleanupError::Running(root.to_path_buf()));
                }
                Err((_, error)) => return Err(failed(error.into())),
            },
        };
        Ok(Self {
            root: root.to_path_buf(),
            _lock: lock,
        })
    }

    /// Removes everything.
    pub fn clean(&self, cleaned: &mut Cleaned) {
        let directories = self.directories(cleaned);
        // What is attached goes first: nobody may meet half of it.
        for directory in &directories {
            detach_links(&directory.join(pins::LINKS), cleaned);
        }
        clean_clsact(cleaned);
        for directory in &directories {
            remove_tree(directory, cleaned);
        }
        self.remove_root(cleaned);
    }

    /// Directories under the root that are Sluice's.
    fn directories(&self, cleaned: &mut Cleaned) -> Vec<PathBuf> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries.filter_map(Result::ok),
            Err(error) => {
                cleaned.note(self.root.display(), Err(error));
                return Vec::new();
            }
        };
        let ours = entries.filter(|entry| is_ours(&entry.file_name().to_string_lossy()));
        let mut directories: Vec<PathBuf> = ours.map(|entry| entry.path()).collect();
        directories.sort();
        directories
    }

    /// The root goes where nothing is left in it.
    fn remove_root(&self, cleaned: &mut Cleaned) {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) => {
                return cleaned.note(self.root.display(), Err(error));
            }
        };
        let mut others: Vec<String> = entries
            .filter_map(Result::ok)
            // What is left of a layout was told as a failure.
            .filter(|entry| !is_ours(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path().display().to_string())
            .collect();
        others.sort();
        if others.is_empty() && cleaned.failed.is_empty() {
            let what = format!("pin root {}", self.root.display());
            cleaned.note(what, fs::remove_dir(&self.root));
        }
        let told = others
            .into_iter()
            .map(|other| format!("{other}: not Sluice's"));
        cleaned.left.extend(told);
    }
}

/// Whether a name under a pin root is that of a directory of Sluice's.
fn is_ours(name: &str) -> bool {
    pins::is_layout(name) || name == pins::HOOKS
}

/// Detaches every link that is pinned in a directory, and removes the pins.
fn detach_links(directory: &Path, cleaned: &mut Cleaned) {
    let mut paths: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.path()).collect(),
        Err(error) => return cleaned.note(directory.display(), Err(error)),
    };
    let last = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        cgroup::undoes(&name)
    };
    paths.sort_by_key(|path| (last(path), path.clone()));
    for path in paths {
        let (what, detached) = match sys::open_pin(&path) {
            Ok(Some((ObjectKind::Link, link))) => {
                let info = sys::link_info(link.as_fd());
                (describe(&path, info.ok()), sys::link_detach(link.as_fd()))
            }
            // No link, or gone meanwhile: only its pin, if that, can be removed.
            Ok(_) => (format!("pin {}", path.display()), Ok(())),
            Err(error) => (format!("pin {}", path.display()), Err(error)),
        };
        // A link that somebody detached already is as well as gone. Where detaching failed, the end of its pin may still do it.
        let removed = fs::remove_file(&path);
        let detached = match detached {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            other => other,
        };
        cleaned.note(what, removed.and(detached));
    }
}

fn describe(path: &Path, info: Option<sys::LinkInfo>) -> String {
    let at = path.display();
    match info.map(|info| info.target) {
        Some(LinkTarget::Tcx { ifindex: 0, .. }) => {
            format!("tcx link {at} (its interface is gone)")
        }
        Some(LinkTarget::Tcx { ifindex, .. }) => format!("tcx link {at} (interface {ifindex})"),
        Some(LinkTarget::Cgroup { .. }) => format!("cgroup link {at}"),
        _ => format!("link {at}"),
    }
}

/// Removes our filters of this network namespace, and the qdiscs that are ours.
fn clean_clsact(cleaned: &mut Cleaned) {
    let clsact = Clsact::new();
    let filters = clsact.qdiscs().and_then(|qdiscs| clsact.attached(&qdiscs));
    let filters = match filters {
        Ok(filters) => filters,
        Err(error) => return cleaned.failed.push(format!("clsact filters: {error}")),
    };
    let mut qdiscs = std::collections::BTreeMap::new();
    for (place, filter) in filters {
        *qdiscs.entry(place.ifindex).or_insert(false) |= filter.made_qdisc;
        let side = match place.side {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        };
        let what = format!("clsact filter of {} {side}", interface(place.ifindex));
        match clsact.detach(place) {
            Ok(()) => cleaned.removed.push(what),
            Err(error) => cleaned.failed.push(format!("{what}: {error}")),
        }
    }
    for (ifindex, made) in qdiscs {
        let what = format!("clsact qdisc of {}", interface(ifindex));
        if !made {
            cleaned.left.push(format!("{what}: Sluice did not make it"));
            continue;
        }
        match clsact.remove_qdisc(ifindex) {
            Ok(true) => cleaned.removed.push(what),
            Ok(false) => cleaned
                .left
                .push(format!("{what}: others have filters on it")),
            Err(error) => cleaned.failed.push(format!("{what}: {error}")),
        }
    }
}

fn interface(ifindex: u32) -> String {
    match nix::net::if_::if_indextoname(ifindex) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("interface {ifindex}"),
    }
}

/// Removes a directory with all that is in it, what is innermost first.
fn remove_tree(directory: &Path, cleaned: &mut Cleaned) {
    let mut entries: Vec<_> = match fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(error) => return cleaned.note(directory.display(), Err(error)),
    };
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&path, cleaned);
        } else {
            cleaned.note(
                format_args!("pin {}", path.display()),
                fs::remove_file(&path),
            );
        }
    }
    let what = format!("directory {}", directory.display());
    cleaned.note(what, fs::remove_dir(directory));
}
