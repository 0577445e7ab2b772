//! What is refused, and how: RST and port unreachable, to pods and to the outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::{Count, Reason, backend_state, hook, pod_flag};
use tests::packet::address::at;
use tests::packet::build::{DESTINATION_MAC, Packet, SOURCE_MAC, tcp};
use tests::packet::flows::attempts;
use tests::packet::outcome::{Outcome, Via};

rows! {
    BOTH a_syn_to_a_service_without_endpoints_is_reset(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        let options = [2, 4, 5, 180, 1, 1, 1, 0];
        let out = w
            .from_pod(&a, &Packet::syn(a.at(40000), vip).numbers(7, 0).tcp_options(&options))
            .rejected(Reason::NoEndpoint)
            .shows(vip, a.at(40000));
        assert_eq!(out.seen().bare_segment().unwrap(), (0, 8, tcp::RST | tcp::ACK));
        assert_eq!(out.seen().to_mac, SOURCE_MAC, "back where it came from");
        assert_eq!(w.entries(), 0);
    }

    BOTH a_reset_acknowledges_data_and_fin(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        let syn_fin = tcp::SYN | tcp::FIN;
        let out = w
            .from_pod(&a, &Packet::tcp(a.at(40000), vip, syn_fin).numbers(u32::MAX, 0).data(&[0; 100]).padded(6))
            .rejected(Reason::NoEndpoint);
        assert_eq!(out.seen().bare_segment().unwrap(), (0, 101, tcp::RST | tcp::ACK), "and wraps");
    }

    BOTH a_datagram_to_a_service_without_endpoints_is_unreachable(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[]);
        let out = w.from_pod(&a, &Packet::udp(a.at(40000), vip)).rejected(Reason::NoEndpoint);
        port_unreachable(&out);
    }

    BOTH a_port_that_a_cluster_ip_has_not_is_refused_and_never_routed(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        let other = at(vip.ip(), 81);
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), other).numbers(1, 0)).rejected(Reason::NoServicePort);
        assert_eq!(out.seen().bare_segment().unwrap(), (0, 2, tcp::RST | tcp::ACK));
        let out = w.from_pod(&a, &Packet::udp(a.at(40000), vip)).rejected(Reason::NoServicePort);
        port_unreachable(&out);
    }

    // That the kernel does so where the checksum is left to the device is for the lab (`options.rs`): no packet here can be like that.
    // Fails with mutant "reset-options".
    V4 a_segment_with_ip_options_is_reset(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        for options in [4, 12, 40] {
            let syn = Packet::syn(a.at(40000), vip).numbers(9, 0).ip_options(&vec![1; options]);
            for (packet, acknowledged) in [(syn.clone(), 10), (syn.data(b"abc").tcp_options(&[1; 8]).padded(5), 13)] {
                let out = w.from_pod(&a, &packet).rejected(Reason::NoEndpoint).shows(vip, a.at(40000));
                assert_eq!(out.seen().bare_segment().unwrap(), (0, acknowledged, tcp::RST | tcp::ACK));
            }
        }
    }

    V6 a_segment_behind_extension_headers_is_reset(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        for (kinds, content) in [(&[60][..], 6), (&[0][..], 6), (&[0, 60][..], 70)] {
            let syn = kinds.iter().fold(Packet::syn(a.at(40000), vip).numbers(9, 0), |packet, kind| {
                // Padding of one byte each, RFC 8200 4.2.
                packet.extension(*kind, &vec![0; content])
            });
            let out = w.from_pod(&a, &syn.data(b"abc")).rejected(Reason::NoEndpoint).shows(vip, a.at(40000));
            assert_eq!(out.seen().bare_segment().unwrap(), (0, 13, tcp::RST | tcp::ACK));
        }
    }

    // Linux writes a total length of zero where a segment is longer than it can say.
    V4 a_reset_acknowledges_what_no_length_can_say(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        w.carry_together(100);
        let syn = Packet::syn(a.at(40000), vip).numbers(9, 0).data(&[0; 1000]).damage(16, 0).damage(17, 0);
        let out = w.from_pod(&a, &syn).rejected(Reason::NoEndpoint);
        assert_eq!(out.seen().bare_segment().unwrap(), (0, 1010, tcp::RST | tcp::ACK));
    }

    BOTH what_a_limit_keeps_back_is_told_as_dropped(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        let out = attempts()
            .map(|()| {
                w.spend_refusals();
                w.from_pod(&a, &Packet::syn(a.at(40000), vip))
            })
            .find(|out| out.counts.contains_key(&Count::RejectSuppressed))
            .expect("a run within a tick");
        out.dropped(hook::FROM_POD, Reason::NoEndpoint);
    }

    BOTH the_middle_of_an_unknown_connection_to_a_service_is_reset(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        let out = w
            .from_pod(&a, &Packet::ack(a.at(40000), vip).numbers(5, 77).data(b"more"))
            .rejected(Reason::Midstream);
        assert_eq!(out.seen().bare_segment().unwrap(), (77, 0, tcp::RST), "where the client expects it");
        w.from_pod(&a, &Packet::tcp(a.at(40000), vip, tcp::RST))
            .dropped_untold(hook::FROM_POD, Reason::Midstream);
        assert_eq!(w.entries(), 0);
    }

    BOTH a_connection_whose_backend_is_gone_is_reset_and_connects_anew(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080), c.at(8080)]);
        w.resize(&service, 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        w.slot(&service, 0, service.backends[1]);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        let out = w
            .from_pod(&a, &Packet::ack(a.at(40000), vip).numbers(5, 99))
            .rejected(Reason::BackendGone)
            .shows(vip, a.at(40000));
        assert_eq!(out.seen().bare_segment().unwrap(), (99, 0, tcp::RST));
        assert_eq!(w.entries(), 0);
        w.from_pod(&a, &Packet::syn(a.at(40001), vip)).delivered_to(&c);
    }

    BOTH refusals_are_limited_and_the_rest_is_dropped_with_the_same_reason(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[]);
        // A tick of the clock between the two gives new budgets.
        let out = attempts()
            .map(|()| {
                w.spend_budgets();
                w.from_pod(&a, &Packet::syn(a.at(40000), vip))
            })
            .find(|out| out.counts.len() == 2)
            .expect("a run within a tick");
        out.dropped_untold(hook::FROM_POD, Reason::NoEndpoint)
            .counted(Count::RejectSuppressed, 1)
            .counted(Count::EventSuppressed, 1);
    }

    BOTH whatever_else_is_sent_to_a_cluster_ip_is_unreachable(w) {
        let a = w.pod(1);
        let vip = w.family.cluster_ip(1);
        w.cluster_ip(vip).unwrap();
        // A question of ICMP that is no echo: a time stamp, information about a node.
        let question = if a.address.is_ipv4() { 13 } else { 139 };
        for packet in [
            Packet::ping(a.address, vip, 7),
            Packet::icmp(a.address, vip, question, 0, [0; 4]),
            Packet::other(a.address, vip, 47),
            Packet::sctp(a.at(40000), at(vip, 80)),
        ] {
            port_unreachable(&w.from_pod(&a, &packet).rejected(Reason::NoServicePort));
        }
        assert_eq!(w.entries(), 0);
    }

    // RFC 1812 4.3.2.3: 576 bytes in all. RFC 4443 2.4: the least MTU of IPv6, 1280.
    BOTH an_error_quotes_as_much_as_it_may(w) {
        let a = w.pod(1);
        let vip = w.family.cluster_ip(1);
        w.cluster_ip(vip).unwrap();
        let header = if vip.is_ipv4() { 20 } else { 40 };
        let room = longest(vip) - header - 8;
        let sizes = [0, 1, 3, 4, 7, 8, 44, 63, 64, 65, 500, room - header - 1, room - header, room - header + 1, 1400, 3000];
        for (n, size) in sizes.into_iter().enumerate() {
            let data: Vec<u8> = (0..size).map(|i| u8::try_from((i * 7 + n) % 251).unwrap()).collect();
            let packet = Packet::other(a.address, vip, 47).data(&data);
            port_unreachable(&w.from_pod(&a, &packet).rejected(Reason::NoServicePort));
            port_unreachable(&w.from_pod(&a, &packet.padded(9)).rejected(Reason::NoServicePort));
        }
    }

    V4 options_of_a_datagram_are_quoted(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[]);
        for length in [4, 40] {
            for size in [8, 1400] {
                let packet = Packet::udp(a.at(40000), vip).ip_options(&vec![1; length]).data(&vec![7; size]);
                port_unreachable(&w.from_pod(&a, &packet).rejected(Reason::NoEndpoint));
            }
        }
    }

    BOTH a_cluster_ip_is_refused_to_the_outside(w) {
        let b = w.pod(2);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.service(vip, 17, &[b.at(8080)]);
        let far = at(w.family.outside(1), 1000);
        let outside = |out: Outcome| {
            let out = out.rejected_at(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
            let seen = out.seen();
            assert_eq!((seen.to_mac, seen.from_mac), (SOURCE_MAC, DESTINATION_MAC), "back where it came from");
            out
        };
        for port in [80, 81] {
            let vip = at(vip.ip(), port);
            let out = outside(w.from_uplink(&Packet::syn(far, vip).numbers(7, 0))).shows(vip, far);
            assert_eq!(out.seen().bare_segment().unwrap(), (0, 8, tcp::RST | tcp::ACK));
            let out = outside(w.from_uplink(&Packet::ack(far, vip).numbers(5, 77).data(b"more")));
            assert_eq!(out.seen().bare_segment().unwrap(), (77, 0, tcp::RST));
            port_unreachable(&outside(w.from_uplink(&Packet::udp(far, vip))));
        }
        port_unreachable(&outside(w.from_uplink(&Packet::ping(far.ip(), vip.ip(), 7))));
        port_unreachable(&outside(w.from_uplink(&Packet::other(far.ip(), vip.ip(), 47))));
        assert_eq!(w.entries(), 0);
    }

    // RFC 1122 3.2.2, RFC 4443 2.4 e, RFC 9293 3.5.2.
    BOTH what_may_not_be_answered_is_dropped(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.cluster_ip(vip.ip()).unwrap();
        let far = at(w.family.outside(1), 1000);
        let group = DESTINATION_MAC[0] | 1;
        let mut unanswered = vec![
            Packet::tcp(far, vip, tcp::RST),
            Packet::udp(far, vip).fragment(1, false),
            Packet::udp(far, vip).damage(0, group),
            // Another station's, which a device sees that listens to all.
            Packet::udp(far, vip).damage(5, 0),
        ];
        for kind in if vip.is_ipv4() { [3, 11, 12] } else { [1, 2, 3] } {
            unanswered.push(Packet::icmp(far.ip(), vip.ip(), kind, 0, [0; 4]));
        }
        for packet in unanswered {
            w.from_uplink(&packet).dropped(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
        }
        w.from_pod(&a, &Packet::tcp(a.at(1), vip, tcp::RST)).dropped(hook::FROM_POD, Reason::Midstream);
        w.from_pod(&a, &Packet::udp(a.at(1), vip).damage(0, group)).dropped(hook::FROM_POD, Reason::NoServicePort);
        // Nor is a source that is nobody's, be it of a pod that may send for others (sources.rs has all that is dropped for that alone).
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        for source in [unspecified(vip.ip()), w.family.multicast(), w.family.loopback()] {
            w.from_pod(&a, &Packet::udp(at(source, 1), vip)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
            w.from_uplink(&Packet::udp(at(source, 1), vip)).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        }
    }

    BOTH what_the_outside_is_refused_is_limited(w) {
        let vip = at(w.family.cluster_ip(1), 80);
        w.cluster_ip(vip.ip()).unwrap();
        let far = at(w.family.outside(1), 1000);
        attempts()
            .map(|()| {
                w.spend_budgets();
                w.from_uplink(&Packet::syn(far, vip))
            })
            .find(|out| out.counts.len() == 2)
            .expect("a run within a tick")
            .dropped_untold(hook::FROM_UPLINK, Reason::ClusterIpFromOutside)
            .counted(Count::RejectSuppressed, 1);
    }

    // The client was reset, and has no such connection any more: it tells the pod that goes on sending.
    BOTH a_pod_that_goes_on_answering_is_reset_by_the_client_itself(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40000)).data(b"until then")).delivered_to(&a).shows(vip, a.at(40000));
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).rejected(Reason::BackendGone);
        let more = Packet::ack(b.at(8080), a.at(40000)).data(b"and after");
        w.from_pod(&b, &more).passes_untouched().counted(Count::MidstreamAdmitted, 1);
        w.to_pod(&a, Via::Pod(&b), &more).passes_untouched();
        let reset = Packet::tcp(a.at(40000), b.at(8080), tcp::RST);
        w.from_pod(&a, &reset).passes_untouched();
        w.to_pod(&b, Via::Pod(&a), &reset).passes_untouched();
    }
}

