//! Classification of synthetic messages, in every order.

use std::net::{Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteNextHop;

use super::*;

const ETH: u32 = 2;
const VETH: u32 = 7;
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 5));
const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 10));
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

fn link(
    index: u32,
    name: &str,
    kind: Option<InfoKind>,
    more: Vec<LinkAttribute>,
) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 1, index as u8]),
    ];
    message
        .attributes
        .extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
    message.attributes.extend(more);
    RouteNetlinkMessage::NewLink(message)
}

fn veth() -> RouteNetlinkMessage {
    link(
        VETH,
        "veth7",
        Some(InfoKind::Veth),
        vec![LinkAttribute::LinkNetNsId(0)],
    )
}

fn route_message(
    to: Option<(IpAddr, u8)>,
    scope: RouteScope,
    attributes: Vec<RouteAttribute>,
) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.kind = RouteType::Unicast;
    message.header.scope = scope;
    message.header.table = 254;
    message.header.address_family = match to {
        Some((IpAddr::V6(_), _)) => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    };
    message.attributes = attributes;
    if let Some((address, length)) = to {
        message.header.destination_prefix_length = length;
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
    }
    message
}

fn host_route(address: IpAddr, length: u8) -> RouteMessage {
    let scope = if address.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    route_message(
        Some((address, length)),
        scope,
        vec![RouteAttribute::Oif(VETH)],
    )
}

fn owned(index: u32, ip: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(ip)];
    RouteNetlinkMessage::NewAddress(message)
}

fn neighbour(state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = VETH;
    message.header.state = state;
    let IpAddr::V4(ip) = POD else {
        unreachable!("the pod has IPv4")
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)),
        NeighbourAttribute::LinkLayerAddress(POD_MAC.to_vec()),
    ];
    message
}

fn network<'a>(messages: impl IntoIterator<Item = &'a RouteNetlinkMessage>) -> Network {
    let mut network = Network::default();
    for message in messages {
        network.apply(message);
    }
    network
}

fn local(messages: &[RouteNetlinkMessage]) -> Local {
    network(messages).local(&UplinkChoice::default())
}

#[test]
fn a_pod_is_found_whatever_comes_first() {
    let messages = [
        veth(),
        RouteNetlinkMessage::NewRoute(host_route(POD, 32)),
        RouteNetlinkMessage::NewRoute(host_route(POD6, 128)),
        RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Permanent)),
        owned(ETH, NODE),
    ];
    let first = local(&messages);
    let pod = &first.pods[&VETH];
    assert_eq!(pod.addresses, BTreeSet::from([POD, POD6]));
    assert_eq!(pod.pod_mac, Some(POD_MAC));
    assert_eq!(pod.host_mac, [2, 0, 0, 0, 1, 7]);
    assert!(pod.peer_namespace.is_some());
    // Heap's algorithm would be longer: five rotations and their reversals put each message before and after each other.
    for shift in 0..messages.len() {
        let rotated = || messages.iter().cycle().skip(shift).take(messages.len());
        assert_eq!(network(rotated()).local(&UplinkChoice::default()), first);
        let reversed: Vec<_> = rotated().collect();
        assert_eq!(
            network(reversed.into_iter().rev()).local(&UplinkChoice::default()),
            first
        );
    }
}

#[test]
fn what_is_no_pod_link() {
    let route = |m| RouteNetlinkMessage::NewRoute(m);
    let through_gateway = {
        let mut message = host_route(POD, 32);
        message
            .attributes
            .push(RouteAttribute::Gateway(NODE.into()));
        message
    };
    let wide = host_route(POD, 24);
    let universe = route_message(
        Some((POD, 32)),
        RouteScope::Universe,
        vec![RouteAttribute::Oif(VETH)],
    );
    let of_the_host = {
        let mut message = host_route(POD, 32);
        message.header.kind = RouteType::Local;
        message
    };
    let link_local = host_route(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 128);
    for message in [through_gateway, wide, universe, of_the_host, link_local] {
        assert!(
            local(&[veth(), route(message.clone())]).pods.is_empty(),
            "{message:?}"
        );
    }
    let bridged = link(
        VETH,
        "veth7",
        Some(InfoKind::Veth),
        vec![LinkAttribute::Controller(9)],
    );
    let plain = link(VETH, "eth7", None, vec![]);
    for device in [bridged, plain] {
        assert!(local(&[device, route(host_route(POD, 32))]).pods.is_empty());
    }
    // The host's own address.
    assert!(
        local(&[veth(), route(host_route(POD, 32)), owned(ETH, POD)])
            .pods
            .is_empty()
    );
}

