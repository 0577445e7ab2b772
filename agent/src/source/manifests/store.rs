//! What each file says, and what that makes of each object. No I/O: contents in, events out.
//!
//! An object counts from the first file, in path order, that has a good version of it. Changes are gathered and told by
//! [`Store::flush`] together, so that an object that moved from one file to another is never gone in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::parse::Contents;
use crate::model::{Object, ObjectId};
use crate::source::{Event, Rejected};

/// The last good version of an object in a file.
#[derive(Clone, PartialEq, Debug)]
struct Entry {
    /// None where it is valid but not for us.
    object: Option<Object>,
    notices: Vec<String>,
}

/// What a file says, with what stays in force of its earlier contents.
#[derive(Default, Debug)]
struct FileState {
    objects: BTreeMap<ObjectId, Entry>,
    /// Objects that the file has, but not as good ones, and why.
    rejected: BTreeMap<ObjectId, String>,
    /// Why the file cannot be read whole.
    broken: Option<String>,
}

impl FileState {
    fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects.keys().chain(self.rejected.keys())
    }
}

/// What was told of an object last.
#[derive(Clone, Default, PartialEq, Debug)]
struct Told {
    object: Option<Object>,
    rejection: Option<String>,
    notices: Vec<String>,
}

/// The files.
#[derive(Default, Debug)]
pub(super) struct Store {
    files: BTreeMap<PathBuf, FileState>,
    /// Files that have an object, as a good one or not.
    mentions: BTreeMap<ObjectId, BTreeSet<PathBuf>>,
    told: BTreeMap<ObjectId, Told>,
    told_broken: BTreeMap<PathBuf, String>,
    /// Changed since the last flush.
    dirty: BTreeSet<ObjectId>,
    dirty_files: BTreeSet<PathBuf>,
    /// Kinds whose notice is due, and those that had it.
    kinds_due: BTreeMap<String, PathBuf>,
    kinds_told: BTreeSet<String>,
}

impl Store {
    /// The files that are known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// A file says this now. What it said before stays where this is broken.
    pub(super) fn put(&mut self, path: &Path, contents: Contents) {
        let mut old = self.files.remove(path).unwrap_or_default();
        let mut new = FileState {
            broken: (!contents.broken.is_empty()).then(|| contents.broken.join("; ")),
            ..FileState::default()
        };
        for converted in contents.objects {
            if new.objects.contains_key(&converted.id) {
                let reason =
                    "it stands in the file more than once; the first counts, remove the others"
                        .to_owned();
                new.rejected.insert(converted.id, reason);
                continue;
            }
            let entry = Entry {
                object: converted.object,
                notices: converted.notices,
            };
            new.objects.insert(converted.id, entry);
        }
        for rejected in contents.rejected {
            let Some(id) = rejected.id else { continue };
            if !new.objects.contains_key(&id)
                && let Some(entry) = old.objects.remove(&id)
            {
                new.objects.insert(id.clone(), entry);
            }
            new.rejected.insert(id, rejected.reason);
        }
        self.dirty.extend(old.ids().cloned());
        if new.broken.is_some() {
            for (id, entry) in std::mem::take(&mut old.objects) {
                new.objects.entry(id).or_insert(entry);
            }
            for (id, reason) in std::mem::take(&mut old.rejected) {
                if !new.objects.contains_key(&id) {
                    new.rejected.entry(id).or_insert(reason);
                }
            }
        }
        for kind in contents.other_kinds {
            if !self.kinds_told.contains(&kind) {
                self.kinds_due
                    .entry(kind)
                    .or_insert_with(|| path.to_owned());
            }
        }
        self.dirty.extend(new.ids().cloned());
        self.dirty_files.insert(path.to_owned());
        self.index(path, &old, &new);
        self.files.insert(path.to_owned(), new);
    }

    /// A file is there, but cannot be read: what it said stays.
    pub(super) fn put_broken(&mut self, path: &Path, reason: String) {
        let contents = Contents {
            broken: vec![reason],
            ..Contents::default()
        };
        self.put(path, contents);
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, path: &Path) {
        let Some(old) = self.files.remove(path) else {
            return;
        };
        self.dirty.extend(old.ids().cloned());
        self.dirty_files.insert(path.to_owned());
        self.index(path, &old, &FileState::default());
    }

