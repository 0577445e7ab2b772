//! What the kernel accepted, with the indexes that planning needs.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use agent_common::{GroupEntry, RuleKey, ServiceKey, Verdict, action};

use crate::datapath::{Bits, Contents, Write};

/// The mirror of the kernel's maps.
#[derive(Clone, Default, Debug)]
pub(super) struct Mirror {
    pub(super) contents: Contents,
    /// How many rules of a set speak of a group, by (group, set).
    speaks: BTreeMap<(u32, u32), usize>,
    /// How many of them do not allow.
    denies: BTreeMap<(u32, u32), usize>,
    /// How many identities belong to a group.
    members: BTreeMap<u32, usize>,
    /// Frontends by pool number.
    frontends: BTreeMap<u32, BTreeSet<ServiceKey>>,
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
            Write::Group(identity, after) => {
                if let Some(before) = self.contents.groups.get(identity).copied() {
                    count(&mut self.members, before.group, false);
                }
                if *after != GroupEntry::default() {
                    count(&mut self.members, after.group, true);
                }
            }
            Write::Service(key, value) => {
                if let Some(before) = self.contents.services.get(key) {
                    if let Some(keys) = self.frontends.get_mut(&before.pool) {
                        keys.remove(key);
                        if keys.is_empty() {
                            self.frontends.remove(&before.pool);
                        }
                    }
                }
                if let Some(entry) = value {
                    self.frontends.entry(entry.pool).or_default().insert(*key);
                }
            }
            _ => {}
        }
        self.contents.apply(write);
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
