//! What a write does to the maps' contents: the same for the maps in memory and for the mirror of the kernel's.

use std::collections::BTreeMap;

use agent_common::{Prefix, RuleKey, SetWord, limits, rule_bits};

use super::{Bits, Contents, Write};
use crate::model::Direction;

/// Data of a longest-prefix key, as bytes in the order in which the kernel compares them.
pub trait PrefixData: Copy + Ord {
    /// Its sixteen bytes.
    fn to_bytes(self) -> [u8; 16];
    /// The data of sixteen bytes.
    fn from_bytes(bytes: [u8; 16]) -> Self;
}

impl PrefixData for Prefix {
    fn to_bytes(self) -> [u8; 16] {
        self.bytes
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }
}

impl PrefixData for RuleKey {
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.set.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.group.to_ne_bytes());
        bytes[8] = self.protocol;
        bytes[9] = self._zero;
        bytes[10..12].copy_from_slice(&self.port_be.to_ne_bytes());
        bytes[12..].copy_from_slice(&self._rest.to_ne_bytes());
        bytes
    }

    fn from_bytes(b: [u8; 16]) -> Self {
        Self {
            set: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            group: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            protocol: b[8],
            _zero: b[9],
            port_be: u16::from_ne_bytes([b[10], b[11]]),
            _rest: u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        }
    }
}

impl<T: PrefixData> Bits<T> {
    /// The key of the first `length` bits of some data.
    pub fn of(length: u32, data: T) -> Self {
        let mut bytes = data.to_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            let kept = length.saturating_sub(u32::try_from(at * 8).unwrap_or(u32::MAX));
            *byte &= match kept {
                0 => 0,
                1..8 => !(0xff >> kept),
                _ => 0xff,
            };
        }
        Self {
            length,
            data: T::from_bytes(bytes),
        }
    }
}

/// The longest entry that matches the first `length` bits of some data.
pub fn longest<T: PrefixData, V: Copy>(
    map: &BTreeMap<Bits<T>, V>,
    length: u32,
    data: T,
) -> Option<(Bits<T>, V)> {
    let zero = T::from_bytes([0; 16]);
    let mut below = length + 1;
    loop {
        let before = Bits {
            length: below,
            data: zero,
        };
        below = map.range(..before).next_back()?.0.length;
        let key = Bits::of(below, data);
        if let Some(value) = map.get(&key) {
            return Some((key, *value));
        }
    }
}

/// The rules of a set.
pub fn rules_of<V>(
    rules: &BTreeMap<Bits<RuleKey>, V>,
    set: u32,
) -> impl Iterator<Item = (&Bits<RuleKey>, &V)> {
    let lengths = [rule_bits::SET, rule_bits::GROUP]
        .into_iter()
        .chain(rule_bits::PROTOCOL..=rule_bits::PORT);
    lengths.flat_map(move |length| {
        let key = |set, group| Bits {
            length,
            data: RuleKey::packet(set, group, 0, 0),
        };
        // Sets are numbered far below the last number, which is never given.
        rules.range(key(set, 0)..key(set.saturating_add(1), 0))
    })
}

/// The map of [`Write::Rule`].
pub const RULES: &str = "rules";

impl Write {
    /// The map that the write goes to, and its capacity.
    pub const fn map(&self) -> (&'static str, u32) {
        match self {
            Self::Backend(..) | Self::BackendWord(..) => ("backends", limits::BACKENDS),
            Self::Slot(..) => ("slots", limits::SLOTS),
            Self::Head(..) => ("heads", limits::HEADS),
            Self::Service(..) => ("services", limits::SERVICES),
            Self::Address(..) => ("addresses", limits::ADDRESSES),
            Self::Prefix(..) => ("prefixes", limits::PREFIXES),
            Self::Group(..) => ("groups", limits::IDENTITIES),
            Self::Rule(..) => (RULES, limits::RULES),
            Self::Pod(..) | Self::PodSet(..) | Self::PodFacts(..) | Self::Epoch(..) => {
                ("pods", limits::PODS)
            }
            Self::Link(..) => ("links", limits::LINKS),
            Self::Config(..) => ("config", 1),
        }
    }

