//! A restart: numbers are taken over from what the maps say, by correspondence, so that an unchanged cluster
//! differs from the maps in nothing, and a changed one only in its changes.
//!
//! The cluster has been compiled once with numbers of its own. What stands for the same thing in the maps is looked for (the
//! same link, the same addresses, the same rules), everything is renumbered to that, and the rest gets numbers that the maps do not hold.
//! A number is taken over only where it cannot mean anything else: an identity whose addresses all became one identity, a group
//! whose identities all became one group, a set that says the same.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{
    Address, GROUP_ANY, GroupEntry, IDENTITY_UNKNOWN, LinkEntry, PrefixEntry, RuleKey, Verdict,
};

use super::enforcement::Enforcement;
use super::sets::State;
use crate::datapath::{Bits, Contents};
use crate::desired::{Delta, STAGED_GROUPS, STAGED_IDENTITIES};

/// Ours to theirs.
type Renumbering = BTreeMap<u32, u32>;

/// Pairs of numbers that stand for the same thing in some place, counted.
#[derive(Default)]
struct Votes {
    ours: BTreeMap<u32, BTreeMap<u32, u32>>,
    theirs: BTreeMap<u32, BTreeSet<Option<u32>>>,
}

impl Votes {
    /// `theirs` is `ours` now; None: something that `ours` has no number for.
    fn vote(&mut self, ours: Option<u32>, theirs: u32) {
        self.theirs.entry(theirs).or_default().insert(ours);
        if let Some(ours) = ours {
            *self
                .ours
                .entry(ours)
                .or_default()
                .entry(theirs)
                .or_insert(0) += 1;
        }
    }

    /// For each of ours the one of theirs that became nothing else, the most voted of them.
    fn count(&self) -> Renumbering {
        self.ours
            .iter()
            .filter_map(|(ours, votes)| {
                votes
                    .iter()
                    .filter(|(theirs, _)| self.theirs.get(theirs).is_some_and(|o| o.len() == 1))
                    .max_by_key(|(_, count)| **count)
                    .map(|(theirs, _)| (*ours, *theirs))
            })
            .collect()
    }
}

/// Gives a number that is not in use to each of ours that has none.
fn complete(
    mut map: Renumbering,
    ours: impl Iterator<Item = u32>,
    used: &BTreeSet<u32>,
    first: u32,
) -> Renumbering {
    let mut next = first;
    for number in ours {
        map.entry(number).or_insert_with(|| {
            while used.contains(&next) {
                next += 1;
            }
            next += 1;
            next - 1
        });
    }
    map
}

fn renumbered<V>(table: BTreeMap<u32, V>, map: &Renumbering) -> BTreeMap<u32, V> {
    table
        .into_iter()
        .map(|(number, value)| (of(map, number), value))
        .collect()
}

/// 0 and what is not in the map stay what they are.
fn of(map: &Renumbering, number: u32) -> u32 {
    map.get(&number).copied().unwrap_or(number)
}

