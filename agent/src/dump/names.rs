//! What numbers stand for, found from the maps and the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::{AddressEntry, GROUP_ANY, IDENTITY_UNKNOWN, address_kind, pod_flag, rule_bits};

use crate::compile::RuleName;
use crate::model::{Direction, ObjectKey, Peer, Pod, PortSpec, Protocol, Text};
use crate::reconcile::State;

/// Service account of pods that name none; it goes without saying.
const DEFAULT_ACCOUNT: &str = "default";

/// Names of identities, groups, sets and slots.
pub(super) struct Names<'a> {
    state: &'a State,
    /// Label keys that selectors of peers ask for.
    keys: BTreeSet<&'a Text>,
    /// Named ports that egress rules ask for.
    ports: BTreeSet<(&'a Text, Protocol)>,
    identities: BTreeMap<u32, BTreeSet<String>>,
    groups: BTreeMap<u32, BTreeSet<String>>,
    sets: BTreeMap<u32, String>,
}

impl<'a> Names<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        let (keys, ports) = words(state);
        let mut names = Self {
            state,
            keys,
            ports,
            identities: BTreeMap::new(),
            groups: BTreeMap::new(),
            sets: BTreeMap::new(),
        };
        let maps = &state.contents;
        for (address, entry) in &maps.addresses {
            if entry.identity != IDENTITY_UNKNOWN {
                let pod = names.pod_at(&IpAddr::from(*address), entry);
                let meaning = pod.map(|pod| names.meaning(&pod));
                let of = names.identities.entry(entry.identity).or_default();
                of.extend(meaning);
            }
        }
        for (bits, entry) in &maps.prefixes {
            let of = names.identities.entry(entry.identity).or_default();
            of.insert(super::prefix(bits).to_string());
        }
        for (identity, entry) in &maps.groups {
            let meaning = names.identity(*identity);
            names.groups.entry(entry.group).or_default().insert(meaning);
        }
        names.sets = sets(state);
        names
    }

    /// What the pods of an identity, or its prefix, are.
    pub(super) fn identity(&self, number: u32) -> String {
        match self.identities.get(&number) {
            Some(meanings) if meanings.is_empty() => "of pods that are gone".to_owned(),
            Some(meanings) => join(meanings, " | "),
            None => "nobody".to_owned(),
        }
    }

    /// The identities of a group.
    pub(super) fn group(&self, number: u32) -> String {
        if number == GROUP_ANY {
            return "any".to_owned();
        }
        match self.groups.get(&number) {
            Some(members) => format!("{{{}}}", join(members, ", ")),
            None => "{nobody}".to_owned(),
        }
    }

    /// The policies of a set.
    pub(super) fn set(&self, number: u32) -> &str {
        self.sets
            .get(&number)
            .map_or("a set without a default", String::as_str)
    }

    /// What a verdict's number stands for.
    pub(super) fn rule(&self, number: u32) -> String {
        match self.state.rules.get(&number) {
            Some(name) => name.to_string(),
            None => "a rule that nobody knows".to_owned(),
        }
    }

    /// The pod of a slot, and the name of its link.
    pub(super) fn slot(&self, slot: u32) -> String {
        let Some(link) = self.link_of(slot) else {
            return "a link that is gone".to_owned();
        };
        match self.pod_in(slot) {
            Some(pod) => format!("{} on {link}", pod.key),
            None if self.is_unknown(slot) => format!("not known, on {link}"),
            // Policy holds until its link goes.
            None => format!("gone, but for {link}"),
        }
    }

    fn is_unknown(&self, slot: u32) -> bool {
        let spec = self.state.contents.pods.get(&slot);
        spec.is_some_and(|spec| spec.flags & pod_flag::UNKNOWN != 0)
    }

    fn link_of(&self, slot: u32) -> Option<&'a str> {
        let ifindex = self.state.contents.pods.get(&slot)?.ifindex;
        let link = self.state.local.pods.get(&ifindex)?;
        Some(&link.name)
    }

    fn pod_in(&self, slot: u32) -> Option<Arc<Pod>> {
        if self.is_unknown(slot) {
            return None;
        }
        let spec = self.state.contents.pods.get(&slot)?;
        let link = self.state.local.pods.get(&spec.ifindex)?;
        let mut owners = link
            .addresses
            .iter()
            .filter_map(|ip| self.state.cluster.owner(ip));
        owners.next().cloned()
    }

    /// The pod of an entry of `addresses`.
    pub(super) fn pod_at(&self, ip: &IpAddr, entry: &AddressEntry) -> Option<Arc<Pod>> {
        match entry.kind {
            address_kind::LOCAL_POD => self.pod_in(u32::from(entry.slot)),
            address_kind::REMOTE_POD => self.state.cluster.owner(ip).cloned(),
            _ => None,
        }
    }

    /// What rules can tell a pod by: its namespace, the labels that selectors mention, its account, the ports that rules name.
    fn meaning(&self, pod: &Pod) -> String {
        let labels: Vec<String> = pod
            .labels
            .iter()
            .filter(|(key, _)| self.keys.contains(key))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let mut text = format!("{}{{{}}}", pod.key.namespace, labels.join(","));
        if &*pod.service_account != DEFAULT_ACCOUNT {
            text.push_str(&format!(" account {}", pod.service_account));
        }
        let ports: Vec<String> = pod
            .ports
            .iter()
            .filter(|port| self.ports.contains(&(&port.name, port.protocol)))
            .map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol.name()))
            .collect();
        if !ports.is_empty() {
            text.push_str(&format!(" ports {}", ports.join(",")));
        }
        text
    }
}

