//! Groups: what rules can tell identities apart by. Identities that are the same to every set in use share one.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::GROUP_ANY;

use super::numbers::Numbers;
use super::peers::PeersId;
use crate::model::NamedPort;

/// What a group is: the lists of peers that its identities are in, and their named ports that sets in use ask for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct GroupKey {
    pub(super) peers: BTreeSet<PeersId>,
    pub(super) ports: Vec<NamedPort>,
}

impl GroupKey {
    /// Whether only rules for any peer speak of it.
    pub(super) fn is_any(&self) -> bool {
        self.peers.is_empty() && self.ports.is_empty()
    }
}

/// A group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    /// Identities.
    pub(super) users: u32,
    /// Its rules did not fit: identities are kept out of it.
    pub(super) refused: bool,
}

/// All groups but [`GROUP_ANY`].
#[derive(Clone, Debug)]
pub(super) struct Groups {
    pub(super) numbers: Numbers,
    pub(super) all: BTreeMap<u32, Group>,
    pub(super) by_key: BTreeMap<GroupKey, u32>,
    /// Made in this update.
    pub(super) new: BTreeSet<u32>,
    /// Those that nothing used at some time of this update.
    idle: BTreeSet<u32>,
    /// Those whose rules did not fit.
    pub(super) waiting: BTreeSet<u32>,
}

impl Groups {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            numbers: Numbers::new(1, u32::MAX),
            all: BTreeMap::new(),
            by_key: BTreeMap::new(),
            new: BTreeSet::new(),
            idle: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Takes a group into use, once more.
    pub(super) fn acquire(&mut self, key: GroupKey) -> u32 {
        if key.is_any() {
            return GROUP_ANY;
        }
        if let Some(number) = self.by_key.get(&key) {
            if let Some(group) = self.all.get_mut(number) {
                group.users += 1;
            }
            return *number;
        }
        // Numbers of groups are keys of a map, not places in an array: four billion do not run out.
        let Some(number) = self.numbers.take() else {
            return GROUP_ANY;
        };
        self.by_key.insert(key.clone(), number);
        self.all.insert(
            number,
            Group {
                key,
                users: 1,
                refused: false,
            },
        );
        self.new.insert(number);
        number
    }

    /// One use ends; the group stays until [`Self::sweep`].
    pub(super) fn release(&mut self, number: u32) {
        if let Some(group) = self.all.get_mut(&number) {
            group.users = group.users.saturating_sub(1);
            if group.users == 0 {
                self.idle.insert(number);
            }
        }
    }

    /// Lists of peers that no set uses any more are forgotten: a group without them keeps its number where no other has what is left,
    /// because its rules stay as they are.
    pub(super) fn forget(&mut self, gone: &BTreeSet<PeersId>) {
        let concerned: Vec<u32> = self
            .all
            .iter()
            .filter(|(_, group)| !group.key.peers.is_disjoint(gone))
            .map(|(number, _)| *number)
            .collect();
        for number in concerned {
            let Some(group) = self.all.get_mut(&number) else {
                continue;
            };
            let mut key = group.key.clone();
            key.peers.retain(|id| !gone.contains(id));
            if !key.is_any() && !self.by_key.contains_key(&key) {
                self.by_key.remove(&group.key);
                self.by_key.insert(key.clone(), number);
                group.key = key;
            }
        }
    }

    /// Whether the rules of any group did not fit.
    pub(super) fn refusing(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the groups out that nothing uses.
    pub(super) fn sweep(&mut self) -> BTreeMap<u32, Group> {
        let mut out = BTreeMap::new();
        for number in std::mem::take(&mut self.idle) {
            if self.all.get(&number).is_none_or(|group| group.users > 0) {
                continue;
            }
            if let Some(group) = self.all.remove(&number) {
                self.waiting.remove(&number);
                self.by_key.remove(&group.key);
                self.numbers.give(number);
                out.insert(number, group);
            }
        }
        out
    }
}