impl Enforcement {
    /// Renumbers what the first update made, and makes its delta the whole of it; the plan finds the
    /// difference.
    pub(super) fn take_over(&mut self, contents: &Contents, delta: &mut Delta) {
        let mut rules: BTreeMap<u32, BTreeMap<Bits<RuleKey>, Verdict>> = BTreeMap::new();
        for (key, verdict) in &contents.rules {
            rules
                .entry(key.data.set)
                .or_default()
                .insert(*key, *verdict);
        }
        let slots = self.match_slots(contents);
        let identities = self.match_identities(contents);
        let groups = self.match_groups(contents, &identities);
        let sets = self.match_sets(contents, &slots, &groups, &rules);

        let used_slots: BTreeSet<u32> = contents
            .links
            .values()
            .map(|entry| entry.slot)
            .chain(contents.pods.keys().copied())
            .collect();
        let used_identities: BTreeSet<u32> = contents
            .addresses
            .values()
            .map(|entry| entry.identity)
            .chain(contents.prefixes.values().map(|entry| entry.identity))
            .chain(contents.groups.keys().copied())
            .filter(|number| *number != IDENTITY_UNKNOWN && *number < STAGED_IDENTITIES)
            .collect();
        let used_groups: BTreeSet<u32> = contents
            .groups
            .values()
            .map(|entry| entry.group)
            .chain(contents.rules.keys().map(|key| key.data.group))
            .filter(|number| *number != GROUP_ANY && *number < STAGED_GROUPS)
            .collect();
        let used_sets: BTreeSet<u32> = rules
            .keys()
            .copied()
            .chain(
                contents
                    .pods
                    .values()
                    .flat_map(|pod| [pod.egress.set, pod.ingress.set]),
            )
            .filter(|number| *number != 0)
            .collect();
        let our_slots: Vec<u32> = self.links.values().filter_map(|link| link.slot).collect();
        let slots = complete(slots, our_slots.into_iter(), &used_slots, 0);
        let identities = complete(
            identities,
            self.identities.all.keys().copied(),
            &used_identities,
            1,
        );
        let groups = complete(groups, self.groups.all.keys().copied(), &used_groups, 1);
        let sets = complete(sets, self.sets.all.keys().copied(), &used_sets, 1);
        self.renumber(&slots, &identities, &groups, &sets);

        let leave = |map: &Renumbering, used: &BTreeSet<u32>| -> (BTreeSet<u32>, BTreeSet<u32>) {
            let taken: BTreeSet<u32> = map.values().copied().collect();
            let leaving = used.difference(&taken).copied().collect();
            (taken, leaving)
        };
        let (taken, leaving) = leave(&slots, &used_slots);
        self.slots.restore(0, &taken, &leaving);
        let (taken, leaving) = leave(&identities, &used_identities);
        self.identities.numbers.restore(1, &taken, &leaving);
        let (taken, leaving) = leave(&groups, &used_groups);
        self.groups.numbers.restore(1, &taken, &leaving);
        let (taken, leaving) = leave(&sets, &used_sets);
        self.sets.numbers.restore(1, &taken, &leaving);

        self.whole(delta);
        self.bridge(contents, &leaving, &used_groups, &rules, delta);
    }

    fn match_slots(&self, contents: &Contents) -> Renumbering {
        let mut votes = Votes::default();
        for (ifindex, link) in &self.links {
            if let (Some(ours), Some(theirs)) = (link.slot, contents.links.get(ifindex))
                && contents
                    .pods
                    .get(&theirs.slot)
                    .is_some_and(|pod| pod.ifindex == *ifindex)
            {
                votes.vote(Some(ours), theirs.slot);
            }
        }
        votes.count()
    }

    fn match_identities(&self, contents: &Contents) -> Renumbering {
        let mut votes = Votes::default();
        for (address, entry) in &contents.addresses {
            // A peer that the plan led through a stage of its own says nothing of who it was.
            if entry.identity == IDENTITY_UNKNOWN || entry.identity >= STAGED_IDENTITIES {
                continue;
            }
            // An address that is gone says nothing against the rest; one that is no pod any more does.
            if let Some(known) = self.addresses.get(&std::net::IpAddr::from(*address)) {
                votes.vote(known.identity, entry.identity);
            }
        }
        for (key, number) in &self.trie {
            let bits = Bits {
                length: key.length,
                data: key.prefix,
            };
            if let Some(entry) = contents.prefixes.get(&bits)
                && entry.identity != IDENTITY_UNKNOWN
                && entry.identity < STAGED_IDENTITIES
            {
                votes.vote(*number, entry.identity);
            }
        }
        votes.count()
    }

    fn match_groups(&self, contents: &Contents, identities: &Renumbering) -> Renumbering {
        let mut votes = Votes::default();
        let ours: BTreeMap<u32, u32> = identities.iter().map(|(o, t)| (*t, *o)).collect();
        let own = |entry: &GroupEntry| entry.group < STAGED_GROUPS;
        for (identity, entry) in contents.groups.iter().filter(|(_, entry)| own(entry)) {
            let Some(identity) = ours.get(identity) else {
                continue;
            };
            let group = self
                .identities
                .all
                .get(identity)
                .map(|identity| identity.group)
                .filter(|group| *group != GROUP_ANY);
            votes.vote(group, entry.group);
        }
        votes.count()
    }