#[test]
fn what_goes_takes_the_pod_along() {
    let mut network = network(&[veth(), RouteNetlinkMessage::NewRoute(host_route(POD, 32))]);
    network.apply(&RouteNetlinkMessage::DelRoute(host_route(POD, 32)));
    assert!(network.local(&UplinkChoice::default()).pods.is_empty());
    network.apply(&RouteNetlinkMessage::NewRoute(host_route(POD, 32)));
    assert_eq!(network.local(&UplinkChoice::default()).pods.len(), 1);
    let RouteNetlinkMessage::NewLink(mut down) = veth() else {
        unreachable!("it is new")
    };
    down.header.flags = LinkFlags::empty();
    network.apply(&RouteNetlinkMessage::NewLink(down));
    network.apply(&veth());
    assert!(
        network.local(&UplinkChoice::default()).pods.is_empty(),
        "IPv4 routes go in silence"
    );
    network.apply(&RouteNetlinkMessage::NewRoute(host_route(POD, 32)));
    let RouteNetlinkMessage::NewLink(gone) = veth() else {
        unreachable!("it is new")
    };
    network.apply(&RouteNetlinkMessage::DelLink(gone));
    // The same index again, for something else: the old route must not make it a pod.
    network.apply(&veth());
    assert!(network.local(&UplinkChoice::default()).pods.is_empty());
}

#[test]
fn a_mac_is_known_while_the_neighbour_is() {
    let mut network = network(&[veth(), RouteNetlinkMessage::NewRoute(host_route(POD, 32))]);
    let mac = |network: &Network| network.local(&UplinkChoice::default()).pods[&VETH].pod_mac;
    assert_eq!(mac(&network), None);
    network.apply(&RouteNetlinkMessage::NewNeighbour(neighbour(
        NeighbourState::Incomplete,
    )));
    assert_eq!(mac(&network), None);
    network.apply(&RouteNetlinkMessage::NewNeighbour(neighbour(
        NeighbourState::Reachable,
    )));
    assert_eq!(mac(&network), Some(POD_MAC));
    network.apply(&RouteNetlinkMessage::NewNeighbour(neighbour(
        NeighbourState::Failed,
    )));
    assert_eq!(mac(&network), None);
}

#[test]
fn uplinks_are_named_or_found_by_address_and_default_route() {
    let mut via_two = route_message(None, RouteScope::Universe, vec![]);
    let hop = |index| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop
    };
    via_two
        .attributes
        .push(RouteAttribute::MultiPath(vec![hop(ETH), hop(4)]));
    let network = network(&[
        link(ETH, "eth0", None, vec![]),
        link(3, "eth1", None, vec![]),
        link(4, "eth2", None, vec![LinkAttribute::Controller(9)]),
        link(5, "eth3", None, vec![]),
        owned(3, NODE),
        RouteNetlinkMessage::NewRoute(via_two),
    ]);
    let names = |choice: &UplinkChoice| -> Vec<String> {
        network.local(choice).uplinks.into_values().collect()
    };
    let mut choice = UplinkChoice::default();
    assert_eq!(names(&choice), ["eth0"], "the port of a bond is none");
    choice.node_addresses.insert(NODE);
    assert_eq!(names(&choice), ["eth0", "eth1"]);
    choice.devices = BTreeSet::from(["eth3".to_owned(), "eth2".to_owned()]);
    assert_eq!(names(&choice), ["eth3"]);
}
