//! Local pods: links, slots, and the sets that hold for them.

use std::sync::Arc;

use agent_common::{LinkEntry, Pod as PodSpec, SetWord, pod_flag, set_flag};

use super::UnknownPod;
use super::enforcement::{Dirty, Enforcement};
use super::policies::{DIRECTIONS, Half};
use super::remains::Remains;
use super::sets::{Set, SetKey, State, default_verdict};
use crate::desired::Delta;
use crate::local::{Local, PodLink};
use crate::model::{Cluster, Direction, NamedPort, Pod, Text};
use crate::problem::Problem;

/// A pod's link.
#[derive(Clone, Debug)]
pub(super) struct LocalPod {
    pub(super) link: PodLink,
    /// None where all slots are taken.
    pub(super) slot: Option<u32>,
    /// None where no source has told of it yet.
    pub(super) pod: Option<Arc<Pod>>,
    /// What was left of its pod when the agent was started, until a pod is told of.
    pub(super) remains: Option<Remains>,
    /// The sets that should hold, by direction; None: not isolated.
    pub(super) wanted: [Option<u32>; 2],
    /// The sets that do: the wanted ones as soon as their rules fit.
    pub(super) held: [Option<u32>; 2],
    /// Nothing held before, and the wanted set does not fit: closed, so that a new pod is not open by want of room.
    pub(super) closed: [bool; 2],
    /// As last told.
    pub(super) spec: Option<PodSpec>,
}

impl LocalPod {
    /// Whether the pod is one of a namespace.
    pub(super) fn is_in(&self, namespace: &Text) -> bool {
        let remains = self.remains.as_ref();
        let pod = self.pod.as_ref();
        pod.is_some_and(|pod| pod.key.namespace == *namespace)
            || remains.is_some_and(|remains| remains.is_in(namespace))
    }
}

impl Enforcement {
    /// Takes the node's own state in.
    pub(super) fn take_local(
        &mut self,
        local: &Local,
        dirty: &mut Dirty,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        dirty
            .addresses
            .extend(self.host_addresses.symmetric_difference(&local.addresses));
        self.host_addresses.clone_from(&local.addresses);

        let before: Vec<u32> = self.links.keys().copied().collect();
        for ifindex in before {
            let same = match (self.links.get(&ifindex), local.pods.get(&ifindex)) {
                // The kernel gives an index out again: a link of another name or MAC is another one.
                (Some(old), Some(new)) => {
                    old.link.name == new.name && old.link.host_mac == new.host_mac
                }
                _ => false,
            };
            if !same {
                self.drop_link(ifindex, dirty, delta);
            }
        }
        for (ifindex, link) in &local.pods {
            let known = self.links.get_mut(ifindex);
            if known.as_ref().is_some_and(|known| known.link == *link) {
                continue;
            }
            dirty.links.insert(*ifindex);
            dirty.addresses.extend(&link.addresses);
            for ip in &link.addresses {
                self.links_at.entry(*ip).or_default().insert(*ifindex);
            }
            match known {
                Some(known) => {
                    for ip in known.link.addresses.difference(&link.addresses) {
                        dirty.addresses.insert(*ip);
                        if let Some(at) = self.links_at.get_mut(ip) {
                            at.remove(ifindex);
                            if at.is_empty() {
                                self.links_at.remove(ip);
                            }
                        }
                    }
                    known.link = link.clone();
                }
                None => drop(self.links.insert(
                    *ifindex,
                    LocalPod {
                        link: link.clone(),
                        slot: None,
                        pod: None,
                        remains: None,
                        wanted: [None; 2],
                        held: [None; 2],
                        closed: [false; 2],
                        spec: None,
                    },
                )),
            }
        }
        let capacity = self.options.limits.pods;
        for (ifindex, link) in &mut self.links {
            if link.slot.is_some() {
                continue;
            }
            link.slot = self.slots.take();
            match link.slot {
                Some(slot) => {
                    let entry = LinkEntry { slot, _zero: 0 };
                    delta.links.insert(*ifindex, Some(entry));
                    dirty.addresses.extend(&link.link.addresses);
                }
                None => problems.push(Problem::full(
                    format!("pod link {}", link.link.name),
                    "pods",
                    capacity,
                )),
            }
        }
    }

    fn drop_link(&mut self, ifindex: u32, dirty: &mut Dirty, delta: &mut Delta) {
        let Some(link) = self.links.remove(&ifindex) else {
            return;
        };
        for ip in &link.link.addresses {
            dirty.addresses.insert(*ip);
            if let Some(at) = self.links_at.get_mut(ip) {
                at.remove(&ifindex);
                if at.is_empty() {
                    self.links_at.remove(ip);
                }
            }
        }
        for set in link.wanted.iter().chain(&link.held).flatten() {
            self.sets.release(*set);
        }
        if let Some(slot) = link.slot {
            self.slots.give(slot);
            delta.pods.insert(slot, None);
            delta.links.insert(ifindex, None);
        }
    }

    /// Finds the pods of links that changed or whose addresses did.
    pub(super) fn resolve_links(&mut self, cluster: &Cluster, dirty: &mut Dirty) {
        for ip in &dirty.addresses {
            dirty
                .links
                .extend(self.links_at.get(ip).into_iter().flatten());
        }
        for ifindex in &dirty.links {
            let Some(link) = self.links.get_mut(ifindex) else {
                continue;
            };
            let mut owners = link
                .link
                .addresses
                .iter()
                .filter_map(|ip| cluster.owner(ip));
            let here = owners.clone().find(|pod| {
                pod.node
                    .as_ref()
                    .is_none_or(|node| *node == self.options.node_name)
            });
            let owned = owners.next().is_some();
            let pod = match here {
                Some(pod) => Some(Arc::clone(pod)),
                // Nobody else has its addresses: the pod's object is gone or finished before its link is.
                None if !owned => link.pod.take().filter(|pod| {
                    pod.addresses
                        .iter()
                        .any(|ip| link.link.addresses.contains(ip))
                }),
                None => None,
            };
            let remains = link.remains.take();
            let was = remains.is_some();
            link.remains = remains.filter(|remains| !owned && remains.is_at(&link.link));
            if pod != link.pod || was != link.remains.is_some() {
                dirty.addresses.extend(&link.link.addresses);
            }
            link.pod = pod;
        }
    }

