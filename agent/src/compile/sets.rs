//! Sets: what a list of policies says in one direction, and its rules for each group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::{
    GROUP_ANY, PRIORITY_DEFAULT, PRIORITY_RULE, RuleKey, Verdict, action, rule_bits, tier,
};

use super::groups::GroupKey;
use super::names::RuleName;
use super::peers::PeersId;
use super::policies::{Half, HalfRule};
use super::ports::{self, Reach};
use crate::datapath::Bits;
use crate::model::{Direction, NamedPort, ObjectKey, PortMatch, PortSpec, Protocol, Text};

/// What a set is. Another content is another set: a set that a pod points to never loses a rule for a group that exists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SetKey {
    pub(super) direction: Direction,
    /// The policies that isolate the pod, with the version of what they say.
    pub(super) halves: Vec<(ObjectKey, u64)>,
    /// Ingress: the pod's own named ports that the policies mention.
    pub(super) ports: Vec<NamedPort>,
}

/// Where a set is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It waits for room; its rules are not in the maps.
    Waiting,
    /// Its rules are in the maps.
    Live,
    /// As live, but no pod points to it once this update's delta is applied. It takes part in that one, because until then pods
    /// do, and goes with the next.
    Leaving,
}

/// A set.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) key: SetKey,
    pub(super) halves: Vec<Arc<Half>>,
    /// The peers of all rules, in their order, once taken into use.
    pub(super) peers: Option<Vec<Option<PeersId>>>,
    /// What holds where no rule does.
    pub(super) default: Verdict,
    /// Pods that point to it, or want to.
    pub(super) users: u32,
    pub(super) state: State,
    /// Its rules came into the maps in this update.
    pub(super) fresh: bool,
}

impl SetKey {
    /// The set of a pod with these ports that these policies isolate.
    pub(super) fn new(direction: Direction, halves: &[Arc<Half>], ports: &[NamedPort]) -> Self {
        let mentioned: BTreeSet<(&Text, Protocol)> = match direction {
            Direction::Ingress => halves.iter().flat_map(|half| half.named_ports()).collect(),
            Direction::Egress => BTreeSet::new(),
        };
        Self {
            direction,
            halves: halves
                .iter()
                .map(|half| (half.policy.clone(), half.version))
                .collect(),
            ports: ports
                .iter()
                .filter(|port| mentioned.contains(&(&port.name, port.protocol)))
                .cloned()
                .collect(),
        }
    }

    /// The name of the set's default.
    pub(super) fn default_name(&self) -> RuleName {
        RuleName::Default {
            policies: self.halves.iter().map(|(key, _)| key.clone()).collect(),
            direction: self.direction,
        }
    }
}

/// The default of policies that isolate a pod together. A connection passes if all of them allow it, or if those that are not
/// audited alone would. Where one that is not audited isolates the pod, what it and its like allow, all together allow too, so that
/// the second case is that of audited policies alone: then nobody denies, and the denial is only reported.
pub(super) fn default_verdict(halves: &[Arc<Half>], number: u32) -> Verdict {
    let audit = if halves.iter().all(|half| half.audit) {
        action::AUDIT
    } else {
        0
    };
    Verdict {
        rule: number,
        priority: PRIORITY_DEFAULT,
        tier: tier::NETWORK_POLICY,
        action: action::DENY | audit,
    }
}

impl Set {
    /// The set's rules.
    pub(super) fn rules(&self) -> impl Iterator<Item = &HalfRule> {
        self.halves.iter().flat_map(|half| &half.rules)
    }

    /// What the set says of a group (None: of any peer, and by default).
    pub(super) fn entries(
        &self,
        set: u32,
        group: Option<(u32, &GroupKey)>,
    ) -> Vec<(Bits<RuleKey>, Verdict)> {
        let mut reaches = Vec::new();
        let peers = self.peers.iter().flatten();
        for (rule, peers) in self.rules().zip(peers) {
            let verdict = Verdict {
                rule: rule.number,
                priority: PRIORITY_RULE,
                tier: tier::NETWORK_POLICY,
                action: action::ALLOW,
            };
            // A rule for any peer speaks of a group only by what is the group's own: its named ports.
            let (whole, named) = match (peers, group) {
                (None, None) => (true, self.key.direction == Direction::Ingress),
                (None, Some(_)) => (false, self.key.direction == Direction::Egress),
                (Some(_), None) => (false, false),
                (Some(id), Some((_, key))) => {
                    let within = key.peers.contains(id);
                    (within, within)
                }
            };
            let ports: &[NamedPort] = match (self.key.direction, group) {
                (Direction::Ingress, _) => &self.key.ports,
                (Direction::Egress, Some((_, key))) => &key.ports,
                (Direction::Egress, None) => &[],
            };
            match &rule.ports {
                None if whole => reaches.push((verdict, Reach::Everything)),
                None => {}
                Some(list) => {
                    for port in list {
                        reach(port, whole, named, ports, |reach| {
                            reaches.push((verdict, reach));
                        });
                    }
                }
            }
        }
        let mut out = match group {
            Some((number, _)) => ports::entries(set, number, reaches),
            None => ports::entries(set, GROUP_ANY, reaches),
        };
        if group.is_none() {
            out.push((
                Bits {
                    length: rule_bits::SET,
                    data: RuleKey::packet(set, GROUP_ANY, 0, 0),
                },
                self.default,
            ));
        }
        out
    }
}

fn reach(
    port: &PortMatch,
    whole: bool,
    named: bool,
    ports: &[NamedPort],
    mut say: impl FnMut(Reach),
) {
    let protocol = port.protocol.number();
    match &port.port {
        PortSpec::All if whole => say(Reach::Ports(protocol, 0, u16::MAX)),
        PortSpec::Range(first, last) if whole => say(Reach::Ports(protocol, *first, *last)),
        PortSpec::Named(name) if named => {
            for own in ports {
                if own.name == *name && own.protocol == port.protocol {
                    say(Reach::Ports(protocol, own.port, own.port));
                }
            }
        }
        PortSpec::All | PortSpec::Range(..) | PortSpec::Named(_) => {}
    }
}

/// All sets.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    pub(super) numbers: super::numbers::Numbers,
    pub(super) all: BTreeMap<u32, Set>,
    pub(super) by_key: BTreeMap<SetKey, u32>,
}

impl Sets {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            numbers: super::numbers::Numbers::new(1, u32::MAX),
            all: BTreeMap::new(),
            by_key: BTreeMap::new(),
        }
    }

    /// One use of a set ends.
    pub(super) fn release(&mut self, number: u32) {
        if let Some(set) = self.all.get_mut(&number) {
            set.users = set.users.saturating_sub(1);
        }
    }
}
