//! The stages that bring sets into the maps and out of them.

use std::collections::BTreeSet;

use agent_common::GROUP_ANY;

use super::enforcement::{Dirty, Enforcement};
use super::peers::PeersId;
use super::sets::State;
use crate::desired::Delta;
use crate::model::{Direction, Protocol, Text};
use crate::problem::Problem;

impl Enforcement {
    /// Whether something in the maps may still point to what was given up: then no number is given out again, and sets that no pod
    /// should be judged by any more stay whole.
    pub(super) fn held(&self) -> bool {
        self.hold && !crate::mutant::removed("reuse-while-pointed")
    }

    /// Named ports that a set asks groups for.
    fn asked_ports(&self, number: u32) -> BTreeSet<(Text, Protocol)> {
        self.sets
            .all
            .get(&number)
            .filter(|set| set.key.direction == Direction::Egress)
            .into_iter()
            .flat_map(|set| &set.halves)
            .flat_map(|half| half.named_ports())
            .map(|(name, protocol)| (name.clone(), protocol))
            .collect()
    }

    /// Removes sets that no pod points to: the delta that turned the last pod away has been applied. Those that lost their last
    /// pod in this update stay for one more delta. The lists of peers that went out of use.
    pub(super) fn collect_sets(
        &mut self,
        dirty: &mut Dirty,
        delta: &mut Delta,
    ) -> BTreeSet<PeersId> {
        let mut gone = BTreeSet::new();
        let held = self.held();
        let idle: Vec<u32> = self
            .sets
            .all
            .iter()
            .filter(|(_, set)| set.users == 0)
            .map(|(number, _)| *number)
            .collect();
        for set in self.sets.all.values_mut() {
            if set.users > 0 && set.state == State::Leaving {
                set.state = State::Live;
            }
        }
        for number in idle {
            let asked = self.asked_ports(number);
            let Some(set) = self.sets.all.get_mut(&number) else {
                continue;
            };
            if set.state == State::Live {
                set.state = State::Leaving;
                continue;
            }
            if set.state == State::Leaving && held {
                continue;
            }
            if set.state == State::Leaving {
                let groups = self
                    .groups
                    .all
                    .iter()
                    .filter(|(_, group)| !group.refused)
                    .map(|(number, group)| Some((*number, &group.key)));
                for group in groups.chain([None]) {
                    for (key, _) in set.entries(number, group) {
                        delta.rules.insert(key, None);
                        self.rules = self.rules.saturating_sub(1);
                    }
                }
                self.sets.numbers.give(number);
            } else {
                // Never in the maps.
                self.sets.numbers.give(number);
            }
            let Some(set) = self.sets.all.remove(&number) else {
                continue;
            };
            self.sets.by_key.remove(&set.key);
            self.names.release(&set.key.default_name());
            for half in &set.halves {
                self.recut_due |= self.vocabulary.remove(&half.words);
            }
            if set.peers.is_some() {
                for word in asked {
                    if let Some(count) = self.ports.get_mut(&word) {
                        *count -= 1;
                        if *count == 0 {
                            self.ports.remove(&word);
                            dirty.ports = true;
                        }
                    }
                }
            }
            for id in set.peers.into_iter().flatten().flatten() {
                if let Some(peers) = self.peers.release(id) {
                    gone.insert(id);
                    for key in self.prefixes.remove(id, &peers) {
                        self.reprefix(key, dirty, delta);
                    }
                }
            }
        }
        gone
    }

    /// Takes the peers of new sets into use, where their prefixes fit.
    pub(super) fn bind_sets(
        &mut self,
        dirty: &mut Dirty,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        let capacity = self.options.limits.prefixes;
        let unbound: Vec<u32> = self
            .sets
            .all
            .iter()
            .filter(|(_, set)| set.peers.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in unbound {
            let asked = self.asked_ports(number);
            let Some(set) = self.sets.all.get_mut(&number) else {
                continue;
            };
            let missing: usize = set
                .rules()
                .filter_map(|rule| rule.peers.as_ref())
                .map(|peers| self.prefixes.missing(peers))
                .sum();
            if self.trie.len() + missing > capacity as usize {
                problems.push(Problem::full(set.key.default_name(), "prefixes", capacity));
                continue;
            }
            let lists: Vec<_> = set.rules().map(|rule| rule.peers.clone()).collect();
            let mut ids = Vec::with_capacity(lists.len());
            for peers in lists {
                let Some(peers) = peers else {
                    ids.push(None);
                    continue;
                };
                let (id, new) = self.peers.acquire(&peers);
                ids.push(Some(id));
                if new {
                    dirty.peers.insert(id);
                    for key in self.prefixes.add(id, &peers) {
                        self.reprefix(key, dirty, delta);
                    }
                }
            }
            if let Some(set) = self.sets.all.get_mut(&number) {
                set.peers = Some(ids);
            }
            for word in asked {
                let count = self.ports.entry(word).or_insert(0);
                dirty.ports |= *count == 0;
                *count += 1;
            }
        }
    }

    /// Rules of new groups for the sets that are there, and of new sets for all groups.
    pub(super) fn write_rules(&mut self, delta: &mut Delta, problems: &mut Vec<Problem>) {
        let capacity = self.options.limits.rules;
        let mut fresh = std::mem::take(&mut self.groups.new);
        fresh.extend(std::mem::take(&mut self.groups.waiting));
        for number in fresh {
            let Some(group) = self.groups.all.get_mut(&number) else {
                continue;
            };
            let mut rules = Vec::new();
            for (set_number, set) in &self.sets.all {
                if set.state != State::Waiting {
                    rules.extend(set.entries(*set_number, Some((number, &group.key))));
                }
            }
            group.refused = self.rules + rules.len() > capacity as usize;
            if group.refused {
                self.groups.waiting.insert(number);
                problems.push(Problem::full(
                    format!(
                        "the rules of {} policies for a group of pods",
                        group.key.peers.len()
                    ),
                    "rules",
                    capacity,
                ));
                continue;
            }
            self.rules += rules.len();
            for (key, verdict) in rules {
                delta.rules.insert(key, Some(verdict));
            }
        }
        for (number, set) in &mut self.sets.all {
            if set.state != State::Waiting || set.peers.is_none() {
                continue;
            }
            let mut rules = set.entries(*number, None);
            for (group_number, group) in &self.groups.all {
                if !group.refused && *group_number != GROUP_ANY {
                    rules.extend(set.entries(*number, Some((*group_number, &group.key))));
                }
            }
            if self.rules + rules.len() > capacity as usize {
                problems.push(Problem::full(set.key.default_name(), "rules", capacity));
                continue;
            }
            self.rules += rules.len();
            set.state = State::Live;
            set.fresh = true;
            for (key, verdict) in rules {
                delta.rules.insert(key, Some(verdict));
            }
        }
    }
}
