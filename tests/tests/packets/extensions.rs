//! IPv6 extension headers: what is behind them is judged, translated and delivered like anything else.

use agent_common::{Count, GROUP_ANY, Reason, hook, limits};
use tests::packet::address::at;
use tests::packet::build::{ETHERNET, Packet, extension, tcp};
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;
use tests::packet::world::World;

const SET: u32 = 11;
/// Options that say nothing: padding of six bytes (RFC 8200 4.2).
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
/// A routing header of type 2 (RFC 6275 6.4) whose stops lie behind.
const VISITED: [u8; 6] = [2, 0, 0, 0, 0, 0];
/// An authentication header (RFC 4302) behind its first two bytes: reserved, SPI, sequence number, and twelve bytes of check.
const AUTHENTICATION: [u8; 22] = [7; 22];

/// The headers that are walked past, with what stands in them behind their first two bytes.
const WALKED: [(u8, &[u8]); 4] = [
    (0, &PADDING),
    (43, &VISITED),
    (51, &AUTHENTICATION),
    (60, &PADDING),
];

fn chain(packet: Packet, headers: usize) -> Packet {
    (0..headers).fold(packet, |packet, _| packet.extension(60, &PADDING))
}

/// Two pods of which the first may send to one port of UDP, and to one of TCP.
fn guarded(
    w: &mut World,
) -> (
    tests::packet::world::LocalPod,
    tests::packet::world::LocalPod,
) {
    let (a, b) = (w.pod(1), w.pod(2));
    w.isolate_egress(&a, SET);
    w.allow(SET, GROUP_ANY, Ports::One(17, 53));
    w.allow(SET, GROUP_ANY, Ports::One(6, 80));
    (a, b)
}

/// What stands behind a header of destination options that six of them follow, before what a packet without any carries.
fn six_and(packet: &Packet) -> Vec<u8> {
    let transport = packet.bytes()[ETHERNET + 40..].to_vec();
    (0..6).fold(transport, |inner, n| {
        let next = if n == 0 { 17 } else { 60 };
        [extension(next, 60, &PADDING), inner].concat()
    })
}

