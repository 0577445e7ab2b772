//! What netlink has told, and what it means: a type without I/O, fed with messages in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType,
};

use super::{Local, PodLink};

/// Which interfaces are uplinks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UplinkChoice {
    /// Names given by `--devices`; where there is one, nothing else counts.
    pub devices: BTreeSet<String>,
    /// The node's InternalIPs: interfaces that have one are uplinks, beside those of default routes.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// An interface, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Link {
    name: String,
    mac: Option<[u8; 6]>,
    veth: bool,
    loopback: bool,
    /// Port of a bridge, bond or the like.
    has_master: bool,
    peer_namespace: Option<u32>,
}

/// A route, as far as it matters: what may make a pod's link or an uplink.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Route {
    /// Gateway-less host route.
    Host { address: IpAddr, ifindex: u32 },
    /// Default route.
    Default { ifindex: u32, v6: bool },
}

/// What tells one route from another: the same destination may have several.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RouteKey {
    route: Route,
    table: u32,
    priority: u32,
}

/// The network namespace's state.
#[derive(Clone, Default, Debug)]
pub(super) struct Network {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpAddr)>,
    routes: BTreeSet<RouteKey>,
    neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
}

impl Network {
    /// Takes one message. Messages about other things are ignored.
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(m) => self.new_link(m),
            RouteNetlinkMessage::DelLink(m) => self.del_link(m),
            RouteNetlinkMessage::NewAddress(m) => {
                self.addresses.extend(address(m));
            }
            RouteNetlinkMessage::DelAddress(m) => {
                if let Some(gone) = address(m) {
                    self.addresses.remove(&gone);
                }
            }
            RouteNetlinkMessage::NewRoute(m) => self.routes.extend(routes(m)),
            RouteNetlinkMessage::DelRoute(m) => {
                for gone in routes(m) {
                    self.routes.remove(&gone);
                }
            }
            RouteNetlinkMessage::NewNeighbour(m) => self.new_neighbour(m),
            RouteNetlinkMessage::DelNeighbour(m) => {
                if let Some(key) = neighbour_key(m) {
                    self.neighbours.remove(&key);
                }
            }
            _ => {}
        }
    }

    fn new_link(&mut self, message: &LinkMessage) {
        // Messages of other families (a bridge's port settings) tell only part.
        if u8::from(message.header.interface_family) != libc::AF_UNSPEC as u8 {
            return;
        }
        let mut link = Link {
            name: String::new(),
            mac: None,
            veth: false,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            has_master: false,
            peer_namespace: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Controller(master) => link.has_master = *master != 0,
                LinkAttribute::LinkNetNsId(id) => link.peer_namespace = u32::try_from(*id).ok(),
                LinkAttribute::LinkInfo(infos) => {
                    link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        self.links.insert(message.header.index, link);
        if !message.header.flags.contains(LinkFlags::Up) {
            self.drop_routes(message.header.index);
        }
    }

    /// The kernel does not tell of IPv4 routes that go with their interface, or with its being set down.
    fn drop_routes(&mut self, gone: u32) {
        self.routes.retain(|key| key.route.ifindex() != gone);
    }

    fn del_link(&mut self, message: &LinkMessage) {
        if u8::from(message.header.interface_family) != libc::AF_UNSPEC as u8 {
            return;
        }
        let gone = message.header.index;
        self.links.remove(&gone);
        self.addresses.retain(|&(ifindex, _)| ifindex != gone);
        self.neighbours.retain(|&(ifindex, _), _| ifindex != gone);
        self.drop_routes(gone);
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) {
        let Some(key) = neighbour_key(message) else {
            return;
        };
        let mac = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
            _ => None,
        });
        // Stale, delay and probe: confirmed once, and still the best that is known.
        let usable = matches!(
            message.header.state,
            NeighbourState::Permanent
                | NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
        );
        match mac {
            Some(mac) if usable => {
                self.neighbours.insert(key, mac);
            }
            _ => {
                self.neighbours.remove(&key);
            }
        }
    }

    /// What it all means.
    pub(super) fn local(&self, choice: &UplinkChoice) -> Local {
        let own: BTreeSet<IpAddr> = self.addresses.iter().map(|&(_, address)| address).collect();
        let mut pods: BTreeMap<u32, PodLink> = BTreeMap::new();
        for key in &self.routes {
            let Route::Host { address, ifindex } = key.route else {
                continue;
            };
            let Some(link) = self.links.get(&ifindex) else {
                continue;
            };
            if !link.veth || link.has_master || own.contains(&address) {
                continue;
            }
            let Some(host_mac) = link.mac else { continue };
            let pod = pods.entry(ifindex).or_insert_with(|| PodLink {
                ifindex,
                name: link.name.clone(),
                host_mac,
                pod_mac: None,
                addresses: BTreeSet::new(),
                peer_namespace: link.peer_namespace,
            });
            pod.addresses.insert(address);
            if pod.pod_mac.is_none() {
                pod.pod_mac = self.neighbours.get(&(ifindex, address)).copied();
            }
        }
        let uplinks = self
            .links
            .iter()
            .filter(|(ifindex, link)| {
                !link.has_master
                    && !link.loopback
                    && !pods.contains_key(*ifindex)
                    && self.is_uplink(**ifindex, link, choice)
            })
            .map(|(&ifindex, link)| (ifindex, link.name.clone()))
            .collect();
        Local {
            pods,
            uplinks,
            addresses: own,
        }
    }

    fn is_uplink(&self, ifindex: u32, link: &Link, choice: &UplinkChoice) -> bool {
        if !choice.devices.is_empty() {
            return choice.devices.contains(&link.name);
        }
        choice
            .node_addresses
            .iter()
            .any(|&address| self.addresses.contains(&(ifindex, address)))
            || self.routes.iter().any(
                |key| matches!(key.route, Route::Default { ifindex: via, .. } if via == ifindex),
            )
    }
}

