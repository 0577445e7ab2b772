//! The cluster, as Sluice sees it: compact, validated, with no Kubernetes, xDS or aya type in it.
//!
//! Objects are converted at the edge (`source`), and replaced whole. Everything that holds here needs no further check:
//! selectors parse, CIDRs have no host bits, ports are not zero, ranges are not empty.

mod cluster;
mod few;
mod node;
mod pod;
mod policy;
mod selector;
mod service;
mod shared;
mod sorted;
mod text;

pub use cluster::{Change, Cluster, Object, ObjectId};
pub use few::Few;
pub use node::{Namespace, Node};
pub use pod::{NamedPort, Pod, PodPhase};
pub use policy::{Direction, IpBlock, NetworkPolicy, Peer, PolicyRule, PortMatch, PortSpec};
pub use selector::{Operator, Requirement, Selector};
pub use service::{
    Endpoint, EndpointPort, EndpointSlice, Family, Placement, Protocol, Service, ServicePort,
    TrafficPolicy,
};
pub use sorted::Sorted;
pub use text::{Labels, ObjectKey, Text, intern};

/// The kinds of objects that the model holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
    ];

    /// The name as Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