    fn index(&mut self, path: &Path, old: &FileState, new: &FileState) {
        for id in old.ids() {
            if !new.objects.contains_key(id)
                && !new.rejected.contains_key(id)
                && let Some(files) = self.mentions.get_mut(id)
            {
                files.remove(path);
                if files.is_empty() {
                    self.mentions.remove(id);
                }
            }
        }
        for id in new.ids() {
            let files = self.mentions.entry(id.clone()).or_default();
            files.insert(path.to_owned());
        }
    }

    /// Tells what has changed since the last time: of objects in the order of kinds and names, then of files.
    pub(super) fn flush(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            self.tell(id, &mut events);
        }
        for path in std::mem::take(&mut self.dirty_files) {
            self.tell_file(path, &mut events);
        }
        for (kind, path) in std::mem::take(&mut self.kinds_due) {
            events.push(Event::Notice(Rejected {
                object: kind.clone(),
                id: None,
                reason: format!(
                    "Sluice does not read this kind; it is skipped, in {} and elsewhere",
                    path.display()
                ),
            }));
            self.kinds_told.insert(kind);
        }
        events
    }

    /// What holds of an object now.
    fn judge(&self, id: &ObjectId) -> Told {
        let mut now = Told::default();
        let mut winner: Option<&Path> = None;
        let mut reasons = Vec::new();
        for path in self.mentions.get(id).into_iter().flatten() {
            let Some(file) = self.files.get(path) else {
                continue;
            };
            if let Some(reason) = file.rejected.get(id) {
                reasons.push(format!("{reason} (in {})", path.display()));
            }
            match (file.objects.get(id), winner) {
                (None, _) => {}
                (Some(entry), None) => {
                    winner = Some(path);
                    now.object.clone_from(&entry.object);
                    now.notices.clone_from(&entry.notices);
                }
                (Some(_), Some(first)) => reasons.push(format!(
                    "{} has it too; {} comes first in path order and counts, remove one",
                    path.display(),
                    first.display()
                )),
            }
        }
        now.rejection = (!reasons.is_empty()).then(|| reasons.join("; "));
        now
    }

    fn tell(&mut self, id: ObjectId, events: &mut Vec<Event>) {
        let now = self.judge(&id);
        let before = self.told.remove(&id).unwrap_or_default();
        // A rejection ends with a good version or a deletion, and so one of them is told again where a rejection ends.
        let mended = before.rejection.is_some() && now.rejection != before.rejection;
        let retold = now.object != before.object || mended;
        if retold {
            events.push(match &now.object {
                Some(object) => Event::Upsert(object.clone()),
                None => Event::Delete(id.clone()),
            });
        }
        if let Some(reason) = &now.rejection
            && (retold || now.rejection != before.rejection)
        {
            events.push(Event::Rejected(about(&id, reason)));
        }
        if retold || now.notices != before.notices {
            let notices = now.notices.iter();
            events.extend(notices.map(|reason| Event::Notice(about(&id, reason))));
        }
        if now != Told::default() {
            self.told.insert(id, now);
        }
    }

    fn tell_file(&mut self, path: PathBuf, events: &mut Vec<Event>) {
        let now = self.files.get(&path).and_then(|file| file.broken.clone());
        let object = path.display().to_string();
        match now {
            Some(reason) => {
                let before = self.told_broken.insert(path, reason.clone());
                if before.as_ref() != Some(&reason) {
                    events.push(Event::Rejected(Rejected {
                        object,
                        id: None,
                        reason: format!("{reason}; what the file said before stays in force"),
                    }));
                }
            }
            None => {
                if self.told_broken.remove(&path).is_some() {
                    events.push(Event::Mended(object));
                }
            }
        }
    }
}

fn about(id: &ObjectId, reason: &str) -> Rejected {
    Rejected {
        object: id.to_string(),
        id: Some(id.clone()),
        reason: reason.to_owned(),
    }
}
