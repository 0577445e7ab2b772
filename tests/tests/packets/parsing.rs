//! What cannot be judged, and what always passes: nothing slips by a policy unseen.

use std::net::{IpAddr, Ipv6Addr};

use agent_common::{GROUP_ANY, Reason, hook};
use tests::packet::address::at;
use tests::packet::build::{ETHERNET, Packet, tcp};
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;
use tests::packet::world::World;

const SET: u32 = 11;

/// Packets between two addresses whose flow cannot be known, and why.
fn unjudged(from: IpAddr, to: IpAddr) -> Vec<(Packet, Reason)> {
    let (s, d) = (at(from, 40000), at(to, 80));
    let first_byte = if from.is_ipv4() { 0x65 } else { 0x40 };
    let total_length = if from.is_ipv4() {
        ETHERNET + 2
    } else {
        ETHERNET + 4
    };
    let ip_header = ETHERNET + if from.is_ipv4() { 20 } else { 40 };
    let mut all = vec![
        (
            Packet::syn(s, d).damage(ETHERNET, first_byte),
            Reason::Malformed,
        ),
        // The length says more than there is.
        (
            Packet::syn(s, d).damage(total_length, 0x7f),
            Reason::Malformed,
        ),
        (Packet::syn(s, d).cut(ip_header + 10), Reason::Malformed),
        // Less than a header of each protocol.
        (Packet::other(from, to, 6).data(&[0; 19]), Reason::Malformed),
        (Packet::other(from, to, 17).data(&[0; 7]), Reason::Malformed),
        (
            Packet::other(from, to, 132).data(&[0; 11]),
            Reason::Malformed,
        ),
    ];
    if from.is_ipv4() {
        for kind in [3, 4, 5, 11, 12] {
            all.push((Packet::icmp(from, to, kind, 0, [0; 4]), Reason::IcmpError));
        }
        all.push((Packet::other(from, to, 1).data(&[8; 7]), Reason::Malformed));
        // A header shorter than any, and one longer than its packet.
        all.push((Packet::syn(s, d).damage(ETHERNET, 0x44), Reason::Malformed));
        all.push((
            Packet::udp(s, d).data(b"").damage(ETHERNET, 0x4f),
            Reason::Malformed,
        ));
    } else {
        for kind in [1, 2, 3, 4, 100] {
            all.push((Packet::icmp(from, to, kind, 0, [0; 4]), Reason::IcmpError));
        }
        all.push((
            Packet::other(from, to, 58).data(&[128; 7]),
            Reason::Malformed,
        ));
        // What is behind a chain is judged, but not one that is longer than any is walked.
        let long = (0..7).fold(Packet::udp(s, d), |packet, _| packet.extension(60, &[0; 6]));
        all.push((long, Reason::ExtensionHeader));
        // An error and half a header are no better behind one.
        all.push((
            Packet::icmp(from, to, 1, 0, [0; 4]).extension(60, &[0; 6]),
            Reason::IcmpError,
        ));
        all.push((
            Packet::other(from, to, 17)
                .data(&[0; 7])
                .extension(60, &[0; 6]),
            Reason::Malformed,
        ));
    }
    all
}

fn isolated(
    w: &mut World,
    ingress: bool,
) -> (
    tests::packet::world::LocalPod,
    tests::packet::world::LocalPod,
) {
    let (a, b) = (w.pod(1), w.pod(2));
    if ingress {
        w.isolate_ingress(&b, SET);
    } else {
        w.isolate_egress(&a, SET);
    }
    // Even where everything is allowed: what is unknown is not known to be allowed.
    w.allow(SET, GROUP_ANY, Ports::Any);
    (a, b)
}

