//! Whose flows must be judged again: pods concerned by a change that can take something away.
//!
//! What a set said of a peer's group before is compared with what it, or the set that takes its place, says of the group that the peer
//! has afterwards. When in doubt a pod is concerned: judging again costs a look-up a flow, and never cuts what is allowed. But
//! a change that concerns nobody must not slow down a node full of flows.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, GROUP_ANY, NEVER_JUDGED, Prefix, PrefixEntry, RuleKey, SetWord, Verdict,
    action, address_kind, limits, set_flag,
};

use super::mirror::Mirror;
use super::said;
use crate::datapath::contents::{longest, rules_of};
use crate::datapath::{Bits, Contents};
use crate::desired::Desired;

/// The epoch after one: never zero, which stands for no judgement.
pub(super) const fn raised(epoch: u32) -> u32 {
    match epoch.wrapping_add(1) {
        NEVER_JUDGED => NEVER_JUDGED.wrapping_add(1),
        next => next,
    }
}

/// Addresses that were removed: flows with them were judged by the group that they had, and may still be there when the
/// address is given to somebody else.
#[derive(Clone, Default, Debug)]
pub(super) struct Departed {
    groups: BTreeMap<Address, u32>,
    held: BTreeMap<u32, Held>,
}

/// A group that departed addresses had.
#[derive(Clone, Default, Debug)]
struct Held {
    addresses: usize,
    /// The sets that spoke of it, and those that took their place without any flow judged again. The group itself may be gone.
    sets: BTreeSet<u32>,
    /// Rules for the group have gone since: its number may come back with another meaning.
    unsaid: bool,
}

/// The pods that a plan concerns.
#[derive(Default, Debug)]
pub(super) struct Concerned {
    pub(super) all: bool,
    pub(super) pods: BTreeSet<u32>,
    /// From which group to which other peers move.
    moves: BTreeSet<(u32, u32)>,
    sets: BTreeSet<u32>,
    /// Whether a set (the first) that pods turn away from said more than the one that takes its place.
    turns: BTreeMap<(u32, u32), bool>,
}

impl Departed {
    /// An address is being removed. True where so many have been that they are forgotten, and all pods are concerned.
    fn note(&mut self, address: Address, group: u32, mirror: &Mirror) -> bool {
        if group == GROUP_ANY {
            self.take(&address);
            return false;
        }
        let overflow = self.groups.len() >= limits::ADDRESSES as usize;
        if overflow {
            *self = Self::default();
        }
        self.take(&address);
        self.groups.insert(address, group);
        let held = self.held.entry(group).or_default();
        held.addresses += 1;
        held.sets.extend(mirror.sets_for(group));
        overflow
    }

    /// An address comes back: the group that it had, and what is known of that.
    fn take(&mut self, address: &Address) -> Option<(u32, Held)> {
        let group = self.groups.remove(address)?;
        let held = self.held.get_mut(&group)?;
        held.addresses = held.addresses.saturating_sub(1);
        let known = held.clone();
        if held.addresses == 0 {
            self.held.remove(&group);
        }
        Some((group, known))
    }

    /// Rules for a group go.
    pub(super) fn unsaid(&mut self, group: u32) {
        if let Some(held) = self.held.get_mut(&group) {
            held.unsaid = true;
        }
    }

    /// One set takes the place of another, and flows judged by that stay as they are.
    fn succeed(&mut self, before: u32, after: u32) {
        for held in self.held.values_mut() {
            if held.sets.contains(&before) {
                held.sets.insert(after);
            }
        }
    }
}

impl Concerned {
    /// Peers that had one group and now have another. A set that does not speak of the group before gave them nothing; what one
    /// says of the group after takes nothing away, unless it denies.
    pub(super) fn regroup(&mut self, before: u32, after: u32) {
        if before != after {
            self.moves.insert((before, after));
        }
    }

    /// A set is judged by that says less than before.
    pub(super) fn set(&mut self, set: u32) {
        self.sets.insert(set);
    }

    /// A pod turns from one set to another, after all moves are known. `remains` says of a group whether anybody has it afterwards.
    pub(super) fn turned(
        &mut self,
        (mirror, desired): (&Mirror, &Desired),
        departed: &mut Departed,
        slot: u32,
        (before, after): (SetWord, SetWord),
        remains: &dyn Fn(u32) -> bool,
    ) {
        if before == after || after.flags & set_flag::ISOLATED == 0 {
            return;
        }
        let tiered = (before.flags | after.flags) & set_flag::TIERED != 0;
        if before.flags & set_flag::ISOLATED == 0 || tiered {
            self.pods.insert(slot);
            return;
        }
        let turn = (before.set, after.set);
        let less = match self.turns.get(&turn) {
            Some(less) => *less,
            None => {
                let less = self.says_less(mirror, desired, turn, remains);
                self.turns.insert(turn, less);
                less
            }
        };
        if less {
            self.pods.insert(slot);
        } else {
            departed.succeed(before.set, after.set);
        }
    }

