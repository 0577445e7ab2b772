//! Maps that are nothing but a [`Desired`], and what tests ask of deltas.

use std::collections::BTreeMap;

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, Backend, Head, PrefixEntry, RuleKey, ServiceEntry, ServiceKey, Verdict,
};

use super::super::{IpBlockMode, Options};
use crate::datapath::{Bits, Contents};
use crate::desired::{Delta, Desired};

pub(super) struct Maps<'a> {
    pub(super) desired: &'a Desired,
    literal: bool,
}

impl<'a> Maps<'a> {
    pub(super) fn new(desired: &'a Desired, options: &Options) -> Self {
        Self {
            desired,
            literal: options.ip_block_mode == IpBlockMode::Literal,
        }
    }
}

/// The bytes as the kernel compares them, first bit first.
fn bytes(key: &RuleKey) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&key.set.to_ne_bytes());
    out[4..8].copy_from_slice(&key.group.to_ne_bytes());
    out[8] = key.protocol;
    out[10..12].copy_from_slice(&key.port_be.to_ne_bytes());
    out
}

fn cut(bytes: [u8; 16], length: u32) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    (u128::from_be_bytes(bytes) & mask).to_be_bytes()
}

impl Tables for Maps<'_> {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let entry = self.desired.addresses.get(address).copied()?;
        assert_eq!(entry.check, address.check());
        Some(entry)
    }
    fn prefix(&self, address: &Address) -> Option<PrefixEntry> {
        (0..=128).rev().find_map(|length| {
            let data = agent_common::Prefix {
                bytes: cut(address.bytes, length),
            };
            self.desired.prefixes.get(&Bits { length, data }).copied()
        })
    }
    fn group(&self, identity: u32) -> u32 {
        self.desired.groups.get(&identity).map_or(0, |e| e.group)
    }
    fn rule(&self, key: &RuleKey) -> Option<Verdict> {
        let lengths = [
            96, 95, 94, 93, 92, 91, 90, 89, 88, 87, 86, 85, 84, 83, 82, 81, 80, 64, 32,
        ];
        lengths.into_iter().find_map(|length| {
            let b = cut(bytes(key), length);
            let data = RuleKey {
                set: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
                group: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                protocol: b[8],
                _zero: 0,
                port_be: u16::from_ne_bytes([b[10], b[11]]),
                _rest: 0,
            };
            self.desired.rules.get(&Bits { length, data }).copied()
        })
    }
    fn service(&self, _: &ServiceKey) -> Option<ServiceEntry> {
        None
    }
    fn head(&self, _: u32) -> Option<Head> {
        None
    }
    fn slot(&self, _: u32) -> Option<u32> {
        None
    }
    fn backend(&self, _: u32) -> Option<Backend> {
        None
    }
    fn literal(&self) -> bool {
        self.literal
    }
}

pub(super) fn contents(desired: &Desired) -> Contents {
    let mut pods = desired.pods.clone();
    for pod in pods.values_mut() {
        pod.epoch = 7;
    }
    Contents {
        addresses: desired.addresses.clone(),
        prefixes: desired.prefixes.clone(),
        groups: desired.groups.clone(),
        rules: desired.rules.clone(),
        pods,
        links: desired.links.clone(),
        ..Contents::default()
    }
}

pub(super) fn is_empty(delta: &Delta) -> bool {
    count(delta) == 0
}

pub(super) fn count(delta: &Delta) -> usize {
    delta.addresses.len()
        + delta.prefixes.len()
        + delta.groups.len()
        + delta.rules.len()
        + delta.pods.len()
        + delta.links.len()
}

fn each<K: Ord + Clone, V: Clone>(
    map: &BTreeMap<K, Option<V>>,
    deletions: bool,
    put: impl Fn(&mut Delta, K, Option<V>),
) -> Vec<Delta> {
    map.iter()
        .filter(|(_, value)| value.is_none() == deletions)
        .map(|(key, value)| {
            let mut delta = Delta::default();
            put(&mut delta, key.clone(), value.clone());
            delta
        })
        .collect()
}

/// A delta as single writes, in the plan's order: what is pointed to first, then what points, then what goes.
pub(super) fn writes(delta: &Delta) -> Vec<Delta> {
    let mut out = each(&delta.rules, false, |d, k, v| {
        d.rules.insert(k, v);
    });
    out.extend(each(&delta.groups, false, |d, k, v| {
        d.groups.insert(k, v);
    }));
    out.extend(each(&delta.prefixes, false, |d, k, v| {
        d.prefixes.insert(k, v);
    }));
    // A new local pod's slot is written before its address points there; one that was there turns to its sets last.
    out.extend(each(&delta.links, false, |d, k, v| {
        d.links.insert(k, v);
    }));
    out.extend(each(&delta.addresses, false, |d, k, v| {
        d.addresses.insert(k, v);
    }));
    out.extend(each(&delta.pods, false, |d, k, v| {
        d.pods.insert(k, v);
    }));
    out.extend(each(&delta.addresses, true, |d, k, v| {
        d.addresses.insert(k, v);
    }));
    out.extend(each(&delta.links, true, |d, k, v| {
        d.links.insert(k, v);
    }));
    out.extend(each(&delta.pods, true, |d, k, v| {
        d.pods.insert(k, v);
    }));
    out.extend(each(&delta.prefixes, true, |d, k, v| {
        d.prefixes.insert(k, v);
    }));
    out.extend(each(&delta.groups, true, |d, k, v| {
        d.groups.insert(k, v);
    }));
    out.extend(each(&delta.rules, true, |d, k, v| {
        d.rules.insert(k, v);
    }));
    out
}

fn same_but_epoch(a: &agent_common::Pod, b: &agent_common::Pod) -> bool {
    let without = |pod: &agent_common::Pod| agent_common::Pod { epoch: 0, ..*pod };
    without(a) == without(b)
}

/// What is in `now` and not in `then`, and the other way round.
fn difference<K: Ord + Clone, V: Clone>(
    now: BTreeMap<K, V>,
    then: &BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> BTreeMap<K, Option<V>> {
    let mut out = BTreeMap::new();
    for key in then.keys() {
        if !now.contains_key(key) {
            out.insert(key.clone(), None);
        }
    }
    for (key, value) in now {
        if then.get(&key).is_none_or(|old| !same(old, &value)) {
            out.insert(key, Some(value));
        }
    }
    out
}

/// What a first delta, which is the whole, changes of what the maps hold.
pub(super) fn against(then: &Desired, delta: &Delta) -> Delta {
    let mut now = Desired::default();
    now.merge(delta);
    Delta {
        addresses: difference(now.addresses, &then.addresses, PartialEq::eq),
        prefixes: difference(now.prefixes, &then.prefixes, PartialEq::eq),
        groups: difference(now.groups, &then.groups, PartialEq::eq),
        rules: difference(now.rules, &then.rules, PartialEq::eq),
        pods: difference(now.pods, &then.pods, same_but_epoch),
        links: difference(now.links, &then.links, PartialEq::eq),
        ..Delta::default()
    }
}
