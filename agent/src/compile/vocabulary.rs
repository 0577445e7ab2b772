//! What rules can tell pods apart by: the label keys, named ports and (with named ports) ipBlocks that any policy mentions.
//! Identities are cut down to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::identity::PodIdentity;
use super::peers::block_contains;
use crate::model::{Direction, IpBlock, NetworkPolicy, Peer, Pod, PortSpec, Protocol, Text};

/// What one policy mentions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Words {
    keys: BTreeSet<Text>,
    namespace_keys: BTreeSet<Text>,
    ports: BTreeSet<(Text, Protocol)>,
    blocks: BTreeSet<IpBlock>,
}

impl Words {
    /// The words of a policy's rules in some directions. `literal`: ipBlocks match pods, so that an egress rule for a block and a named port speaks of the
    /// pods in that block.
    pub(super) fn of(policy: &NetworkPolicy, directions: &[Direction], literal: bool) -> Self {
        let mut words = Self::default();
        let rules = directions
            .iter()
            .filter_map(|direction| policy.rules(*direction));
        for rule in rules.flatten() {
            for peer in rule.peers.iter().flatten() {
                if let Peer::Pods { namespaces, pods } = peer {
                    for requirement in &pods.requirements {
                        words.keys.insert(requirement.key.clone());
                    }
                    for requirement in namespaces.iter().flat_map(|s| &s.requirements) {
                        words.namespace_keys.insert(requirement.key.clone());
                    }
                }
            }
        }
        // A named port is the destination's: in an ingress rule it is the selected pod's own, and no identity is asked.
        let egress = directions
            .contains(&Direction::Egress)
            .then(|| policy.rules(Direction::Egress))
            .flatten();
        for rule in egress.into_iter().flatten() {
            let named: Vec<_> = rule
                .ports
                .iter()
                .flatten()
                .filter_map(|port| match &port.port {
                    PortSpec::Named(name) => Some((name.clone(), port.protocol)),
                    PortSpec::All | PortSpec::Range(..) => None,
                })
                .collect();
            if !named.is_empty() && literal {
                for peer in rule.peers.iter().flatten() {
                    if let Peer::Block(block) = peer {
                        words.blocks.insert(block.clone());
                    }
                }
            }
            words.ports.extend(named);
        }
        words
    }
}

/// The words of all policies, counted.
#[derive(Clone, Default, Debug)]
pub(super) struct Vocabulary {
    keys: BTreeMap<Text, u32>,
    namespace_keys: BTreeMap<Text, u32>,
    ports: BTreeMap<(Text, Protocol), u32>,
    blocks: BTreeMap<IpBlock, u32>,
}

/// Counts up; whether the word is new.
fn add<T: Ord + Clone>(counts: &mut BTreeMap<T, u32>, words: &BTreeSet<T>) -> bool {
    let mut new = false;
    for word in words {
        let count = counts.entry(word.clone()).or_insert(0);
        new |= *count == 0;
        *count += 1;
    }
    new
}

/// Counts down; whether a word is gone.
fn remove<T: Ord + Clone>(counts: &mut BTreeMap<T, u32>, words: &BTreeSet<T>) -> bool {
    let mut gone = false;
    for word in words {
        if let Some(count) = counts.get_mut(word) {
            *count -= 1;
            if *count == 0 {
                counts.remove(word);
                gone = true;
            }
        }
    }
    gone
}

impl Vocabulary {
    /// Takes a policy's words in; whether pods are told apart by more than before.
    pub(super) fn add(&mut self, words: &Words) -> bool {
        add(&mut self.namespace_keys, &words.namespace_keys);
        add(&mut self.keys, &words.keys)
            | add(&mut self.ports, &words.ports)
            | add(&mut self.blocks, &words.blocks)
    }

    /// Lets a policy's words go; whether pods are told apart by less than before.
    pub(super) fn remove(&mut self, words: &Words) -> bool {
        remove(&mut self.namespace_keys, &words.namespace_keys);
        remove(&mut self.keys, &words.keys)
            | remove(&mut self.ports, &words.ports)
            | remove(&mut self.blocks, &words.blocks)
    }

    /// Whether any selector of namespaces asks for a key.
    pub(super) fn asks_namespaces_for(&self, key: &Text) -> bool {
        self.namespace_keys.contains_key(key)
    }

    /// A pod at one of its addresses, cut down to what rules can tell apart.
    pub(super) fn cut(&self, pod: &Pod, ip: &IpAddr) -> PodIdentity {
        PodIdentity {
            namespace: pod.key.namespace.clone(),
            service_account: pod.service_account.clone(),
            labels: pod
                .labels
                .iter()
                .filter(|(key, _)| self.keys.contains_key(*key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            ports: pod
                .ports
                .iter()
                .filter(|port| {
                    !self.ports.is_empty()
                        && self.ports.contains_key(&(port.name.clone(), port.protocol))
                })
                .cloned()
                .collect(),
            blocks: self
                .blocks
                .keys()
                .filter(|block| block_contains(block, ip))
                .cloned()
                .collect(),
            within: BTreeSet::new(),
        }
    }
}
