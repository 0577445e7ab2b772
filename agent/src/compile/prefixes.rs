//! ipBlocks: which lists of peers each prefix of the trie belongs to.
//!
//! Only the longest prefix answers a look-up, so every prefix carries all blocks that contain it, less their exceptions, and
//! every exception is a prefix of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::{Address, Prefix};

use super::identity::PrefixKey;
use super::peers::{Peers, PeersId};
use crate::model::IpBlock;

/// Prefix length of all IPv4 (RFC 4291 2.5.5.2).
pub(super) const V4_LENGTH: u32 = 96;

/// All IPv4 addresses. The trie always holds it, so that `::/0` never answers for IPv4.
pub(super) const V4: PrefixKey = PrefixKey {
    prefix: Prefix {
        bytes: Address::v4([0; 4]).bytes,
    },
    length: V4_LENGTH,
};

fn masked(bytes: [u8; 16], length: u32) -> [u8; 16] {
    let mask = u128::MAX
        .checked_shl(u128::BITS - length)
        .unwrap_or_default();
    (u128::from_be_bytes(bytes) & mask).to_be_bytes()
}

impl PrefixKey {
    /// The key of a CIDR.
    pub(super) fn new(address: &IpAddr, length: u8) -> Self {
        let length = match address {
            IpAddr::V4(_) => V4_LENGTH + u32::from(length),
            IpAddr::V6(_) => u32::from(length),
        };
        Self {
            prefix: Prefix {
                bytes: masked(Address::from(*address).bytes, length),
            },
            length,
        }
    }

    fn is_v4(&self) -> bool {
        self.length >= V4_LENGTH
            && Address {
                bytes: self.prefix.bytes,
            }
            .is_v4()
    }

    /// Whether another prefix of the same family lies inside this one, or is this one.
    fn contains(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4()
            && other.length >= self.length
            && masked(other.prefix.bytes, self.length) == self.prefix.bytes
    }

    /// The prefixes of the same family that contain this one, itself included.
    pub(super) fn containing(&self) -> impl Iterator<Item = Self> {
        let shortest = if self.is_v4() { V4_LENGTH } else { 0 };
        let bytes = self.prefix.bytes;
        (shortest..=self.length).map(move |length| Self {
            prefix: Prefix {
                bytes: masked(bytes, length),
            },
            length,
        })
    }

    /// The last address inside.
    fn last(&self) -> [u8; 16] {
        let host = u128::MAX.checked_shr(self.length).unwrap_or_default();
        (u128::from_be_bytes(self.prefix.bytes) | host).to_be_bytes()
    }
}

/// The prefixes that a block needs: its own and its exceptions'.
fn prefixes_of(block: &IpBlock) -> impl Iterator<Item = PrefixKey> {
    std::iter::once(PrefixKey::new(&block.address, block.length)).chain(
        block
            .except
            .iter()
            .map(|(address, length)| PrefixKey::new(address, *length)),
    )
}

/// All prefixes.
#[derive(Clone, Debug)]
pub(super) struct Prefixes {
    /// Blocks by their own prefix.
    blocks: BTreeMap<PrefixKey, BTreeMap<IpBlock, BTreeSet<PeersId>>>,
    /// Blocks that need a prefix, counted.
    pub(super) users: BTreeMap<PrefixKey, u32>,
}

impl Prefixes {
    /// [`V4`] alone.
    pub(super) fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            users: BTreeMap::from([(V4, 1)]),
        }
    }

    /// How many prefixes a list of peers would add.
    pub(super) fn missing(&self, peers: &Peers) -> usize {
        peers
            .blocks()
            .flat_map(prefixes_of)
            .filter(|key| !self.users.contains_key(key))
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Takes a list of peers in: the prefixes that it concerns, new ones included.
    pub(super) fn add(&mut self, id: PeersId, peers: &Peers) -> BTreeSet<PrefixKey> {
        let mut touched = BTreeSet::new();
        for block in peers.blocks() {
            for key in prefixes_of(block) {
                *self.users.entry(key).or_insert(0) += 1;
                touched.insert(key);
            }
            let own = PrefixKey::new(&block.address, block.length);
            self.blocks
                .entry(own)
                .or_default()
                .entry(block.clone())
                .or_default()
                .insert(id);
            touched.extend(self.inside(&own));
        }
        touched
    }

    /// Lets a list of peers go: the prefixes that it concerned, those that are gone included.
    pub(super) fn remove(&mut self, id: PeersId, peers: &Peers) -> BTreeSet<PrefixKey> {
        let mut touched = BTreeSet::new();
        for block in peers.blocks() {
            let own = PrefixKey::new(&block.address, block.length);
            if let Some(blocks) = self.blocks.get_mut(&own) {
                if let Some(ids) = blocks.get_mut(block) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        blocks.remove(block);
                    }
                }
                if blocks.is_empty() {
                    self.blocks.remove(&own);
                }
            }
            touched.extend(self.inside(&own));
            for key in prefixes_of(block) {
                if let Some(users) = self.users.get_mut(&key) {
                    *users -= 1;
                    if *users == 0 {
                        self.users.remove(&key);
                    }
                }
            }
        }
        touched
    }

    fn inside(&self, outer: &PrefixKey) -> Vec<PrefixKey> {
        let last = outer.last();
        self.users
            .range(*outer..)
            .map(|(key, _)| *key)
            .take_while(|key| key.prefix.bytes <= last)
            .filter(|key| outer.contains(key))
            .collect()
    }

    /// The lists of peers that a prefix's addresses are in.
    pub(super) fn matches(&self, prefix: &PrefixKey) -> BTreeSet<PeersId> {
        prefix
            .containing()
            .filter_map(|outer| self.blocks.get(&outer))
            .flatten()
            .filter(|(block, _)| {
                !block
                    .except
                    .iter()
                    .any(|(address, length)| PrefixKey::new(address, *length).contains(prefix))
            })
            .flat_map(|(_, ids)| ids.iter().copied())
            .collect()
    }
}
