//! The blocking half of the source: lists, reads and parses, and keeps what the files say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use inotify::Watches;

use super::files::{Loaded, Stamp, load, stamp};
use super::store::Store;
use super::tree::{RawEvent, Tree, Work};
use crate::source::Event;

/// The directory, its files, and what they say.
pub(super) struct Worker {
    tree: Tree,
    store: Store,
    /// What each file looked like just before it was read.
    stamps: HashMap<PathBuf, Option<Stamp>>,
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
            failed: false,
        }
    }

    /// Takes events in, and looks at what they are about.
    ///
    /// # Errors
    /// As [`Worker::look`].
    pub(super) fn take(&mut self, events: &[RawEvent]) -> Result<Vec<Event>, String> {
        let mut work = Work::default();
        for event in events {
            self.tree.take(event, &mut work);
        }
        self.look(work)
    }

    /// Looks at what is to be looked at, and tells what is different.
    ///
    /// # Errors
    /// One line for people, where a directory cannot be read. Then nothing changes.
    pub(super) fn look(&mut self, mut work: Work) -> Result<Vec<Event>, String> {
        // Files that changed while the directory could not be read are seen by their stamps.
        work.rescan |= self.failed;
        if work.is_empty() {
            return Ok(Vec::new());
        }
        if work.rescan {
            self.failed = true;
            let found = self.tree.scan()?;
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
        Ok(self.store.flush())
    }

    fn read(&mut self, path: PathBuf) {
        // Before reading: what is written meanwhile makes the next look different.
        let stamp = stamp(&path);
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
}
