//! What was told of a kind, so that a relist becomes a difference. No I/O.

use std::collections::BTreeSet;

use crate::model::{Kind, ObjectId};
use crate::source::objects::Converted;
use crate::source::{Event, Rejected};

/// The objects of one kind that were told and not deleted: those in force, and those that were rejected.
#[derive(Debug)]
pub(super) struct Known {
    kind: Kind,
    ids: BTreeSet<ObjectId>,
    /// Told by the list that is under way.
    listed: Option<BTreeSet<ObjectId>>,
}

impl Known {
    /// Nothing was told yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            ids: BTreeSet::new(),
            listed: None,
        }
    }

    /// A list begins; one that was under way is forgotten.
    pub(super) fn begin(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// An object is there, or is different, or cannot be taken (what was in force of it stays).
    pub(super) fn apply(&mut self, read: Result<Converted, Rejected>) -> Vec<Event> {
        match read {
            Ok(converted) => {
                let Converted {
                    id,
                    object,
                    notices,
                } = converted;
                let mut events = match object {
                    Some(object) => {
                        self.tell(id.clone());
                        vec![Event::Upsert(object)]
                    }
                    // Valid, but not for us; it may have been ours before.
                    None => self.delete(&id),
                };
                events.extend(notices.into_iter().map(|reason| {
                    Event::Notice(Rejected {
                        object: id.to_string(),
                        id: Some(id.clone()),
                        reason,
                    })
                }));
                events
            }
            Err(rejected) => {
                if let Some(id) = &rejected.id {
                    self.tell(id.clone());
                }
                vec![Event::Rejected(rejected)]
            }
        }
    }

    fn tell(&mut self, id: ObjectId) {
        if let Some(listed) = &mut self.listed {
            listed.insert(id.clone());
        }
        self.ids.insert(id);
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, id: &ObjectId) -> Vec<Event> {
        if let Some(listed) = &mut self.listed {
            listed.remove(id);
        }
        if self.ids.remove(id) {
            vec![Event::Delete(id.clone())]
        } else {
            Vec::new()
        }
    }

    /// The list is complete: what it did not have is gone.
    pub(super) fn complete(&mut self) -> Vec<Event> {
        let listed = self.listed.take().unwrap_or_default();
        let mut gone: Vec<ObjectId> = self.ids.difference(&listed).cloned().collect();
        if crate::mutant::removed("relist-without-deletes") {
            gone.clear();
        }
        self.ids = listed;
        let mut events: Vec<Event> = gone.into_iter().map(Event::Delete).collect();
        events.push(Event::Synced(self.kind));
        events
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Namespace, Object, ObjectKey, intern};

    fn id(name: &str) -> ObjectId {
        ObjectId {
            kind: Kind::Namespace,
            key: ObjectKey::new("", name),
        }
    }

    fn there(name: &str) -> Result<Converted, Rejected> {
        let object = Namespace {
            name: intern(name),
            labels: std::collections::BTreeMap::new(),
        };
        Ok(Converted {
            id: id(name),
            object: Some(Object::Namespace(Arc::new(object))),
            notices: Vec::new(),
        })
    }

    fn skipped(name: &str) -> Result<Converted, Rejected> {
        Ok(Converted {
            id: id(name),
            object: None,
            notices: vec!["not ours".to_owned()],
        })
    }

    fn bad(name: &str) -> Result<Converted, Rejected> {
        Err(Rejected {
            object: id(name).to_string(),
            id: Some(id(name)),
            reason: "bad".to_owned(),
        })
    }

    /// Events in short: `+a`, `-a`, `!a` rejected, `?a` notice, `=` synced.
    fn short(events: &[Event]) -> String {
        let words: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Upsert(object) => format!("+{}", object.id().key),
                Event::Delete(id) => format!("-{}", id.key),
                Event::Rejected(r) => format!("!{}", r.object.trim_start_matches("Namespace ")),
                Event::Notice(r) => format!("?{}", r.object.trim_start_matches("Namespace ")),
                Event::Synced(_) => "=".to_owned(),
                Event::Mended(_) | Event::Stale { .. } => "unexpected".to_owned(),
            })
            .collect();
        words.join(" ")
    }

    #[test]
    fn a_relist_deletes_what_it_does_not_have_and_only_that() {
        let mut known = Known::new(Kind::Namespace);
        known.begin();
        for name in ["a", "b", "c"] {
            assert_eq!(short(&known.apply(there(name))), format!("+{name}"));
        }
        assert_eq!(short(&known.complete()), "=");
        assert_eq!(short(&known.apply(there("d"))), "+d");
        assert_eq!(short(&known.delete(&id("a"))), "-a");
        known.begin();
        known.apply(there("c"));
        known.apply(there("e"));
        assert_eq!(short(&known.complete()), "-b -d =");
        known.begin();
        assert_eq!(
            short(&known.complete()),
            "-c -e =",
            "an empty list is an empty kind"
        );
    }

    #[test]
    fn nothing_is_deleted_by_a_list_that_was_cut_off() {
        let mut known = Known::new(Kind::Namespace);
        known.begin();
        known.apply(there("a"));
        known.apply(there("b"));
        known.complete();
        known.begin();
        known.apply(there("x"));
        // The continue token expired (410): the list begins again, and x is gone by then.
        known.begin();
        known.apply(there("a"));
        known.apply(there("b"));
        assert_eq!(short(&known.complete()), "-x =");
    }

    #[test]
    fn a_rejected_object_is_not_a_vanished_one() {
        let mut known = Known::new(Kind::Namespace);
        known.begin();
        known.apply(there("a"));
        known.complete();
        known.begin();
        assert_eq!(short(&known.apply(bad("a"))), "!a");
        assert_eq!(short(&known.apply(bad("never-good"))), "!never-good");
        assert_eq!(short(&known.complete()), "=");
        // Their deletion ends the rejection.
        assert_eq!(short(&known.delete(&id("a"))), "-a");
        assert_eq!(short(&known.delete(&id("never-good"))), "-never-good");
    }

    #[test]
    fn one_that_is_no_longer_ours_is_deleted_once() {
        let mut known = Known::new(Kind::Namespace);
        known.begin();
        known.apply(there("a"));
        known.complete();
        assert_eq!(short(&known.apply(skipped("a"))), "-a ?a");
        assert_eq!(short(&known.apply(skipped("a"))), "?a");
        known.begin();
        known.apply(skipped("a"));
        assert_eq!(short(&known.complete()), "=");
    }
}
