//! A pod whose object went before its link, across a restart: what the maps hold for its link is all that is left of it.
//!
//! The running agent keeps such a link's last pod. A new one never knew that pod, and would take the link for one whose pod is not
//! told of yet, which is open by default: rules in force forgotten. Who the pod was is read from the maps instead:
//!
//! - which policies isolated it, from the numbers of the verdicts in its sets. A number is a hash of names, so the list is found by
//!   trying those that could be meant. From there on the set is compiled from these policies, as they are now.
//! - who it is to others, from the other pods of its identity, or else from the rules in force that speak of its group.
//!
//! Policies that come later, or whose selector changes, are not told of the pod: its labels are nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_common::{
    Address, GROUP_ANY, IDENTITY_UNKNOWN, RuleKey, SetWord, Verdict, address_kind, pod_flag,
    rule_bits, set_flag,
};

use super::enforcement::{Dirty, Enforcement, namespace_labels};
use super::identity::PodIdentity;
use super::names::{RuleName, RuleNames};
use super::peers::Peers;
use super::policies::{DIRECTIONS, Half, index};
use crate::datapath::contents::rules_of;
use crate::datapath::{Bits, Contents};
use crate::local::PodLink;
use crate::model::{
    Cluster, Direction, NamedPort, ObjectKey, Pod, PodPhase, PortSpec, Protocol, Text, intern,
};
use crate::problem::Problem;

/// Lists of policies that are tried for one set: ten milliseconds or so. Where no rule names a policy of the list, all of two policies
/// of a namespace of 300, or of the 16 policies of one namespace, are among the first so many.
const TRIES: u32 = 1 << 16;

/// What is left of a pod.
#[derive(Clone, Debug)]
pub(super) struct Remains {
    /// The policies that isolate it, by direction; None: they could not be named.
    policies: [Option<Vec<ObjectKey>>; 2],
    /// Its own named ports that these ask for.
    ports: Vec<NamedPort>,
    /// See [`pod_flag::ANY_SOURCE`].
    pub(super) any_source: bool,
    /// Who it is to others, at each of its addresses.
    pub(super) who: BTreeMap<IpAddr, Arc<PodIdentity>>,
}

impl Remains {
    /// Whether a direction is closed, because nobody can tell what held there.
    pub(super) fn closed(&self, place: usize) -> bool {
        self.policies[place].is_none()
    }

    /// Whether policies of a namespace isolate it.
    pub(super) fn is_in(&self, namespace: &Text) -> bool {
        let mut policies = self.policies.iter().flatten().flatten();
        policies.any(|key| key.namespace == *namespace)
    }

    /// Whether any of its addresses is one of the link's still.
    pub(super) fn is_at(&self, link: &PodLink) -> bool {
        self.who.keys().any(|ip| link.addresses.contains(ip))
    }
}

/// What the maps of before the restart say, in the order in which it is asked here.
struct Before<'a> {
    contents: &'a Contents,
    /// Rules by the group that they speak of.
    spoken: BTreeMap<u32, Vec<(&'a Bits<RuleKey>, &'a Verdict)>>,
}

impl<'a> Before<'a> {
    fn new(contents: &'a Contents) -> Self {
        let mut spoken: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule @ (key, _) in &contents.rules {
            if key.data.group != GROUP_ANY {
                spoken.entry(key.data.group).or_default().push(rule);
            }
        }
        Self { contents, spoken }
    }

    /// The slot of a link: the same link, not another that was given its index, and a pod that was known.
    fn slot(&self, link: &PodLink) -> Option<(u32, agent_common::Pod)> {
        let slot = self.contents.links.get(&link.ifindex)?.slot;
        let pod = *self.contents.pods.get(&slot)?;
        let same_end = link
            .pod_mac
            .is_none_or(|mac| pod.mac == mac || pod.mac == [0; 6]);
        let same = pod.ifindex == link.ifindex && pod.host_mac == link.host_mac && same_end;
        let known = pod.flags & pod_flag::USED != 0 && pod.flags & pod_flag::UNKNOWN == 0;
        (same && known).then_some((slot, pod))
    }

