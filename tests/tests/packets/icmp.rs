//! ICMP errors, which follow the flow that they are about. What comes out is held against the very packet that the end which learns of it
//! had sent: every byte of the quote, checksums and all, and every sum anew by the RFCs' arithmetic.

use std::net::{IpAddr, SocketAddr};

use agent_common::{Count, Flow, GROUP_ANY, Reason, backend_state, hook, limits, pod_flag};
use tests::packet::address::at;
use tests::packet::build::{ETHERNET, Packet};
use tests::packet::flows::{now, tuple};
use tests::packet::outcome::{Outcome, Via};
use tests::packet::rules::Ports;
use tests::packet::seen::{Seen, checksum};
use tests::packet::world::{LocalPod, World};

const SET: u32 = 11;
/// What a link of the way takes, where an error says so.
const MTU: [u8; 4] = [0, 0, 5, 120];

/// A packet behind its link header.
fn ip(packet: &Packet) -> Vec<u8> {
    packet.bytes()[ETHERNET..].to_vec()
}

/// The length of an IP header.
fn header(ip: &[u8]) -> usize {
    match ip[0] >> 4 {
        4 => usize::from(ip[0] & 15) * 4,
        _ => 40,
    }
}

/// The protocol that an IP header names.
fn protocol(ip: &[u8]) -> u8 {
    match ip[0] >> 4 {
        4 => ip[9],
        _ => ip[6],
    }
}

/// Port unreachable about what `quote` is of.
fn unreachable(from: IpAddr, to: IpAddr, quote: &[u8]) -> Packet {
    let (kind, code) = if from.is_ipv4() { (3, 3) } else { (1, 4) };
    Packet::icmp(from, to, kind, code, [0; 4]).data(quote)
}

/// Fragmentation needed, or packet too big.
fn too_big(from: IpAddr, to: IpAddr, quote: &[u8]) -> Packet {
    let (kind, code) = if from.is_ipv4() { (3, 4) } else { (2, 0) };
    Packet::icmp(from, to, kind, code, MTU).data(quote)
}

/// Time exceeded.
fn exceeded(from: IpAddr, to: IpAddr, quote: &[u8]) -> Packet {
    let kind = if from.is_ipv4() { 11 } else { 3 };
    Packet::icmp(from, to, kind, 0, [0; 4]).data(quote)
}

/// As much of a packet as errors quote: eight bytes of its transport, up to TCP's checksum and less, an odd number of bytes, and all of it.
fn cuts(packet: &[u8]) -> Vec<&[u8]> {
    let header = header(packet);
    let mut cuts: Vec<_> = [8, 9, 16, 17, 18, 19]
        .map(|transport| header + transport)
        .into_iter()
        .filter(|length| *length < packet.len())
        .map(|length| &packet[..length])
        .collect();
    cuts.push(packet);
    cuts
}

/// What an error quotes.
fn quote(error: &Seen) -> &[u8] {
    &error.transport[8..]
}

/// The error that came out is the one that went in, and quotes `packet`.
fn about(out: &Outcome, packet: &Packet) {
    // Reading holds the outer checksums and lengths against the RFCs.
    let (sent, seen) = (Seen::read(&out.sent).unwrap(), out.seen());
    assert_eq!(seen.transport[..2], sent.transport[..2], "type and code");
    assert_eq!(
        seen.transport[4..8],
        sent.transport[4..8],
        "what the type says more"
    );
    let (quoted, whole) = (quote(&seen), ip(packet));
    assert_eq!(quoted.len(), quote(&sent).len());
    // Half a checksum of TCP's, whose other half nobody knows, stays what it was.
    let (end, half) = (quoted.len(), header(quoted) + 16);
    let told = if quoted.len() == half + 1 && protocol(quoted) == 6 {
        half
    } else {
        end
    };
    assert_eq!(quoted[..told], whole[..told], "{packet:?}");
    if packet.bytes()[12..14] == [8, 0] {
        assert_eq!(
            checksum(&[&quoted[..header(quoted)]]),
            0,
            "the inner header's checksum"
        );
    }
    if quoted.len() == whole.len() {
        let frame = [&packet.bytes()[..ETHERNET], quoted].concat();
        Seen::read(&frame).unwrap_or_else(|error| panic!("the packet quoted: {error:#}"));
    }
}