    /// Chooses the sets of dirty links.
    pub(super) fn choose_sets(&mut self, dirty: &Dirty) {
        for ifindex in &dirty.links {
            let Some(link) = self.links.get(ifindex) else {
                continue;
            };
            let wanted = match (link.pod.clone(), link.remains.clone()) {
                (Some(pod), _) => DIRECTIONS.map(|direction| self.acquire_set(&pod, direction)),
                (None, Some(remains)) => self.acquire_remains(&remains),
                (None, None) => [None; 2],
            };
            if let Some(link) = self.links.get_mut(ifindex) {
                let before = std::mem::replace(&mut link.wanted, wanted);
                for set in before.into_iter().flatten() {
                    self.sets.release(set);
                }
            }
        }
    }

    fn acquire_set(&mut self, pod: &Pod, direction: Direction) -> Option<u32> {
        let halves = self.policies.isolating(pod, direction);
        self.acquire_halves(&halves, direction, &pod.ports)
    }

    /// The set of some policies, for a pod with these named ports.
    pub(super) fn acquire_halves(
        &mut self,
        halves: &[Arc<Half>],
        direction: Direction,
        ports: &[NamedPort],
    ) -> Option<u32> {
        if halves.is_empty() {
            return None;
        }
        let key = SetKey::new(direction, halves, ports);
        if let Some(number) = self.sets.by_key.get(&key) {
            if let Some(set) = self.sets.all.get_mut(number) {
                set.users += 1;
            }
            return Some(*number);
        }
        let number = self.sets.numbers.take()?;
        // As long as the set is there its selectors are asked, and what they ask for must be told apart, also after the policy is another.
        for half in halves {
            self.vocabulary.add(&half.words);
        }
        let default = default_verdict(halves, self.names.acquire(key.default_name()));
        self.sets.by_key.insert(key.clone(), number);
        self.sets.all.insert(
            number,
            Set {
                key,
                halves: halves.to_vec(),
                peers: None,
                default,
                users: 1,
                state: State::Waiting,
                fresh: false,
            },
        );
        Some(number)
    }

    /// Turns pods to the sets whose rules are in the maps, and tells what is different of them.
    pub(super) fn write_pods(&mut self, delta: &mut Delta) {
        for link in self.links.values_mut() {
            let Some(slot) = link.slot else {
                continue;
            };
            let new = link
                .spec
                .is_none_or(|spec| spec.flags & pod_flag::UNKNOWN != 0);
            let both = link.held.iter_mut().zip(&mut link.closed);
            for ((held, closed), wanted) in both.zip(link.wanted) {
                let fits = wanted.is_none_or(|number| {
                    self.sets
                        .all
                        .get(&number)
                        .is_some_and(|set| set.state != State::Waiting)
                });
                *closed = !fits && held.is_none() && (new || *closed);
                if *held == wanted || !fits {
                    continue;
                }
                if let Some(old) = held.take() {
                    self.sets.release(old);
                }
                if let Some(number) = wanted
                    && let Some(set) = self.sets.all.get_mut(&number)
                {
                    set.users += 1;
                }
                *held = wanted;
            }
            let unknown = link.pod.is_none() && link.remains.is_none();
            let lost = |place| link.remains.as_ref().is_some_and(|r| r.closed(place));
            let word = |place: usize| match link.held[place] {
                Some(set) => SetWord {
                    set,
                    flags: set_flag::ISOLATED,
                },
                None if link.closed[place] || lost(place) => SetWord {
                    set: 0,
                    flags: set_flag::ISOLATED,
                },
                None if unknown && self.options.unknown_pod == UnknownPod::Deny => SetWord {
                    set: 0,
                    flags: set_flag::ISOLATED | set_flag::UNKNOWN,
                },
                None => SetWord::default(),
            };
            let mut flags = pod_flag::USED;
            if unknown {
                flags |= pod_flag::UNKNOWN;
            }
            let remains = link.remains.as_ref();
            let any_source = link.pod.as_ref().map(|pod| pod.any_source);
            if any_source.or(remains.map(|remains| remains.any_source)) == Some(true) {
                flags |= pod_flag::ANY_SOURCE;
            }
            if link.link.peer_namespace.is_some() && link.link.pod_mac.is_some() {
                flags |= pod_flag::REDIRECT;
            }
            let spec = PodSpec {
                egress: word(0),
                ingress: word(1),
                epoch: 0,
                ifindex: link.link.ifindex,
                flags,
                mac: link.link.pod_mac.unwrap_or_default(),
                host_mac: link.link.host_mac,
                namespace: link
                    .link
                    .peer_namespace
                    .map_or(0, |id| id.saturating_add(1)),
                _zero: [0; 4],
            };
            if link.spec != Some(spec) {
                link.spec = Some(spec);
                delta.pods.insert(slot, Some(spec));
            }
        }
        for set in self.sets.all.values_mut() {
            if set.users == 0 && set.state == State::Live {
                set.state = State::Leaving;
            }
        }
    }
}