    /// The identities of a slot's addresses.
    fn identities(&self, slot: u32, link: &PodLink) -> BTreeMap<IpAddr, u32> {
        let entries = link.addresses.iter().filter_map(|ip| {
            let entry = self.contents.addresses.get(&Address::from(*ip))?;
            let own = entry.kind == address_kind::LOCAL_POD && u32::from(entry.slot) == slot;
            own.then_some((*ip, entry.identity))
        });
        entries.collect()
    }

    fn rules(&self, set: u32) -> impl Iterator<Item = (&Bits<RuleKey>, &Verdict)> {
        rules_of(&self.contents.rules, set)
    }
}

impl Enforcement {
    /// At a start, when links and pods have found each other: takes links up whose pods are gone, as the maps have them.
    pub(super) fn take_remains(
        &mut self,
        cluster: &Cluster,
        contents: &Contents,
        dirty: &mut Dirty,
    ) {
        if crate::mutant::removed("no-remains") {
            return;
        }
        let before = Before::new(contents);
        let mut found = Vec::new();
        for (ifindex, link) in &self.links {
            let link = &link.link;
            let nobodys = link.addresses.iter().all(|ip| cluster.owner(ip).is_none());
            let unclaimed = self.links.get(ifindex).is_some_and(|l| l.pod.is_none()) && nobodys;
            if let Some((slot, pod)) = before.slot(link).filter(|_| unclaimed) {
                let identities = before.identities(slot, link);
                if !identities.is_empty() {
                    let remains = self.remains(cluster, &before, &pod, &identities);
                    found.push((*ifindex, remains));
                }
            }
        }
        for (ifindex, remains) in found {
            dirty.links.insert(ifindex);
            dirty.addresses.extend(remains.who.keys());
            if let Some(link) = self.links.get_mut(&ifindex) {
                link.remains = Some(remains);
            }
        }
    }

    fn remains(
        &self,
        cluster: &Cluster,
        before: &Before<'_>,
        pod: &agent_common::Pod,
        identities: &BTreeMap<IpAddr, u32>,
    ) -> Remains {
        let who: BTreeMap<_, _> = identities
            .iter()
            .map(|(ip, identity)| (*ip, Arc::new(self.who(cluster, before, *ip, *identity))))
            .collect();
        let namespace = who.values().map(|who| &who.namespace);
        let namespace = namespace.clone().find(|name| !name.is_empty());
        let words = [pod.egress, pod.ingress];
        let policies = DIRECTIONS.map(|direction| {
            let word = words[index(direction)];
            self.name_policies(before, word, direction, namespace)
        });
        let ingress = policies[index(Direction::Ingress)].as_deref();
        let halves = self
            .policies
            .named(ingress.unwrap_or_default(), Direction::Ingress);
        Remains {
            ports: ports(&before.rules(pod.ingress.set).collect::<Vec<_>>(), &halves),
            policies,
            any_source: pod.flags & pod_flag::ANY_SOURCE != 0,
            who,
        }
    }

