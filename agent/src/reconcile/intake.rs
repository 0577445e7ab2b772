//! What the sources and netlink tell, on its way into the cluster.

use std::sync::Arc;

use super::Reconciler;
use crate::local::Local;
use crate::model::ObjectId;
use crate::source::{Event, Rejected};

impl Reconciler {
    pub(super) fn take(&mut self, event: Event) {
        self.dirty_snapshot = true;
        // Also what is not applied yet is known: before the first apply that is everything.
        self.state = None;
        match event {
            Event::Upsert(object) => {
                let id = object.id();
                self.forget(&id);
                self.counts.events += 1;
                self.changes.extend(self.cluster.upsert(object));
            }
            Event::Delete(id) => {
                self.forget(&id);
                self.counts.events += 1;
                self.changes.extend(self.cluster.delete(&id));
            }
            Event::Rejected(rejected) => {
                self.rejected.insert(name(&rejected), rejected);
            }
            Event::Notice(notice) => {
                self.source_notices.insert(name(&notice), notice);
            }
            Event::Mended(object) => {
                self.rejected.remove(&object);
            }
            Event::Synced(kind) => {
                let state = self.kinds.entry(kind).or_default();
                state.synced = true;
                state.stale = None;
            }
            Event::Stale {
                kind,
                since,
                reason,
            } => {
                self.kinds.entry(kind).or_default().stale = Some((since, reason));
            }
        }
    }

    /// A good version of an object, or its end, ends what was said of it.
    fn forget(&mut self, id: &ObjectId) {
        let name = id.to_string();
        self.rejected.remove(&name);
        self.source_notices.remove(&name);
    }

    pub(super) fn take_local(&mut self, local: &Option<Arc<Local>>) {
        if let Some(local) = local
            && (!self.local_known || **local != self.local)
        {
            self.local = local.as_ref().clone();
            self.local_known = true;
            self.local_changed = true;
            self.dirty_snapshot = true;
            self.state = None;
        }
    }

    pub(super) fn complete(&self) -> bool {
        let synced = self.kinds.values().all(|kind| kind.synced);
        self.local_known && (synced || crate::mutant::removed("prune-before-sync"))
    }
}

fn name(rejected: &Rejected) -> String {
    match &rejected.id {
        Some(id) => id.to_string(),
        None => rejected.object.clone(),
    }
}