    /// Whether a set passes, or while the plan runs will pass, anything of a peer that another will not pass of whom that peer is then.
    fn says_less(
        &self,
        mirror: &Mirror,
        desired: &Desired,
        (before, after): (u32, u32),
        remains: &dyn Fn(u32) -> bool,
    ) -> bool {
        let now = rules_of(&mirror.contents.rules, before);
        let soon = rules_of(&desired.rules, before);
        let mut passed = now.chain(soon).filter(|(_, verdict)| verdict.passes());
        passed.any(|(key, _)| {
            let group = key.data.group;
            let kept = |group| said::passes(&desired.rules, key, after, group);
            if group == GROUP_ANY {
                return !kept(GROUP_ANY);
            }
            let mut moved = self.moves.range((group, 0)..=(group, u32::MAX));
            (remains(group) && !kept(group)) || moved.any(|(_, to)| !kept(*to))
        })
    }

    /// A rule of a set changes.
    pub(super) fn rule(
        &mut self,
        key: &Bits<RuleKey>,
        before: Option<&Verdict>,
        after: Option<&Verdict>,
    ) {
        let adds = |v: &Verdict| v.action & action::MASK == action::ALLOW;
        if before.is_some() || after.is_some_and(|v| !adds(v)) {
            self.sets.insert(key.data.set);
        }
    }

    /// An address is given to somebody, or nobody.
    pub(super) fn address(
        &mut self,
        mirror: &Mirror,
        departed: &mut Departed,
        address: &Address,
        after: Option<&AddressEntry>,
        group_after: u32,
    ) {
        let contents = &mirror.contents;
        let before = contents.addresses.get(address);
        match (before, after) {
            (Some(before), Some(after)) => {
                self.regroup(contents.group(before.identity), group_after);
                self.unblocked(contents, address, Some(before), after, group_after);
            }
            (Some(before), None) => {
                self.all |= departed.note(*address, contents.group(before.identity), mirror);
            }
            (None, Some(after)) => {
                if let Some((group, held)) = departed.take(address)
                    && (group != group_after || held.unsaid)
                {
                    self.sets.extend(held.sets);
                    self.regroup(group, group_after);
                }
                self.unblocked(contents, address, None, after, group_after);
            }
            (None, None) => {}
        }
    }

    /// In cilium mode ipBlocks say nothing of pods, nodes and this host: an address that becomes one of them loses what they gave.
    fn unblocked(
        &mut self,
        contents: &Contents,
        address: &Address,
        before: Option<&AddressEntry>,
        after: &AddressEntry,
        group_after: u32,
    ) {
        let blocks = |entry: Option<&AddressEntry>| {
            contents.literal() || entry.is_none_or(|entry| entry.kind > address_kind::HOST)
        };
        if blocks(before)
            && !blocks(Some(after))
            && let Some(entry) = contents.prefix(address)
        {
            self.regroup(contents.group(entry.identity), group_after);
        }
    }

    /// A prefix is added, changed or removed: addresses in it had its identity, or that of the prefix around it, and get that which it
    /// or the prefix then around it is to have.
    pub(super) fn prefix(&mut self, mirror: &Mirror, desired: &Desired, prefix: &Bits<Prefix>) {
        let contents = &mirror.contents;
        let found = |prefixes| longest::<Prefix, PrefixEntry>(prefixes, prefix.length, prefix.data);
        let before = found(&contents.prefixes).map(|found| found.1);
        let after = found(&desired.prefixes).map(|found| found.1);
        if let Some(before) = before {
            let new = after.map_or(GROUP_ANY, |e| desired.group(e.identity));
            self.regroup(contents.group(before.identity), new);
        }
    }

    /// The slots.
    pub(super) fn slots(&self, mirror: &Mirror, desired: &Desired) -> BTreeSet<u32> {
        let mut sets = self.sets.clone();
        // Of sets with denials of their own it is not looked at what they say.
        let mut tiered = BTreeSet::new();
        for (before, after) in &self.moves {
            if *before != GROUP_ANY {
                for set in mirror.sets_for(*before) {
                    tiered.insert(set);
                    let rules = &mirror.contents.rules;
                    let mut passed =
                        said::said(rules, set, *before).filter(|(_, verdict)| verdict.passes());
                    if passed.any(|(key, _)| !said::passes(&desired.rules, key, set, *after)) {
                        sets.insert(set);
                    }
                }
            }
            if *after != GROUP_ANY {
                sets.extend(mirror.sets_against(*after));
            }
        }
        let mut slots = self.pods.clone();
        let all = self.all || crate::mutant::removed("every-epoch");
        for (slot, pod) in &mirror.contents.pods {
            let used = pod.flags & agent_common::pod_flag::USED != 0;
            let concerned = [pod.egress, pod.ingress].iter().any(|word| {
                word.flags & set_flag::ISOLATED != 0
                    && (sets.contains(&word.set)
                        || word.flags & set_flag::TIERED != 0 && tiered.contains(&word.set))
            });
            if used && (all || concerned) {
                slots.insert(*slot);
            }
        }
        slots
    }

    /// The slots of pods that are judged by one of the sets once the plan is done.
    pub(super) fn slots_desired(&self, desired: &Desired) -> BTreeSet<u32> {
        let judged =
            |word: &SetWord| word.flags & set_flag::ISOLATED != 0 && self.sets.contains(&word.set);
        let pods = desired.pods.iter();
        pods.filter(|(_, pod)| judged(&pod.egress) || judged(&pod.ingress))
            .map(|(slot, _)| *slot)
            .collect()
    }
}
