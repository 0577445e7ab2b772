//! What a pod may send and take: lists of rules, read plainly.

use std::net::IpAddr;

use agent_common::{Reason, action, address_kind};

use super::super::wire;
use super::Model;
use super::cluster::Cluster;
use super::flows::Half;

/// A pod is isolated in a direction.
#[derive(Clone, Copy, Debug)]
pub struct Isolation {
    /// By this set.
    pub set: u32,
    /// No source knows the pod.
    pub unknown: bool,
}

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All.
    Any,
    /// A protocol's.
    Protocol(u8),
    /// A protocol's ports between these.
    Range(u8, u16, u16),
}

impl Ports {
    fn covers(self, protocol: u8, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Protocol(p) => p == protocol,
            Self::Range(p, first, last) => p == protocol && (first..=last).contains(&port),
        }
    }

    /// The fewer packets a rule is for, the lower.
    fn width(self) -> u32 {
        match self {
            Self::Any => u32::MAX,
            Self::Protocol(_) => u32::MAX - 1,
            Self::Range(_, first, last) => u32::from(last - first),
        }
    }
}

/// A rule: what holds for a group's packets. Group 0 is anybody.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The peer's group.
    pub group: u32,
    /// Which packets.
    pub ports: Ports,
    /// See [`action`].
    pub action: u8,
}

/// The rules of one direction of some pods.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// It has a default: what nothing allows is denied.
    pub whole: bool,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// What came of asking a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Answer {
    /// Number of what decided, 0 where nothing applied.
    pub rule: u32,
    /// The denial is told and not enforced.
    pub audit: bool,
    /// The connection passes.
    pub passes: bool,
}

/// Numbers of a set's default and of its rules, as [`crate::packet::rules`] writes them.
const DEFAULT_RULE: u32 = crate::packet::rules::DEFAULT_RULE;
const RULE: u32 = crate::packet::rules::ALLOW_RULE;

impl Cluster {
    /// The longest prefix's identity.
    fn prefix_of(&self, address: IpAddr) -> Option<u32> {
        self.prefixes
            .iter()
            .filter(|(network, bits, _)| within(address, *network, *bits))
            .max_by_key(|(_, bits, _)| *bits)
            .map(|(_, _, identity)| *identity)
    }

    /// What a set says of a peer.
    pub fn ask(&self, by: Option<Isolation>, peer: IpAddr, protocol: u8, port: u16) -> Answer {
        let Some(by) = by else {
            return Answer {
                passes: true,
                ..Answer::default()
            };
        };
        let who = self.who.get(&peer);
        let group = |identity: u32| self.groups.get(&identity).copied().unwrap_or(0);
        let mut groups = vec![0];
        groups.extend(who.map(|who| group(who.identity)));
        // In cilium mode ipBlocks match whatever is no pod and no node.
        if who.is_none_or(|who| who.kind > address_kind::HOST) || self.literal {
            groups.extend(self.prefix_of(peer).map(group));
        }
        let Some(set) = self.sets.get(&by.set) else {
            return Answer::default();
        };
        // Of each group's rules the narrowest that covers the packet speaks.
        let said: Vec<u8> = groups
            .iter()
            .filter_map(|group| {
                set.rules
                    .iter()
                    .filter(|rule| rule.group == *group && rule.ports.covers(protocol, port))
                    .min_by_key(|rule| rule.ports.width())
            })
            .map(|rule| rule.action)
            .collect();
        // Rules add up: one that allows is enough.
        if said.contains(&action::ALLOW) {
            Answer {
                rule: RULE,
                audit: false,
                passes: true,
            }
        } else if said.iter().any(|said| said & action::AUDIT != 0) {
            Answer {
                rule: RULE,
                audit: true,
                passes: true,
            }
        } else {
            Answer {
                rule: if set.whole { DEFAULT_RULE } else { 0 },
                ..Answer::default()
            }
        }
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(a) => (u128::from(a.to_bits()) << 96, 4),
        IpAddr::V6(a) => (a.to_bits(), 6),
    };
    let ((a, family), (b, other)) = (number(address), number(network));
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    family == other && a & mask == b & mask
}

/// A flow to be judged, in its opener's direction and after translation.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The opener's address.
    pub opener: IpAddr,
    /// The responder's address and port.
    pub responder: std::net::SocketAddr,
    /// IP's protocol number.
    pub protocol: u8,
    /// Slot of the pod at whose link the packet is; `None` at an uplink.
    pub here: Option<u32>,
    /// That pod is the responder.
    pub here_responds: bool,
    /// This host opens it.
    pub host: bool,
}

impl Model {
    /// Judges a flow, and writes into `half` who its ends are and what was judged. Egress never vouches for ingress: each local end is
    /// asked for itself. The end at this link is the link's pod, whoever has its address; the other is whose address it is.
    pub(super) fn judge(&self, asked: &Question, half: &mut Half) -> Result<(), Reason> {
        let cluster = &self.cluster;
        let (opener, responder) = if asked.host {
            (None, None)
        } else if asked.here_responds {
            (cluster.slot_of(asked.opener), asked.here)
        } else {
            (asked.here, cluster.slot_of(asked.responder.ip()))
        };
        half.opener = opener;
        half.responder = responder;
        half.egress = (0, 0);
        half.ingress = (0, 0);
        half.own = opener.is_some() && opener == responder;
        half.audit = false;
        // A pod does not block itself.
        if half.own {
            return Ok(());
        }
        let port = if has_ports(asked.protocol) {
            asked.responder.port()
        } else {
            0
        };
        let denied = |by: Option<Isolation>, otherwise| {
            if by.is_some_and(|by| by.unknown) {
                Reason::UnknownPod
            } else {
                otherwise
            }
        };
        let mut audit = false;
        if let Some(pod) = opener.and_then(|slot| cluster.pods.get(&slot)) {
            let said = cluster.ask(pod.egress, asked.responder.ip(), asked.protocol, port);
            half.egress = (pod.epoch, said.rule);
            audit |= said.audit;
            if !said.passes {
                return Err(denied(pod.egress, Reason::PolicyEgress));
            }
        }
        if let Some(pod) = responder.and_then(|slot| cluster.pods.get(&slot)) {
            let said = cluster.ask(pod.ingress, asked.opener, asked.protocol, port);
            half.ingress = (pod.epoch, said.rule);
            audit |= said.audit;
            if !said.passes {
                return Err(denied(pod.ingress, Reason::PolicyIngress));
            }
        }
        half.audit = audit;
        Ok(())
    }
}

/// Protocols whose header begins with two ports.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, wire::TCP | wire::UDP | wire::SCTP)
}