    /// Who the pod of an address was: who all others of its identity are; else nobody in particular, but one of the peers of the rules
    /// that speak of its group.
    fn who(
        &self,
        cluster: &Cluster,
        before: &Before<'_>,
        ip: IpAddr,
        identity: u32,
    ) -> PodIdentity {
        let nobody = || self.vocabulary.cut(&stand_in(), &ip);
        if identity == IDENTITY_UNKNOWN {
            return nobody();
        }
        let others = before.contents.addresses.iter();
        let others = others.filter(|(_, entry)| entry.identity == identity);
        let mut others = others.filter_map(|(address, _)| {
            let other = IpAddr::from(*address);
            let pod = self.pod_at(cluster, &other)?;
            Some(self.vocabulary.cut(&pod, &other))
        });
        let group = before.contents.groups.get(&identity);
        let said = group.and_then(|entry| before.spoken.get(&entry.group));
        let said = said.map_or(&[][..], Vec::as_slice);
        let rules: BTreeSet<u32> = said.iter().map(|(_, verdict)| verdict.rule).collect();
        let lists = rules.iter().filter_map(|rule| self.peers_of(*rule));
        let within: BTreeSet<Arc<Peers>> = lists.collect();
        if let Some(who) = others.next()
            && others.all(|other| other == who)
        {
            // They may all have become somebody else since.
            let labels = namespace_labels(cluster, &who.namespace);
            if within.iter().all(|list| list.match_pod(&who, &labels)) {
                return who;
            }
        }
        let egress: Vec<_> = self.policies.with(Direction::Egress).cloned().collect();
        PodIdentity {
            within,
            ports: ports(said, &self.policies.named(&egress, Direction::Egress)),
            ..nobody()
        }
    }

    /// The peers of a rule, by its number.
    fn peers_of(&self, rule: u32) -> Option<Arc<Peers>> {
        let RuleName::Rule {
            policy,
            direction,
            index,
        } = self.names.get(rule)?
        else {
            return None;
        };
        let halves = self
            .policies
            .named(std::slice::from_ref(policy), *direction);
        let rules = &halves.first()?.rules;
        rules.get(usize::try_from(*index).ok()?)?.peers.clone()
    }

    /// The policies of a set of before the restart. None: they have no name among those of now.
    fn name_policies(
        &self,
        before: &Before<'_>,
        word: SetWord,
        direction: Direction,
        namespace: Option<&Text>,
    ) -> Option<Vec<ObjectKey>> {
        if word.flags & set_flag::ISOLATED == 0 {
            return Some(Vec::new());
        }
        let default = Bits {
            length: rule_bits::SET,
            data: RuleKey::packet(word.set, GROUP_ANY, 0, 0),
        };
        let number = before.contents.rules.get(&default)?.rule;
        let seen: BTreeSet<&ObjectKey> = before
            .rules(word.set)
            .filter_map(|(_, verdict)| match self.names.get(verdict.rule)? {
                RuleName::Rule { policy, .. } => Some(policy),
                RuleName::Default { .. } => None,
            })
            .collect();
        let namespace = seen.first().map(|key| &key.namespace).or(namespace);
        let all = self.policies.with(direction);
        let all = all.filter(|key| namespace.is_none_or(|name| *name == key.namespace));
        let mut candidates: BTreeMap<&Text, Vec<&ObjectKey>> = BTreeMap::new();
        for key in all.filter(|key| !seen.contains(*key)) {
            candidates.entry(&key.namespace).or_default().push(key);
        }
        if let Some(namespace) = seen.first().map(|key| &key.namespace) {
            candidates.entry(namespace).or_default();
        }
        let mut tries = TRIES;
        let most = candidates.values().map(Vec::len).max().unwrap_or(0);
        for more in 0..=most {
            for rest in candidates.values() {
                let mut picked = seen.clone();
                let mut asked = |keys: &BTreeSet<&ObjectKey>| is_default(number, keys, direction);
                if pick(rest, more, &mut picked, &mut tries, &mut asked) {
                    return Some(picked.into_iter().cloned().collect());
                }
            }
        }
        None
    }

    /// The sets that hold for what is left of a pod.
    pub(super) fn acquire_remains(&mut self, remains: &Remains) -> [Option<u32>; 2] {
        DIRECTIONS.map(|direction| {
            let policies = remains.policies[index(direction)].as_deref()?;
            let halves = self.policies.named(policies, direction);
            self.acquire_halves(&halves, direction, &remains.ports)
        })
    }

    /// Links that are closed because nobody can tell what held there.
    pub(super) fn tell_remains(&self, problems: &mut Vec<Problem>) {
        for link in self.links.values() {
            let lost = |remains: &Remains| (0..DIRECTIONS.len()).any(|place| remains.closed(place));
            if link.remains.as_ref().is_some_and(lost) {
                problems.push(Problem::new(
                    format!("pod link {}", link.link.name),
                    "its pod's object is gone, and so are policies that held for it when the agent was started: it is closed until the link goes, or a pod with its address is told of",
                ));
            }
        }
    }
}