    /// Whether the write is a call that takes an element out.
    pub(crate) const fn deletes(&self) -> bool {
        matches!(
            self,
            Self::Service(_, None)
                | Self::Address(_, None)
                | Self::Prefix(_, None)
                | Self::Rule(_, None)
                | Self::Link(_, None)
        )
    }

    /// Whether the write is a store into an array that is mapped, which does not fail.
    pub(crate) const fn is_store(&self) -> bool {
        !matches!(
            self,
            Self::Service(..)
                | Self::Address(..)
                | Self::Prefix(..)
                | Self::Rule(..)
                | Self::Link(..)
        )
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn put_word<V: Default + PartialEq>(map: &mut BTreeMap<u32, V>, key: u32, value: V) {
    let value = (value != V::default()).then_some(value);
    put(map, key, value);
}

impl Contents {
    /// Does what a write does. Elements of arrays that become all zero are left out.
    pub fn apply(&mut self, write: &Write) {
        match *write {
            Write::Backend(number, backend) => self.backends.insert(number, backend),
            Write::BackendWord(number, word) => {
                let mut backend = self.backends.get(&number).copied().unwrap_or_default();
                backend.word = word;
                self.backends.insert(number, backend);
            }
            Write::Slot(index, slot) => self.slots.insert(index, slot),
            Write::Head(pool, head) => put_word(&mut self.heads, pool, head),
            Write::Service(key, entry) => put(&mut self.services, key, entry),
            Write::Address(key, entry) => put(&mut self.addresses, key, entry),
            Write::Prefix(key, entry) => put(&mut self.prefixes, key, entry),
            Write::Group(identity, entry) => put_word(&mut self.groups, identity, entry),
            Write::Rule(key, entry) => put(&mut self.rules, key, entry),
            Write::Pod(slot, pod) => self.change_pod(slot, |now| {
                let epoch = now.epoch;
                *now = pod;
                now.epoch = epoch;
            }),
            Write::PodSet(slot, direction, word) => {
                self.change_pod(slot, |pod| *set_mut(pod, direction) = word);
            }
            Write::PodFacts(slot, facts) => self.change_pod(slot, |pod| {
                pod.flags = facts.flags;
                pod.mac = facts.mac;
                pod.host_mac = facts.host_mac;
            }),
            Write::Epoch(slot, epoch) => self.change_pod(slot, |pod| pod.epoch = epoch),
            Write::Link(ifindex, entry) => put(&mut self.links, ifindex, entry),
            Write::Config(config) => self.config = config,
        }
    }

    fn change_pod(&mut self, slot: u32, change: impl FnOnce(&mut agent_common::Pod)) {
        let mut pod = self.pods.get(&slot).copied().unwrap_or_default();
        change(&mut pod);
        put_word(&mut self.pods, slot, pod);
    }
}

fn set_mut(pod: &mut agent_common::Pod, direction: Direction) -> &mut SetWord {
    match direction {
        Direction::Egress => &mut pod.egress,
        Direction::Ingress => &mut pod.ingress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_common::{GROUP_ANY, protocol};

    #[test]
    fn the_longest_rule_answers_and_port_prefixes_are_ranges() {
        let mut map = BTreeMap::new();
        let key = |group, port: u16| RuleKey::packet(7, group, protocol::TCP, port.to_be());
        map.insert(Bits::of(rule_bits::SET, key(0, 0)), "default");
        map.insert(Bits::of(rule_bits::PROTOCOL, key(3, 0)), "tcp");
        // 8080..8087 share 13 bits.
        map.insert(Bits::of(rule_bits::PROTOCOL + 13, key(3, 8080)), "range");
        let answer = |group, port| longest(&map, rule_bits::PORT, key(group, port)).map(|f| f.1);
        assert_eq!(answer(GROUP_ANY, 80), Some("default"));
        assert_eq!(answer(3, 80), Some("tcp"));
        assert_eq!(answer(3, 8087), Some("range"));
        assert_eq!(answer(3, 8088), Some("tcp"));
    }
}
