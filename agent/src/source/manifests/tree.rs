//! The directory's watches: where they are, and what their events mean.
//!
//! Every directory is watched before it is listed, so that nothing falls between. The ancestors of the directory are
//! watched for the one name that leads to it, because it, or a symlink on the way, may be replaced, removed and made again.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inotify::{EventMask, WatchMask, Watches};

use super::files::{format_of, is_gone, is_hidden, list};

/// One event, with its name copied out of the kernel's buffer.
#[derive(Clone, Debug)]
pub(super) struct RawEvent {
    /// The watch.
    pub(super) watch: i32,
    /// What happened.
    pub(super) mask: EventMask,
    /// To which entry of the directory; None for the directory itself.
    pub(super) name: Option<OsString>,
}

/// What is to be looked at again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Work {
    /// Every directory, and each file that looks different.
    pub(super) rescan: bool,
    /// Every file, whatever it looks like: events were lost.
    pub(super) reread: bool,
    /// These files.
    pub(super) files: BTreeSet<PathBuf>,
    /// Something vanished or may have: what replaces it may still be on its way.
    pub(super) unsettled: bool,
}

impl Work {
    /// Look at everything.
    pub(super) fn everything() -> Self {
        Self {
            rescan: true,
            reread: true,
            ..Self::default()
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        !self.rescan && !self.reread && self.files.is_empty()
    }
}

/// What a watch is for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// A directory of ours.
    Directory(PathBuf),
    /// An ancestor, and the name in it that leads to our directory.
    Ancestor(OsString),
}

/// The watches.
pub(super) struct Tree {
    root: PathBuf,
    watches: Watches,
    /// One inode has one watch, however many paths lead to it.
    places: HashMap<i32, (inotify::WatchDescriptor, Vec<Place>)>,
    /// Files that are open for writing, as far as events tell: they count when they are closed.
    writing: BTreeSet<PathBuf>,
    /// The file system of the directory, when it was last looked at.
    device: Option<u64>,
}

impl Tree {
    /// A tree without watches yet. `root` is absolute.
    pub(super) fn new(root: PathBuf, watches: Watches) -> Self {
        Self {
            root,
            watches,
            places: HashMap::new(),
            writing: BTreeSet::new(),
            device: None,
        }
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The number of the directory's file system, as of the last look.
    pub(super) fn device(&self) -> Option<u64> {
        self.device
    }

    /// Whether a file is being written.
    pub(super) fn is_being_written(&self, path: &Path) -> bool {
        self.writing.contains(path)
    }

    /// Watches and lists every directory anew, and gives the manifests.
    ///
    /// # Errors
    /// One line for people, where the directory or one in it is not there or cannot be read. Nothing may be concluded
    /// from it about any file.
    pub(super) fn scan(&mut self) -> Result<BTreeSet<PathBuf>, String> {
        let before = std::mem::take(&mut self.places);
        let result = self.walk();
        // On failure too: the watches that were set tell when it is over.
        for (id, (watch, _)) in before {
            if !self.places.contains_key(&id) {
                // It fails where the inode is gone, and the watch with it.
                let _ = self.watches.remove(watch);
            }
        }
        result
    }

    fn walk(&mut self) -> Result<BTreeSet<PathBuf>, String> {
        let root = self.root.clone();
        for path in root.ancestors() {
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                let mask = WatchMask::CREATE
                    | WatchMask::MOVE
                    | WatchMask::DELETE
                    | WatchMask::DELETE_SELF;
                // An ancestor that is not there, or may not be read: those above and below are watched, and the retry helps.
                let _ = self.watch(parent, mask, Place::Ancestor(name.to_owned()));
            }
        }
        let mut files = BTreeSet::new();
        // Real directories that were listed: a symlink to one of them adds nothing.
        let mut seen = BTreeSet::new();
        let mut left = vec![root.clone()];
        while let Some(directory) = left.pop() {
            match self.enter(&directory, &mut seen) {
                Ok(None) => {}
                Ok(Some(listing)) => {
                    files.extend(listing.files);
                    left.extend(listing.directories.into_iter().rev());
                }
                Err(error) if is_gone(&error) && directory != root => {}
                Err(error) => {
                    let mend = match error.raw_os_error() {
                        Some(libc::ENOSPC) => "; raise the sysctl fs.inotify.max_user_watches",
                        _ => "",
                    };
                    return Err(format!("directory {}: {error}{mend}", directory.display()));
                }
            }
        }
        Ok(files)
    }

