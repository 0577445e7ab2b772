//! `sluice endpoint list`: the pods of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::{Address, NO_ADDRESS_SLOT, SetWord, pod_flag, set_flag};
use serde::{Deserialize, Serialize};

use crate::desired::{PodSpec, set_of};
use crate::local::PodLink;
use crate::model::{Direction, NetworkPolicy, ObjectKey, Peer, Pod, PodPhase, Text};
use crate::observe::state::State;

/// The local pods, and the pod links that no pod is known for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointList {
    /// Sorted by namespace and name; links without a pod come last.
    pub endpoints: Vec<EndpointView>,
}

/// How far a local pod is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Pod and interface are known, and its policies are in force.
    Ready,
    /// The interface is there, but no source has told of the pod: `--unknown-pod` says what holds.
    UnknownPod,
    /// The pod is to run here, but has no interface yet, or none that is a veth with a host route to its address.
    NoInterface,
    /// Pod and interface are known, and the maps are still to say so (`status` names the problem, if there is one).
    Pending,
}

/// What holds for a pod in one direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectionView {
    /// Only what a rule allows passes.
    pub isolated: bool,
    /// The policies that select the pod in this direction.
    pub policies: Vec<String>,
    /// Number of the rule set in the maps; null without one.
    pub set: Option<u32>,
}

/// A local pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointView {
    /// Namespace; null for a link whose pod is not known.
    pub namespace: Option<String>,
    /// Name; null for a link whose pod is not known.
    pub name: Option<String>,
    /// How far it is.
    pub state: EndpointState,
    /// Its addresses: the pod's own, or those that the link has routes to.
    pub addresses: Vec<IpAddr>,
    /// Name of the host's side of its link; null without one.
    pub interface: Option<String>,
    /// Index of the host's side of its link; null without one.
    pub ifindex: Option<u32>,
    /// What may reach it.
    pub ingress: DirectionView,
    /// What it may reach.
    pub egress: DirectionView,
    /// Its labels, cut down to the keys that a policy mentions: what its identity is made of.
    pub identity_labels: BTreeMap<String, String>,
    /// Number of its identity in the maps; null while it has none.
    pub identity: Option<u32>,
    /// Number of its slot in the map `pods`; null while it has none.
    pub slot: Option<u32>,
}

/// The pods that run on this node by their own account, or own an address that a pod link leads to.
pub(super) fn local_pods(state: &State) -> BTreeMap<&ObjectKey, &Pod> {
    let cluster = &state.cluster;
    let of_node = cluster.pods.values().filter(|pod| {
        pod.node.as_ref() == Some(&state.node) && !pod.host_network && pod.phase == PodPhase::Live
    });
    let routed = state.local.pods.values().flat_map(|link| &link.addresses);
    let of_link = routed.filter_map(|ip| cluster.owner(ip));
    of_node
        .chain(of_link)
        .map(|pod| (&pod.key, pod.as_ref()))
        .collect()
}

/// Label keys that selectors of pods mention.
fn mentioned(state: &State) -> BTreeSet<&Text> {
    let mut mentioned = BTreeSet::new();
    for policy in state.cluster.policies.values() {
        let rules = [&policy.ingress, &policy.egress];
        let peers = rules.into_iter().flatten().flatten();
        let selectors = peers
            .filter_map(|rule| rule.peers.as_ref())
            .flatten()
            .filter_map(|peer| match peer {
                Peer::Pods { pods, .. } => Some(pods),
                Peer::Block(_) => None,
            });
        for selector in selectors.chain([&policy.selector]) {
            mentioned.extend(selector.requirements.iter().map(|r| &r.key));
        }
    }
    mentioned
}

/// Whether a policy selects a pod.
pub(super) fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    policy.key.namespace == pod.key.namespace
        && !pod.host_network
        && pod.phase == PodPhase::Live
        && policy.selector.matches(&pod.labels)
}

