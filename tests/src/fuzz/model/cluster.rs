//! Who is who, services and their backends, as the agent told it to the maps.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use agent_common::{address_kind, backend_state, pod_flag};

use super::super::wire::Ends;
use super::hooks::is_multicast;
use super::policy::{Isolation, Set};

/// A local pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Interface of its link; 0: it has ended.
    pub ifindex: u32,
    /// See [`pod_flag`].
    pub flags: u32,
    /// Its identity.
    pub identity: u32,
    /// MAC of its side of the link.
    pub mac: [u8; 6],
    /// MAC of the host's side.
    pub host_mac: [u8; 6],
    /// Raised when something was taken from it.
    pub epoch: u32,
    /// What holds for what it sends.
    pub egress: Option<Isolation>,
    /// What holds for what it takes.
    pub ingress: Option<Isolation>,
    /// Flows that it may hold among the answered ones; 0: no bound.
    pub limit: u32,
    /// Flows of its that became answered ones.
    pub held: u32,
}

impl Pod {
    /// Whether policy is in force for it, in either direction.
    pub fn enforced(&self) -> bool {
        self.egress.is_some() || self.ingress.is_some()
    }

    /// Whether it may send from addresses of others.
    pub fn any_source(&self) -> bool {
        self.flags & pod_flag::ANY_SOURCE != 0
    }

    /// Whether its link takes redirects.
    pub fn redirects(&self) -> bool {
        self.flags & pod_flag::REDIRECT != 0
    }
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// See [`address_kind`].
    pub kind: u8,
    /// The local pod's slot.
    pub slot: Option<u32>,
    /// The identity.
    pub identity: u32,
}

/// Where clients find a service.
#[derive(Clone, Copy, Debug)]
pub struct Frontend {
    /// Place in [`Cluster::pools`].
    pub pool: u32,
    /// Dropped, not refused, when it is empty: endpoints are elsewhere.
    pub drop_when_empty: bool,
    /// No ClusterIP.
    pub external: bool,
}

/// A service's backends.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Numbers of backends.
    pub slots: Vec<u32>,
    /// How many of them, from the first, new flows choose from.
    pub count: usize,
}

/// A backend.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Where it is.
    pub at: SocketAddr,
    /// Raised when its number is given to another.
    pub generation: u32,
    /// See [`backend_state`].
    pub state: u8,
}

/// Everything that the node was told.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Local pods by slot.
    pub pods: HashMap<u32, Pod>,
    /// Slots by interface.
    pub links: HashMap<u32, u32>,
    /// Addresses.
    pub who: HashMap<IpAddr, Who>,
    /// Groups by identity; 0 is anybody.
    pub groups: HashMap<u32, u32>,
    /// Prefixes: network, its bits, identity.
    pub prefixes: Vec<(IpAddr, u32, u32)>,
    /// Rules by set.
    pub sets: HashMap<u32, Set>,
    /// ipBlocks match what the CIDR says.
    pub literal: bool,
    /// New flows are told.
    pub tell_allowed: bool,
    /// Services by address, port and protocol.
    pub services: HashMap<(SocketAddr, u8), Frontend>,
    /// Their backends.
    pub pools: Vec<Pool>,
    /// All backends by number.
    pub backends: Vec<Backend>,
}

impl Cluster {
    /// The local pod that has an address.
    pub fn slot_of(&self, address: IpAddr) -> Option<u32> {
        self.who
            .get(&address)
            .filter(|who| who.kind == address_kind::LOCAL_POD)
            .and_then(|who| who.slot)
    }

    /// What an address is, see [`address_kind`].
    pub fn kind_of(&self, address: IpAddr) -> Option<u8> {
        self.who.get(&address).map(|who| who.kind)
    }

    /// Whether an address is a ClusterIP.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.kind_of(address) == Some(address_kind::CLUSTER_IP)
    }

    /// Whether a pod may send from an address. A router does for others, who are none of this node's.
    pub fn sends_as(&self, slot: u32, address: IpAddr) -> bool {
        self.slot_of(address) == Some(slot)
            || (self.routes(slot) && !self.is_ours(address) && !is_no_source(address))
    }

    /// Whether a pod sends on for others.
    pub fn routes(&self, slot: u32) -> bool {
        self.pods.get(&slot).is_some_and(Pod::any_source)
    }

    /// Whether an address is a local pod's, this host's or a ClusterIP.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        matches!(
            self.kind_of(address),
            Some(address_kind::LOCAL_POD | address_kind::HOST | address_kind::CLUSTER_IP)
        )
    }

    /// Interface of a pod's link.
    pub fn ifindex(&self, slot: u32) -> u32 {
        self.pods.get(&slot).map_or(0, |pod| pod.ifindex)
    }

    /// Whether policy is in force for the pod of a slot.
    pub fn enforced(&self, slot: u32) -> bool {
        self.pods.get(&slot).is_some_and(Pod::enforced)
    }

    /// The service that a packet asks for. Outer `None`: its destination is no service's address.
    pub fn frontend(&self, ends: Ends, has_ports: bool) -> Option<Option<Frontend>> {
        let kind = self.kind_of(ends.to.ip())?;
        if !matches!(
            kind,
            address_kind::CLUSTER_IP | address_kind::EXTERNAL | address_kind::HOST
        ) {
            return None;
        }
        let port = if has_ports { ends.to.port() } else { 0 };
        let asked = (SocketAddr::new(ends.to.ip(), port), ends.protocol);
        match self.services.get(&asked) {
            // A ClusterIP that this host owns itself is served by a process of its own.
            Some(frontend) if kind == address_kind::HOST && !frontend.external => None,
            None if kind != address_kind::CLUSTER_IP => None,
            found => Some(found.copied()),
        }
    }

    /// Backends that a new flow may get, and whether one of the places to choose from leads to none any more.
    pub fn choices(&self, pool: u32) -> (Vec<u32>, bool) {
        let Some(pool) = self.pools.get(pool as usize) else {
            return (Vec::new(), false);
        };
        let places: Vec<u32> = pool.slots.iter().take(pool.count).copied().collect();
        let alive: Vec<u32> = places
            .iter()
            .copied()
            .filter(|number| {
                self.backends
                    .get(*number as usize)
                    .is_some_and(|backend| backend.state != backend_state::GONE)
            })
            .collect();
        let gone = alive.len() < places.len();
        (alive, gone)
    }
}

/// Whether nothing that is forwarded comes from an address (RFC 1122 3.2.1.3; RFC 4291 2.5.2, 2.5.3, 2.7).
pub fn is_no_source(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_loopback() || is_multicast(address)
}
