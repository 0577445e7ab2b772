//! The two tables of flows. A flow has two halves, each found by the ends that its packets show where they enter: the opener's, and the
//! responder's. A half says what becomes of such packets.

use std::collections::HashMap;
use std::net::SocketAddr;

use agent_common::{Count, NO_BACKEND, NO_SLOT, backend_state, clock, flow_flag, limits, path};

use super::super::wire::{self, Chunk, Ends, Wire};
use super::{Arrival, Model};

/// What becomes of packets with certain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// These are the responder's packets.
    pub reply: bool,
    /// They are rewritten.
    pub translated: bool,
    /// This host opened the flow.
    pub host: bool,
    /// Both ends are one pod.
    pub own: bool,
    /// Taken up in the middle of a connection.
    pub midstream: bool,
    /// The client's port was rewritten.
    pub port_rewritten: bool,
    /// It passes because denials are only told.
    pub audit: bool,
    /// It was answered, and had no room among the answered.
    pub answered: bool,
    /// Where they come from behind the node.
    pub new_from: SocketAddr,
    /// Where they go behind the node.
    pub new_to: SocketAddr,
    /// Interface that they enter by; 0: no pod's; [`agent_common::THIS_HOST`].
    pub enters: u32,
    /// Into this pod by redirect.
    pub deliver: Option<u32>,
    /// Slot of the opener.
    pub opener: Option<u32>,
    /// Slot of the responder.
    pub responder: Option<u32>,
    /// The opener's epoch when it was judged, and what decided.
    pub egress: (u32, u32),
    /// The responder's.
    pub ingress: (u32, u32),
    /// Backend, its generation, its pool.
    pub backend: Option<(u32, u32, u32)>,
    /// By redirect, in both directions.
    pub direct: bool,
    /// A FIN was seen from the side whose packets these are.
    pub fin: bool,
    /// A FIN was seen from the other.
    pub partner_fin: bool,
    /// The connection is over: a SYN opens another.
    pub closing: bool,
    /// Of SCTP: the verification tag that these packets bear; 0: nobody knows.
    pub tag: u32,
    /// Tick of the last packet.
    pub seen: u32,
}

impl Half {
    /// Of packets that nothing is known of.
    pub fn plain(ends: Ends) -> Self {
        Self {
            reply: false,
            translated: false,
            host: false,
            own: false,
            midstream: false,
            port_rewritten: false,
            audit: false,
            answered: false,
            new_from: ends.from,
            new_to: ends.to,
            enters: 0,
            deliver: None,
            opener: None,
            responder: None,
            egress: (0, 0),
            ingress: (0, 0),
            backend: None,
            direct: false,
            fin: false,
            partner_fin: false,
            closing: false,
            tag: 0,
            seen: 0,
        }
    }

    /// The ends of the other half's packets.
    pub fn partner(&self, protocol: u8) -> Ends {
        Ends {
            from: self.new_to,
            to: self.new_from,
            protocol,
        }
    }

    /// What an element of the maps says of a protocol's flow.
    pub fn of(protocol: u8, flow: &agent_common::Flow) -> Self {
        let slot = |slot: u32| (slot != NO_SLOT).then_some(slot);
        let end = |address: agent_common::Address, port_be: u16| {
            SocketAddr::new(address.into(), u16::from_be(port_be))
        };
        let flag = |flag: u32| flow.flags & flag != 0;
        Self {
            reply: flag(flow_flag::REPLY),
            translated: flag(flow_flag::TRANSLATE),
            host: flag(flow_flag::HOST),
            own: flag(flow_flag::SELF),
            midstream: flag(flow_flag::MIDSTREAM),
            port_rewritten: flag(flow_flag::PORT_REWRITTEN),
            audit: flag(flow_flag::AUDIT),
            answered: flag(flow_flag::ANSWERED),
            new_from: end(flow.new_source, flow.new_source_port_be),
            new_to: end(flow.new_destination, flow.new_destination_port_be),
            enters: flow.ifindex,
            deliver: slot(flow.deliver),
            opener: slot(flow.opener),
            responder: slot(flow.responder),
            egress: (flow.egress.epoch, flow.egress.rule),
            ingress: (flow.ingress.epoch, flow.ingress.rule),
            backend: (flow.backend != NO_BACKEND).then_some((
                flow.backend,
                flow.backend_generation,
                flow.service,
            )),
            direct: flow.path == path::PEER,
            fin: flow.fin != 0,
            partner_fin: flow.partner_fin != 0,
            closing: flow.closing != 0,
            // In place of what new ports do to a sum.
            tag: if protocol == wire::SCTP {
                u32::from_be(flow.port_delta)
            } else {
                0
            },
            seen: flow.last_seen,
        }
    }
}

