//! The JSON contract: what `sluice ... -o json` prints, and the builders that make it from the agent's state.
//!
//! * Field names are snake_case and in the order of the types here. A field is never renamed or given another meaning; new
//!   ones may appear, so readers ignore what they do not know.
//! * A field that has nothing to say is `null` or an empty list, never left out.
//! * Objects are named `namespace/name`, or `name` where they are cluster-wide. Lists are sorted by name.
//! * Times are RFC 3339 in UTC with milliseconds, durations are seconds, ports and counts are numbers.
//! * Numbers that stand in the maps (slots, identities, rules) are there for `bpftool`; they mean nothing on another node.
//!
//! Builders are pure. The golden tests under `testdata/observe` hold the contract.

mod endpoints;
mod flow;
mod flows;
mod policies;
mod services;
mod status;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use endpoints::{DirectionView, EndpointList, EndpointState, EndpointView};
pub use flow::{FlowEvent, FlowKind, FlowList, FlowMatch, protocol_name};
pub use flows::{FlowTableView, FlowsView, ShareView};
pub use policies::{PolicyList, PolicyRulesView, PolicyView};
pub use services::{
    BackendState, BackendView, FrontendKind, FrontendView, ServiceList, ServiceView, WhenEmpty,
};
pub use status::{
    ApplyView, AttachedKind, AttachmentView, CountView, DropView, LimitView, MapView, ObjectCount,
    ProblemView, RejectedView, SourceView, Status,
};
pub(in crate::observe) use status::{ip_block_mode_name, unknown_pod_name};

/// What an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndKind {
    /// A pod, on whatever node.
    Pod,
    /// This node itself.
    Host,
    /// Another node.
    Node,
    /// An address of a service.
    Service,
    /// Nothing that the cluster knows.
    Other,
}

/// One end of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct End {
    /// What the address is.
    pub kind: EndKind,
    /// `namespace/name` of the pod or service, or the node's name; null where nothing is known.
    pub name: Option<String>,
    /// The address.
    pub address: IpAddr,
    /// The port; null for protocols without ports.
    pub port: Option<u16>,
}

impl std::fmt::Display for End {
    /// `shop/client:40000`; the address in the name's place where there is none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.name, self.kind) {
            (Some(name), EndKind::Host | EndKind::Node) => write!(f, "node {name}")?,
            (Some(name), _) => f.write_str(name)?,
            (None, _) if self.address.is_ipv6() && self.port.is_some() => {
                write!(f, "[{}]", self.address)?;
            }
            (None, _) => write!(f, "{}", self.address)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// A service, and which of its ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRef {
    /// `namespace/name`.
    pub name: String,
    /// The port's name (empty for the only, unnamed one); null where the service has no such port.
    pub port_name: Option<String>,
}

/// The rule that decided a direction of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleView {
    /// Its number in the maps.
    pub number: u32,
    /// `ingress` or `egress`.
    pub direction: String,
    /// The policy that has the rule; where none allows the flow, every policy that isolates the pod.
    pub policies: Vec<String>,
    /// The rule's place in the policy's `ingress` or `egress`, from 0; null where no rule matched.
    pub rule: Option<u32>,
    /// False: no policy has this number any more (or yet), so nothing else is known.
    pub known: bool,
}

impl std::fmt::Display for RuleView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = &self.direction;
        match (self.known, self.rule) {
            (false, _) => write!(
                f,
                "{direction} rule number {}, which no policy has any more",
                self.number
            ),
            (true, Some(rule)) => write!(f, "{} {direction}[{rule}]", self.policies.join(", ")),
            (true, None) => write!(f, "no {direction} rule of {}", self.policies.join(", ")),
        }
    }
}

/// `address:port` as people write it, IPv6 in brackets.
#[must_use]
pub fn socket_text(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
