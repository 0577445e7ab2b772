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

impl Objects<'_> {
    /// The plan's problems, each told of every object behind it; of the map's own key where there is none any more.
    pub(super) fn problems(&self, planner: &Planner) -> Vec<Problem> {
        let mut told = Vec::new();
        for (item, problem) in planner.failures() {
            let objects = self.behind(planner.desired(), item);
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

    fn behind(&self, desired: &Desired, item: &Item) -> BTreeSet<String> {
        match item {
            Item::Address(address) => self.address(IpAddr::from(*address)),
            Item::Prefix(prefix) => self.prefix(prefix),
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

    fn address(&self, ip: IpAddr) -> BTreeSet<String> {
        let pod = self.cluster.owner(&ip).into_iter();
        let pod = pod.map(|pod| named(Kind::Pod, &pod.key));
        let services = self.cluster.services.values();
        let services = services.filter(|service| service.addresses().any(|own| own == ip));
        let services = services.map(|service| named(Kind::Service, &service.key));
        let nodes = self.cluster.nodes.iter();
        let nodes = nodes.filter(|(_, node)| {
            let mut own = node.internal_ips.iter().chain(&node.external_ips);
            own.any(|own| *own == ip)
        });
        let nodes = nodes.map(|(name, _)| named(Kind::Node, name));
        pod.chain(services).chain(nodes).collect()
    }

    fn link(&self, ifindex: u32) -> BTreeSet<String> {
        let links = self.local.pods.get(&ifindex).into_iter();
        let owners = links.flat_map(|link| &link.addresses);
        let owners = owners.filter_map(|ip| self.cluster.owner(ip));
        owners.map(|pod| named(Kind::Pod, &pod.key)).collect()
    }

    /// Policies with a block, or an exception to one, of just this prefix.
    fn prefix(&self, prefix: &Bits<Prefix>) -> BTreeSet<String> {
        let address = IpAddr::from(Address {
            bytes: prefix.data.bytes,
        });
        let mapped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
        let block = (address, prefix.length.saturating_sub(mapped));
        let policies = self.cluster.policies.values();
        let policies = policies.filter(|policy| has_block(policy, block));
        policies
            .map(|policy| named(Kind::NetworkPolicy, &policy.key))
            .collect()
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

fn has_block(policy: &NetworkPolicy, (address, length): (IpAddr, u32)) -> bool {
    let directions = [&policy.ingress, &policy.egress];
    let rules = directions.into_iter().flatten().flatten();
    let mut peers = rules.flat_map(|rule| rule.peers.iter().flatten());
    peers.any(|peer| match peer {
        Peer::Block(block) => {
            let mut all = block.except.iter().copied();
            (block.address, u32::from(block.length)) == (address, length)
                || all.any(|(ip, bits)| (ip, u32::from(bits)) == (address, length))
        }
        Peer::Pods { .. } => false,
    })
}