/// A pod of which nothing is known.
fn stand_in() -> Pod {
    Pod {
        key: ObjectKey {
            namespace: intern(""),
            name: intern(""),
        },
        uid: intern(""),
        created: 0,
        node: None,
        host_network: false,
        phase: PodPhase::Live,
        terminating: true,
        addresses: Vec::new(),
        labels: BTreeMap::new(),
        service_account: intern(""),
        ports: Vec::new(),
        any_source: false,
    }
}

/// Whether a number is that of the default of a list of policies.
fn is_default(number: u32, policies: &BTreeSet<&ObjectKey>, direction: Direction) -> bool {
    !policies.is_empty()
        && number
            == RuleNames::hash(&RuleName::Default {
                policies: policies.iter().map(|key| (*key).clone()).collect(),
                direction,
            })
}

/// Tries every choice of `more` out of `rest`, on top of what is picked. True: what is picked now is it.
fn pick<'a>(
    rest: &[&'a ObjectKey],
    more: usize,
    picked: &mut BTreeSet<&'a ObjectKey>,
    tries: &mut u32,
    asked: &mut impl FnMut(&BTreeSet<&ObjectKey>) -> bool,
) -> bool {
    if *tries == 0 || rest.len() < more {
        return false;
    }
    if more == 0 {
        *tries -= 1;
        return asked(picked);
    }
    for (at, key) in rest.iter().enumerate() {
        picked.insert(*key);
        if pick(&rest[at + 1..], more - 1, picked, tries, asked) {
            return true;
        }
        picked.remove(*key);
    }
    false
}

/// The named ports of a pod, from what these rules in force say where policies of these halves have a name: a name is what all rules
/// with the name say of its protocol and none of them has by number. Where a rule has two names, each may come to be both: they say
/// that together, whichever is which. A name without any port is left out, which allows nothing.
fn ports(said: &[(&Bits<RuleKey>, &Verdict)], halves: &[Arc<Half>]) -> Vec<NamedPort> {
    let mut possible: BTreeMap<(&Text, Protocol), BTreeSet<u16>> = BTreeMap::new();
    for rule in halves.iter().flat_map(|half| &half.rules) {
        let ports = || rule.ports.iter().flatten();
        for port in ports() {
            let PortSpec::Named(name) = &port.port else {
                continue;
            };
            let by_number = |wanted: u16| {
                ports().any(|other| match other.port {
                    _ if other.protocol != port.protocol => false,
                    PortSpec::All => true,
                    PortSpec::Range(first, last) => (first..=last).contains(&wanted),
                    PortSpec::Named(_) => false,
                })
            };
            let here: BTreeSet<u16> = said
                .iter()
                .filter(|(key, verdict)| {
                    verdict.rule == rule.number
                        && key.length > rule_bits::PROTOCOL
                        && key.data.protocol == port.protocol.number()
                })
                .flat_map(|(key, _)| {
                    let first = u16::from_be(key.data.port_be);
                    // A name's port may have been joined with the numbers beside it.
                    let bits = key.length - rule_bits::PROTOCOL;
                    first..=first | u16::MAX.checked_shr(bits).unwrap_or(0)
                })
                .filter(|port| !by_number(*port))
                .collect();
            // A rule may be hidden behind another that says the same.
            if !here.is_empty() {
                possible
                    .entry((name, port.protocol))
                    .and_modify(|ports| ports.retain(|port| here.contains(port)))
                    .or_insert(here);
            }
        }
    }
    let ports = possible.into_iter().flat_map(|((name, protocol), ports)| {
        ports.into_iter().map(move |port| NamedPort {
            name: name.clone(),
            protocol,
            port,
        })
    });
    ports.collect()
}
