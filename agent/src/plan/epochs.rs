//! Whose flows must be judged again: pods concerned by a change that can take something away.
//!
//! Sets are compared by the groups that they speak of. When in doubt a pod is concerned: judging again costs a look-up a
//! flow, and never cuts what is allowed.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, GROUP_ANY, Prefix, PrefixEntry, RuleKey, SetWord, Verdict, action,
    limits, set_flag,
};

use super::mirror::Mirror;
use crate::datapath::Bits;
use crate::datapath::contents::longest;
use crate::desired::Desired;

/// Groups of addresses that were removed: flows with them were judged by that group, and may still be there when the
/// address is given to somebody else.
#[derive(Clone, Default, Debug)]
pub(super) struct Departed {
    groups: BTreeMap<Address, u32>,
}

/// The pods that a plan concerns.
#[derive(Default, Debug)]
pub(super) struct Concerned {
    pub(super) all: bool,
    pub(super) pods: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    sets: BTreeSet<u32>,
}

impl Departed {
    /// An address is being removed. True where so many have been that they are forgotten, and all pods are concerned.
    fn note(&mut self, address: Address, group: u32) -> bool {
        let overflow = self.groups.len() >= limits::ADDRESSES as usize;
        if overflow {
            self.groups.clear();
        }
        self.groups.insert(address, group);
        overflow
    }
}

impl Concerned {
    /// Identities that had one group and now have another.
    pub(super) fn regroup(&mut self, before: u32, after: u32) {
        if before != after {
            // A set that does not speak of the group before gave it nothing.
            self.groups.extend([before, after]);
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
                let old_group = contents.group(before.identity);
                if before.identity != after.identity {
                    self.regroup(old_group, group_after);
                }
            }
            (Some(before), None) => {
                self.all |= departed.note(*address, contents.group(before.identity));
            }
            (None, Some(_)) => {
                if let Some(group) = departed.groups.remove(address) {
                    self.regroup(group, group_after);
                }
                if !contents.literal() {
                    if let Some(entry) = contents.prefix(address) {
                        self.regroup(contents.group(entry.identity), group_after);
                    }
                }
            }
            (None, None) => {}
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