    fn match_sets(
        &self,
        contents: &Contents,
        slots: &Renumbering,
        groups: &Renumbering,
        rules: &BTreeMap<u32, BTreeMap<Bits<RuleKey>, Verdict>>,
    ) -> Renumbering {
        let mut votes = Votes::default();
        for link in self.links.values() {
            let pod = link
                .slot
                .and_then(|slot| slots.get(&slot))
                .and_then(|slot| contents.pods.get(slot));
            let Some(pod) = pod else {
                continue;
            };
            for (ours, theirs) in link.held.iter().zip([pod.egress, pod.ingress]) {
                if theirs.set != 0
                    && let Some(ours) = ours
                    && self.says_the_same(*ours, theirs.set, groups, rules.get(&theirs.set))
                {
                    votes.vote(Some(*ours), theirs.set);
                }
            }
        }
        votes.count()
    }

    /// Whether a set in the maps says what ours does of any peer and of every group taken over. Of other groups it says nothing
    /// that can still be asked once the delta is applied.
    fn says_the_same(
        &self,
        ours: u32,
        theirs: u32,
        groups: &Renumbering,
        rules: Option<&BTreeMap<Bits<RuleKey>, Verdict>>,
    ) -> bool {
        let (Some(set), Some(rules)) = (self.sets.all.get(&ours), rules) else {
            return false;
        };
        let mut wanted: BTreeMap<Bits<RuleKey>, Verdict> =
            set.entries(theirs, None).into_iter().collect();
        for (number, new) in groups {
            if let Some(group) = self.groups.all.get(number) {
                wanted.extend(set.entries(theirs, Some((*new, &group.key))));
            }
        }
        let known: BTreeSet<u32> = groups.values().copied().chain([GROUP_ANY]).collect();
        let there: BTreeMap<Bits<RuleKey>, Verdict> = rules
            .iter()
            .filter(|(key, _)| known.contains(&key.data.group))
            .map(|(key, verdict)| (*key, *verdict))
            .collect();
        wanted == there
    }

    fn renumber(
        &mut self,
        slots: &Renumbering,
        identities: &Renumbering,
        groups: &Renumbering,
        sets: &Renumbering,
    ) {
        self.identities.all = renumbered(std::mem::take(&mut self.identities.all), identities);
        for number in self.identities.by_who.values_mut() {
            *number = of(identities, *number);
        }
        for identity in self.identities.all.values_mut() {
            identity.group = of(groups, identity.group);
        }
        self.words = std::mem::take(&mut self.words)
            .into_iter()
            .map(|(identity, group)| (of(identities, identity), of(groups, group)))
            .collect();
        for number in self.trie.values_mut().flatten() {
            *number = of(identities, *number);
        }
        for known in self.addresses.values_mut() {
            known.identity = known.identity.map(|number| of(identities, number));
            known.entry.identity = of(identities, known.entry.identity);
            if known.entry.slot != agent_common::NO_ADDRESS_SLOT {
                let slot = of(slots, u32::from(known.entry.slot));
                known.entry.slot = u16::try_from(slot).unwrap_or(agent_common::NO_ADDRESS_SLOT);
            }
        }
        self.groups.all = renumbered(std::mem::take(&mut self.groups.all), groups);
        for number in self.groups.by_key.values_mut() {
            *number = of(groups, *number);
        }
        self.groups.waiting = self.groups.waiting.iter().map(|n| of(groups, *n)).collect();
        self.sets.all = renumbered(std::mem::take(&mut self.sets.all), sets);
        for number in self.sets.by_key.values_mut() {
            *number = of(sets, *number);
        }
        for link in self.links.values_mut() {
            link.slot = link.slot.map(|slot| of(slots, slot));
            for number in link.wanted.iter_mut().chain(&mut link.held).flatten() {
                *number = of(sets, *number);
            }
            if let Some(spec) = &mut link.spec {
                spec.egress.set = of(sets, spec.egress.set);
                spec.ingress.set = of(sets, spec.ingress.set);
            }
        }
    }

