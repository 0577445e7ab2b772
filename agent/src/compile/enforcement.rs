//! Policy, identities, addresses and local pods: everything of the maps but services.
//!
//! An update goes through these stages; each leaves to the next what it made different:
//! policies and vocabulary -> local pods -> sets -> peers in use -> identities and prefixes -> groups -> rules -> words.
//!
//! What it keeps saves work and holds numbers. It says nothing that the cluster, the node's own state and the numbers do not,
//! but for one thing: a link whose pod is no longer told of keeps its last pod (a pod is under policy until its link goes), and over a
//! restart what the maps hold of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::{AddressEntry, GROUP_ANY, GroupEntry, RuleKey};

use super::groups::{GroupKey, Groups};
use super::identity::{Identities, PrefixKey, Who};
use super::names::RuleNames;
use super::notices::Overlaps;
use super::numbers::Numbers;
use super::peers::{PeersId, PeersInUse};
use super::pods::LocalPod;
use super::policies::Policies;
use super::prefixes::{Prefixes, V4};
use super::sets::{Sets, State};
use super::vocabulary::Vocabulary;
use super::{IpBlockMode, Options};
use crate::datapath::{Bits, Contents};
use crate::desired::Delta;
use crate::local::Local;
use crate::model::{
    Change, Cluster, Labels, NamedPort, NetworkPolicy, Object, Protocol, Text, intern,
};
use crate::problem::Problem;

/// Label of every namespace, with its name (the API server sets it).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// An address with an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownAddress {
    /// Its identity; None for what is no pod.
    pub(super) identity: Option<u32>,
    pub(super) entry: AddressEntry,
}

/// What is to be looked at again in an update.
#[derive(Default)]
pub(super) struct Dirty {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) links: BTreeSet<u32>,
    pub(super) namespaces: BTreeSet<Text>,
    /// Identities (prefixes' included) whose lists of peers may be others.
    pub(super) identities: BTreeSet<u32>,
    /// Lists of peers that came into use.
    pub(super) peers: BTreeSet<PeersId>,
    /// Identities that may belong to another group now.
    pub(super) regroup: BTreeSet<u32>,
    /// Sets ask for other named ports: any identity may belong to another group.
    pub(super) ports: bool,
    /// Pods are told apart by other words.
    pub(super) vocabulary: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Enforcement {
    pub(super) options: Options,
    pub(super) names: RuleNames,
    pub(super) vocabulary: Vocabulary,
    pub(super) policies: Policies,
    pub(super) peers: PeersInUse,
    pub(super) sets: Sets,
    pub(super) identities: Identities,
    pub(super) groups: Groups,
    pub(super) prefixes: Prefixes,
    /// Prefixes in the trie, with their identity; None where there was none left.
    pub(super) trie: BTreeMap<PrefixKey, Option<u32>>,
    pub(super) addresses: BTreeMap<IpAddr, KnownAddress>,
    /// Addresses that did not fit.
    pub(super) starved: BTreeSet<IpAddr>,
    /// Prefixes for which there was no identity left.
    pub(super) starved_prefixes: BTreeSet<PrefixKey>,
    pub(super) slots: Numbers,
    pub(super) links: BTreeMap<u32, LocalPod>,
    pub(super) links_at: BTreeMap<IpAddr, BTreeSet<u32>>,
    pub(super) host_addresses: BTreeSet<IpAddr>,
    /// Group words as last told.
    pub(super) words: BTreeMap<u32, u32>,
    /// Rules in the maps.
    pub(super) rules: usize,
    /// Named ports that egress sets ask for, counted.
    pub(super) ports: BTreeMap<(Text, Protocol), u32>,
    /// Words went with the sets that mentioned them.
    pub(super) recut_due: bool,
    /// Rules of sets from before a restart that go with the next delta.
    pub(super) bridges: BTreeSet<Bits<RuleKey>>,
    /// Cilium mode: blocks around what they never match.
    pub(super) overlaps: Overlaps,
    /// See [`super::Compiler::hold`].
    pub(super) hold: bool,
}

