//! Whose flows must be judged again: pods concerned by a change that can take something away.
//!
//! Sets are compared by the groups that they speak of. When in doubt a pod is concerned: judging again costs a look-up a
//! flow, and never cuts what is allowed.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, GROUP_ANY, NEVER_JUDGED, Prefix, PrefixEntry, RuleKey, SetWord, Verdict,
    action, address_kind, limits, rule_bits, set_flag,
};

use super::mirror::Mirror;
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
}

/// The pods that a plan concerns.
#[derive(Default, Debug)]
pub(super) struct Concerned {
    pub(super) all: bool,
    pub(super) pods: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    /// Groups that identities come into: sets that deny them something.
    denied: BTreeSet<u32>,
    sets: BTreeSet<u32>,
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

    /// An address comes back: the group that it had, and the sets that spoke of it.
    fn take(&mut self, address: &Address) -> Option<(u32, BTreeSet<u32>)> {
        let group = self.groups.remove(address)?;
        let held = self.held.get_mut(&group)?;
        held.addresses = held.addresses.saturating_sub(1);
        let sets = held.sets.clone();
        if held.addresses == 0 {
            self.held.remove(&group);
        }
        Some((group, sets))
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

/// Whether one set passes all that another does, of every peer that stays who it is.
fn passes_no_less(mirror: &Mirror, desired: &Desired, before: SetWord, after: SetWord) -> bool {
    if after.flags & set_flag::ISOLATED == 0 {
        return true;
    }
    let tiered = (before.flags | after.flags) & set_flag::TIERED != 0;
    if before.flags & set_flag::ISOLATED == 0 || tiered {
        return false;
    }
    let says = |length: u32, data: RuleKey| {
        let found = longest::<RuleKey, Verdict>(&desired.rules, length, data);
        found.is_some_and(|(_, verdict)| verdict.passes())
    };
    let mut passed = rules_of(&mirror.contents.rules, before.set).filter(|(_, v)| v.passes());
    passed.all(|(key, _)| {
        let data = RuleKey {
            set: after.set,
            ..key.data
        };
        let any = RuleKey {
            group: GROUP_ANY,
            ..data
        };
        says(key.length, data) || (key.length > rule_bits::SET && says(key.length, any))
    })
}

impl Concerned {
    /// Identities that had one group and now have another. A set that does not speak of the group before gave it nothing; what one
    /// says of the group after takes nothing away, unless it denies.
    pub(super) fn regroup(&mut self, before: u32, after: u32) {
        if before != after {
            self.groups.insert(before);
            self.denied.insert(after);
        }
    }

    /// A set is judged by that says less than before.
    pub(super) fn set(&mut self, set: u32) {
        self.sets.insert(set);
    }

    /// A pod turns from one set to another.
    pub(super) fn turned(
        &mut self,
        mirror: &Mirror,
        desired: &Desired,
        departed: &mut Departed,
        slot: u32,
        (before, after): (SetWord, SetWord),
    ) {
        if before == after {
            return;
        }
        if passes_no_less(mirror, desired, before, after) {
            departed.succeed(before.set, after.set);
        } else {
            self.pods.insert(slot);
        }
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
                if let Some((group, sets)) = departed.take(address)
                    && group != group_after
                {
                    self.sets.extend(sets);
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

    /// A prefix is added, changed or removed: addresses in it had its identity, or that of the prefix around it.
    pub(super) fn prefix(
        &mut self,
        mirror: &Mirror,
        prefix: &Bits<Prefix>,
        after: Option<&PrefixEntry>,
        group_of: &dyn Fn(u32) -> u32,
    ) {
        let contents = &mirror.contents;
        let around = prefix
            .length
            .checked_sub(1)
            .and_then(|length| longest(&contents.prefixes, length, prefix.data))
            .map(|found| found.1);
        let before = contents.prefixes.get(prefix).copied().or(around);
        let after = after.copied().or(around);
        let old = before.map_or(GROUP_ANY, |e| contents.group(e.identity));
        let new = after.map_or(GROUP_ANY, |e| group_of(e.identity));
        if before.is_some() {
            self.regroup(old, new);
        }
    }

    /// The slots.
    pub(super) fn slots(&self, mirror: &Mirror) -> BTreeSet<u32> {
        let mut sets = self.sets.clone();
        for group in self.groups.iter().filter(|g| **g != GROUP_ANY) {
            sets.extend(mirror.sets_for(*group));
        }
        for group in self.denied.iter().filter(|g| **g != GROUP_ANY) {
            sets.extend(mirror.sets_against(*group));
        }
        let mut slots = self.pods.clone();
        for (slot, pod) in &mirror.contents.pods {
            let used = pod.flags & agent_common::pod_flag::USED != 0;
            let concerned = [pod.egress, pod.ingress]
                .iter()
                .any(|word| word.flags & set_flag::ISOLATED != 0 && sets.contains(&word.set));
            if used && (self.all || concerned) {
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
