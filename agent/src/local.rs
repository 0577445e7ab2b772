//! What the node itself knows, from netlink: pod links, uplinks, the host's addresses.

mod netlink;
mod network;

pub use netlink::{WatchError, Watcher, watch};
pub use network::UplinkChoice;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A pod's link: a veth with a gateway-less host route to each of the pod's addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodLink {
    /// Index of the host's side.
    pub ifindex: u32,
    /// Name of the host's side.
    pub name: String,
    /// MAC of the host's side.
    pub host_mac: [u8; 6],
    /// MAC of the pod's side: the link-layer address that the neighbour table or the pod's own frames show; None until known.
    pub pod_mac: Option<[u8; 6]>,
    /// Addresses with a host route to the link.
    pub addresses: BTreeSet<IpAddr>,
    /// The number by which this network namespace knows the peer's, where that is another: then delivery by peer redirect is possible.
    pub peer_namespace: Option<u32>,
}

/// The node's own network state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Local {
    /// Pod links by interface index.
    pub pods: BTreeMap<u32, PodLink>,
    /// Uplinks by interface index, with their names.
    pub uplinks: BTreeMap<u32, String>,
    /// Addresses that the host owns on any interface (loopback's too).
    pub addresses: BTreeSet<IpAddr>,
}