/// The ends that an element's key stands for.
pub fn ends_of(tuple: &agent_common::Tuple) -> Ends {
    let end = |address: agent_common::Address, port_be: u16| {
        SocketAddr::new(address.into(), u16::from_be(port_be))
    };
    Ends {
        from: end(tuple.source, tuple.source_port_be),
        to: end(tuple.destination, tuple.destination_port_be),
        protocol: tuple.protocol,
    }
}

/// Both tables.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Flows that were answered.
    pub answered: HashMap<Ends, Half>,
    /// Flows that were not, and those that were and had no room.
    pub waiting: HashMap<Ends, Half>,
}

impl Flows {
    /// A half, in whichever table it is.
    pub fn find(&self, ends: &Ends) -> Option<&Half> {
        self.answered.get(ends).or_else(|| self.waiting.get(ends))
    }

    /// The same, to be changed.
    pub fn find_mut(&mut self, ends: &Ends) -> Option<&mut Half> {
        match self.answered.get_mut(ends) {
            Some(half) => Some(half),
            None => self.waiting.get_mut(ends),
        }
    }
}

/// Seconds that a flow may be idle.
fn patience(protocol: u8, answered: bool) -> u32 {
    match (protocol, answered) {
        (wire::TCP, true) => limits::TCP_ESTABLISHED_SECONDS,
        (wire::TCP, false) => limits::TCP_UNREPLIED_SECONDS,
        (wire::UDP, true) => limits::UDP_SECONDS,
        (wire::UDP, false) => limits::UDP_UNREPLIED_SECONDS,
        (wire::ICMP | wire::ICMPV6, _) => limits::ECHO_SECONDS,
        _ => limits::OTHER_SECONDS,
    }
}

/// Whether a flow is over: closed, or idle for longer than it may.
pub fn over(half: &Half, protocol: u8, answered: bool, tick: u32) -> bool {
    let idle = tick.saturating_sub(half.seen);
    half.closing || idle > clock::ticks(patience(protocol, answered))
}

/// A SYN, or an INIT, on a connection that is over opens another.
pub fn reopens(half: &Half, wire: &Wire) -> bool {
    half.closing && wire.opens()
}

impl Model {
    /// Whether both local ends were judged in the epoch that is in force. The end whose packets these are must have been judged as the pod
    /// of this link.
    pub(super) fn judged(&self, half: &Half, ifindex: u32) -> bool {
        // Policy does not apply to what this host opens.
        if half.host {
            return true;
        }
        let at_link = |slot: Option<u32>| slot.is_some_and(|s| self.cluster.ifindex(s) == ifindex);
        if half.own {
            return half.opener == half.responder && at_link(half.opener);
        }
        let current = |slot: Option<u32>, epoch: u32| match slot {
            Some(slot) => self
                .cluster
                .pods
                .get(&slot)
                .is_some_and(|pod| pod.epoch == epoch),
            None => true,
        };
        let here = if half.reply {
            half.responder
        } else {
            half.opener
        };
        at_link(here)
            && current(half.opener, half.egress.0)
            && current(half.responder, half.ingress.0)
    }

    /// Whether the backend still takes these packets. Answers pass whatever became of their sender.
    pub(super) fn backend_holds(&self, half: &Half, protocol: u8) -> bool {
        let Some((number, generation, _)) = half.backend.filter(|_| !half.reply) else {
            return true;
        };
        let Some(backend) = self.cluster.backends.get(number as usize) else {
            return false;
        };
        backend.generation == generation
            && match backend.state {
                backend_state::GONE => false,
                backend_state::NOT_SERVING => matches!(protocol, wire::TCP | wire::SCTP),
                _ => true,
            }
    }

    /// Notes a packet of a flow: that the flow lives, and what the packet closes. `along` says that it goes the way of these ends.
    pub(super) fn note(&mut self, at: &Arrival<'_>, ends: Ends, along: bool) {
        let refresh = self
            .flows
            .find(&ends)
            .is_some_and(|half| half.seen != at.tick);
        self.closes(at, ends, along, refresh);
    }