/// The longest error that there may be.
fn longest(family: IpAddr) -> usize {
    if family.is_ipv4() { 576 } else { 1280 }
}

/// Nobody's address.
fn unspecified(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The packet out is a port unreachable about the packet in: RFC 792, RFC 4443 3.1. Reading it holds its checksums.
pub(crate) fn port_unreachable(out: &Outcome) {
    let seen = out.seen();
    let sent = &out.sent[14..];
    let v4 = sent[0] >> 4 == 4;
    let (header, length, protocol, kind) = if v4 {
        (20, u16::from_be_bytes([sent[2], sent[3]]), 1, [3, 3])
    } else {
        (40, 40 + u16::from_be_bytes([sent[4], sent[5]]), 58, [1, 4])
    };
    assert_eq!(seen.protocol, protocol);
    assert_eq!(seen.transport[..2], kind);
    assert_eq!(seen.transport[4..8], [0; 4]);
    let room = longest(seen.source.ip()) - header - 8;
    let quoted = usize::from(length).min(room);
    assert_eq!(
        seen.transport[8..],
        sent[..quoted],
        "it quotes what was sent"
    );
    let ends = |b: &[u8]| {
        if v4 {
            (b[12..16].to_vec(), b[16..20].to_vec())
        } else {
            (b[8..24].to_vec(), b[24..40].to_vec())
        }
    };
    let (source, destination) = ends(sent);
    assert_eq!(ends(&out.frame[14..]), (destination, source));
    assert_eq!(
        (seen.to_mac, seen.from_mac),
        (SOURCE_MAC, DESTINATION_MAC),
        "back where it came from"
    );
}
