//! The blocking half of the source: lists, reads and parses, and keeps what the files say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use inotify::Watches;

use super::files::{Loaded, Stamp, is_full, load, stamp};
use super::store::Store;
use super::tree::{RawEvent, Tree, Work};
use crate::source::Event;

/// The directory, its files, and what they say.
pub(super) struct Worker {
    tree: Tree,
    store: Store,
    /// What each file looked like just before it was read.
    stamps: HashMap<PathBuf, Option<Stamp>>,
    /// Files that were written when there was no room, and what they looked like: they count when they are written again.
    cut: HashMap<PathBuf, Option<Stamp>>,
    /// To be looked at.
    work: Work,
    /// The file system on which the directory was when it was last read.
    device: Option<u64>,
    /// Whether everything was looked at once. Until then there is nothing that could be better than what is there.
    looked: bool,
    /// Whether the last look at the directories failed: then the next one is at all of them.
    failed: bool,
}

impl Worker {
    /// A worker that has not looked yet.
    pub(super) fn new(root: PathBuf, watches: Watches) -> Self {
        Self {
            tree: Tree::new(root, watches),
            store: Store::default(),
            stamps: HashMap::new(),
            cut: HashMap::new(),
            work: Work::everything(),
            device: None,
            looked: false,
            failed: false,
        }
    }

    /// Takes events in. True where what they are about may not be over: more is to be waited for before [`Worker::look`].
    pub(super) fn take(&mut self, events: &[RawEvent]) -> bool {
        for event in events {
            self.tree.take(event, &mut self.work);
        }
        let gone = |path: &PathBuf| self.stamps.contains_key(path) && stamp(path).is_none();
        let unsettled = self.work.unsettled || self.work.files.iter().any(gone);
        unsettled && !crate::mutant::removed("vanished-at-once")
    }

    /// Everything is to be looked at.
    pub(super) fn doubt(&mut self) {
        self.work = Work::everything();
    }

    /// Looks at what is to be looked at, and tells what is different.
    ///
    /// # Errors
    /// One line for people, where a directory cannot be read. Then nothing changes.
    pub(super) fn look(&mut self) -> Result<Vec<Event>, String> {
        let mut work = std::mem::take(&mut self.work);
        // Files that changed while the directory could not be read are seen by their stamps.
        work.rescan |= self.failed;
        if work.is_empty() {
            return Ok(Vec::new());
        }
        if work.rescan {
            self.failed = true;
            let found = self.tree.scan()?;
            if found.is_empty() && !self.is_same_place() {
                return Err(format!(
                    "directory {}: it is on another file system than before, and there is no manifest there; mount what was \
                     there again, or restart the agent if there are to be none",
                    self.tree.root().display()
                ));
            }
            self.device = self.tree.device();
            self.failed = false;
            let gone: Vec<PathBuf> = self
                .store
                .paths()
                .filter(|path| !found.contains(*path))
                .map(Path::to_owned)
                .collect();
            work.files.extend(gone);
            for path in found {
                let same = !work.reread
                    && self
                        .stamps
                        .get(&path)
                        .is_some_and(|s| s.is_some() && *s == stamp(&path));
                if !same && !self.tree.is_being_written(&path) {
                    work.files.insert(path);
                }
            }
        }
        for path in work.files {
            self.read(path);
        }
        self.looked = true;
        Ok(self.store.flush())
    }

    /// Whether an empty directory is one that was emptied. Behind a mount that is gone lies another one, which nobody emptied.
    fn is_same_place(&self) -> bool {
        crate::mutant::removed("unmounted-is-empty")
            || self.store.paths().next().is_none()
            || self.device == self.tree.device()
    }

    fn read(&mut self, path: PathBuf) {
        // Before reading: what is written meanwhile makes the next look different.
        let stamp = stamp(&path);
        if self.is_cut(&path, stamp) {
            let reason =
                "the file system is full, so it may be cut short; make room, and write it again";
            self.store.put_broken(&path, reason.to_owned());
            self.stamps.insert(path.clone(), stamp);
            self.cut.insert(path, stamp);
            return;
        }
        self.cut.remove(&path);
        match load(&path) {
            Loaded::Contents(contents) => self.store.put(&path, contents),
            Loaded::Broken(reason) => self.store.put_broken(&path, reason),
            Loaded::Gone => {
                self.store.remove(&path);
                self.stamps.remove(&path);
                return;
            }
        }
        self.stamps.insert(path, stamp);
    }

    /// Whether a file was written when there was no room for it.
    fn is_cut(&self, path: &Path, stamp: Option<Stamp>) -> bool {
        if !self.looked || stamp.is_none() || crate::mutant::removed("full-disk-counts") {
            return false;
        }
        let before = |stamps: &HashMap<PathBuf, Option<Stamp>>| stamps.get(path) == Some(&stamp);
        before(&self.cut) || (!before(&self.stamps) && is_full(path))
    }
}