    /// Everything that is compiled, under the numbers that it has now.
    fn whole(&self, delta: &mut Delta) {
        *delta = Delta {
            frontends: std::mem::take(&mut delta.frontends),
            pools: std::mem::take(&mut delta.pools),
            ..Delta::default()
        };
        for (ip, known) in &self.addresses {
            delta
                .addresses
                .insert(Address::from(*ip), Some(known.entry));
        }
        for (key, identity) in &self.trie {
            let bits = Bits {
                length: key.length,
                data: key.prefix,
            };
            let identity = identity.unwrap_or(IDENTITY_UNKNOWN);
            let entry = PrefixEntry { identity, _zero: 0 };
            delta.prefixes.insert(bits, Some(entry));
        }
        for (identity, group) in &self.words {
            let entry = GroupEntry {
                group: *group,
                _zero: 0,
            };
            delta.groups.insert(*identity, Some(entry));
        }
        for (number, set) in &self.sets.all {
            if set.state == State::Waiting {
                continue;
            }
            let groups = self.groups.all.iter().filter(|(_, group)| !group.refused);
            let groups = groups.map(|(group, content)| Some((*group, &content.key)));
            for group in groups.chain([None]) {
                for (key, verdict) in set.entries(*number, group) {
                    delta.rules.insert(key, Some(verdict));
                }
            }
        }
        for (ifindex, link) in &self.links {
            if let (Some(slot), Some(spec)) = (link.slot, link.spec) {
                delta.pods.insert(slot, Some(spec));
                delta
                    .links
                    .insert(*ifindex, Some(LinkEntry { slot, _zero: 0 }));
            }
        }
    }

    /// Pods point to the sets of before the restart until the delta's last step, and those sets do not know the groups that
    /// addresses come into before: what they said of an address's old group, they are told of its new one for that while. Not of
    /// a group that somebody has already, of whom they would be told it too: addresses that come into such a one pass through a stage
    /// of the plan's.
    fn bridge(
        &mut self,
        contents: &Contents,
        leaving: &BTreeSet<u32>,
        used_groups: &BTreeSet<u32>,
        rules: &BTreeMap<u32, BTreeMap<Bits<RuleKey>, Verdict>>,
        delta: &mut Delta,
    ) {
        let old_group = |identity: u32| {
            contents
                .groups
                .get(&identity)
                .map_or(GROUP_ANY, |entry| entry.group)
        };
        let new_group = |identity: u32| self.words.get(&identity).copied().unwrap_or(GROUP_ANY);
        let mut moves: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut moved = |old: u32, new: u32| {
            let fresh = new != GROUP_ANY && !used_groups.contains(&new);
            if old != new && old != GROUP_ANY && fresh {
                moves.entry(old).or_default().insert(new);
            }
        };
        for (ip, known) in &self.addresses {
            if let Some(entry) = contents.addresses.get(&Address::from(*ip)) {
                moved(old_group(entry.identity), new_group(known.entry.identity));
            }
        }
        for (bits, entry) in &contents.prefixes {
            let key = super::identity::PrefixKey {
                prefix: bits.data,
                length: bits.length,
            };
            if let Some(Some(identity)) = self.trie.get(&key) {
                moved(old_group(entry.identity), new_group(*identity));
            }
        }
        for set in leaving {
            for (key, verdict) in rules.get(set).into_iter().flatten() {
                for new in moves.get(&key.data.group).into_iter().flatten() {
                    let data = RuleKey {
                        group: *new,
                        ..key.data
                    };
                    let key = Bits {
                        length: key.length,
                        data,
                    };
                    if !contents.rules.contains_key(&key) {
                        delta.rules.insert(key, Some(*verdict));
                        self.bridges.insert(key);
                    }
                }
            }
        }
    }
}