impl Route {
    const fn ifindex(self) -> u32 {
        match self {
            Self::Host { ifindex, .. } | Self::Default { ifindex, .. } => ifindex,
        }
    }
}

/// The address that a message gives an interface: the local one, where a peer's stands beside it.
fn address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true)
        .or_else(|| find(false))
        .map(|address| (message.header.index, address))
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
            Some((message.header.ifindex, IpAddr::V4(*ip)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
            Some((message.header.ifindex, IpAddr::V6(*ip)))
        }
        _ => None,
    })
}

/// The routes of a message that matter: several for a default route over several hops.
fn routes(message: &RouteMessage) -> Vec<RouteKey> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let v6 = u8::from(header.address_family) == libc::AF_INET6 as u8;
    if !v6 && u8::from(header.address_family) != libc::AF_INET as u8 {
        return Vec::new();
    }
    let (mut destination, mut oif, mut via, mut hops) = (None, None, false, Vec::new());
    let (mut table, mut priority) = (u32::from(header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                destination = Some(IpAddr::V4(*ip));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                destination = Some(IpAddr::V6(*ip));
            }
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = true,
            RouteAttribute::MultiPath(several) => {
                hops.extend(several.iter().map(|hop| hop.interface_index));
            }
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => priority = *number,
            _ => {}
        }
    }
    let key = |route| RouteKey {
        route,
        table,
        priority,
    };
    if header.destination_prefix_length == 0 {
        return oif
            .into_iter()
            .chain(hops)
            .map(|ifindex| key(Route::Default { ifindex, v6 }))
            .collect();
    }
    let host_length = if v6 { 128 } else { 32 };
    // IPv6 routes have no scope.
    let on_link = v6 || header.scope == RouteScope::Link;
    match (destination, oif) {
        (Some(address), Some(ifindex))
            if header.destination_prefix_length == host_length
                && on_link
                && !via
                && hops.is_empty()
                && !link_local_or_multicast(address) =>
        {
            vec![key(Route::Host { address, ifindex })]
        }
        _ => Vec::new(),
    }
}

fn link_local_or_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

#[cfg(test)]
mod tests;
