//! Sources that cannot be: from pods, in what neighbours tell each other, and from the uplink. The reason is read from the counters, of each
//! kind of packet that is parsed in a way of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Count, GROUP_ANY, Reason, hook, pod_flag};
use tests::packet::address::{Family, at};
use tests::packet::build::{ETHERNET, Packet, tcp};
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;
use tests::packet::world::{LocalPod, World};

const SET: u32 = 11;
/// Where an ARP packet's operation ends, in the frame; 2 there is a reply (RFC 826).
const ARP_OPERATION: usize = ETHERNET + 7;
const ARP_REPLY: u8 = 2;

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Everybody on the link: IPv4's limited broadcast, and all nodes.
fn everybody(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::BROADCAST.into(),
        Family::V6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

fn link_local(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(169, 254, 7, 7).into(),
        Family::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7).into(),
    }
}

/// What no packet that is forwarded may come from: RFC 1122 3.2.1.3; RFC 4291 2.5.2, 2.5.3, 2.7.
fn nobodys(family: Family) -> Vec<IpAddr> {
    let mut all = vec![
        unspecified(family),
        family.loopback(),
        family.multicast(),
        everybody(family),
    ];
    match family {
        Family::V4 => all.extend([
            IpAddr::from([127, 8, 9, 10]),
            IpAddr::from([239, 255, 255, 255]),
        ]),
        Family::V6 => all.push(Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 7).into()),
    }
    all
}

/// Of this node itself, beside the pod that sends: a neighbour, the host, a service.
fn of_this_node(w: &mut World) -> Vec<IpAddr> {
    let (neighbour, backend) = (w.pod(5), w.pod(6));
    let vip = at(w.family.cluster_ip(7), 53);
    w.service(vip, 17, &[backend.at(5353)]);
    w.service(vip, 6, &[backend.at(5353)]);
    vec![neighbour.address, w.family.host(), vip.ip()]
}

/// Of nobody on this node: another node and its pods, and whoever is outside.
fn of_others(w: &mut World) -> Vec<IpAddr> {
    let (far, _) = w.remote_pod(1);
    vec![far, w.family.node(), w.family.outside(1)]
}

/// A packet of each kind that is parsed in a way of its own, whole and in pieces.
fn kinds(from: IpAddr, to: IpAddr) -> Vec<Packet> {
    let (s, d) = (at(from, 40_000), at(to, 53));
    let mut all = vec![
        Packet::syn(s, d),
        Packet::ack(s, d),
        Packet::tcp(s, d, tcp::RST),
        Packet::udp(s, d),
        Packet::sctp(s, d),
        Packet::ping(from, to, 7),
        Packet::pong(from, to, 7),
        Packet::other(from, to, 47),
        // Its first fragment, and one that follows nothing.
        Packet::udp(s, d).fragment(0, true),
        Packet::udp(s, d).fragment(2, false),
        // Half a header, and an error about nothing.
        Packet::other(from, to, 17).data(&[0; 7]),
    ];
    if from.is_ipv4() {
        all.push(Packet::icmp(from, to, 3, 3, [0; 4]));
        all.push(Packet::udp(s, d).ip_options(&[1; 4]));
    } else {
        all.push(Packet::icmp(from, to, 1, 4, [0; 4]));
        all.push(Packet::udp(s, d).extension(60, &[1, 4, 0, 0, 0, 0]));
        // More of them than are walked.
        all.push((0..7).fold(Packet::udp(s, d), |p, _| {
            p.extension(60, &[1, 4, 0, 0, 0, 0])
        }));
    }
    all
}

/// A few of them.
fn few(from: IpAddr, to: IpAddr) -> Vec<Packet> {
    let (s, d) = (at(from, 40_000), at(to, 53));
    vec![
        Packet::syn(s, d),
        Packet::udp(s, d),
        Packet::ping(from, to, 7),
        Packet::other(from, to, 47),
    ]
}

/// From these sources packets of every kind to one destination, and a few to others, are each dropped at the pod's link as spoofed.
fn spoofed(w: &mut World, pod: &LocalPod, sources: &[IpAddr], every: IpAddr, others: &[IpAddr]) {
    for source in sources {
        let to_others = others.iter().flat_map(|to| few(*source, *to));
        for packet in kinds(*source, every).into_iter().chain(to_others) {
            w.from_pod(pod, &packet)
                .dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
    }
}

fn four(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("an IPv4 row"),
    }
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => unreachable!("an IPv6 row"),
    }
}

