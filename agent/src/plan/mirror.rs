//! What the kernel accepted, with the indexes that planning needs.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{RuleKey, ServiceKey};

use crate::datapath::{Bits, Contents, Write};

/// The mirror of the kernel's maps.
#[derive(Clone, Default, Debug)]
pub(super) struct Mirror {
    pub(super) contents: Contents,
    /// How many rules of a set speak of a group, by (group, set).
    speaks: BTreeMap<(u32, u32), usize>,
    /// Frontends by pool number.
    frontends: BTreeMap<u32, BTreeSet<ServiceKey>>,
}

impl Mirror {
    pub(super) fn new(contents: Contents) -> Self {
        let mut mirror = Self::default();
        for key in contents.rules.keys() {
            mirror.count_rule(key, true);
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
                let had = self.contents.rules.contains_key(key);
                if had != value.is_some() {
                    self.count_rule(key, value.is_some());
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

    fn count_rule(&mut self, key: &Bits<RuleKey>, more: bool) {
        let index = (key.data.group, key.data.set);
        let count = self.speaks.entry(index).or_default();
        if more {
            *count += 1;
        } else {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.speaks.remove(&index);
            }
        }
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
