//! What the kernel accepted, with the indexes that planning needs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use agent_common::{
    Backend, GroupEntry, Pod, RuleKey, ServiceKey, Verdict, action, backend_state, pod_flag,
};

use crate::datapath::{Bits, Contents, Write};
use crate::model::Few;

/// The mirror of the kernel's maps.
#[derive(Clone, Default, Debug)]
pub(super) struct Mirror {
    pub(super) contents: Contents,
    /// How many rules of a set speak of a group, by (group, set).
    speaks: BTreeMap<(u32, u32), usize>,
    /// How many of them do not allow.
    denies: BTreeMap<(u32, u32), usize>,
    /// How many addresses and prefixes have an identity.
    holders: BTreeMap<u32, usize>,
    /// How many identities belong to a group.
    members: BTreeMap<u32, usize>,
    /// Backends that are not gone.
    pub(super) alive: usize,
    /// Slots of pods in use.
    pub(super) plugged: usize,
    /// Frontends by pool number.
    frontends: BTreeMap<u32, Few<ServiceKey>>,
}

const fn alive(backend: &Backend) -> bool {
    backend.word.state != backend_state::GONE
}

const fn plugged(pod: &Pod) -> bool {
    pod.flags & pod_flag::USED != 0
}

fn count<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, more: bool) {
    let entry = counts.entry(key);
    if more {
        *entry.or_default() += 1;
    } else if let Entry::Occupied(mut entry) = entry {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

impl Mirror {
    pub(super) fn new(contents: Contents) -> Self {
        let mut mirror = Self::default();
        for (key, verdict) in &contents.rules {
            mirror.count_rule(key, verdict, true);
        }
        let addresses = contents.addresses.values().map(|entry| entry.identity);
        let prefixes = contents.prefixes.values().map(|entry| entry.identity);
        for identity in addresses.chain(prefixes) {
            count(&mut mirror.holders, identity, true);
        }
        mirror.alive = contents.backends.values().filter(|b| alive(b)).count();
        mirror.plugged = contents.pods.values().filter(|p| plugged(p)).count();
        for entry in contents.groups.values() {
            *mirror.members.entry(entry.group).or_default() += 1;
        }
        for (key, entry) in &contents.services {
            mirror.frontends.entry(entry.pool).or_default().insert(*key);
        }
        mirror.contents = contents;
        mirror
    }

    pub(super) fn apply(&mut self, write: &Write) {
        match write {
            Write::Rule(key, value) => {
                if let Some(before) = self.contents.rules.get(key).copied() {
                    self.count_rule(key, &before, false);
                }
                if let Some(after) = value {
                    self.count_rule(key, after, true);
                }
            }
            Write::Address(key, after) => {
                let before = self.contents.addresses.get(key).map(|e| e.identity);
                self.hold(before, after.map(|e| e.identity));
            }
            Write::Prefix(key, after) => {
                let before = self.contents.prefixes.get(key).map(|e| e.identity);
                self.hold(before, after.map(|e| e.identity));
            }
            Write::Group(identity, after) => {
                if let Some(before) = self.contents.groups.get(identity).copied() {
                    count(&mut self.members, before.group, false);
                }
                if *after != GroupEntry::default() {
                    count(&mut self.members, after.group, true);
                }
            }
            Write::Service(key, value) => {
                if let Some(before) = self.contents.services.get(key)
                    && let Some(keys) = self.frontends.get_mut(&before.pool)
                {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.frontends.remove(&before.pool);
                    }
                }
                if let Some(entry) = value {
                    self.frontends.entry(entry.pool).or_default().insert(*key);
                }
            }
            _ => {}
        }
        let before = self.counted(write);
        self.contents.apply(write);
        let after = self.counted(write);
        self.alive = self.alive - before.0 + after.0;
        self.plugged = self.plugged - before.1 + after.1;
    }

    fn hold(&mut self, before: Option<u32>, after: Option<u32>) {
        if let Some(identity) = before {
            count(&mut self.holders, identity, false);
        }
        if let Some(identity) = after {
            count(&mut self.holders, identity, true);
        }
    }

    /// Addresses and prefixes that have an identity.
    pub(super) fn holders(&self, identity: u32) -> usize {
        self.holders.get(&identity).copied().unwrap_or(0)
    }

    /// What a write's element counts as: a living backend, a pod's slot in use.
    fn counted(&self, write: &Write) -> (usize, usize) {
        let maps = &self.contents;
        match write {
            Write::Backend(number, _) | Write::BackendWord(number, _) => {
                (maps.backends.get(number).is_some_and(alive).into(), 0)
            }
            Write::Pod(slot, _) | Write::PodFacts(slot, _) => {
                (0, maps.pods.get(slot).is_some_and(plugged).into())
            }
            _ => (0, 0),
        }
    }

    fn count_rule(&mut self, key: &Bits<RuleKey>, verdict: &Verdict, more: bool) {
        let index = (key.data.group, key.data.set);
        count(&mut self.speaks, index, more);
        if verdict.action & action::MASK != action::ALLOW {
            count(&mut self.denies, index, more);
        }
    }

    /// Identities that belong to a group.
    pub(super) fn members(&self, group: u32) -> i64 {
        let members = self.members.get(&group).copied().unwrap_or(0);
        i64::try_from(members).unwrap_or(i64::MAX)
    }

    /// The first group number behind all that anything has or speaks of.
    pub(super) fn staged(&self) -> u32 {
        let spoken = self
            .speaks
            .keys()
            .next_back()
            .map_or(0, |(group, _)| *group);
        let had = self.members.keys().next_back().copied().unwrap_or(0);
        spoken.max(had).saturating_add(1)
    }

    /// Sets that have rules for a group which do not allow.
    pub(super) fn sets_against(&self, group: u32) -> impl Iterator<Item = u32> + '_ {
        let all = (group, 0)..=(group, u32::MAX);
        self.denies.range(all).map(|((_, set), _)| *set)
    }

    /// Sets that have rules for a group.
    pub(super) fn sets_for(&self, group: u32) -> impl Iterator<Item = u32> + '_ {
        let all = (group, 0)..=(group, u32::MAX);
        self.speaks.range(all).map(|((_, set), _)| *set)
    }

    /// Frontends that lead to a pool.
    pub(super) fn frontends_of(&self, pool: u32) -> impl Iterator<Item = &ServiceKey> {
        self.frontends.get(&pool).into_iter().flatten()
    }
}
