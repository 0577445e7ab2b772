//! The cluster's objects behind what could not be written: what is wrong with a policy is told of that policy, not of a number in a map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::{Address, Prefix};

use crate::compile::RuleName;
use crate::datapath::Bits;
use crate::datapath::contents::rules_of;
use crate::desired::Desired;
use crate::local::Local;
use crate::model::{Cluster, Kind, NetworkPolicy, ObjectKey, Peer};
use crate::plan::{Item, Planner};
use crate::problem::Problem;

/// Bits before an IPv4 address in its mapped form (RFC 4291 2.5.5.2).
const MAPPED_BITS: u32 = 96;

/// Knows whose a map's numbers and keys are.
pub(super) struct Objects<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) local: &'a Local,
    /// What the numbers of verdicts stand for.
    pub(super) rules: BTreeMap<u32, RuleName>,
}

fn named(kind: Kind, name: impl std::fmt::Display) -> String {
    format!("{} {name}", kind.name())
}

/// Names of objects by something of theirs.
type Names<K> = BTreeMap<K, BTreeSet<String>>;

/// A block, or an exception to one: its address and how many of that one's bits count.
type Block = (IpAddr, u32);

/// Whose the keys of what failed are: found in one walk over the cluster, since a map that has no room may refuse thousands of entries.
#[derive(Default)]
struct Owners {
    addresses: Names<IpAddr>,
    blocks: Names<Block>,
}

impl Objects<'_> {
    /// The plan's problems, each told of every object behind it; of the map's own key where there is none (any more).
    pub(super) fn problems(&self, planner: &Planner) -> Vec<Problem> {
        let owners = self.owners(planner);
        let mut told = Vec::new();
        for (item, problem) in planner.failures() {
            let objects = self.behind(&owners, planner.desired(), item);
            if objects.is_empty() {
                told.push(problem.clone());
            }
            told.extend(objects.into_iter().map(|object| Problem {
                object,
                reason: format!("{}: {}", problem.object, problem.reason),
                limit: problem.limit,
            }));
        }
        told
    }

    fn owners(&self, planner: &Planner) -> Owners {
        let mut owners = Owners::default();
        for (item, _) in planner.failures() {
            match item {
                Item::Address(address) => {
                    owners.addresses.entry((*address).into()).or_default();
                }
                Item::Prefix(prefix) => {
                    owners.blocks.entry(block(prefix)).or_default();
                }
                _ => {}
            }
        }
        if !owners.addresses.is_empty() {
            self.addresses(&mut owners.addresses);
        }
        if !owners.blocks.is_empty() {
            for policy in self.cluster.policies.values() {
                for_blocks(policy, |block| {
                    if let Some(names) = owners.blocks.get_mut(&block) {
                        names.insert(named(Kind::NetworkPolicy, &policy.key));
                    }
                });
            }
        }
        owners
    }

    fn behind(&self, owners: &Owners, desired: &Desired, item: &Item) -> BTreeSet<String> {
        match item {
            Item::Address(address) => {
                let names = owners.addresses.get(&IpAddr::from(*address));
                names.cloned().unwrap_or_default()
            }
            Item::Prefix(prefix) => {
                let names = owners.blocks.get(&block(prefix));
                names.cloned().unwrap_or_default()
            }
            Item::Rules(set) => self.set(desired, *set),
            Item::Pod(slot) | Item::Epoch(slot) => {
                let pod = desired.pods.get(slot);
                pod.map(|pod| self.link(pod.ifindex)).unwrap_or_default()
            }
            Item::Link(ifindex) => self.link(*ifindex),
            // They bear a service's name already; or nobody's.
            Item::Pool(_) | Item::Frontend(_) | Item::Room(_) | Item::Group(_) | Item::Peers => {
                BTreeSet::new()
            }
        }
    }

    /// Whose these addresses are.
    fn addresses(&self, names: &mut Names<IpAddr>) {
        for (ip, names) in names.iter_mut() {
            let pod = self.cluster.owner(ip);
            names.extend(pod.map(|pod| named(Kind::Pod, &pod.key)));
        }
        for service in self.cluster.services.values() {
            for ip in service.addresses() {
                if let Some(names) = names.get_mut(&ip) {
                    names.insert(named(Kind::Service, &service.key));
                }
            }
        }
        for (name, node) in &self.cluster.nodes {
            for ip in node.internal_ips.iter().chain(&node.external_ips) {
                if let Some(names) = names.get_mut(ip) {
                    names.insert(named(Kind::Node, name));
                }
            }
        }
    }

    fn link(&self, ifindex: u32) -> BTreeSet<String> {
        let links = self.local.pods.get(&ifindex).into_iter();
        let owners = links.flat_map(|link| &link.addresses);
        let owners = owners.filter_map(|ip| self.cluster.owner(ip));
        owners.map(|pod| named(Kind::Pod, &pod.key)).collect()
    }

    /// The policies that a set is made of.
    fn set(&self, desired: &Desired, set: u32) -> BTreeSet<String> {
        let numbers: BTreeSet<u32> = rules_of(&desired.rules, set)
            .map(|(_, verdict)| verdict.rule)
            .collect();
        let names = numbers.iter().filter_map(|number| self.rules.get(number));
        let policies: BTreeSet<&ObjectKey> = names
            .flat_map(|name| match name {
                RuleName::Rule { policy, .. } => std::slice::from_ref(policy),
                RuleName::Default { policies, .. } => policies,
            })
            .collect();
        let policies = policies.into_iter();
        policies
            .map(|key| named(Kind::NetworkPolicy, key))
            .collect()
    }
}

/// The block that a key of `prefixes` stands for.
fn block(prefix: &Bits<Prefix>) -> Block {
    let address = IpAddr::from(Address {
        bytes: prefix.data.bytes,
    });
    let mapped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
    (address, prefix.length.saturating_sub(mapped))
}

/// Every block of a policy, and every exception.
fn for_blocks(policy: &NetworkPolicy, mut visit: impl FnMut(Block)) {
    let directions = [&policy.ingress, &policy.egress];
    let rules = directions.into_iter().flatten().flatten();
    for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
        if let Peer::Block(block) = peer {
            visit((block.address, u32::from(block.length)));
            for (ip, bits) in &block.except {
                visit((*ip, u32::from(*bits)));
            }
        }
    }
}
