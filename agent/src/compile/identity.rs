//! Identities: who an address is, as far as rules can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::Prefix;

use super::numbers::Numbers;
use super::peers::{Peers, PeersId};
use crate::model::{IpBlock, Labels, NamedPort, Text};

/// What an identity of pods is made of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PodIdentity {
    /// First, so that the identities of a namespace are neighbours.
    pub(super) namespace: Text,
    pub(super) labels: Labels,
    pub(super) service_account: Text,
    pub(super) ports: Vec<NamedPort>,
    /// The ipBlocks in use with named ports that contain the address (literal mode).
    pub(super) blocks: Vec<IpBlock>,
    /// Of a pod that is known from before a restart only: the lists of peers that it was one of. Then there is no namespace, and
    /// nothing else says who it is.
    pub(super) within: BTreeSet<Arc<Peers>>,
}

/// A prefix of the trie: the bytes first, so that what lies inside a prefix follows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PrefixKey {
    pub(super) prefix: Prefix,
    pub(super) length: u32,
}

/// What has an identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Who {
    /// Pods.
    Pod(Arc<PodIdentity>),
    /// The addresses of a prefix that no longer prefix covers.
    Prefix(PrefixKey),
}

/// An identity.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) who: Who,
    /// Addresses, or 1 for a prefix.
    pub(super) users: u32,
    /// The lists of peers that it is one of.
    pub(super) matches: BTreeSet<PeersId>,
    /// Number of its group.
    pub(super) group: u32,
}

/// All identities.
#[derive(Clone, Debug)]
pub(super) struct Identities {
    pub(super) numbers: Numbers,
    pub(super) all: BTreeMap<u32, Identity>,
    pub(super) by_who: BTreeMap<Who, u32>,
    /// Those that nothing used at some time of this update.
    pub(super) idle: BTreeSet<u32>,
}

impl Identities {
    /// None yet, with numbers below `end`.
    pub(super) fn new(end: u32) -> Self {
        Self {
            numbers: Numbers::new(1, end),
            all: BTreeMap::new(),
            by_who: BTreeMap::new(),
            idle: BTreeSet::new(),
        }
    }

    /// Takes an identity into use, once more: its number, and whether it is new. None where all numbers are taken.
    pub(super) fn acquire(&mut self, who: Who) -> Option<(u32, bool)> {
        if let Some(number) = self.by_who.get(&who) {
            if let Some(identity) = self.all.get_mut(number) {
                identity.users += 1;
            }
            return Some((*number, false));
        }
        let number = self.numbers.take()?;
        self.by_who.insert(who.clone(), number);
        self.all.insert(
            number,
            Identity {
                who,
                users: 1,
                matches: BTreeSet::new(),
                group: agent_common::GROUP_ANY,
            },
        );
        Some((number, true))
    }

    /// One use ends. The identity stays until [`Self::sweep`], because another address may take it in the same update.
    pub(super) fn release(&mut self, number: u32) {
        if let Some(identity) = self.all.get_mut(&number) {
            identity.users = identity.users.saturating_sub(1);
            if identity.users == 0 {
                self.idle.insert(number);
            }
        }
    }

    /// Removes an identity that nothing uses; what it was.
    pub(super) fn sweep(&mut self, number: u32) -> Option<Identity> {
        if self.all.get(&number)?.users > 0 {
            return None;
        }
        let identity = self.all.remove(&number)?;
        self.by_who.remove(&identity.who);
        self.numbers.give(number);
        Some(identity)
    }

    /// Lets a number stand for something else that has none yet: the same pods, told apart by other labels.
    pub(super) fn rename(&mut self, number: u32, who: Who) {
        if let Some(identity) = self.all.get_mut(&number)
            && !self.by_who.contains_key(&who)
        {
            self.by_who.remove(&identity.who);
            self.by_who.insert(who.clone(), number);
            identity.who = who;
        }
    }

    /// The identities of a namespace's pods.
    pub(super) fn of_namespace(&self, namespace: &Text) -> Vec<u32> {
        let first = Who::Pod(Arc::new(PodIdentity {
            namespace: namespace.clone(),
            labels: Labels::new(),
            service_account: Text::from(""),
            ports: Vec::new(),
            blocks: Vec::new(),
            within: BTreeSet::new(),
        }));
        self.by_who
            .range(first..)
            .take_while(|(who, _)| matches!(who, Who::Pod(pod) if pod.namespace == *namespace))
            .map(|(_, number)| *number)
            .collect()
    }
}