impl Enforcement {
    pub(super) fn new(options: Options) -> Self {
        let limits = options.limits;
        Self {
            options,
            names: RuleNames::default(),
            vocabulary: Vocabulary::default(),
            policies: Policies::default(),
            peers: PeersInUse::default(),
            sets: Sets::new(),
            identities: Identities::new(limits.identities),
            groups: Groups::new(),
            prefixes: Prefixes::new(),
            trie: BTreeMap::new(),
            addresses: BTreeMap::new(),
            starved: BTreeSet::new(),
            starved_prefixes: BTreeSet::new(),
            slots: Numbers::new(0, limits.pods),
            links: BTreeMap::new(),
            links_at: BTreeMap::new(),
            host_addresses: BTreeSet::new(),
            words: BTreeMap::new(),
            rules: 0,
            ports: BTreeMap::new(),
            recut_due: false,
            bridges: BTreeSet::new(),
            overlaps: Overlaps::default(),
            hold: false,
        }
    }

    /// Takes changes in: what is different goes into `delta`, every problem that there is now into `problems`. `local`: the node's own
    /// state, where it changed; `adopting`: the first time, what the maps hold.
    pub(super) fn update(
        &mut self,
        cluster: &Cluster,
        local: Option<&Local>,
        changes: &[Change],
        adopting: Option<&Contents>,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        if !self.held() {
            self.identities.numbers.turn();
            self.groups.numbers.turn();
            self.sets.numbers.turn();
            self.slots.turn();
        }
        for key in std::mem::take(&mut self.bridges) {
            delta.rules.insert(key, None);
        }
        let mut dirty = Dirty {
            vocabulary: std::mem::take(&mut self.recut_due),
            ..Dirty::default()
        };
        if self.trie.is_empty() {
            self.reprefix(V4, &mut dirty, delta);
        }
        self.take_changes(changes, &mut dirty);
        if let Some(local) = local {
            self.take_local(local, &mut dirty, delta, problems);
        }
        dirty.addresses.extend(std::mem::take(&mut self.starved));
        if dirty.vocabulary {
            self.recut(cluster, &mut dirty);
        }

        self.resolve_links(cluster, &mut dirty);
        if let Some(contents) = adopting {
            self.take_remains(cluster, contents, &mut dirty);
        }
        self.tell_remains(problems);
        self.choose_sets(&dirty);
        // New ones first: a list of peers that stays in use is never out of it in between.
        self.bind_sets(&mut dirty, delta, problems);
        let gone = self.collect_sets(&mut dirty, delta);

        self.readdress(cluster, &mut dirty, delta, problems);
        self.retry_prefixes(&mut dirty, delta, problems);
        self.rematch(cluster, &mut dirty, &gone);
        self.regroup(&mut dirty);
        self.write_rules(delta, problems);
        self.write_words(&dirty, delta);
        self.write_pods(delta);
        self.sweep(delta);
    }

    /// Whether the next update has something to remove although nothing changes.
    pub(super) fn unfinished(&self) -> bool {
        !self.bridges.is_empty()
            || self.recut_due
            || self
                .sets
                .all
                .values()
                .any(|set| set.state == State::Leaving)
    }

