//! Which files of a directory count, and how they are read.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::parse::{Contents, Format, parse};

/// Bytes of a file at most. An object in etcd has 1.5 MiB at most; this is a dump of some thousand pods, or the
/// 70,000 endpoints of one service in YAML, twice over.
pub(super) const FILE_MAX: u64 = 32 * 1024 * 1024;

/// How a file is written, by its name. None: it is no manifest.
pub(super) fn format_of(name: &OsStr) -> Option<Format> {
    if is_hidden(name) {
        return None;
    }
    match Path::new(name).extension()?.as_bytes() {
        b"yaml" | b"yml" => Some(Format::Yaml),
        b"json" => Some(Format::Json),
        _ => None,
    }
}

/// Whether a name begins with a dot: editors' temporary files, and the machinery of ConfigMap volumes (`..data`).
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Tells one state of a file from another, as long as the clock of the file system ticks in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The stamp of the file that a path leads to.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))
}

/// Whether the file system of a file has no room left for its owner: then what was written last may be cut short, and cut YAML can be
/// good YAML that says less.
pub(super) fn is_full(path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let Ok(system) = statvfs(path) else {
        return false;
    };
    // An image that cannot be written to has no free blocks, and nobody to fill it; some file systems do not count blocks at all.
    if system.flags().contains(FsFlags::ST_RDONLY) || system.blocks() == 0 {
        return false;
    }
    // What is kept back for root is room for root only.
    let free = if metadata.uid() == 0 {
        system.blocks_free()
    } else {
        system.blocks_available()
    };
    free == 0
}

/// What reading a file gave.
#[derive(Debug)]
pub(super) enum Loaded {
    /// What it says.
    Contents(Contents),
    /// It is not there (or is a directory).
    Gone,
    /// It is there, and cannot be read.
    Broken(String),
}

/// Reads and parses a file.
pub(super) fn load(path: &Path) -> Loaded {
    let Some(format) = path.file_name().and_then(format_of) else {
        return Loaded::Gone;
    };
    match text(path) {
        Ok(Ok(text)) => Loaded::Contents(parse(format, &text)),
        Ok(Err(reason)) => Loaded::Broken(reason),
        Err(error) if is_gone(&error) => Loaded::Gone,
        Err(error) => Loaded::Broken(format!("cannot be read: {error}")),
    }
}

/// Whether an error says that there is nothing at a path, a symlink that leads nowhere included.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn text(path: &Path) -> io::Result<Result<String, String>> {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::NotFound.into());
    }
    if !metadata.is_file() {
        return Ok(Err("it is no regular file".to_owned()));
    }
    if metadata.len() == 0 && !crate::mutant::removed("empty-file-counts") {
        // What is left by a writer that found no room, or that died: hardly ever what somebody wants to say.
        let reason = "it is empty; to take its objects away, remove the file";
        return Ok(Err(reason.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_MAX) {
        return Ok(Err(format!("it is larger than {FILE_MAX} bytes; split it")));
    }
    Ok(String::from_utf8(bytes).map_err(|error| format!("it is not UTF-8: {error}")))
}

/// A directory and what is in it, sorted.
#[derive(Default, Debug)]
pub(super) struct Listing {
    /// Manifests, through symlinks too.
    pub(super) files: BTreeSet<PathBuf>,
    /// Directories, through symlinks too, that are not hidden.
    pub(super) directories: BTreeSet<PathBuf>,
}

/// Lists a directory.
///
/// # Errors
/// It cannot be read, or it cannot be told whether something in it is a directory: what is below it must not be taken for gone.
pub(super) fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_hidden(&name) {
            continue;
        }
        let path = directory.join(&name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                listing.directories.insert(path);
            }
            Err(error) if is_gone(&error) => {}
            Err(error) if !may_be_file(&entry, &error)? => return Err(error),
            // One that cannot be looked at is a file that cannot be read, and is reported as such.
            _ => {
                if format_of(&name).is_some() {
                    listing.files.insert(path);
                }
            }
        }
    }
    Ok(listing)
}

/// Whether an entry that cannot be looked at may be left out of the directories.
fn may_be_file(entry: &fs::DirEntry, error: &io::Error) -> io::Result<bool> {
    let kind = entry.file_type()?;
    // A symlink that leads in a circle leads to no directory.
    let circle = error.raw_os_error() == Some(libc::ELOOP);
    Ok(
        kind.is_file()
            || (kind.is_symlink() && (circle || format_of(&entry.file_name()).is_some())),
    )
}