fn join(of: &BTreeSet<String>, between: &str) -> String {
    let all: Vec<&str> = of.iter().map(String::as_str).collect();
    all.join(between)
}

/// The label keys and named ports by which rules tell their peers apart.
fn words(state: &State) -> (BTreeSet<&Text>, BTreeSet<(&Text, Protocol)>) {
    let (mut keys, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for policy in state.cluster.policies.values() {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
            if let Peer::Pods { pods, .. } = peer {
                keys.extend(pods.requirements.iter().map(|r| &r.key));
            }
        }
        let egress = policy.egress.iter().flatten();
        for port in egress.flat_map(|rule| rule.ports.iter().flatten()) {
            if let PortSpec::Named(name) = &port.port {
                ports.insert((name, port.protocol));
            }
        }
    }
    (keys, ports)
}

/// Sets by their policies, which their defaults name. Where two have the same ones (their pods resolve a named port
/// differently), the pods' links tell them apart.
fn sets(state: &State) -> BTreeMap<u32, String> {
    let maps = &state.contents;
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    for (bits, verdict) in &maps.rules {
        if bits.length == rule_bits::SET {
            let name = match state.rules.get(&verdict.rule) {
                Some(RuleName::Default {
                    policies,
                    direction,
                }) => set_name(policies, *direction),
                _ => "policies that are gone".to_owned(),
            };
            names.insert(bits.data.set, name);
        }
    }
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    for name in names.values() {
        *count.entry(name.clone()).or_insert(0) += 1;
    }
    let mut users: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for pod in maps.pods.values() {
        let link = state.local.pods.get(&pod.ifindex);
        let link = link.map_or("a link that is gone", |link| &link.name);
        for set in [pod.egress.set, pod.ingress.set] {
            users.entry(set).or_default().insert(link.to_owned());
        }
    }
    for (set, name) in &mut names {
        match users.get(set) {
            None => name.push_str(" of no pod"),
            Some(links) if count.get(name).is_some_and(|n| *n > 1) => {
                name.push_str(&format!(" of {}", join(links, ",")));
            }
            Some(_) => {}
        }
    }
    names
}

fn set_name(policies: &[ObjectKey], direction: Direction) -> String {
    let all: Vec<String> = policies.iter().map(ToString::to_string).collect();
    format!("{}[{}]", direction.name(), all.join(","))
}
