//! Who a rule speaks of: the unit that identities are matched against.
//!
//! A rule's whole list of peers is one unit, not each of its selectors: a rule with a thousand ipBlocks then makes one group, not a
//! thousand.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::identity::PodIdentity;
use crate::model::{IpBlock, Labels, Peer, Selector, Text};

/// Number of a list of peers, internal to compile.
pub(super) type PeersId = u32;

/// One peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Term {
    /// Pods of one namespace.
    Own { namespace: Text, pods: Selector },
    /// Pods of the namespaces that are selected.
    Across {
        namespaces: Selector,
        pods: Selector,
    },
    /// Addresses.
    Block(IpBlock),
}

/// A list of peers: sorted, without duplicates.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Peers {
    pub(super) terms: Vec<Term>,
}

impl Peers {
    /// The peers of a rule of a policy in `namespace`.
    pub(super) fn new(namespace: &Text, peers: &[Peer]) -> Self {
        let mut terms: Vec<Term> = peers
            .iter()
            .map(|peer| match peer {
                Peer::Pods {
                    namespaces: None,
                    pods,
                } => Term::Own {
                    namespace: Arc::clone(namespace),
                    pods: pods.clone(),
                },
                Peer::Pods {
                    namespaces: Some(namespaces),
                    pods,
                } => Term::Across {
                    namespaces: namespaces.clone(),
                    pods: pods.clone(),
                },
                Peer::Block(block) => Term::Block(block.clone()),
            })
            .collect();
        terms.sort();
        terms.dedup();
        Self { terms }
    }

    /// The ipBlocks among them.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &IpBlock> {
        self.terms.iter().filter_map(|term| match term {
            Term::Block(block) => Some(block),
            Term::Own { .. } | Term::Across { .. } => None,
        })
    }

    /// Whether a pod identity is one of them, in a namespace with these labels.
    pub(super) fn match_pod(&self, pod: &PodIdentity, namespace: &Labels) -> bool {
        // Without labels, selectors that name what a pod must not have would all match.
        let known = !pod.namespace.is_empty();
        let mut terms = self.terms.iter();
        pod.within.contains(self)
            || terms.any(|term| match term {
                Term::Own { .. } | Term::Across { .. } if !known => false,
                Term::Own { namespace, pods } => {
                    *namespace == pod.namespace && pods.matches(&pod.labels)
                }
                Term::Across { namespaces, pods } => {
                    namespaces.matches(namespace) && pods.matches(&pod.labels)
                }
                Term::Block(block) => pod.blocks.contains(block),
            })
    }
}

/// The lists that sets use.
#[derive(Clone, Default, Debug)]
pub(super) struct PeersInUse {
    next: PeersId,
    ids: BTreeMap<Arc<Peers>, PeersId>,
    lists: BTreeMap<PeersId, (Arc<Peers>, u32)>,
    /// Lists that may match a pod of a namespace whatever that namespace's labels are.
    own: BTreeMap<Text, BTreeSet<PeersId>>,
    /// Lists that may match a pod of any namespace.
    across: BTreeSet<PeersId>,
}

impl PeersInUse {
    /// Takes a list into use, once more; true where nobody used it before.
    pub(super) fn acquire(&mut self, peers: &Arc<Peers>) -> (PeersId, bool) {
        if let Some(id) = self.ids.get(peers) {
            if let Some((_, users)) = self.lists.get_mut(id) {
                *users += 1;
            }
            return (*id, false);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.ids.insert(Arc::clone(peers), id);
        self.lists.insert(id, (Arc::clone(peers), 1));
        for term in &peers.terms {
            match term {
                Term::Own { namespace, .. } => {
                    self.own
                        .entry(Arc::clone(namespace))
                        .or_default()
                        .insert(id);
                }
                Term::Across { .. } | Term::Block(_) => drop(self.across.insert(id)),
            }
        }
        (id, true)
    }

    /// One use of a list ends; the list where it was the last.
    pub(super) fn release(&mut self, id: PeersId) -> Option<Arc<Peers>> {
        let (_, users) = self.lists.get_mut(&id)?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        let (peers, _) = self.lists.remove(&id)?;
        self.ids.remove(&peers);
        for term in &peers.terms {
            match term {
                Term::Own { namespace, .. } => {
                    if let Some(ids) = self.own.get_mut(namespace) {
                        ids.remove(&id);
                        if ids.is_empty() {
                            self.own.remove(namespace);
                        }
                    }
                }
                Term::Across { .. } | Term::Block(_) => drop(self.across.remove(&id)),
            }
        }
        Some(peers)
    }

    /// The list of an id.
    pub(super) fn get(&self, id: PeersId) -> Option<&Arc<Peers>> {
        self.lists.get(&id).map(|(peers, _)| peers)
    }

    /// The lists that match a pod identity.
    pub(super) fn match_pod(&self, pod: &PodIdentity, namespace: &Labels) -> BTreeSet<PeersId> {
        self.own
            .get(&pod.namespace)
            .into_iter()
            .flatten()
            .chain(&self.across)
            .chain(pod.within.iter().filter_map(|list| self.ids.get(list)))
            .filter(|id| {
                self.get(**id)
                    .is_some_and(|peers| peers.match_pod(pod, namespace))
            })
            .copied()
            .collect()
    }
}

/// Whether a block contains an address and does not except it.
pub(super) fn block_contains(block: &IpBlock, ip: &IpAddr) -> bool {
    cidr_contains(&block.address, block.length, ip)
        && !block
            .except
            .iter()
            .any(|(address, length)| cidr_contains(address, *length, ip))
}

/// The last address of a CIDR.
pub(super) fn last_address(address: &IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            IpAddr::from((u32::from(*a) | host).to_be_bytes())
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            IpAddr::from((u128::from(*a) | host).to_be_bytes())
        }
    }
}

/// Whether a CIDR contains an address.
pub(super) fn cidr_contains(address: &IpAddr, length: u8, ip: &IpAddr) -> bool {
    match (address, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (u32::from(*a) ^ u32::from(*b))
                .checked_shr(u32::BITS - u32::from(length))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (u128::from(*a) ^ u128::from(*b))
                .checked_shr(u128::BITS - u32::from(length))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}