    fn enter(
        &mut self,
        directory: &Path,
        seen: &mut BTreeSet<(u64, u64)>,
    ) -> io::Result<Option<super::files::Listing>> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let metadata = fs::metadata(directory)?;
        if *directory == *self.root {
            self.device = Some(metadata.dev());
        }
        if !seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(None);
        }
        self.watch(directory, mask, Place::Directory(directory.to_owned()))?;
        list(directory).map(Some)
    }

    fn watch(&mut self, path: &Path, mask: WatchMask, place: Place) -> io::Result<()> {
        // MASK_ADD: a directory may be an ancestor by one path, and ours by another.
        let mask = mask | WatchMask::ONLYDIR | WatchMask::MASK_ADD;
        let watch = self.watches.add(path, mask)?;
        let id = watch.get_watch_descriptor_id();
        let (_, places) = self.places.entry(id).or_insert_with(|| (watch, Vec::new()));
        if !places.contains(&place) {
            places.push(place);
        }
        Ok(())
    }

    /// Takes an event in.
    pub(super) fn take(&mut self, event: &RawEvent, work: &mut Work) {
        self.sort(event, work);
        work.unsettled |= work.rescan;
    }

    fn sort(&mut self, event: &RawEvent, work: &mut Work) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            // A close may be among what was lost.
            self.writing.clear();
            work.rescan = true;
            work.reread = true;
            return;
        }
        if event.mask.contains(EventMask::IGNORED) {
            return;
        }
        let Some((_, places)) = self.places.get(&event.watch) else {
            return;
        };
        for place in places.clone() {
            match (&place, event.name.as_deref()) {
                (Place::Ancestor(wanted), Some(name)) => work.rescan |= wanted == name,
                (_, None) => work.rescan = true,
                (Place::Directory(directory), Some(name)) => {
                    self.take_entry(directory, name, event.mask, work);
                }
            }
        }
    }

    fn take_entry(&mut self, directory: &Path, name: &OsStr, mask: EventMask, work: &mut Work) {
        let path = directory.join(name);
        let appeared = mask.intersects(EventMask::CREATE | EventMask::MOVED_TO);
        let vanished = mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
        let link = appeared && fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        if is_hidden(name) {
            // `..data` of a ConfigMap volume, or any other symlink through which files may be seen.
            work.rescan |= link || (vanished && name.as_bytes().starts_with(b".."));
            return;
        }
        let directory = Place::Directory(path.clone());
        let was_directory = self.places.values().any(|(_, p)| p.contains(&directory));
        if mask.contains(EventMask::ISDIR) || link || (vanished && was_directory) {
            work.rescan = true;
        }
        if format_of(name).is_none() || mask.contains(EventMask::ISDIR) {
            return;
        }
        work.unsettled |= vanished;
        if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) || vanished {
            self.writing.remove(&path);
            work.files.insert(path);
        } else if mask.contains(EventMask::CREATE) {
            // A symlink or a hard link is whole at once; any other file was made to be written.
            if link || fs::symlink_metadata(&path).is_ok_and(|m| m.nlink() > 1) {
                work.files.insert(path);
            } else {
                self.writing.insert(path);
            }
        } else if mask.contains(EventMask::MODIFY) {
            work.files.remove(&path);
            self.writing.insert(path);
        } else if mask.contains(EventMask::ATTRIB) && !self.writing.contains(&path) {
            // It may have become readable.
            work.files.insert(path);
        }
    }
}