    fn take_changes(&mut self, changes: &[Change], dirty: &mut Dirty) {
        let literal = self.options.ip_block_mode == IpBlockMode::Literal;
        for change in changes {
            for object in [&change.before, &change.after].into_iter().flatten() {
                match object {
                    Object::Pod(pod) => dirty.addresses.extend(&pod.addresses),
                    Object::Node(node) => dirty
                        .addresses
                        .extend(node.internal_ips.iter().chain(&node.external_ips)),
                    Object::Service(service) => dirty.addresses.extend(service.addresses()),
                    Object::EndpointSlice(_) | Object::Namespace(_) | Object::NetworkPolicy(_) => {}
                }
            }
            match (&change.before, &change.after) {
                (Some(Object::Namespace(_)), _) | (_, Some(Object::Namespace(_))) => {
                    let labels = |object: &Option<Object>| match object {
                        Some(Object::Namespace(namespace)) => namespace.labels.clone(),
                        _ => implied_labels(&change.id.key.name),
                    };
                    let (before, after) = (labels(&change.before), labels(&change.after));
                    let asked = before
                        .iter()
                        .filter(|(key, value)| after.get(*key) != Some(value))
                        .chain(after.iter().filter(|(key, _)| !before.contains_key(*key)))
                        .any(|(key, _)| self.vocabulary.asks_namespaces_for(key));
                    if asked {
                        dirty.namespaces.insert(change.id.key.name.clone());
                    }
                }
                (Some(Object::NetworkPolicy(_)), _) | (_, Some(Object::NetworkPolicy(_))) => {
                    fn policy(object: &Option<Object>) -> Option<&std::sync::Arc<NetworkPolicy>> {
                        match object {
                            Some(Object::NetworkPolicy(policy)) => Some(policy),
                            _ => None,
                        }
                    }
                    let (before, policy) = (policy(&change.before), policy(&change.after));
                    if !literal {
                        let (before, after) =
                            (before.map(AsRef::as_ref), policy.map(AsRef::as_ref));
                        self.overlaps.policy(before, after, &self.addresses);
                    }
                    dirty.vocabulary |= self.policies.set(
                        &change.id.key,
                        policy,
                        literal,
                        &mut self.vocabulary,
                        &mut self.names,
                    );
                    for (ifindex, link) in &self.links {
                        if link.is_in(&change.id.key.namespace) {
                            dirty.links.insert(*ifindex);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Pods are told apart by other words. An identity whose pods only change their words keeps its number, and so do most
    /// of those whose pods part: the greater part of them keeps it.
    fn recut(&mut self, cluster: &Cluster, dirty: &mut Dirty) {
        let mut parts: BTreeMap<u32, BTreeMap<Who, u32>> = BTreeMap::new();
        for (ip, known) in &self.addresses {
            let Some(number) = known.identity else {
                continue;
            };
            dirty.addresses.insert(*ip);
            if let Some(pod) = self.pod_at(cluster, ip) {
                let who = Who::Pod(std::sync::Arc::new(self.vocabulary.cut(&pod, ip)));
                *parts.entry(number).or_default().entry(who).or_insert(0) += 1;
            }
        }
        for (number, parts) in parts {
            let most = parts
                .into_iter()
                .rev()
                .max_by_key(|(_, addresses)| *addresses);
            if let Some((who, _)) = most {
                self.identities.rename(number, who);
                dirty.identities.insert(number);
            }
        }
    }

    /// Which lists of peers an identity is in: all anew for those that changed, the new lists for all.
    fn rematch(&mut self, cluster: &Cluster, dirty: &mut Dirty, gone: &BTreeSet<PeersId>) {
        let mut whole = std::mem::take(&mut dirty.identities);
        for namespace in &dirty.namespaces {
            whole.extend(self.identities.of_namespace(namespace));
        }
        let mut labels: BTreeMap<Text, Labels> = BTreeMap::new();
        let mut label = |namespace: &Text| {
            labels
                .entry(namespace.clone())
                .or_insert_with(|| namespace_labels(cluster, namespace))
                .clone()
        };
        let (peers, prefixes) = (&self.peers, &self.prefixes);
        if !gone.is_empty() || !dirty.peers.is_empty() {
            for (number, identity) in &mut self.identities.all {
                let before = identity.matches.len();
                identity.matches.retain(|id| !gone.contains(id));
                let mut changed = identity.matches.len() != before;
                if let Who::Pod(pod) = &identity.who {
                    let namespace = label(&pod.namespace);
                    for id in &dirty.peers {
                        if let Some(list) = peers.get(*id)
                            && list.match_pod(pod, &namespace)
                        {
                            changed |= identity.matches.insert(*id);
                        }
                    }
                }
                if changed {
                    dirty.regroup.insert(*number);
                }
            }
        }
        for number in whole {
            if let Some(identity) = self.identities.all.get_mut(&number) {
                identity.matches = match &identity.who {
                    Who::Pod(pod) => peers.match_pod(pod, &label(&pod.namespace)),
                    Who::Prefix(key) => prefixes.matches(key),
                };
                dirty.regroup.insert(number);
            }
        }
        self.groups.forget(gone);
    }

    /// Gives identities the groups that they belong to.
    fn regroup(&mut self, dirty: &mut Dirty) {
        if dirty.ports || self.groups.refusing() {
            dirty.regroup.extend(self.identities.all.keys());
        }
        let ports = &self.ports;
        for number in &dirty.regroup {
            let Some(identity) = self.identities.all.get_mut(number) else {
                continue;
            };
            if identity.users == 0 {
                continue;
            }
            let own: Vec<NamedPort> = match &identity.who {
                Who::Pod(pod) if !ports.is_empty() => pod
                    .ports
                    .iter()
                    .filter(|port| ports.contains_key(&(port.name.clone(), port.protocol)))
                    .cloned()
                    .collect(),
                Who::Pod(_) | Who::Prefix(_) => Vec::new(),
            };
            let same = match self.groups.all.get(&identity.group) {
                Some(group) => group.key.peers == identity.matches && group.key.ports == own,
                None => identity.matches.is_empty() && own.is_empty(),
            };
            if same {
                continue;
            }
            let key = GroupKey {
                peers: identity.matches.clone(),
                ports: own,
            };
            let group = self.groups.acquire(key);
            self.groups.release(identity.group);
            identity.group = group;
        }
    }

    fn write_words(&mut self, dirty: &Dirty, delta: &mut Delta) {
        for number in &dirty.regroup {
            let Some(identity) = self.identities.all.get(number) else {
                continue;
            };
            let refused = self
                .groups
                .all
                .get(&identity.group)
                .is_some_and(|group| group.refused);
            // What does not fit is in no group: only rules for any peer speak of it, and nothing is allowed by mistake.
            let group = if refused || identity.users == 0 {
                GROUP_ANY
            } else {
                identity.group
            };
            let told = self.words.get(number).copied().unwrap_or(GROUP_ANY);
            if group == told {
                continue;
            }
            if group == GROUP_ANY {
                self.words.remove(number);
                delta.groups.insert(*number, None);
            } else {
                self.words.insert(*number, group);
                delta
                    .groups
                    .insert(*number, Some(GroupEntry { group, _zero: 0 }));
            }
        }
    }

    /// Removes what nothing uses any more.
    fn sweep(&mut self, delta: &mut Delta) {
        let empty = std::mem::take(&mut self.identities.idle);
        for number in empty {
            if let Some(identity) = self.identities.sweep(number) {
                self.groups.release(identity.group);
                if self.words.remove(&number).is_some() {
                    delta.groups.insert(number, None);
                }
            }
        }
        for (number, group) in self.groups.sweep() {
            if group.refused {
                continue;
            }
            for (set_number, set) in &self.sets.all {
                if set.state == State::Waiting {
                    continue;
                }
                for (key, _) in set.entries(*set_number, Some((number, &group.key))) {
                    // What came with this very delta was never in the maps.
                    if set.fresh {
                        delta.rules.remove(&key);
                    } else {
                        delta.rules.insert(key, None);
                    }
                    self.rules = self.rules.saturating_sub(1);
                }
            }
        }
        for set in self.sets.all.values_mut() {
            set.fresh = false;
        }
    }
}

/// The labels of a namespace; of one that no source has told of, what the API server gives every namespace.
pub(super) fn namespace_labels(cluster: &Cluster, name: &Text) -> Labels {
    match cluster.namespaces.get(name) {
        Some(namespace) => namespace.labels.clone(),
        None => implied_labels(name),
    }
}

fn implied_labels(name: &Text) -> Labels {
    Labels::from([(intern(NAMESPACE_NAME), name.clone())])
}
