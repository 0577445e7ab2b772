//! Services and their endpoints.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use agent_common::protocol;

use super::shared::Shared;
use super::{ObjectKey, Text};

/// Transport protocol of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }

    /// The name as Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// One port of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Port name; empty where there is one port without a name.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the service's addresses, never 0.
    pub port: u16,
    /// Node port; 0 for none.
    pub node_port: u16,
}

/// A service that has addresses. Headless services, ExternalName, and those of another proxy are not in the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.clusterIPs`, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, without those of `ipMode: Proxy`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: address with host bits zero, and prefix length.
    pub source_ranges: Vec<(IpAddr, u8)>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP`, with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort`; 0 for none.
    pub health_check_node_port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`, true where absent.
    pub ready: bool,
    /// `conditions.serving`, true where absent.
    pub serving: bool,
    /// `conditions.terminating`, false where absent.
    pub terminating: bool,
    /// Where it is, and for whom.
    pub placement: Arc<Placement>,
}

/// Where endpoints are and for whom: what all those of a node have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Placement {
    /// `nodeName`.
    pub node: Option<Text>,
    /// `zone`.
    pub zone: Option<Text>,
    /// `hints.forZones`; None where there is no such hint.
    pub hint_zones: Option<Vec<Text>>,
    /// `hints.forNodes`; None where there is no such hint.
    pub hint_nodes: Option<Vec<Text>>,
}

/// There are 250,000 of them, and nothing else of the model is there so often.
const _: () = assert!(size_of::<Endpoint>() <= 32);

static PLACEMENTS: LazyLock<Mutex<Shared<Placement>>> = LazyLock::new(Mutex::default);

impl Placement {
    /// The shared copy: there are many more endpoints than nodes.
    pub fn shared(&self) -> Arc<Self> {
        let mut all = PLACEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(self, |new| Arc::new(new.clone()))
    }
}

/// One port of a slice; ports without a number are not in the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPort {
    /// Port name; empty where absent.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// Port, never 0.
    pub port: u16,
}

/// An EndpointSlice of family IPv4 or IPv6 that names its service by label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: ObjectKey,
    /// The service, from the label `kubernetes.io/service-name`.
    pub service: ObjectKey,
    /// `addressType`.
    pub family: Family,
    /// Endpoints, all of that family.
    pub endpoints: Vec<Endpoint>,
    /// Ports, that every endpoint of the slice has.
    pub ports: Vec<EndpointPort>,
}
