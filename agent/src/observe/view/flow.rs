//! `sluice flows`.

use std::net::IpAddr;

use agent_common::{Event, Reason, event_kind, hook, protocol};
use serde::{Deserialize, Serialize};

use super::{End, RuleView, ServiceRef};
use crate::model::Direction;
use crate::observe::flows::Record;
use crate::observe::names::Namer;
use crate::observe::state::State;
use crate::observe::time::Time;

/// What happened to a flow's packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowKind {
    /// It was dropped.
    Drop,
    /// It was answered with RST or ICMP unreachable.
    Reject,
    /// It opened a flow that is allowed.
    Allow,
    /// It opened a flow that passes only because the policies that deny it are audited.
    Audit,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowEvent {
    /// When.
    pub time: Time,
    /// What happened.
    pub kind: FlowKind,
    /// Why: a name of `agent_common::Reason`; null where there is none to give.
    pub reason: Option<String>,
    /// Where it was seen: `from-pod`, `to-pod`, `from-uplink`, `to-uplink`, `socket`.
    pub hook: String,
    /// Name of the interface, where this node knows it.
    pub interface: Option<String>,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the IANA number.
    pub protocol: String,
    /// Who opened the flow, where that is known; else who sent the packet.
    pub source: End,
    /// Whom it was sent to, before translation.
    pub destination: End,
    /// The service that the destination is an address of.
    pub service: Option<ServiceRef>,
    /// Where the service led to.
    pub backend: Option<End>,
    /// TCP flags of the packet: `SYN`, `ACK`, ...
    pub tcp_flags: Vec<String>,
    /// Length of the packet in bytes.
    pub length: u32,
    /// The rule that decided the opener's egress; null where no policy applied or none was asked.
    pub egress: Option<RuleView>,
    /// Likewise for the responder's ingress.
    pub ingress: Option<RuleView>,
}

/// `sluice flows --last N`: events that have happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowList {
    /// Oldest first.
    pub flows: Vec<FlowEvent>,
}

/// The protocol's name, or its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        protocol::ICMP => "ICMP".to_owned(),
        protocol::ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}

/// Flags of the TCP header's fourteenth byte, by bit (RFC 9293 3.1).
const TCP_FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

fn tcp_flags(event: &Event) -> Vec<String> {
    let set = TCP_FLAGS.iter().enumerate();
    set.filter(|(bit, _)| event.tcp_flags & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

impl FlowEvent {
    /// Names an event. None for a kind that this agent does not know.
    #[must_use]
    pub fn build(record: &Record, state: &State) -> Option<Self> {
        let event = &record.event;
        let kind = match event.kind {
            event_kind::DROP => FlowKind::Drop,
            event_kind::REJECT => FlowKind::Reject,
            event_kind::ALLOW => FlowKind::Allow,
            event_kind::AUDIT => FlowKind::Audit,
            _ => return None,
        };
        let namer = Namer::new(state);
        let tuple = &event.tuple;
        let ports = protocol::has_ports(tuple.protocol);
        let end = |address: agent_common::Address, port_be: u16| {
            let port = ports.then(|| u16::from_be(port_be));
            namer.end(IpAddr::from(address), port)
        };
        let translated = event.translated != tuple.destination
            || event.translated_port_be != tuple.destination_port_be;
        let destination = end(tuple.destination, tuple.destination_port_be);
        Some(Self {
            time: record.at.into(),
            kind,
            reason: reason(event.reason),
            hook: hook::name(u32::from(event.hook)).to_owned(),
            interface: interface(state, event.ifindex),
            protocol: protocol_name(tuple.protocol),
            source: end(tuple.source, tuple.source_port_be),
            service: namer.service(
                destination.address,
                destination.port.unwrap_or_default(),
                tuple.protocol,
            ),
            destination,
            backend: (translated && !event.translated.is_unspecified())
                .then(|| end(event.translated, event.translated_port_be)),
            tcp_flags: tcp_flags(event),
            length: event.length,
            egress: namer.rule(event.egress_rule, Direction::Egress),
            ingress: namer.rule(event.ingress_rule, Direction::Ingress),
        })
    }

    /// Every end of the flow: source, destination, backend.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        [&self.source, &self.destination]
            .into_iter()
            .chain(self.backend.as_ref())
    }
}

fn reason(number: u8) -> Option<String> {
    match (number, Reason::from_number(number)) {
        (0, _) => None,
        (_, Some(reason)) => Some(reason.name().to_owned()),
        (_, None) => Some(format!("reason-{number}")),
    }
}

fn interface(state: &State, ifindex: u32) -> Option<String> {
    let local = &state.local;
    let pod = local.pods.get(&ifindex).map(|link| link.name.clone());
    pod.or_else(|| local.uplinks.get(&ifindex).cloned())
}

/// Which flows a watcher wants to see, besides whether allowed ones.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FlowMatch {
    /// Only flows that have this pod (`namespace/name`) at one end, or any pod or service of this namespace (`namespace/`).
    #[serde(default)]
    pub object: Option<String>,
    /// Only events with this reason.
    #[serde(default)]
    pub reason: Option<String>,
}

impl FlowMatch {
    /// Whether an event is wanted.
    #[must_use]
    pub fn takes(&self, event: &FlowEvent) -> bool {
        let object = self.object.as_ref().is_none_or(|object| {
            let is = |name: &str| {
                name == object || (object.ends_with('/') && name.starts_with(object.as_str()))
            };
            let named = |end: &End| end.name.as_deref().is_some_and(is);
            event.ends().any(named) || event.service.as_ref().is_some_and(|s| is(&s.name))
        });
        let reason = self.reason.is_none() || self.reason == event.reason;
        object && reason
    }
}