    /// What a packet closes, and, where `refresh` says so, that the flow lives.
    pub(super) fn closes(&mut self, at: &Arrival<'_>, ends: Ends, along: bool, refresh: bool) {
        let flags = at.wire.flags;
        let Some(half) = self.flows.find(&ends) else {
            return;
        };
        let partner = half.partner(ends.protocol);
        let over = self.ends_association(at, ends, partner, along);
        for (key, mine) in [(ends, true), (partner, false)] {
            let Some(half) = self.flows.find_mut(&key) else {
                continue;
            };
            if refresh {
                half.seen = at.tick;
            }
            half.closing |= over;
            if flags & (wire::FIN | wire::RST) == 0 {
                continue;
            }
            let reset = flags & wire::RST != 0;
            if !reset {
                if mine == along {
                    half.fin = true;
                } else {
                    half.partner_fin = true;
                }
            }
            if reset || (half.fin && half.partner_fin) {
                half.closing = true;
            }
        }
    }

    /// Whether the packet says that the association is over, and bears the tag that makes it believed: that of its own direction, or of the other,
    /// where it says that it reflects it (RFC 9260 8.5.1).
    fn ends_association(&self, at: &Arrival<'_>, ends: Ends, partner: Ends, along: bool) -> bool {
        let (Some(half), Some(other)) = (self.flows.find(&ends), self.flows.find(&partner)) else {
            return false;
        };
        let Some(Chunk::End { reflected }) = at.wire.chunk else {
            return false;
        };
        let tag = if along != reflected {
            half.tag
        } else {
            other.tag
        };
        tag != 0 && tag == at.wire.tag
    }

    /// Forgets a flow.
    pub(super) fn forget(&mut self, ends: Ends, partner: Ends) {
        let gone = |table: &mut HashMap<Ends, Half>| {
            let first = table.remove(&ends).is_some();
            u64::from(first) + u64::from(table.remove(&partner).is_some())
        };
        let (answered, waiting) = (
            gone(&mut self.flows.answered),
            gone(&mut self.flows.waiting),
        );
        self.count(Count::ConntrackRemoved, answered);
        self.count(Count::UnrepliedRemoved, waiting);
    }

    /// The first answer: the flow moves among the answered, unless its pod holds its share of them. Tells whether it moved.
    pub(super) fn promote(&mut self, at: &Arrival<'_>, opener: Ends, responder: Ends) -> bool {
        let Some(mut first) = self.flows.waiting.get(&opener).copied() else {
            return false;
        };
        // The opener pays, else the responder; this host's own flows are nobody's.
        let payer = first.opener.or(first.responder);
        let room = payer
            .and_then(|slot| self.cluster.pods.get(&slot))
            .is_none_or(|pod| pod.limit == 0 || pod.held < pod.limit);
        if !room {
            if !first.answered {
                for ends in [opener, responder] {
                    if let Some(half) = self.flows.waiting.get_mut(&ends) {
                        half.answered = true;
                    }
                }
                self.count(Count::ConntrackShare, 1);
            }
            return false;
        }
        let Some(mut second) = self.flows.waiting.get(&responder).copied() else {
            return false;
        };
        learn(at, &mut first, &mut second);
        for (ends, half) in [(opener, first), (responder, second)] {
            let half = Half {
                answered: false,
                ..half
            };
            self.flows.answered.insert(ends, half);
        }
        let opened = self.flows.waiting.remove(&opener).is_some();
        let answered = self.flows.waiting.remove(&responder).is_some();
        self.count(
            Count::UnrepliedRemoved,
            u64::from(opened) + u64::from(answered),
        );
        self.count(Count::FlowReplied, 1);
        if let Some(pod) = payer.and_then(|slot| self.cluster.pods.get_mut(&slot)) {
            pod.held += 1;
        }
        true
    }
}

/// What an association's first answer says of the tags that packets of either direction will bear.
fn learn(at: &Arrival<'_>, opener: &mut Half, responder: &mut Half) {
    let reflected = at.wire.chunk == Some(Chunk::End { reflected: true });
    if at.wire.ends.protocol != wire::SCTP || reflected {
        return;
    }
    if responder.tag == 0 {
        responder.tag = at.wire.tag;
    }
    let acknowledged = at.wire.chunk == Some(Chunk::InitAck) && responder.tag == at.wire.tag;
    if opener.tag == 0 && acknowledged {
        opener.tag = at.wire.asked;
    }
}

/// The first of several fragments of an SCTP packet that needs other ports: its checksum depends on the length of all of it, which it does not tell.
pub(super) fn in_pieces(at: &Arrival<'_>, half: &Half) -> bool {
    let ends = at.wire.ends;
    let first = at.wire.part.is_some_and(|part| part.more && part.at == 0);
    let moves = (half.new_from.port(), half.new_to.port()) != (ends.from.port(), ends.to.port());
    first && ends.protocol == wire::SCTP && half.translated && moves
}
