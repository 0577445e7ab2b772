//! Network policies (`networking.k8s.io/v1`).

use std::net::IpAddr;

use super::{ObjectKey, Protocol, Selector, Text};

/// Direction of a connection, from a pod's point of view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// The pod opens it.
    Egress,
    /// The pod is its target.
    Ingress,
}

impl Direction {
    /// `ingress` or `egress`, as policies write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// `ipBlock`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IpBlock {
    /// Address with host bits zero.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// Blocks taken away from this one, each inside it, host bits zero.
    pub except: Vec<(IpAddr, u8)>,
}

/// One entry of `from` or `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// `podSelector` and/or `namespaceSelector`.
    Pods {
        /// None: the policy's own namespace.
        namespaces: Option<Selector>,
        /// Selects pods in those namespaces; an empty selector selects all.
        pods: Selector,
    },
    /// `ipBlock`.
    Block(IpBlock),
}

/// The port of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortSpec {
    /// Every port of the protocol.
    All,
    /// From the first to the last, both included; first <= last.
    Range(u16, u16),
    /// A port's name, resolved on the destination pod.
    Named(Text),
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortMatch {
    /// Protocol; TCP where the object has none.
    pub protocol: Protocol,
    /// Port.
    pub port: PortSpec,
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyRule {
    /// None: `from`/`to` absent or empty, everyone.
    pub peers: Option<Vec<Peer>>,
    /// None: `ports` absent or empty, every port and protocol.
    pub ports: Option<Vec<PortMatch>>,
}

/// A network policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Selects pods of its namespace.
    pub selector: Selector,
    /// Some: isolates the pods' ingress, and allows what a rule allows. None: says nothing of ingress.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Likewise for egress.
    pub egress: Option<Vec<PolicyRule>>,
    /// Annotation `sluice.dev/audit: "true"`: what only audited policies deny is passed and reported.
    pub audit: bool,
}

impl NetworkPolicy {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match direction {
            Direction::Egress => self.egress.as_deref(),
            Direction::Ingress => self.ingress.as_deref(),
        }
    }
}
