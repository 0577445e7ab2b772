//! What people ask of a compiler: which pods are on the node, and what holds for them.

use super::Compiler;
use super::policies::{DIRECTIONS, index};
use super::sets::State;
use crate::local::PodLink;
use crate::model::{Direction, IpBlock, ObjectKey, Pod};
use std::sync::Arc;

/// A local pod, as it is enforced.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Its link.
    pub link: PodLink,
    /// Its slot in `pods`; None where there was none left.
    pub slot: Option<u32>,
    /// The pod; None where no source has told of it.
    pub pod: Option<Arc<Pod>>,
    /// The policies that isolate its egress.
    pub egress: Vec<ObjectKey>,
    /// The policies that isolate its ingress.
    pub ingress: Vec<ObjectKey>,
    /// Whether these policies are in force: false where their rules do not fit, and older ones or none at all hold.
    pub in_force: bool,
}

impl Compiler {
    /// The local pods, by interface index.
    pub fn pods(&self) -> impl Iterator<Item = PodView> + '_ {
        self.enforcement.links.values().map(|link| {
            let policies = |direction: Direction| -> Vec<ObjectKey> {
                link.wanted[index(direction)]
                    .and_then(|number| self.enforcement.sets.all.get(&number))
                    .map(|set| set.key.halves.iter().map(|(key, _)| key.clone()).collect())
                    .unwrap_or_default()
            };
            PodView {
                link: link.link.clone(),
                slot: link.slot,
                pod: link.pod.clone(),
                egress: policies(DIRECTIONS[0]),
                ingress: policies(DIRECTIONS[1]),
                in_force: link.held == link.wanted,
            }
        })
    }

    /// Sizes of what is compiled, for metrics: (sets, groups, identities, prefixes, addresses, rules).
    pub fn sizes(&self) -> Sizes {
        let e = &self.enforcement;
        Sizes {
            sets: e
                .sets
                .all
                .values()
                .filter(|set| set.state != State::Waiting)
                .count(),
            groups: e.groups.all.len(),
            identities: e.identities.all.len(),
            prefixes: e.trie.len(),
            addresses: e.addresses.len(),
            rules: e.rules,
        }
    }

    /// The ipBlocks of policies that contain the address of a pod, node or this host, which they never match. They are looked for
    /// in cilium mode only.
    pub fn overlapping_blocks(&self) -> Vec<(ObjectKey, IpBlock)> {
        self.enforcement
            .overlaps
            .found()
            .map(|(key, block, _)| (key.clone(), block.clone()))
            .collect()
    }
}

/// How much there is of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Sets in the maps.
    pub sets: usize,
    /// Groups but the one of any peer.
    pub groups: usize,
    /// Identities, of pods and of prefixes.
    pub identities: usize,
    /// Prefixes.
    pub prefixes: usize,
    /// Addresses.
    pub addresses: usize,
    /// Rules.
    pub rules: usize,
}