rows! {
    // Fails with mutant "any-source".
    BOTH a_pod_sends_from_no_address_but_its_own(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let mut sources = of_this_node(w);
        sources.extend(of_others(w));
        sources.extend(nobodys(w.family));
        sources.push(link_local(w.family));
        let others = [w.family.outside(9), w.family.host(), w.family.cluster_ip(7), everybody(w.family), w.family.multicast()];
        spoofed(w, &a, &sources, b.address, &others);
        // Whatever policy says.
        w.isolate_egress(&a, SET);
        w.allow(SET, GROUP_ANY, Ports::Any);
        for packet in sources.iter().flat_map(|source| few(*source, b.address)) {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
    }

    // What cannot be parsed is left to the stack where no policy is in force, but not from everywhere.
    V6 the_unspecified_address_is_no_way_round_the_source_check(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let none = unspecified(w.family);
        let (s, host) = (at(none, 40000), at(w.family.host(), 53));
        let long = (0..7).fold(Packet::udp(s, host), |p, _| p.extension(60, &[1, 4, 0, 0, 0, 0]));
        for packet in [
            &long,
            &Packet::other(none, host.ip(), 17).data(&[0; 7]),
            &Packet::udp(s, host).fragment(2, false),
            &Packet::other(none, b.address, 6).data(&[0; 19]),
        ] {
            w.from_pod(&a, packet).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        // Frames of other kinds have no source at all.
        w.from_pod(&a, &Packet::frame(0x88cc, &[0; 50])).passes_untouched();
    }

    BOTH an_established_flow_is_its_own_pods(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        let before = [w.answered(6, a.at(40000), vip), w.answered(6, b.at(8080), a.at(40000))];
        for packet in [
            Packet::ack(a.at(40000), vip).data(b"more"),
            Packet::tcp(a.at(40000), vip, tcp::RST),
            Packet::syn(a.at(40000), vip),
            Packet::ack(b.at(8080), a.at(40000)),
            Packet::tcp(b.at(8080), a.at(40000), tcp::FIN | tcp::ACK),
            // As what the client gets looks.
            Packet::ack(vip, a.at(40000)),
        ] {
            w.from_pod(&c, &packet).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        let after = [w.answered(6, a.at(40000), vip), w.answered(6, b.at(8080), a.at(40000))];
        assert_eq!(before.map(|e| e.unwrap().closing), after.map(|e| e.unwrap().closing));
        assert_eq!(w.entries(), 2);
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&b).counted(Count::FlowCreated, 0);
    }

    BOTH a_router_by_annotation_speaks_for_others(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let sources = of_others(w);
        let far = at(w.family.outside(9), 53);
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        for source in sources {
            for to in [b.at(53), far] {
                for packet in few(source, to.ip()) {
                    // The stack knows the way back.
                    w.from_pod(&a, &packet).passes_untouched().counted(Count::FlowCreated, 1);
                }
            }
        }
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        // No other pod does.
        w.from_pod(&b, &Packet::udp(at(w.family.outside(1), 1), far)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
    }

    // Fails with mutant "router-as-anybody".
    BOTH a_router_speaks_for_nobody_of_this_node(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        let mut sources = of_this_node(w);
        sources.extend(nobodys(w.family));
        let others = [w.family.outside(9), w.family.cluster_ip(7)];
        spoofed(w, &a, &sources, b.address, &others);
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
    }

    // A tuple has one entry: whoever may use it may end it. Fails with mutant "router-as-anybody".
    BOTH a_router_ends_no_flow_of_another(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 53);
        let host = at(w.family.host(), 50000);
        w.service(vip, 17, &[b.at(5353)]);
        w.edit(&c, |p| p.flags |= pod_flag::ANY_SOURCE);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a);
        w.to_pod(&b, Via::Host, &Packet::udp(host, b.at(53))).passes();
        w.from_pod(&b, &Packet::udp(b.at(53), host)).passes();
        let held = w.entries();
        for (from, to) in [(a.at(40000), vip), (b.at(5353), a.at(40000)), (host, b.at(53)), (b.at(53), host)] {
            w.from_pod(&c, &Packet::udp(from, to)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        assert_eq!((w.entries(), held), (4, 4));
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b).counted(Count::FlowCreated, 0);
        w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        w.to_pod(&b, Via::Host, &Packet::udp(host, b.at(53))).passes().counted(Count::FlowCreated, 0);
    }

    V4 arp_tells_of_the_pods_own_address_only(w) {
        let a = w.pod(1);
        let gateway = [169, 254, 1, 1];
        let own = four(a.address);
        let mut others = of_this_node(w);
        others.extend(of_others(w));
        others.push(link_local(w.family));
        others.extend(nobodys(w.family).into_iter().filter(|address| !address.is_unspecified()));
        for enforced in [false, true] {
            if enforced {
                w.isolate_egress(&a, SET);
            }
            for sender in others.iter().map(|address| four(*address)) {
                // Asking, answering, and telling everybody of itself.
                for packet in [Packet::arp(sender, gateway), Packet::arp(sender, own).damage(ARP_OPERATION, ARP_REPLY), Packet::arp(sender, sender)] {
                    w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
                }
            }
            for packet in [
                Packet::arp(own, gateway),
                Packet::arp(own, gateway).damage(ARP_OPERATION, ARP_REPLY),
                Packet::arp(own, own),
                // A probe: is anybody there (RFC 5227 2.1.1).
                Packet::arp([0; 4], own),
            ] {
                w.from_pod(&a, &packet).passes_untouched();
            }
        }
    }

    V4 a_router_answers_arp_for_those_behind_it(w) {
        let a = w.pod(1);
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        let behind = four(w.family.outside(7));
        w.from_pod(&a, &Packet::arp(behind, [169, 254, 1, 1])).passes_untouched();
        for address in of_this_node(w) {
            w.from_pod(&a, &Packet::arp(four(address), [169, 254, 1, 1])).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
        }
    }

    V6 neighbours_are_told_from_the_pods_own_addresses_only(w) {
        let a = w.pod(1);
        let (own, local, all_nodes) = (six(a.address), six(link_local(w.family)), six(everybody(w.family)));
        let mut others = of_this_node(w);
        others.extend(of_others(w));
        others.extend(nobodys(w.family).into_iter().filter(|address| !address.is_unspecified()));
        let solicited = |from: Ipv6Addr| Packet::neighbour_solicitation(from, all_nodes, own);
        // Solicited, and in place of what is known (RFC 4861 4.4).
        let told = |from: Ipv6Addr| Packet::icmp(from.into(), all_nodes.into(), 136, 0, [0x60, 0, 0, 0]).data(&own.octets()).hops(255);
        let asks_routers = |from: Ipv6Addr| Packet::icmp(from.into(), all_nodes.into(), 133, 0, [0; 4]).hops(255);
        let listens = Packet::listener_report;
        for enforced in [false, true] {
            if enforced {
                w.isolate_egress(&a, SET);
            }
            for from in others.iter().map(|address| six(*address)) {
                for packet in [solicited(from), told(from), asks_routers(from), listens(from)] {
                    w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
                }
            }
            for from in [own, local, Ipv6Addr::UNSPECIFIED] {
                for packet in [solicited(from), told(from), asks_routers(from), listens(from)] {
                    w.from_pod(&a, &packet).passes_untouched();
                }
            }
        }
    }

    // A host that believes either gives its traffic away (CVE-2020-10749). Fails with mutant "anybody-routes".
    V6 only_a_router_speaks_as_one(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let local = link_local(w.family);
        w.edit(&b, |p| p.flags |= pod_flag::ANY_SOURCE);
        // Advertisement and redirect (RFC 4861 4.2, 4.5).
        for kind in [134, 137] {
            for to in [everybody(w.family), link_local(w.family), w.family.host()] {
                for from in [local, a.address, unspecified(w.family)] {
                    let packet = Packet::icmp(from, to, kind, 0, [64, 0, 7, 8]).data(&[0; 32]).hops(255);
                    w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
                }
                let packet = Packet::icmp(local, to, kind, 0, [64, 0, 7, 8]).data(&[0; 32]).hops(255);
                w.from_pod(&b, &packet).passes_untouched();
                // Behind a header that hides it from whoever does not look.
                w.from_pod(&a, &packet.extension(60, &[1, 4, 0, 0, 0, 0])).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
            }
            // The host tells its pods what it likes.
            let packet = Packet::icmp(local, everybody(w.family), kind, 0, [64, 0, 7, 8]).data(&[0; 32]).hops(255);
            w.to_pod(&a, Via::Host, &packet).passes_untouched();
        }
    }

    // Fails with mutant "uplink-any-source".
    BOTH the_uplink_brings_no_source_that_cannot_be(w) {
        let b = w.pod(2);
        let mut sources = of_this_node(w);
        sources.push(b.address);
        sources.extend(nobodys(w.family));
        let (far_pod, _) = w.remote_pod(1);
        let others = [far_pod, w.family.outside(9), w.family.cluster_ip(7)];
        for source in sources {
            let to_others = others.iter().flat_map(|to| few(source, *to));
            for packet in kinds(source, b.address).into_iter().chain(to_others) {
                w.from_uplink(&packet).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
            }
        }
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
    }

    // Answers of a service are translated where they enter, so at the pod's link they have the service's address: that is no proof.
    BOTH the_uplink_brings_no_answer_in_a_services_name(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        w.isolate_ingress(&a, SET);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a);
        let forged = Packet::udp(vip, a.at(40000));
        w.to_pod(&a, Via::Uplink, &forged).passes_untouched();
        w.from_uplink(&forged).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        w.from_uplink(&Packet::udp(b.at(5353), a.at(40000))).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
    }

    BOTH who_is_elsewhere_may_come_by_the_uplink(w) {
        let b = w.pod(2);
        for source in of_others(w) {
            for packet in few(source, b.address) {
                w.from_uplink(&packet).passes_untouched();
            }
        }
    }

    // DHCP's first question, a group's report (RFC 2131 4.1, RFC 3376 4.2.13).
    V4 who_has_no_address_yet_speaks_to_everybody_on_the_link(w) {
        let b = w.pod(2);
        let (none, all) = (unspecified(w.family), everybody(w.family));
        w.from_uplink(&Packet::udp(at(none, 68), at(all, 67))).passes_untouched();
        w.from_uplink(&Packet::other(none, IpAddr::from([224, 0, 0, 22]), 2)).passes_untouched();
        w.from_uplink(&Packet::udp(at(none, 68), b.at(67))).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        // A pod has its address before it has a link.
        w.from_pod(&b, &Packet::udp(at(none, 68), at(all, 67))).dropped(hook::FROM_POD, Reason::SourceSpoofed);
    }

    // The stack knows what it sent itself, and holds its own check against the rest (`ip_route_input_slow`, `ip6_rcv_core`); no pod's policy
    // depends on it.
    BOTH what_the_host_itself_gets_is_left_to_its_stack(w) {
        let mut sources = of_this_node(w);
        sources.extend(nobodys(w.family));
        let host = w.family.host();
        for packet in sources.iter().flat_map(|source| few(*source, host)) {
            w.from_uplink(&packet).passes_untouched();
        }
    }

    // Neighbours' tables are the link's own: what is said at the uplink changes no pod's.
    BOTH what_neighbours_say_at_the_uplink_stays_there(w) {
        let a = w.pod(1);
        match (a.address, w.family.host()) {
            (IpAddr::V4(own), IpAddr::V4(host)) => {
                for sender in [own.octets(), host.octets(), [0; 4]] {
                    w.from_uplink(&Packet::arp(sender, host.octets())).passes_untouched();
                }
            }
            (own, host) => {
                for from in [own, host, link_local(w.family), unspecified(w.family)] {
                    let packet = Packet::neighbour_solicitation(six(from), six(everybody(w.family)), six(host));
                    w.from_uplink(&packet).passes_untouched();
                }
            }
        }
    }

    // Even where the stack would take it: `route_localnet` opened every process that listens there (CVE-2020-8558). Fails with mutant
    // "loopback-reached".
    BOTH nobody_reaches_a_loopback_address_by_a_link(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        let mut all = nobodys(w.family);
        all.retain(IpAddr::is_loopback);
        for enforced in [false, true] {
            if enforced {
                w.isolate_egress(&a, SET);
                w.allow(SET, GROUP_ANY, Ports::Any);
            }
            for to in &all {
                // From wherever it says to be.
                for source in [a.address, b.address, *to] {
                    for packet in kinds(source, *to) {
                        w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::DestinationMartian);
                    }
                }
                for source in [far, b.address, *to] {
                    for packet in kinds(source, *to) {
                        w.from_uplink(&packet).dropped(hook::FROM_UPLINK, Reason::DestinationMartian);
                    }
                }
            }
        }
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
    }

    // Such a destination is judged like any, and goes to the stack, which forwards none of them: never into a pod.
    BOTH a_destination_that_is_nobodys_goes_into_no_pod(w) {
        let a = w.pod(1);
        let mut all = nobodys(w.family);
        all.push(link_local(w.family));
        all.retain(|to| !to.is_loopback());
        for to in &all {
            for packet in few(a.address, *to) {
                w.from_pod(&a, &packet).passes_untouched();
            }
            w.from_uplink(&Packet::udp(at(w.family.outside(1), 1), at(*to, 53))).passes_untouched();
        }
        w.clear_flows();
        w.isolate_egress(&a, SET);
        for to in &all {
            for packet in few(a.address, *to) {
                w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::PolicyEgress);
            }
        }
        assert_eq!(w.entries(), 0);
    }
}