rows! {
    V6 what_is_behind_an_extension_header_is_judged_by_its_port(w) {
        let (a, b) = guarded(w);
        for (kind, content) in WALKED {
            w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53)).extension(kind, content)).delivered_to(&b);
            w.from_pod(&a, &Packet::udp(a.at(40000), b.at(54)).extension(kind, content))
                .dropped(hook::FROM_POD, Reason::PolicyEgress);
            w.to_pod(&b, Via::Pod(&a), &Packet::udp(a.at(40000), b.at(53)).extension(kind, content)).passes_untouched();
        }
        // All of one flow.
        assert_eq!(w.entries(), 2);
    }

    V6 a_chain_of_all_of_them_is_walked(w) {
        let (a, b) = guarded(w);
        let all = |port| WALKED.iter().fold(Packet::udp(a.at(40000), b.at(port)), |p, (kind, content)| p.extension(*kind, content));
        w.from_pod(&a, &all(53)).delivered_to(&b);
        w.from_pod(&a, &all(54)).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    V6 a_connection_behind_extension_headers_is_one(w) {
        let (a, b) = guarded(w);
        w.isolate_ingress(&a, SET + 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)).extension(60, &PADDING)).delivered_to(&b).counted(Count::FlowCreated, 1);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000)).extension(60, &PADDING))
            .delivered_to(&a)
            .counted(Count::FlowReplied, 1);
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&a, &Packet::tcp(a.at(40000), b.at(80), tcp::FIN | tcp::ACK).extension(0, &PADDING)).delivered_to(&b);
        assert_eq!(w.answered(6, a.at(40000), b.at(80)).unwrap().fin, 1);
        assert_eq!(w.entries(), 2);
    }

    V6 a_service_is_translated_behind_extension_headers_both_ways(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        let most = usize::try_from(limits::EXTENSION_BYTES).unwrap();
        // As far from the IPv6 header as anything is walked.
        let long = vec![0; most - 2];
        for packet in [
            Packet::udp(a.at(40000), vip).extension(60, &PADDING),
            Packet::udp(a.at(40000), vip).extension(60, &long),
            chain(Packet::udp(a.at(40000), vip), usize::try_from(limits::EXTENSION_HEADERS).unwrap()),
        ] {
            w.from_pod(&a, &packet).delivered_to(&b).shows(a.at(40000), b.at(5353));
        }
        let answer = Packet::udp(b.at(5353), a.at(40000)).extension(0, &PADDING);
        w.from_pod(&b, &answer).delivered_to(&a).shows(vip, a.at(40000));
        let (remote, _) = w.remote_pod(1);
        let other = at(w.family.cluster_ip(2), 53);
        w.service(other, 17, &[at(remote, 5353)]);
        w.from_pod(&a, &Packet::udp(a.at(40001), other).extension(60, &PADDING)).passes().shows(a.at(40001), at(remote, 5353));
        for _ in 0..2 {
            w.from_uplink(&Packet::udp(at(remote, 5353), a.at(40001)).extension(60, &PADDING))
                .passes()
                .shows(other, a.at(40001));
        }
        assert!(w.answered(17, at(remote, 5353), a.at(40001)).is_some());
    }

    V6 the_limit_is_six_headers_and_256_bytes(w) {
        let (a, b) = guarded(w);
        let udp = || Packet::udp(a.at(40000), b.at(53));
        let beyond = [
            chain(udp(), 7),
            udp().extension(60, &[0; 254 + 8]),
            udp().extension(60, &[0; 126]).extension(60, &[0; 134]),
            // The fragment header counts too, wherever it stands.
            udp().extension(60, &[0; 254]).fragment(0, false),
            chain(udp(), 6).fragment(0, false),
            Packet::other(a.address, b.address, 60).data(&six_and(&udp())).fragment(0, false),
        ];
        for packet in &beyond {
            w.from_pod(&a, packet).dropped(hook::FROM_POD, Reason::ExtensionHeader);
        }
        w.from_pod(&a, &chain(udp(), 6)).delivered_to(&b);
        w.isolate_ingress(&b, SET + 1);
        w.allow(SET + 1, GROUP_ANY, Ports::Any);
        let c = w.pod(3);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(53)]);
        for packet in [chain(Packet::udp(c.at(1), b.at(53)), 7), chain(Packet::udp(c.at(1), vip), 7)] {
            w.from_pod(&c, &packet).dropped(hook::FROM_POD, Reason::ExtensionHeader);
        }
        w.to_pod(&b, Via::Pod(&c), &chain(Packet::udp(c.at(1), b.at(53)), 7)).dropped(hook::TO_POD, Reason::ExtensionHeader);
        // Nobody's policy, no service.
        w.from_pod(&c, &chain(Packet::udp(c.at(1), at(w.family.outside(1), 53)), 7)).passes_untouched();
    }

    V6 a_chain_that_ends_behind_its_packet_is_malformed(w) {
        let (a, b) = guarded(w);
        let long = Packet::udp(a.at(40000), b.at(53)).extension(60, &PADDING).damage(ETHERNET + 41, 5);
        w.from_pod(&a, &long).dropped(hook::FROM_POD, Reason::Malformed);
    }

    // Four bytes of a routing header, and the rest of it behind the packet's end.
    V6 what_stands_in_a_frame_behind_its_packet_is_no_header(w) {
        let (a, b) = guarded(w);
        let c = w.pod(3);
        for route in [[0; 6], [2, 1, 0, 0, 0, 0]] {
            let cut = |packet: Packet| packet.extension(43, &route).damage(ETHERNET + 5, 2);
            w.from_pod(&a, &cut(Packet::udp(a.at(40000), b.at(53)))).dropped(hook::FROM_POD, Reason::Malformed);
            w.from_pod(&c, &cut(Packet::udp(c.at(40000), b.at(53)))).passes_untouched();
        }
    }

    V6 hop_by_hop_options_stand_first_or_nowhere(w) {
        let (a, b) = guarded(w);
        let second = Packet::udp(a.at(40000), b.at(53)).extension(60, &PADDING).extension(0, &PADDING);
        w.from_pod(&a, &second).dropped(hook::FROM_POD, Reason::ExtensionHeader);
    }

    V6 a_routing_header_of_type_0_leaves_no_pod(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let visited = Packet::udp(a.at(40000), b.at(53)).extension(43, &[0; 6]);
        for packet in [&visited, &Packet::udp(a.at(40000), b.at(53)).extension(43, &[0, 1, 0, 0, 0, 0])] {
            w.from_pod(&a, packet).dropped(hook::FROM_POD, Reason::ExtensionHeader);
            w.from_pod(&a, &packet.clone().extension(60, &PADDING)).dropped(hook::FROM_POD, Reason::ExtensionHeader);
        }
        // Elsewhere it says only where the packet has been.
        w.isolate_ingress(&b, SET);
        w.allow(SET, GROUP_ANY, Ports::One(17, 53));
        w.to_pod(&b, Via::Uplink, &visited).passes_untouched();
    }

    V6 a_packet_on_its_way_to_another_stop_cannot_be_judged(w) {
        let (a, b) = guarded(w);
        for route in [2, 4] {
            let packet = Packet::udp(a.at(40000), b.at(53)).extension(43, &[route, 1, 0, 0, 0, 0]);
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::ExtensionHeader);
        }
        let c = w.pod(3);
        let packet = Packet::udp(c.at(40000), b.at(53)).extension(43, &[2, 1, 0, 0, 0, 0]);
        w.from_pod(&c, &packet).passes_untouched();
    }

    V6 what_ends_a_chain_is_a_protocol_without_ports(w) {
        let (a, b) = guarded(w);
        let c = w.pod(3);
        w.isolate_egress(&c, SET + 1);
        w.allow(SET + 1, GROUP_ANY, Ports::Any);
        // ESP, no next header, mobility, and one that nobody has: what looks like ports behind them is none.
        for protocol in [50, 59, 135, 200] {
            for packet in [
                Packet::other(a.address, b.address, protocol).data(&[0, 53, 0, 53, 0, 8, 0, 0]),
                Packet::other(a.address, b.address, protocol).data(&[17, 0, 0, 53, 0, 53, 0, 8, 0, 0]).extension(60, &PADDING),
            ] {
                w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::PolicyEgress);
            }
            w.from_pod(&c, &Packet::other(c.address, b.address, protocol).extension(60, &PADDING)).delivered_to(&b);
        }
    }

    // RFC 2675; Linux carries segments together so that are longer than the header can say.
    V6 a_payload_without_a_length_behind_hop_by_hop_options_is_all_there_is(w) {
        let (a, b) = guarded(w);
        let jumbo = |port| {
            Packet::udp(a.at(40000), b.at(port))
                .extension(0, &[0xc2, 4, 0, 1, 0, 1])
                .damage(ETHERNET + 4, 0)
                .damage(ETHERNET + 5, 0)
        };
        w.from_pod(&a, &jumbo(53)).redirected();
        w.from_pod(&a, &jumbo(54)).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    V6 without_its_walker_a_chain_is_dropped(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.unload(hook::slot::EXTENSION);
        let packet = Packet::udp(a.at(40000), b.at(53)).extension(60, &PADDING);
        w.from_pod(&a, &packet).dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
        // And what comes next is not taken for it.
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(54))).delivered_to(&b);
    }
}