/// A client's packets of each protocol that services have.
fn asks(from: SocketAddr, to: SocketAddr) -> [Packet; 3] {
    [
        Packet::udp(from, to),
        Packet::syn(from, to).data(b"early"),
        Packet::syn(from, to)
            .tcp_options(&[2, 4, 5, 180])
            .ip_options(&options(from.ip())),
    ]
}

/// Options of an IPv4 header; none in IPv6.
fn options(family: IpAddr) -> Vec<u8> {
    if family.is_ipv4() {
        vec![1; 8]
    } else {
        Vec::new()
    }
}

/// Two pods, and a service of the second's port 8080 in both protocols.
fn service(w: &mut World) -> (LocalPod, LocalPod, SocketAddr) {
    let (a, b) = (w.pod(1), w.pod(2));
    let vip = at(w.family.cluster_ip(1), 80);
    w.service(vip, 17, &[b.at(8080)]);
    w.service(vip, 6, &[b.at(8080)]);
    (a, b, vip)
}

/// The pod may do nothing but what a rule for one port allows it to begin.
fn only_begins(w: &mut World, pod: &LocalPod, port: u16) {
    w.isolate_ingress(pod, SET);
    w.isolate_egress(pod, SET + 1);
    for protocol in [6, 17, 132] {
        w.allow(SET + 1, GROUP_ANY, Ports::One(protocol, port));
    }
}

/// The pod may do nothing but answer at one port.
fn only_answers(w: &mut World, pod: &LocalPod, port: u16) {
    w.isolate_egress(pod, SET + 2);
    w.isolate_ingress(pod, SET + 3);
    for protocol in [6, 17, 132] {
        w.allow(SET + 3, GROUP_ANY, Ports::One(protocol, port));
    }
}

