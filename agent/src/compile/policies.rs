//! Policies, each direction made ready for sets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::names::{RuleName, RuleNames};
use super::peers::Peers;
use super::vocabulary::{Vocabulary, Words};
use crate::model::{Direction, NetworkPolicy, ObjectKey, Pod, PortMatch, PortSpec, Protocol, Text};

/// A rule of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HalfRule {
    /// None: everyone.
    pub(super) peers: Option<Arc<Peers>>,
    /// None: every protocol and port.
    pub(super) ports: Option<Vec<PortMatch>>,
    /// Number of the rule in verdicts.
    pub(super) number: u32,
}

/// What a policy says of one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Half {
    pub(super) policy: ObjectKey,
    pub(super) direction: Direction,
    pub(super) audit: bool,
    pub(super) rules: Vec<HalfRule>,
    /// What its rules mention.
    pub(super) words: Words,
    /// Another one for each content that the half has had.
    pub(super) version: u64,
}

impl Half {
    /// The named ports that its rules mention.
    pub(super) fn named_ports(&self) -> impl Iterator<Item = (&Text, Protocol)> {
        self.rules
            .iter()
            .flat_map(|rule| rule.ports.iter().flatten())
            .filter_map(|port| match &port.port {
                PortSpec::Named(name) => Some((name, port.protocol)),
                PortSpec::All | PortSpec::Range(..) => None,
            })
    }
}

/// Both directions, in the order of [`index`].
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Place of a direction in arrays.
pub(super) const fn index(direction: Direction) -> usize {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

/// A policy in force.
#[derive(Clone, Debug)]
struct Entry {
    policy: Arc<NetworkPolicy>,
    words: Words,
    halves: [Option<Arc<Half>>; 2],
}

/// All policies.
#[derive(Clone, Default, Debug)]
pub(super) struct Policies {
    entries: BTreeMap<ObjectKey, Entry>,
    version: u64,
}

impl Policies {
    /// Takes a policy in, replaces it, or (None) lets it go. Whether the vocabulary is another one.
    pub(super) fn set(
        &mut self,
        key: &ObjectKey,
        policy: Option<&Arc<NetworkPolicy>>,
        literal: bool,
        vocabulary: &mut Vocabulary,
        names: &mut RuleNames,
    ) -> bool {
        let old = self.entries.remove(key);
        let mut changed = false;
        if let Some(policy) = policy {
            let words = Words::of(policy, &DIRECTIONS, literal);
            let halves = DIRECTIONS.map(|direction| {
                let before = old
                    .as_ref()
                    .and_then(|e| e.halves[index(direction)].as_ref());
                self.half(policy, direction, before, literal, names)
            });
            // First in, then out: a word that stays is never gone in between.
            if old.as_ref().is_none_or(|old| old.words != words) {
                changed |= vocabulary.add(&words);
            }
            let entry = Entry {
                policy: Arc::clone(policy),
                words,
                halves,
            };
            self.entries.insert(key.clone(), entry);
        }
        if let Some(old) = old {
            let now = self.entries.get(key).map(|entry| &entry.words);
            if now != Some(&old.words) {
                changed |= vocabulary.remove(&old.words);
            }
            for half in old.halves.iter().flatten() {
                for place in 0..half.rules.len() {
                    names.release(&rule_name(key, half.direction, place));
                }
            }
        }
        changed
    }

    fn half(
        &mut self,
        policy: &NetworkPolicy,
        direction: Direction,
        before: Option<&Arc<Half>>,
        literal: bool,
        names: &mut RuleNames,
    ) -> Option<Arc<Half>> {
        let rules: Vec<HalfRule> = policy
            .rules(direction)?
            .iter()
            .enumerate()
            .map(|(place, rule)| HalfRule {
                peers: rule
                    .peers
                    .as_ref()
                    .map(|peers| Arc::new(Peers::new(&policy.key.namespace, peers))),
                ports: rule.ports.clone(),
                number: names.acquire(rule_name(&policy.key, direction, place)),
            })
            .collect();
        if let Some(before) = before
            && before.rules == rules
            && before.audit == policy.audit
        {
            return Some(Arc::clone(before));
        }
        self.version += 1;
        Some(Arc::new(Half {
            policy: policy.key.clone(),
            direction,
            audit: policy.audit,
            words: Words::of(policy, &[direction], literal),
            rules,
            version: self.version,
        }))
    }

    /// The halves that isolate a pod in a direction, by policy name.
    pub(super) fn isolating(&self, pod: &Pod, direction: Direction) -> Vec<Arc<Half>> {
        self.of_namespace(&pod.key.namespace)
            .filter(|entry| entry.policy.selector.matches(&pod.labels))
            .filter_map(|entry| entry.halves[index(direction)].clone())
            .collect()
    }

    /// Those of some policies that are there, in a direction.
    pub(super) fn named(&self, policies: &[ObjectKey], direction: Direction) -> Vec<Arc<Half>> {
        policies
            .iter()
            .filter_map(|key| self.entries.get(key)?.halves[index(direction)].clone())
            .collect()
    }

    /// The policies that say something of a direction.
    pub(super) fn with(&self, direction: Direction) -> impl Iterator<Item = &ObjectKey> {
        let entries = self.entries.iter();
        entries
            .filter(move |(_, entry)| entry.halves[index(direction)].is_some())
            .map(|(key, _)| key)
    }

    fn of_namespace(&self, namespace: &Text) -> impl Iterator<Item = &Entry> {
        let first = ObjectKey {
            namespace: namespace.clone(),
            name: Text::from(""),
        };
        let namespace = namespace.clone();
        self.entries
            .range(first..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, entry)| entry)
    }
}

fn rule_name(policy: &ObjectKey, direction: Direction, place: usize) -> RuleName {
    RuleName::Rule {
        policy: policy.clone(),
        direction,
        index: u32::try_from(place).unwrap_or(u32::MAX),
    }
}