rows! {
    // Linux carries TCP segments together that are longer than IPv4's length can say, and writes a zero.
    V4 segments_carried_together_may_leave_their_length_open(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.service(vip, 17, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        let open = |packet: Packet| packet.data(&[7; 1000]).damage(ETHERNET + 2, 0).damage(ETHERNET + 3, 0);
        let (more, datagram) = (open(Packet::ack(a.at(40000), vip)), open(Packet::udp(a.at(40000), vip)));
        for packet in [&more, &datagram] {
            w.from_pod(&a, packet).dropped(hook::FROM_POD, Reason::Malformed);
        }
        w.carry_together(100);
        // The established flow's own program, and the one for the rare cases.
        let expected = Packet::ack(a.at(40000), b.at(8080)).data(&[7; 1000]).bytes();
        for fast in [true, false] {
            let out = w.from_pod(&a, &more).redirected();
            // The ends, and TCP's own checksum, which covers no length but what the frame says.
            assert_eq!(out.frame[ETHERNET + 12..], expected[ETHERNET + 12..], "fast: {fast}");
            w.raise_epoch(&a);
        }
        for packet in [datagram, open(Packet::ack(a.at(40000), vip).fragment(0, true)), open(Packet::ack(a.at(40000), vip).fragment(1, false))] {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::Malformed);
        }
    }

    BOTH a_pod_under_policy_sends_nothing_that_cannot_be_judged(w) {
        let (a, b) = isolated(w, false);
        for (packet, reason) in unjudged(a.address, b.address) {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, reason);
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH a_pod_under_policy_gets_nothing_that_cannot_be_judged(w) {
        let (a, b) = isolated(w, true);
        for (packet, reason) in unjudged(a.address, b.address) {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, reason);
            w.to_pod(&b, Via::Pod(&a), &packet).dropped(hook::TO_POD, reason);
            w.to_pod(&b, Via::Uplink, &packet).dropped(hook::TO_POD, reason);
        }
    }

    BOTH without_policy_it_is_left_to_the_stack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        for (packet, _) in unjudged(a.address, b.address) {
            w.from_pod(&a, &packet).passes_untouched();
            w.to_pod(&b, Via::Pod(&a), &packet).passes_untouched();
        }
        for (packet, _) in unjudged(far, b.address) {
            w.from_uplink(&packet).passes_untouched();
            w.to_pod(&b, Via::Uplink, &packet).passes_untouched();
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH to_a_cluster_ip_it_is_dropped_in_any_case(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 17, &[b.at(80)]);
        for (packet, reason) in unjudged(a.address, vip.ip()) {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, reason);
        }
    }

    BOTH it_needs_the_pods_own_source(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for (packet, _) in unjudged(w.family.remote_pod(7), b.address) {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
    }

    V6 nobodys_address_is_no_source_either(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = w.family.cluster_ip(1);
        w.cluster_ip(vip).unwrap();
        let nobody = Ipv6Addr::UNSPECIFIED.into();
        for to in [vip, b.address, w.family.outside(1), nobody] {
            for (packet, _) in unjudged(nobody, to) {
                w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::SourceSpoofed);
            }
        }
    }

    V4 other_kinds_of_frames_pass_without_policy_only(w) {
        let a = w.pod(1);
        let lldp = Packet::frame(0x88cc, &[0; 50]);
        let tagged = Packet::frame(0x8100, &[0, 5, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2]);
        for packet in [&lldp, &tagged] {
            w.from_pod(&a, packet).passes_untouched();
            w.to_pod(&a, Via::Uplink, packet).passes_untouched();
            w.from_uplink(packet).passes_untouched();
        }
        w.isolate_egress(&a, SET);
        w.from_pod(&a, &lldp).dropped(hook::FROM_POD, Reason::Ethertype);
        w.to_pod(&a, Via::Uplink, &lldp).dropped(hook::TO_POD, Reason::Ethertype);
        // The kernel takes the outer tag out of the frame before the programs see it, which only the lab can show; a second one stays.
        w.from_pod(&a, &tagged).dropped(hook::FROM_POD, Reason::Vlan);
        w.to_pod(&a, Via::Uplink, &tagged).dropped(hook::TO_POD, Reason::Vlan);
    }

    // The kernel takes priority tags out as often as there are any, and forwards what it finds behind them.
    V4 a_priority_tag_behind_another_is_dropped_in_any_case(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let hidden = Packet::udp(at(w.family.remote_pod(7), 1), b.at(2)).bytes();
        let behind = [&[0xe0, 0][..], &hidden[ETHERNET - 2..]].concat();
        for kind in [0x8100, 0x88a8] {
            let packet = Packet::frame(kind, &behind);
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::Vlan);
            w.from_uplink(&packet).dropped(hook::FROM_UPLINK, Reason::Vlan);
            w.to_pod(&a, Via::Uplink, &packet).passes_untouched();
        }
    }

    // Neither this host nor a pod follows a source route, unless somebody tells its kernel to; and who sends on must bear his own address.
    V4 a_source_route_is_judged_by_the_destination_that_the_packet_shows(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        w.isolate_egress(&a, SET);
        w.allow(SET, GROUP_ANY, Ports::One(17, 53));
        let IpAddr::V4(last) = c.address else { unreachable!("an IPv4 row") };
        for kind in [131, 137] {
            let route = [&[kind, 7, 4][..], &last.octets(), &[0]].concat();
            w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53)).ip_options(&route)).delivered_to(&b);
            w.from_pod(&a, &Packet::udp(a.at(40000), b.at(54)).ip_options(&route))
                .dropped(hook::FROM_POD, Reason::PolicyEgress);
            w.from_pod(&b, &Packet::udp(a.at(40000), c.at(53)).ip_options(&route))
                .dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
    }

    V6 an_address_that_would_be_taken_for_ipv4_is_malformed(w) {
        let a = w.pod(1);
        w.isolate_egress(&a, SET);
        let mapped: IpAddr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a01, 2).into();
        w.from_pod(&a, &Packet::syn(a.at(1), at(mapped, 80))).dropped(hook::FROM_POD, Reason::Malformed);
    }

    V4 arp_passes_with_the_pods_own_sender_or_none(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        w.isolate_ingress(&a, SET);
        let four = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => unreachable!("an IPv4 row"),
        };
        let (own, other) = (four(a.address), four(b.address));
        w.from_pod(&a, &Packet::arp(own, [169, 254, 1, 1])).passes_untouched();
        w.from_pod(&a, &Packet::arp([0; 4], own)).passes_untouched();
        w.from_pod(&a, &Packet::arp(other, [169, 254, 1, 1])).dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
        w.to_pod(&a, Via::Host, &Packet::arp([10, 64, 0, 1], own)).passes_untouched();
        w.from_uplink(&Packet::arp(own, other)).passes_untouched();
    }

    V6 neighbour_discovery_passes_from_the_pods_own_addresses(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        w.isolate_ingress(&a, SET);
        let (own, other, host) = (six(a.address), six(b.address), six(w.family.host()));
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        for source in [own, local, Ipv6Addr::UNSPECIFIED] {
            for target in [all_nodes, local, host] {
                w.from_pod(&a, &Packet::neighbour_solicitation(source, target, host)).passes_untouched();
            }
        }
        w.from_pod(&a, &Packet::neighbour_solicitation(other, all_nodes, host))
            .dropped(hook::FROM_POD, Reason::NeighbourSpoofed);
        w.to_pod(&a, Via::Host, &Packet::neighbour_solicitation(host, own, own)).passes_untouched();
        w.to_pod(&a, Via::Uplink, &Packet::neighbour_solicitation(local, all_nodes, own)).passes_untouched();
    }

    // Linux forwards such messages like any packet; only their type makes them look local.
    V6 a_neighbours_message_that_would_be_forwarded_is_judged(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        let (own, other) = (six(a.address), six(b.address));
        let far = six(w.family.outside(1));
        for target in [other, far] {
            w.from_pod(&a, &Packet::neighbour_solicitation(own, target, target))
                .dropped(hook::FROM_POD, Reason::PolicyEgress);
        }
        w.isolate_ingress(&b, SET);
        let forwarded = Packet::neighbour_solicitation(far, other, other).hops(254);
        w.to_pod(&b, Via::Uplink, &forwarded).dropped(hook::TO_POD, Reason::PolicyIngress);
        let listener = Packet::icmp(far.into(), other.into(), 131, 0, [0; 4]);
        w.to_pod(&b, Via::Uplink, &listener).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    V6 multicast_listener_reports_pass(w) {
        let a = w.pod(1);
        w.isolate_egress(&a, SET);
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        for source in [six(a.address), local, Ipv6Addr::UNSPECIFIED] {
            w.from_pod(&a, &Packet::listener_report(source)).passes_untouched();
        }
        // The router alert is no cover for anything else.
        let udp = Packet::udp(a.at(1), at(w.family.outside(1), 2)).extension(0, &[5, 2, 0, 0, 1, 0]);
        w.from_pod(&a, &udp).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH no_frame_however_damaged_leaves_a_pod_that_may_send_nothing(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        // Or the middle of a TCP connection would be taken for an answer.
        w.isolate_ingress(&a, SET);
        let mut frames = vec![
            Packet::tcp(a.at(40000), b.at(80), tcp::PSH | tcp::ACK).tcp_options(&[1; 8]).data(&[0x5a; 60]).bytes(),
            Packet::udp(a.at(40000), b.at(53)).data(&[0x5a; 60]).bytes(),
            Packet::ping(a.address, b.address, 7).data(&[0x5a; 60]).bytes(),
            Packet::udp(a.at(40000), b.at(53)).data(&[0x5a; 60]).fragment(0, true).bytes(),
        ];
        match (a.address, b.address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                frames.push(Packet::udp(a.at(1), b.at(2)).data(&[0x5a; 60]).ip_options(&[1; 12]).bytes());
                frames.push(Packet::arp(own.octets(), other.octets()).padded(40).bytes());
            }
            _ => {
                frames.push(Packet::listener_report(six(a.address)).data(&[0x5a; 60]).bytes());
                frames.push(Packet::udp(a.at(1), b.at(2)).data(&[0x5a; 60]).extension(60, &[0; 6]).bytes());
                let (own, other) = (six(a.address), six(b.address));
                frames.push(Packet::neighbour_solicitation(own, other, other).padded(40).bytes());
            }
        }
        let mut random = Random(0x5eed);
        for round in 0..1_500 {
            let mut frame = frames[random.below(frames.len())].clone();
            for _ in 0..=random.below(3) {
                // Past the MACs, and mostly within the headers.
                let at = 12 + random.below(60.min(frame.len() - 12));
                frame[at] = u8::try_from(random.below(256)).unwrap();
            }
            if random.below(4) == 0 {
                // The kernel makes no packet of less than Ethernet and IP.
                frame.truncate(54 + random.below(frame.len() - 53));
            }
            let out = w.run("stub_from_pod", a.ifindex, a.ifindex, frame.clone());
            if local_to_the_link(&frame) && out.verdict == -1 {
                assert_eq!(out.frame, frame, "round {round}");
                assert!(out.drops.is_empty(), "round {round}");
                continue;
            }
            assert_eq!(out.verdict, 2, "round {round}: {frame:02x?}");
            assert_eq!(out.drops.values().sum::<u64>(), 1, "round {round}: {:?}", out.drops);
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH tcp_options_and_data_do_not_hide_the_flags(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let fin = Packet::tcp(a.at(40000), b.at(80), tcp::FIN | tcp::ACK | tcp::PSH).tcp_options(&[1; 12]).data(b"bye");
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)).tcp_options(&[1; 40]).data(b"early")).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).delivered_to(&a);
        w.from_pod(&a, &fin).delivered_to(&b);
        assert_eq!(w.answered(6, a.at(40000), b.at(80)).unwrap().fin, 1);
    }
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => unreachable!("an IPv6 row"),
    }
}

/// Whether a frame is ARP, or an ICMPv6 message that only neighbours may send each other, written plainly.
fn local_to_the_link(frame: &[u8]) -> bool {
    match (frame[12], frame[13]) {
        (8, 6) => true,
        (0x86, 0xdd) => {
            let (mut next, hops, mut at) = (frame[20], frame[21], 54);
            // Cut frames have no message there.
            let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
            while matches!(next, 0 | 43 | 51 | 60) && at < frame.len() {
                let units = usize::from(byte(at + 1));
                let bytes = if next == 51 {
                    (units + 2) * 4
                } else {
                    (units + 1) * 8
                };
                (next, at) = (byte(at), at + bytes);
            }
            match (next, hops) {
                (58, 255) => (133..=137).contains(&byte(at)),
                (58, 1) => matches!(byte(at), 130..=132 | 143),
                _ => false,
            }
        }
        _ => false,
    }
}

/// A generator with a seed, so that a failure can be run again (Knuth's multiplier, MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}