rows! {
    BOTH a_backends_error_comes_to_the_client_from_the_service(w) {
        let (a, b, vip) = service(w);
        // Neither may send an error to the other but about this.
        only_begins(w, &a, 8080);
        only_answers(w, &b, 8080);
        for packet in asks(a.at(40000), vip) {
            let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
            for quote in cuts(&came) {
                let out = w
                    .from_pod(&b, &unreachable(b.address, a.address, quote))
                    .delivered_to(&a)
                    .shows(at(vip.ip(), 0), a.at(0))
                    .counted(Count::FlowReplied, 0);
                about(&out, &packet.clone().hops(63));
            }
        }
        assert_eq!(w.entries(), 4, "an error is no answer, and opens nothing");
        assert!(w.waiting(17, a.at(40000), vip).is_some());
    }

    BOTH a_clients_error_comes_to_the_backend_from_the_client(w) {
        let (a, b, vip) = service(w);
        only_begins(w, &a, 8080);
        only_answers(w, &b, 8080);
        let answers = [
            (Packet::udp(a.at(40000), vip), Packet::udp(b.at(8080), a.at(40000))),
            (Packet::syn(a.at(40000), vip), Packet::syn_ack(b.at(8080), a.at(40000))),
        ];
        for (ask, answer) in answers {
            w.from_pod(&a, &ask).delivered_to(&b);
            let came = w.from_pod(&b, &answer).delivered_to(&a).frame[ETHERNET..].to_vec();
            for quote in cuts(&came) {
                let out = w
                    .from_pod(&a, &unreachable(a.address, vip.ip(), quote))
                    .delivered_to(&b)
                    .shows(a.at(0), b.at(0));
                about(&out, &answer.clone().hops(63));
            }
        }
    }

    BOTH an_error_from_outside_comes_to_the_client_with_the_services_address_in_it(w) {
        let a = w.pod(1);
        let (far, _) = w.remote_pod(1);
        let (vip, router) = (at(w.family.cluster_ip(1), 80), w.family.outside(9));
        w.service(vip, 17, &[at(far, 8080)]);
        w.service(vip, 6, &[at(far, 8080)]);
        only_begins(w, &a, 8080);
        for packet in asks(a.at(40000), vip) {
            let went = w.from_pod(&a, &packet).passes().frame[ETHERNET..].to_vec();
            for quote in cuts(&went) {
                // The backend itself, which is the service to its clients; and a router before it, which is itself.
                for (maker, shown) in [(far, vip.ip()), (router, router)] {
                    let out = w
                        .from_uplink(&too_big(maker, a.address, quote))
                        .passes()
                        .shows(at(shown, 0), a.at(0));
                    about(&out, &packet);
                    let quote = &ip(&packet)[..quote.len()];
                    w.to_pod(&a, Via::Uplink, &too_big(shown, a.address, quote)).passes_untouched();
                }
            }
        }
    }

    // Path MTU discovery: it is this host that finds the way too narrow, for a packet that it has translated already.
    BOTH what_this_hosts_stack_finds_too_big_is_told_as_the_pod_sent_it(w) {
        let a = w.pod(1);
        let (far, _) = w.remote_pod(1);
        let (vip, host) = (at(w.family.cluster_ip(1), 80), w.family.host());
        w.service(vip, 17, &[at(far, 8080)]);
        w.service(vip, 6, &[at(far, 8080)]);
        only_begins(w, &a, 8080);
        for packet in asks(a.at(40000), vip) {
            let went = w.from_pod(&a, &packet).passes().frame[ETHERNET..].to_vec();
            for quote in cuts(&went) {
                let out = w
                    .to_pod(&a, Via::Host, &too_big(host, a.address, quote))
                    .passes()
                    .shows(at(host, 0), a.at(0));
                about(&out, &packet);
            }
            // From a router before which the stack masquerades: it comes by the uplink, and is the stack's until here.
            let router = w.family.outside(9);
            let out = w.to_pod(&a, Via::Uplink, &too_big(router, a.address, &went)).passes().shows(at(router, 0), a.at(0));
            about(&out, &packet);
            // What this host says of the packet as the pod sent it is right already.
            w.to_pod(&a, Via::Host, &exceeded(host, a.address, &ip(&packet))).passes_untouched();
            // A new epoch does not keep the host from its pods.
            w.raise_epoch(&a);
            let out = w.to_pod(&a, Via::Host, &too_big(host, a.address, &went)).passes();
            about(&out, &packet);
        }
    }

    BOTH a_backend_on_this_host_refuses_as_the_service(w) {
        let a = w.pod(1);
        let (vip, host) = (at(w.family.cluster_ip(1), 53), at(w.family.host(), 5353));
        w.service(vip, 17, &[host]);
        w.isolate_ingress(&a, SET);
        let packet = Packet::udp(a.at(40000), vip);
        let went = w.from_pod(&a, &packet).passes().frame[ETHERNET..].to_vec();
        let out = w
            .to_pod(&a, Via::Host, &unreachable(host.ip(), a.address, &went))
            .passes()
            .shows(at(vip.ip(), 0), a.at(0));
        about(&out, &packet);
    }

    BOTH a_pod_that_reaches_itself_learns_of_what_it_asked(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 17, &[a.at(8080)]);
        only_answers(w, &a, 1);
        let packet = Packet::udp(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&a).frame[ETHERNET..].to_vec();
        let out = w
            .from_pod(&a, &unreachable(a.address, vip.ip(), &came))
            .delivered_to(&a)
            .shows(at(vip.ip(), 0), a.at(0));
        about(&out, &packet.hops(63));
    }

    BOTH a_rewritten_client_port_is_written_back(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[b.at(8080)]);
        w.service(second, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).delivered_to(&b);
        let packet = Packet::syn(a.at(40000), second);
        let out = w.from_pod(&a, &packet).delivered_to(&b);
        assert_ne!(out.seen().source.port(), 40000);
        let came = out.frame[ETHERNET..].to_vec();
        for quote in cuts(&came) {
            let out = w
                .from_pod(&b, &unreachable(b.address, a.address, quote))
                .delivered_to(&a)
                .shows(at(second.ip(), 0), a.at(0));
            about(&out, &packet.clone().hops(63));
        }
    }

    // Every address and port carries into every bit of the sums somewhere.
    BOTH checksums_stay_right_whatever_the_ports(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for (n, port) in [1u16, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff].into_iter().enumerate() {
            let vip = at(w.family.cluster_ip(u8::try_from(n).unwrap() + 1), port);
            w.service(vip, 17, &[b.at(!port | 1)]);
            for data in [&b""[..], b"a", b"odd", b"even"] {
                let packet = Packet::udp(a.at(port), vip).data(data);
                let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
                for quote in cuts(&came) {
                    let out = w.from_pod(&b, &unreachable(b.address, a.address, quote)).delivered_to(&a);
                    about(&out, &packet.clone().hops(63));
                }
            }
        }
    }

    BOTH padding_behind_the_error_is_no_part_of_its_quote(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::syn(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let quote = &came[..header(&came) + 8];
        let error = unreachable(b.address, a.address, quote);
        let padded = w.from_pod(&b, &error.clone().padded(40)).redirected();
        let bare = w.from_pod(&b, &error).delivered_to(&a);
        about(&bare, &packet.hops(63));
        assert_eq!(padded.frame, [bare.frame.clone(), vec![0; 40]].concat());
    }

    V4 a_datagram_without_a_checksum_stays_without(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::udp(a.at(40000), vip).without_checksum();
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let out = w.from_pod(&b, &unreachable(b.address, a.address, &came)).delivered_to(&a);
        about(&out, &packet.hops(63));
    }

    V4 options_of_the_error_do_not_hide_its_quote(w) {
        let (a, b, vip) = service(w);
        for length in [4, 40] {
            let packet = Packet::syn(a.at(40000), vip).ip_options(&vec![1; length]);
            let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
            for quote in cuts(&came) {
                let error = unreachable(b.address, a.address, quote).ip_options(&vec![1; 44 - length]);
                about(&w.from_pod(&b, &error).delivered_to(&a), &packet.clone().hops(63));
            }
        }
    }

    V4 a_first_fragment_is_quoted_with_its_ports(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::udp(a.at(40000), vip);
        w.from_pod(&a, &packet).delivered_to(&b);
        let first = Packet::udp(a.at(40000), b.at(8080)).fragment(0, true);
        let out = w.from_pod(&b, &exceeded(b.address, a.address, &ip(&first)[..28])).delivered_to(&a);
        about(&out, &packet.fragment(0, true));
        // Behind it there are none.
        let later = Packet::udp(a.at(40000), b.at(8080)).fragment(1, false);
        w.from_pod(&b, &exceeded(b.address, a.address, &ip(&later))).passes_untouched();
    }

    BOTH an_error_between_pods_needs_no_rule_of_its_own(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        only_begins(w, &a, 53);
        only_answers(w, &b, 53);
        let packet = Packet::udp(a.at(40000), b.at(53));
        w.from_pod(&a, &packet).delivered_to(&b);
        let error = unreachable(b.address, a.address, &ip(&packet.clone().hops(63)));
        let out = w.from_pod(&b, &error).delivered_to(&a).shows(b.at(0), a.at(0));
        about(&out, &packet.clone().hops(63));
        // The same through the stack, where links take no redirect.
        w.edit(&a, |p| p.flags &= !pod_flag::REDIRECT);
        let packet = Packet::udp(a.at(40001), b.at(53));
        w.from_pod(&a, &packet).passes_untouched();
        w.to_pod(&b, Via::Pod(&a), &packet).passes_untouched();
        let error = unreachable(b.address, a.address, &ip(&packet));
        w.from_pod(&b, &error).passes_untouched();
        w.to_pod(&a, Via::Pod(&b), &error).passes_untouched();
    }

    BOTH an_error_about_a_flow_with_the_outside_passes_both_ways(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (far, router) = (at(w.family.outside(1), 443), w.family.outside(9));
        only_begins(w, &a, 443);
        only_answers(w, &b, 80);
        // Opened by a pod.
        let packet = Packet::syn(a.at(40000), far);
        w.from_pod(&a, &packet).passes_untouched();
        let error = exceeded(router, a.address, &ip(&packet)[..header(&ip(&packet)) + 8]);
        w.from_uplink(&error).passes_untouched();
        w.to_pod(&a, Via::Uplink, &error).passes_untouched();
        // Opened by the outside: about what it sent, and about what it was answered.
        let packet = Packet::udp(far, b.at(80));
        w.to_pod(&b, Via::Uplink, &packet).passes_untouched();
        w.from_pod(&b, &unreachable(b.address, far.ip(), &ip(&packet))).passes_untouched();
        let answer = Packet::udp(b.at(80), far);
        w.from_pod(&b, &answer).passes_untouched();
        let error = unreachable(far.ip(), b.address, &ip(&answer));
        w.from_uplink(&error).passes_untouched();
        w.to_pod(&b, Via::Uplink, &error).passes_untouched();
    }

    BOTH an_error_about_the_hosts_own_flow_reaches_the_host(w) {
        let b = w.pod(2);
        let host = at(w.family.host(), 50000);
        only_answers(w, &b, 1);
        let packet = Packet::udp(host, b.at(53));
        w.to_pod(&b, Via::Host, &packet).passes_untouched();
        w.from_pod(&b, &unreachable(b.address, host.ip(), &ip(&packet))).passes_untouched();
        // And what the host makes of the pod's answers the pod; what others do does not.
        let answer = Packet::udp(b.at(53), host);
        w.from_pod(&b, &answer).passes_untouched();
        let error = unreachable(host.ip(), b.address, &ip(&answer));
        w.to_pod(&b, Via::Host, &error).passes_untouched();
        w.to_pod(&b, Via::Uplink, &error).dropped(hook::TO_POD, Reason::SourceMartian);
        // What the host itself gets is its stack's.
        w.from_uplink(&unreachable(w.family.outside(1), host.ip(), &ip(&packet))).passes_untouched();
    }

    BOTH other_protocols_have_errors_too(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&b, SET);
        let sctp = Packet::sctp(a.at(40000), b.at(80));
        for packet in [sctp, Packet::ping(a.address, b.address, 7), Packet::other(a.address, b.address, 47)] {
            w.from_pod(&a, &packet).delivered_to(&b);
            let packet = packet.hops(63);
            let out = w.from_pod(&b, &unreachable(b.address, a.address, &ip(&packet))).delivered_to(&a);
            about(&out, &packet);
        }
        // An answer's error, by the id at the other end; and another id.
        w.isolate_egress(&a, SET);
        w.from_pod(&b, &Packet::pong(b.address, a.address, 7)).delivered_to(&a);
        let error = |id| unreachable(a.address, b.address, &ip(&Packet::pong(b.address, a.address, id)));
        w.from_pod(&a, &error(7)).delivered_to(&b);
        w.from_pod(&a, &error(8)).dropped(hook::FROM_POD, Reason::IcmpError);
    }

    BOTH an_error_waits_for_its_flow_to_be_judged_again(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::udp(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let error = unreachable(b.address, a.address, &came);
        for pod in [&a, &b] {
            w.raise_epoch(pod);
            w.from_pod(&b, &error).dropped(hook::FROM_POD, Reason::IcmpError).counted(Count::FlowRejudged, 0);
            let told = unreachable(vip.ip(), a.address, &ip(&packet));
            w.to_pod(&a, Via::Pod(&b), &told).dropped(hook::TO_POD, Reason::IcmpError);
            w.from_pod(&a, &packet).delivered_to(&b).counted(Count::FlowRejudged, 1);
            w.from_pod(&b, &error).delivered_to(&a);
            w.to_pod(&a, Via::Pod(&b), &told).passes_untouched();
        }
    }

    BOTH an_error_neither_closes_a_flow_nor_keeps_it(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::syn(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        let keys = [(a.at(40000), vip), (b.at(8080), a.at(40000))];
        for (from, to) in keys {
            let old = Flow { last_seen: now().wrapping_sub(60), ..w.answered(6, from, to).unwrap() };
            w.plant(tuple(6, from, to), old);
        }
        let before = keys.map(|(from, to)| w.answered(6, from, to).unwrap());
        w.from_pod(&b, &unreachable(b.address, a.address, &came)).delivered_to(&a);
        w.to_pod(&a, Via::Host, &too_big(w.family.host(), a.address, &came)).passes();
        assert_eq!(before, keys.map(|(from, to)| w.answered(6, from, to).unwrap()));
        assert_eq!(w.entries(), 2);
    }

    BOTH an_error_about_nobodys_flow_needs_a_pod_without_policy(w) {
        let (a, b, vip) = service(w);
        let stray = ip(&Packet::udp(a.at(40000), b.at(9)));
        let error = unreachable(b.address, a.address, &stray);
        w.from_pod(&b, &error).passes_untouched();
        w.to_pod(&a, Via::Pod(&b), &error).passes_untouched();
        w.from_uplink(&unreachable(w.family.outside(1), a.address, &stray)).passes_untouched();
        // There is nobody at a service's address to learn of it.
        w.from_pod(&b, &unreachable(b.address, vip.ip(), &ip(&Packet::udp(vip, b.at(9))))).dropped(hook::FROM_POD, Reason::IcmpError);
        w.from_uplink(&unreachable(w.family.outside(1), vip.ip(), &ip(&Packet::udp(vip, b.at(9)))))
            .dropped(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
        w.isolate_ingress(&a, SET);
        w.from_pod(&b, &error).dropped(hook::FROM_POD, Reason::IcmpError);
        w.to_pod(&a, Via::Pod(&b), &error).dropped(hook::TO_POD, Reason::IcmpError);
        w.to_pod(&a, Via::Uplink, &error).dropped(hook::TO_POD, Reason::IcmpError);
        w.to_pod(&a, Via::Host, &error).passes_untouched();
    }

    BOTH a_pod_speaks_of_what_came_to_it_only(w) {
        let (a, b, vip) = service(w);
        let c = w.pod(3);
        let packet = Packet::syn(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        // In the backend's name, and in its own.
        for source in [b.address, c.address, w.family.outside(1)] {
            w.from_pod(&c, &unreachable(source, a.address, &came)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        w.from_pod(&b, &unreachable(c.address, a.address, &came)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        // The client itself never had that packet.
        w.from_pod(&a, &unreachable(a.address, a.address, &came)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        // A router on the way of both has.
        let far = at(w.family.outside(1), 443);
        w.edit(&c, |p| p.flags |= pod_flag::ANY_SOURCE);
        let behind = at(w.family.outside(7), 1);
        let forwarded = Packet::udp(far, behind);
        w.from_pod(&c, &Packet::udp(behind, far)).passes_untouched();
        w.from_pod(&c, &unreachable(c.address, far.ip(), &ip(&forwarded))).passes_untouched();
    }

    BOTH an_error_from_outside_is_not_about_what_never_left_the_node(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::udp(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let far = w.family.outside(1);
        w.from_uplink(&unreachable(far, a.address, &came)).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        w.from_uplink(&unreachable(b.address, a.address, &came)).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
    }

    BOTH a_quote_that_lies_is_of_no_flow(w) {
        let (a, b, vip) = service(w);
        let c = w.pod(3);
        let packet = Packet::udp(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let v4 = a.address.is_ipv4();
        let length = header(&came);
        let mut lies = vec![
            // To somebody who never sent it.
            unreachable(b.address, c.address, &came),
            // Less than eight bytes of transport, and less than a header.
            unreachable(b.address, a.address, &came[..length + 7]),
            unreachable(b.address, a.address, &came[..length - 1]),
            unreachable(b.address, a.address, &[]),
            // Enough of it in the frame, but not in the packet.
            unreachable(b.address, a.address, &came[..length + 7]).padded(20),
            // An error about an error.
            unreachable(b.address, a.address, &ip(&unreachable(a.address, b.address, &came))),
            // A protocol that it is not.
            unreachable(b.address, a.address, &changed(&came, if v4 { 9 } else { 6 }, 6)),
        ];
        for first in if v4 { vec![0x44, 0x4f, 0x35, 0x65] } else { vec![0x40, 0x50, 0x70] } {
            lies.push(unreachable(b.address, a.address, &changed(&came, 0, first)));
        }
        // Types that are about no packet, and types that nobody knows.
        for kind in if v4 { vec![4, 5] } else { vec![0, 5, 100, 127] } {
            lies.push(Packet::icmp(b.address, a.address, kind, 0, [0; 4]).data(&came));
        }
        for lie in &lies {
            w.from_pod(&b, lie).passes_untouched();
            w.to_pod(&a, Via::Host, lie).passes_untouched();
        }
        w.isolate_egress(&b, SET);
        for lie in &lies {
            w.from_pod(&b, lie).dropped(hook::FROM_POD, Reason::IcmpError);
        }
        w.from_pod(&b, &unreachable(b.address, a.address, &came)).delivered_to(&a);
    }

    V6 a_quote_behind_extension_headers_is_of_no_flow(w) {
        let (a, b, vip) = service(w);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        let came = Packet::udp(a.at(40000), b.at(8080)).extension(60, &[0; 6]);
        w.from_pod(&b, &unreachable(b.address, a.address, &ip(&came))).passes_untouched();
        let mapped: IpAddr = std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a01, 2).into();
        let came = Packet::udp(a.at(40000), at(mapped, 80));
        w.from_pod(&b, &unreachable(b.address, a.address, &ip(&came))).passes_untouched();
    }

    BOTH an_error_about_an_answer_of_a_backend_that_is_gone_goes_nowhere(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        let service = w.service(vip, 17, &[b.at(53)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        let came = w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a).frame[ETHERNET..].to_vec();
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&a, &unreachable(a.address, vip.ip(), &came)).dropped(hook::FROM_POD, Reason::IcmpError);
    }

    // Nothing is on the gate's other side here, so what is left to it is dropped, visibly.
    BOTH while_flows_move_an_error_about_an_unknown_one_is_left_to_the_other_layout(w) {
        let (a, b, vip) = service(w);
        w.moving(limits::LAYOUT);
        let error = unreachable(b.address, a.address, &ip(&Packet::udp(a.at(40000), b.at(8080))));
        w.from_pod(&b, &error).dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
        w.to_pod(&a, Via::Uplink, &error).dropped_untold(hook::TO_POD, Reason::RewriteFailed);
        let error = unreachable(w.family.outside(1), a.address, &ip(&Packet::udp(a.at(40000), b.at(8080))));
        w.from_uplink(&error).dropped_untold(hook::FROM_UPLINK, Reason::RewriteFailed);
        let packet = Packet::syn(a.at(40000), vip);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        w.from_pod(&b, &unreachable(b.address, a.address, &came)).delivered_to(&a);
    }
}

/// A quote with one byte changed.
fn changed(quote: &[u8], at: usize, to: u8) -> Vec<u8> {
    let mut changed = quote.to_vec();
    changed[at] = to;
    changed
}
