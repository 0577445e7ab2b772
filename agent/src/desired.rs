//! What the maps should say, as compile puts it. Policy, addresses and pods are map content already (their numbers are
//! given by compile, by content); services are pools of backends still, whose places in `slots` and numbers in `backends` the
//! plan chooses, because a change of one backend must not move the others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_common::{
    Address, AddressEntry, GroupEntry, LinkEntry, Pod, Prefix, PrefixEntry, RuleKey, ServiceKey,
    SetWord, Verdict, limits,
};

use crate::datapath::Bits;
use crate::model::{Direction, Family, ObjectKey, Protocol, Sorted, Text};

/// Identities from here on are the plan's own, for peers that pass through a stage (`plan/stage.rs`): as many different moves as a
/// plan can hold apart.
pub const STAGED_IDENTITIES: u32 = limits::IDENTITIES - 4_096;
/// Groups from here on are the plan's own, likewise. Half of all numbers: compile's are given out from below.
pub const STAGED_GROUPS: u32 = 1 << 31;

/// Which of a service port's endpoint sets a pool holds (SEMANTICS.md, "Choosing endpoints").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EndpointSet {
    /// The cluster set.
    Cluster,
    /// The local set.
    Local,
}

impl EndpointSet {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

/// Names a pool: the backends of one service port in one family and endpoint set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PoolKey {
    /// The service.
    pub service: ObjectKey,
    /// Port name.
    pub port: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// Family.
    pub family: Family,
    /// Endpoint set.
    pub set: EndpointSet,
}

/// A backend of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendSpec {
    /// See [`agent_common::backend_state`]; never GONE.
    pub state: u8,
    /// See [`agent_common::backend_flag`].
    pub flags: u8,
    /// Whether new flows may choose it. One that is not chosen keeps its number and its flows, outside the run of slots.
    pub chosen: bool,
}

/// A pool. A clone is the same backends, not a copy of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    /// Backends by address and port.
    pub backends: Sorted<(IpAddr, u16), BackendSpec>,
}

/// A backend as compile and the plan hold it, together: there are 250,000 of them.
const _: () = assert!(size_of::<((IpAddr, u16), BackendSpec)>() <= 24);

/// What a service address leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// The pool.
    pub pool: PoolKey,
    /// See [`agent_common::service_flag`].
    pub flags: u16,
}

/// A pod's slot. The epoch is the plan's business, and zero here.
pub type PodSpec = Pod;

/// The set of a pod in one direction.
pub const fn set_of(pod: &Pod, direction: Direction) -> SetWord {
    match direction {
        Direction::Egress => pod.egress,
        Direction::Ingress => pod.ingress,
    }
}

/// Everything that is different from what was compiled before. `None`: the key is to go.
#[derive(Clone, Default, Debug)]
pub struct Delta {
    /// `services`.
    pub frontends: BTreeMap<ServiceKey, Option<Frontend>>,
    /// `heads`, `slots`, `backends`.
    pub pools: BTreeMap<PoolKey, Option<Pool>>,
    /// `addresses`.
    pub addresses: BTreeMap<Address, Option<AddressEntry>>,
    /// `prefixes`.
    pub prefixes: BTreeMap<Bits<Prefix>, Option<PrefixEntry>>,
    /// `groups`.
    pub groups: BTreeMap<u32, Option<GroupEntry>>,
    /// `rules`.
    pub rules: BTreeMap<Bits<RuleKey>, Option<Verdict>>,
    /// `pods`, by slot.
    pub pods: BTreeMap<u32, Option<PodSpec>>,
    /// `links`.
    pub links: BTreeMap<u32, Option<LinkEntry>>,
}

/// The whole of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// `services`.
    pub frontends: BTreeMap<ServiceKey, Frontend>,
    /// `heads`, `slots`, `backends`.
    pub pools: BTreeMap<PoolKey, Pool>,
    /// `addresses`.
    pub addresses: BTreeMap<Address, AddressEntry>,
    /// `prefixes`.
    pub prefixes: BTreeMap<Bits<Prefix>, PrefixEntry>,
    /// `groups`.
    pub groups: BTreeMap<u32, GroupEntry>,
    /// `rules`.
    pub rules: BTreeMap<Bits<RuleKey>, Verdict>,
    /// `pods`, by slot.
    pub pods: BTreeMap<u32, PodSpec>,
    /// `links`.
    pub links: BTreeMap<u32, LinkEntry>,
}

fn merge<K: Ord + Clone, V: Clone>(into: &mut BTreeMap<K, V>, from: &BTreeMap<K, Option<V>>) {
    for (key, value) in from {
        match value {
            Some(value) => drop(into.insert(key.clone(), value.clone())),
            None => drop(into.remove(key)),
        }
    }
}

fn whole<K: Ord, V>(delta: BTreeMap<K, Option<V>>) -> BTreeMap<K, V> {
    let entries = delta.into_iter();
    entries
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

fn values<K: Ord + Clone, V: Clone>(
    of: &BTreeMap<K, V>,
    keys: &BTreeMap<K, Option<V>>,
) -> BTreeMap<K, Option<V>> {
    keys.keys()
        .map(|key| (key.clone(), of.get(key).cloned()))
        .collect()
}

/// What the first delta comes to, which is the whole. Made at once, so that its trees are full: one that grows in order is half empty.
impl From<Delta> for Desired {
    fn from(delta: Delta) -> Self {
        Self {
            frontends: whole(delta.frontends),
            pools: whole(delta.pools),
            addresses: whole(delta.addresses),
            prefixes: whole(delta.prefixes),
            groups: whole(delta.groups),
            rules: whole(delta.rules),
            pods: whole(delta.pods),
            links: whole(delta.links),
        }
    }
}

impl Desired {
    /// The group of an identity.
    pub fn group(&self, identity: u32) -> u32 {
        let entry = self.groups.get(&identity);
        entry.map_or(agent_common::GROUP_ANY, |entry| entry.group)
    }

    /// What it says now of everything that a delta speaks of: merging that undoes the delta.
    pub fn before(&self, delta: &Delta) -> Delta {
        Delta {
            frontends: values(&self.frontends, &delta.frontends),
            pools: values(&self.pools, &delta.pools),
            addresses: values(&self.addresses, &delta.addresses),
            prefixes: values(&self.prefixes, &delta.prefixes),
            groups: values(&self.groups, &delta.groups),
            rules: values(&self.rules, &delta.rules),
            pods: values(&self.pods, &delta.pods),
            links: values(&self.links, &delta.links),
        }
    }

    /// Takes a delta in.
    pub fn merge(&mut self, delta: &Delta) {
        merge(&mut self.frontends, &delta.frontends);
        merge(&mut self.pools, &delta.pools);
        merge(&mut self.addresses, &delta.addresses);
        merge(&mut self.prefixes, &delta.prefixes);
        merge(&mut self.groups, &delta.groups);
        merge(&mut self.rules, &delta.rules);
        merge(&mut self.pods, &delta.pods);
        merge(&mut self.links, &delta.links);
    }
}
