//! What an operator would want to know of policies that is no error: one that selects no pod, and (in cilium mode) an ipBlock
//! that contains addresses which it never matches. Kept change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::address_kind;

use super::enforcement::KnownAddress;
use super::identity::PrefixKey;
use super::peers::{block_contains, last_address};
use crate::model::{
    Change, Cluster, IpBlock, NetworkPolicy, Object, ObjectKey, Peer, Pod, PodPhase,
};
use crate::problem::Problem;

/// The pods that each policy selects, counted.
#[derive(Clone, Default, Debug)]
pub(super) struct Selected {
    counts: BTreeMap<ObjectKey, usize>,
    /// Policies that select none.
    none: BTreeSet<ObjectKey>,
}

/// Whether policies may select a pod at all: a host-network pod is its node, and a finished one has no address.
fn selectable(pod: &Pod) -> bool {
    !pod.host_network && pod.phase == PodPhase::Live
}

fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    selectable(pod)
        && policy.key.namespace == pod.key.namespace
        && policy.selector.matches(&pod.labels)
}

/// The objects of a namespace.
fn within<'a, V>(
    map: &'a BTreeMap<ObjectKey, Arc<V>>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Arc<V>> {
    map.range(ObjectKey::new(namespace, "")..)
        .take_while(move |(key, _)| &*key.namespace == namespace)
        .map(|(_, object)| object)
}

impl Selected {
    /// Takes changes in; the cluster is as it is after all of them.
    pub(super) fn update(&mut self, cluster: &Cluster, changes: &[Change]) {
        // A policy that changed is counted anew, once; pods count for the others.
        let mut recount = BTreeSet::new();
        for change in changes {
            for object in [&change.before, &change.after].into_iter().flatten() {
                if let Object::NetworkPolicy(policy) = object {
                    recount.insert(policy.key.clone());
                }
            }
        }
        for change in changes {
            let pod = |object: &Option<Object>| match object {
                Some(Object::Pod(pod)) => Some(Arc::clone(pod)),
                _ => None,
            };
            let (before, after) = (pod(&change.before), pod(&change.after));
            if before.is_none() && after.is_none() {
                continue;
            }
            for policy in within(&cluster.policies, &change.id.key.namespace) {
                if recount.contains(&policy.key) {
                    continue;
                }
                let selected = |pod: &Option<Arc<Pod>>| {
                    usize::from(pod.as_ref().is_some_and(|pod| selects(policy, pod)))
                };
                let (was, is) = (selected(&before), selected(&after));
                if was != is {
                    let count = self.counts.get(&policy.key).copied().unwrap_or(0);
                    self.set(&policy.key, (count + is).saturating_sub(was));
                }
            }
        }
        for key in recount {
            match cluster.policies.get(&key) {
                Some(policy) => {
                    let pods = within(&cluster.pods, &key.namespace);
                    let count = pods.filter(|pod| selects(policy, pod)).count();
                    self.set(&key, count);
                }
                None => {
                    self.counts.remove(&key);
                    self.none.remove(&key);
                }
            }
        }
    }

    fn set(&mut self, key: &ObjectKey, count: usize) {
        self.counts.insert(key.clone(), count);
        if count == 0 {
            self.none.insert(key.clone());
        } else {
            self.none.remove(key);
        }
    }

    /// The notices.
    pub(super) fn notices(&self) -> impl Iterator<Item = Problem> + '_ {
        self.none.iter().map(|key| {
            Problem::new(
                format_args!("NetworkPolicy {key}"),
                "it selects no pod of its namespace; check spec.podSelector against the pods' labels",
            )
        })
    }
}

/// A block that policies name.
#[derive(Clone, Default, Debug)]
struct Named {
    policies: BTreeSet<ObjectKey>,
    /// The lowest address of a pod, a node or this host that it contains.
    lowest: Option<IpAddr>,
}

/// The ipBlocks of all policies, and what is in them that they never match.
#[derive(Clone, Default, Debug)]
pub(super) struct Overlaps {
    blocks: BTreeMap<PrefixKey, BTreeMap<IpBlock, Named>>,
}