impl EndpointList {
    /// The local pods of a namespace, or all and the links without a pod.
    #[must_use]
    pub fn build(state: &State, namespace: Option<&str>) -> Self {
        let keys = mentioned(state);
        let mut links: BTreeMap<&ObjectKey, &PodLink> = BTreeMap::new();
        let mut unknown = Vec::new();
        for link in state.local.pods.values() {
            let owners = link
                .addresses
                .iter()
                .filter_map(|ip| state.cluster.owner(ip));
            let mut owners = owners.peekable();
            if owners.peek().is_none() && namespace.is_none() {
                unknown.push(of_unknown(state, link));
            }
            for pod in owners {
                links.insert(&pod.key, link);
            }
        }
        let pods = local_pods(state);
        let wanted = pods
            .into_iter()
            .filter(|(key, _)| namespace.is_none_or(|n| *key.namespace == *n));
        let mut endpoints: Vec<_> = wanted
            .map(|(key, pod)| of_pod(state, &keys, pod, links.get(key).copied()))
            .collect();
        endpoints.extend(unknown);
        Self { endpoints }
    }
}

/// The slot of a link, as the maps should have it.
fn slot<'a>(state: &'a State, link: &PodLink) -> Option<(u32, &'a PodSpec)> {
    let slot = state.desired.links.get(&link.ifindex)?.slot;
    Some((slot, state.desired.pods.get(&slot)?))
}

fn of_pod(
    state: &State,
    keys: &BTreeSet<&Text>,
    pod: &Pod,
    link: Option<&PodLink>,
) -> EndpointView {
    let slot = link.and_then(|link| slot(state, link));
    let known = slot.is_some_and(|(_, spec)| spec.flags & pod_flag::UNKNOWN == 0);
    let entry = pod.addresses.iter().find_map(|ip| {
        let entry = state.desired.addresses.get(&Address::from(*ip))?;
        (entry.slot != NO_ADDRESS_SLOT).then_some(entry)
    });
    let direction = |direction: Direction| {
        let policies = state
            .cluster
            .policies
            .values()
            .filter(|policy| policy.rules(direction).is_some() && selects(policy, pod));
        let policies: Vec<_> = policies.map(|policy| policy.key.to_string()).collect();
        of_word(slot.map(|(_, spec)| set_of(spec, direction)), policies)
    };
    let labels = pod.labels.iter().filter(|(key, _)| keys.contains(key));
    EndpointView {
        namespace: Some(pod.key.namespace.to_string()),
        name: Some(pod.key.name.to_string()),
        state: match (link, known) {
            (None, _) => EndpointState::NoInterface,
            (Some(_), true) => EndpointState::Ready,
            (Some(_), false) => EndpointState::Pending,
        },
        addresses: pod.addresses.clone(),
        interface: link.map(|link| link.name.clone()),
        ifindex: link.map(|link| link.ifindex),
        ingress: direction(Direction::Ingress),
        egress: direction(Direction::Egress),
        identity_labels: labels
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        identity: entry.map(|entry| entry.identity),
        slot: slot.map(|(slot, _)| slot),
    }
}

fn of_unknown(state: &State, link: &PodLink) -> EndpointView {
    let slot = slot(state, link);
    let direction = |direction| of_word(slot.map(|(_, spec)| set_of(spec, direction)), Vec::new());
    EndpointView {
        namespace: None,
        name: None,
        state: EndpointState::UnknownPod,
        addresses: link.addresses.iter().copied().collect(),
        interface: Some(link.name.clone()),
        ifindex: Some(link.ifindex),
        ingress: direction(Direction::Ingress),
        egress: direction(Direction::Egress),
        identity_labels: BTreeMap::new(),
        identity: None,
        slot: slot.map(|(slot, _)| slot),
    }
}

/// What the maps say counts, where they speak of the pod; before that, what the policies ask for.
fn of_word(word: Option<SetWord>, policies: Vec<String>) -> DirectionView {
    let isolating = set_flag::ISOLATED | set_flag::UNKNOWN;
    DirectionView {
        isolated: word.map_or(!policies.is_empty(), |word| word.flags & isolating != 0),
        set: word
            .filter(|word| word.flags & set_flag::ISOLATED != 0)
            .map(|word| word.set),
        policies,
    }
}