/// Whether blocks never match such an address in cilium mode.
fn internal(known: &KnownAddress) -> bool {
    known.entry.kind <= address_kind::HOST
}

/// The lowest internal address of a block, not below `from`.
fn lowest(
    block: &IpBlock,
    from: IpAddr,
    addresses: &BTreeMap<IpAddr, KnownAddress>,
) -> Option<IpAddr> {
    addresses
        .range(from..=last_address(&block.address, block.length))
        .find(|(ip, known)| internal(known) && block_contains(block, ip))
        .map(|(ip, _)| *ip)
}

fn blocks_of(policy: &NetworkPolicy) -> impl Iterator<Item = &IpBlock> {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    rules
        .flat_map(|rule| rule.peers.iter().flatten())
        .filter_map(|peer| match peer {
            Peer::Block(block) => Some(block),
            Peer::Pods { .. } => None,
        })
}

impl Overlaps {
    /// A policy's change.
    pub(super) fn policy(
        &mut self,
        before: Option<&NetworkPolicy>,
        after: Option<&NetworkPolicy>,
        addresses: &BTreeMap<IpAddr, KnownAddress>,
    ) {
        if let Some(policy) = before {
            for block in blocks_of(policy) {
                let prefix = PrefixKey::new(&block.address, block.length);
                let Some(blocks) = self.blocks.get_mut(&prefix) else {
                    continue;
                };
                if let Some(named) = blocks.get_mut(block) {
                    named.policies.remove(&policy.key);
                    if named.policies.is_empty() {
                        blocks.remove(block);
                    }
                }
                if blocks.is_empty() {
                    self.blocks.remove(&prefix);
                }
            }
        }
        if let Some(policy) = after {
            for block in blocks_of(policy) {
                let prefix = PrefixKey::new(&block.address, block.length);
                let blocks = self.blocks.entry(prefix).or_default();
                let named = blocks.entry(block.clone()).or_insert_with(|| Named {
                    policies: BTreeSet::new(),
                    lowest: lowest(block, block.address, addresses),
                });
                named.policies.insert(policy.key.clone());
            }
        }
    }

    /// An address became something else.
    pub(super) fn address(&mut self, ip: IpAddr, addresses: &BTreeMap<IpAddr, KnownAddress>) {
        let is = addresses.get(&ip).is_some_and(internal);
        let bits = match ip {
            IpAddr::V4(_) => u32::BITS,
            IpAddr::V6(_) => u128::BITS,
        };
        let own = PrefixKey::new(&ip, u8::try_from(bits).unwrap_or(u8::MAX));
        for prefix in own.containing() {
            let Some(blocks) = self.blocks.get_mut(&prefix) else {
                continue;
            };
            for (block, named) in blocks {
                if is && named.lowest.is_none_or(|lowest| ip < lowest) {
                    if block_contains(block, &ip) {
                        named.lowest = Some(ip);
                    }
                } else if !is && named.lowest == Some(ip) {
                    named.lowest = lowest(block, ip, addresses);
                }
            }
        }
    }

    /// Blocks that contain what they never match: the policy, the block, and the lowest such address.
    pub(super) fn found(&self) -> impl Iterator<Item = (&ObjectKey, &IpBlock, IpAddr)> {
        let blocks = self.blocks.values().flatten();
        blocks
            .filter_map(|(block, named)| Some((block, named, named.lowest?)))
            .flat_map(|(block, named, ip)| {
                let policies = named.policies.iter();
                policies.map(move |policy| (policy, block, ip))
            })
    }

    /// The notices.
    pub(super) fn notices(&self) -> impl Iterator<Item = Problem> + '_ {
        self.found().map(|(policy, block, ip)| {
            Problem::new(
                format_args!("NetworkPolicy {policy}"),
                format!(
                    "its ipBlock {}/{} contains {ip} of a pod or node, and perhaps more, but ipBlocks never match those in this mode (--ip-block-mode=cilium); use selectors for pods",
                    block.address, block.length,
                ),
            )
        })
    }
}
