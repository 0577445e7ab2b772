//! Fragments: the first is judged like any packet, the others follow it, each from where the last ended.

use agent_common::{GROUP_ANY, Reason, backend_state, flow_flag, hook, limits, pod_flag};
use tests::packet::address::{Family, at};
use tests::packet::build::{Packet, extension, tcp};
use tests::packet::flows::tuple;
use tests::packet::outcome::{Outcome, Via};
use tests::packet::rules::Ports;
use tests::packet::seen::{Seen, join};
use tests::packet::world::{LocalPod, World};

const SET: u32 = 11;
/// Bytes of a fragment on a link of Ethernet's usual size, without headers; a multiple of eight.
const PART: usize = 1_440;
/// Bytes of a datagram that takes three of them.
const LARGE: usize = 4_000;
/// Options that say nothing: padding of six bytes (RFC 8200 4.2).
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// Bytes of which no two neighbours, and no two fragments, are alike.
fn content() -> Vec<u8> {
    (0..LARGE).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

fn large(packet: Packet) -> Vec<Packet> {
    packet.data(&content()).fragments(PART)
}

/// What the fragments of one datagram have become, put together; all checksums hold.
fn whole(outcomes: &[Outcome]) -> Seen {
    let seen = join(outcomes.iter().map(|out| out.frame.as_slice())).unwrap();
    assert!(seen.transport.ends_with(&content()));
    seen
}

fn delivered(w: &mut World, from: &LocalPod, to: &LocalPod, packet: Packet) -> Seen {
    let parts: Vec<_> = large(packet)
        .iter()
        .map(|part| w.from_pod(from, part).delivered_to(to))
        .collect();
    whole(&parts)
}

/// Two pods, of which the first may send to one port, and the second take it.
fn guarded(w: &mut World, protocol: u8, port: u16) -> (LocalPod, LocalPod) {
    let (a, b) = (w.pod(1), w.pod(2));
    w.isolate_egress(&a, SET);
    w.allow(SET, GROUP_ANY, Ports::One(protocol, port));
    w.isolate_ingress(&b, SET + 1);
    w.allow(SET + 1, GROUP_ANY, Ports::One(protocol, port));
    (a, b)
}

rows! {
    BOTH fragments_follow_the_first_of_their_datagram(w) {
        let (a, b) = guarded(w, 17, 53);
        let seen = delivered(w, &a, &b, Packet::udp(a.at(40000), b.at(53)));
        assert_eq!((seen.source, seen.destination), (a.at(40000), b.at(53)));
        let seen = delivered(w, &b, &a, Packet::udp(b.at(53), a.at(40000)));
        assert_eq!((seen.source, seen.destination), (b.at(53), a.at(40000)));
        assert_eq!(w.entries(), 2);
        assert!(w.answered(17, a.at(40000), b.at(53)).is_some());
        assert_eq!(w.datagrams(), 0, "the last one leaves nothing behind");
    }

    BOTH fragments_pass_a_service_both_ways(w) {
        let (a, b) = guarded(w, 17, 5353);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        for id in 1..4 {
            let seen = delivered(w, &a, &b, Packet::udp(a.at(40000), vip).id(id));
            assert_eq!((seen.source, seen.destination), (a.at(40000), b.at(5353)));
            let seen = delivered(w, &b, &a, Packet::udp(b.at(5353), a.at(40000)).id(id));
            assert_eq!((seen.source, seen.destination), (vip, a.at(40000)));
        }
        assert_eq!((w.entries(), w.datagrams()), (2, 0));
    }

    V4 a_datagram_without_a_checksum_stays_without(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        let seen = delivered(w, &a, &b, Packet::udp(a.at(40000), vip).without_checksum());
        assert_eq!(seen.udp_checksum(), 0);
    }

    BOTH a_segment_in_fragments_is_one_of_its_connection(w) {
        let (a, b) = guarded(w, 6, 8080);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        let seen = delivered(w, &a, &b, Packet::tcp(a.at(40000), vip, tcp::PSH | tcp::ACK));
        assert_eq!((seen.source, seen.destination), (a.at(40000), b.at(8080)));
        let seen = delivered(w, &b, &a, Packet::tcp(b.at(8080), a.at(40000), tcp::FIN | tcp::ACK));
        assert_eq!((seen.source, seen.destination), (vip, a.at(40000)));
        assert_eq!(w.answered(6, b.at(8080), a.at(40000)).unwrap().fin, 1);
    }

    BOTH a_large_echo_follows_its_first_fragment(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        w.allow(SET, GROUP_ANY, Ports::Any);
        w.isolate_ingress(&a, SET + 1);
        delivered(w, &a, &b, Packet::ping(a.address, b.address, 7));
        delivered(w, &b, &a, Packet::pong(b.address, a.address, 7));
        let stray = large(Packet::pong(b.address, a.address, 8));
        w.from_pod(&b, &stray[0]).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.from_pod(&b, &stray[1]).dropped(hook::FROM_POD, Reason::Fragment);
    }

    BOTH a_pod_reaches_itself_through_its_service_with_large_datagrams(w) {
        let (a, _) = guarded(w, 17, 53);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[a.at(5353)]);
        let seen = delivered(w, &a, &a, Packet::udp(a.at(40000), vip));
        assert_eq!((seen.source, seen.destination), (at(vip.ip(), 40000), a.at(5353)));
        let seen = delivered(w, &a, &a, Packet::udp(a.at(5353), at(vip.ip(), 40000)));
        assert_eq!((seen.source, seen.destination), (vip, a.at(40000)));
    }

    BOTH each_begins_where_the_last_ended_or_is_dropped(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = Packet::udp(a.at(40000), b.at(53)).data(&content()).fragments(800);
        let early = Packet::other(a.address, b.address, 17).data(&[0; 808]).fragment(99, true);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        for stray in [&parts[2], &early, &parts[1].clone().id(7)] {
            w.from_pod(&a, stray).dropped(hook::FROM_POD, Reason::Fragment);
        }
        w.from_pod(&a, &parts[1]).delivered_to(&b);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        for part in &parts[2..] {
            w.from_pod(&a, part).delivered_to(&b);
        }
        w.from_pod(&a, parts.last().unwrap()).dropped(hook::FROM_POD, Reason::Fragment);
        // What comes up through the stack is held to the same.
        for stray in [&parts[1], &parts[5]] {
            w.to_pod(&b, Via::Uplink, stray).dropped(hook::TO_POD, Reason::Fragment);
        }
        w.to_pod(&b, Via::Uplink, &parts[0]).passes_untouched();
        w.to_pod(&b, Via::Uplink, &parts[2]).dropped(hook::TO_POD, Reason::Fragment);
        w.to_pod(&b, Via::Uplink, &parts[1]).passes_untouched();
        assert_eq!(w.datagrams(), 1);
    }

    BOTH what_follows_nothing_leaves_no_pod_and_enters_where_nobody_judges(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        w.to_pod(&b, Via::Uplink, &parts[1]).passes_untouched();
        w.from_uplink(&large(Packet::udp(at(w.family.outside(1), 1), b.at(53)))[1]).passes_untouched();
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        w.from_pod(&a, &large(Packet::udp(a.at(40000), vip))[1]).dropped(hook::FROM_POD, Reason::Fragment);
        w.from_uplink(&large(Packet::udp(at(w.family.outside(1), 1), vip))[1])
            .dropped(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
    }

    BOTH a_first_fragment_needs_a_whole_header_and_whole_units(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        // RFC 1858: flags or ports in the second; and no bytes at all, or not a multiple of eight.
        for (protocol, bytes) in [(6, 8), (6, 16), (132, 8), (17, 0), (17, 12), (w.family.icmp(), 0)] {
            let first = Packet::other(a.address, b.address, protocol).data(&vec![0; bytes]).fragment(0, true);
            w.from_pod(&a, &first).dropped(hook::FROM_POD, Reason::Fragment);
        }
        // RFC 3128: the second one overwrites what was judged.
        let tiny = Packet::other(a.address, b.address, 6).data(&[0; 16]).fragment(1, false);
        w.from_pod(&a, &tiny).dropped(hook::FROM_POD, Reason::Fragment);
        // It ends behind what a length can say.
        let far = Packet::other(a.address, b.address, 17).data(&[0; 16]).fragment(8191, false);
        w.from_pod(&a, &far).dropped(hook::FROM_POD, Reason::Fragment);
        // An error is never so long.
        let kind = if w.family == Family::V4 { 3 } else { 1 };
        let error = Packet::icmp(a.address, b.address, kind, 0, [0; 4]).fragment(0, true);
        w.from_pod(&a, &error).dropped(hook::FROM_POD, Reason::Fragment);
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
    }

    // RFC 7112: what the rest of the chain says would come with the second.
    V6 a_first_fragment_needs_all_headers_up_to_its_transport(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for options in [[17, 3, 1, 4, 0, 0, 0, 0], [60, 0, 1, 4, 0, 0, 0, 0]] {
            let cut = Packet::other(a.address, b.address, 60).data(&options).fragment(0, true);
            w.from_pod(&a, &cut).dropped(hook::FROM_POD, Reason::Fragment);
        }
        assert_eq!(w.datagrams(), 0);
    }

    BOTH what_is_left_to_the_stack_as_it_is_leaves_no_place_behind(w) {
        let (_, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(at(w.family.outside(1), 40000), b.at(53)));
        w.to_pod(&b, Via::Uplink, &parts[0]).passes_untouched();
        // No whole units: the host's own affair, and none of the datagram's before it.
        let uneven = Packet::other(w.family.host(), b.address, 17).data(&[0; 13]).fragment(0, true);
        w.to_pod(&b, Via::Host, &uneven).passes_untouched();
        w.to_pod(&b, Via::Uplink, &parts[1]).passes_untouched();
        assert_eq!(w.datagrams(), 1);
    }

    BOTH nothing_follows_what_is_denied(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(a.at(40000), b.at(54)));
        w.from_pod(&a, &parts[0]).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        // Nor what is denied now, although the flow is there.
        delivered(w, &a, &b, Packet::udp(a.at(40000), b.at(53)));
        w.withdraw(SET, GROUP_ANY, Ports::One(17, 53));
        w.raise_epoch(&a);
        let parts = large(Packet::udp(a.at(40000), b.at(53)).id(2));
        w.from_pod(&a, &parts[0]).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        assert_eq!(w.datagrams(), 0);
    }

    BOTH a_denial_between_two_fragments_holds_for_the_second(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        w.withdraw(SET, GROUP_ANY, Ports::One(17, 53));
        w.raise_epoch(&a);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &parts[2]).dropped(hook::FROM_POD, Reason::Fragment);
    }

    BOTH another_pods_fragments_do_not_disturb(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let c = w.pod(3);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        for part in &parts {
            w.from_pod(&c, part).dropped(hook::FROM_POD, Reason::SourceSpoofed);
            w.from_pod(&a, part).delivered_to(&b);
        }
    }

    BOTH a_datagram_passes_two_hooks_in_turn(w) {
        let (a, b) = guarded(w, 17, 53);
        w.edit(&a, |p| p.flags &= !pod_flag::REDIRECT);
        for part in large(Packet::udp(a.at(40000), b.at(53))) {
            w.from_pod(&a, &part).passes_untouched();
            w.to_pod(&b, Via::Pod(&a), &part).passes_untouched();
        }
        assert_eq!((w.entries(), w.datagrams()), (2, 0));
    }

    BOTH this_host_sends_large_datagrams_and_gets_them(w) {
        let b = w.pod(2);
        w.isolate_ingress(&b, SET);
        w.isolate_egress(&b, SET + 1);
        let host = at(w.family.host(), 40000);
        for part in large(Packet::udp(host, b.at(53))) {
            w.to_pod(&b, Via::Host, &part).passes_untouched();
        }
        assert_eq!(w.waiting(17, host, b.at(53)).unwrap().flags & flow_flag::HOST, flow_flag::HOST);
        for part in large(Packet::udp(b.at(53), host)) {
            w.from_pod(&b, &part).passes_untouched();
        }
        // A fragment of this host's that follows nothing is its stack's affair.
        w.to_pod(&b, Via::Host, &large(Packet::udp(host, b.at(53)))[1]).passes_untouched();
        assert_eq!(w.datagrams(), 0);
    }

    BOTH this_hosts_large_answers_are_the_services(w) {
        let a = w.pod(1);
        w.isolate_ingress(&a, SET);
        let (vip, host) = (at(w.family.cluster_ip(1), 53), at(w.family.host(), 5353));
        w.service(vip, 17, &[host]);
        let asked: Vec<_> = large(Packet::udp(a.at(40000), vip)).iter().map(|part| w.from_pod(&a, part).passes()).collect();
        assert_eq!(whole(&asked).destination, host);
        let answers: Vec<_> = large(Packet::udp(host, a.at(40000))).iter().map(|part| w.to_pod(&a, Via::Host, part).passes()).collect();
        assert_eq!((whole(&answers).source, whole(&answers).destination), (vip, a.at(40000)));
        assert_eq!(w.datagrams(), 0);
    }

    BOTH the_uplinks_fragments_are_translated_back(w) {
        let a = w.pod(1);
        w.isolate_ingress(&a, SET);
        let (remote, _) = w.remote_pod(1);
        let (vip, backend) = (at(w.family.cluster_ip(1), 53), at(remote, 5353));
        w.service(vip, 17, &[backend]);
        let asked: Vec<_> = large(Packet::udp(a.at(40000), vip)).iter().map(|part| w.from_pod(&a, part).passes()).collect();
        assert_eq!(whole(&asked).destination, backend);
        for id in 1..4 {
            let answer = large(Packet::udp(backend, a.at(40000)).id(id));
            let answers: Vec<_> = answer.iter().map(|part| w.from_uplink(part).passes()).collect();
            assert_eq!((whole(&answers).source, whole(&answers).destination), (vip, a.at(40000)));
            for part in large(Packet::udp(vip, a.at(40000)).id(id)) {
                w.to_pod(&a, Via::Uplink, &part).passes_untouched();
            }
        }
        assert_eq!((w.entries(), w.datagrams()), (2, 0));
        // Out of order, nobody knows whose it is: the stack may put it together, and what then comes out is no answer of anybody's.
        let stray = large(Packet::udp(backend, a.at(40000)).id(9));
        w.from_uplink(&stray[1]).passes_untouched();
        w.to_pod(&a, Via::Uplink, &stray[1]).dropped(hook::TO_POD, Reason::Fragment);
    }

    BOTH what_the_host_itself_gets_is_its_stacks_to_put_together(w) {
        let (far, host) = (at(w.family.outside(1), 53), at(w.family.host(), 40000));
        for part in large(Packet::udp(far, host)).iter().rev() {
            w.from_uplink(part).passes_untouched();
        }
        assert_eq!(w.datagrams(), 0);
    }

    BOTH the_uplink_brings_no_fragment_of_a_local_pods(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for part in large(Packet::udp(a.at(40000), b.at(53))) {
            w.from_uplink(&part).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        }
    }

    BOTH a_datagram_takes_a_minute_at_most(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        w.age_datagrams(limits::REASSEMBLY_SECONDS / 2);
        w.from_pod(&a, &parts[1]).delivered_to(&b);
        // Each counts from the first.
        w.age_datagrams(limits::REASSEMBLY_SECONDS / 2 + 2);
        w.from_pod(&a, &parts[2]).dropped(hook::FROM_POD, Reason::Fragment);
    }

    BOTH without_its_flow_a_fragment_goes_nowhere(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        w.to_pod(&b, Via::Uplink, &parts[0]).passes_untouched();
        w.evict_waiting(&tuple(17, a.at(40000), b.at(53)));
        w.evict_waiting(&tuple(17, b.at(53), a.at(40000)));
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
        w.to_pod(&b, Via::Uplink, &parts[1]).dropped(hook::TO_POD, Reason::Fragment);
        assert_eq!(w.entries(), 0);
    }

    BOTH the_rest_of_a_datagram_stays_with_its_backend_and_goes_with_it(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let c = w.pod(3);
        let vip = at(w.family.cluster_ip(1), 53);
        let service = w.service(vip, 17, &[b.at(5353), c.at(5353)]);
        w.resize(&service, 1);
        let parts = large(Packet::udp(a.at(40000), vip));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        // New flows go elsewhere, this one does not.
        w.slot(&service, 0, service.backends[1]);
        w.from_pod(&a, &parts[1]).delivered_to(&b);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&a, &parts[2]).dropped(hook::FROM_POD, Reason::Fragment);
        delivered(w, &a, &c, Packet::udp(a.at(40000), vip).id(2));
    }

    BOTH a_segments_rest_is_not_answered_when_its_backend_is_gone(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        let parts = large(Packet::ack(a.at(40000), vip));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&a, &parts[1]).dropped(hook::FROM_POD, Reason::Fragment);
    }

    BOTH without_its_walker_a_fragment_is_dropped(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.unload(hook::slot::FRAGMENT);
        w.from_pod(&a, &large(Packet::udp(a.at(40000), b.at(53)))[0])
            .dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
    }

    V4 options_before_a_fragment_are_stepped_over(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        for options in [4, 40] {
            let packet = Packet::udp(a.at(40000), vip).ip_options(&vec![1; options]).id(options.try_into().unwrap());
            let seen = delivered(w, &a, &b, packet);
            assert_eq!(seen.destination, b.at(5353));
        }
    }

    V6 a_fragment_header_may_stand_behind_others(w) {
        let (a, b) = guarded(w, 17, 5353);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        let packet = Packet::udp(a.at(40000), vip).extension(0, &PADDING).extension(60, &PADDING);
        assert_eq!(delivered(w, &a, &b, packet).destination, b.at(5353));
        assert_eq!(w.datagrams(), 0);
    }

    V6 others_may_stand_behind_the_first_fragments_header(w) {
        let (a, b) = guarded(w, 17, 53);
        for (id, port) in [(1, 53), (2, 54)] {
            let udp = &Packet::udp(a.at(40000), b.at(port)).data(&content()).bytes()[54..];
            let inner = [&extension(17, 60, &PADDING)[..], udp].concat();
            let parts = Packet::other(a.address, b.address, 60).data(&inner).id(id).fragments(PART);
            for (n, part) in parts.iter().enumerate() {
                let out = w.from_pod(&a, part);
                match (port, n) {
                    (53, _) => _ = out.delivered_to(&b),
                    (_, 0) => _ = out.dropped(hook::FROM_POD, Reason::PolicyEgress),
                    _ => _ = out.dropped(hook::FROM_POD, Reason::Fragment),
                }
            }
        }
    }

    V6 the_protocol_is_the_first_fragments(w) {
        let (a, b) = guarded(w, 17, 53);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[0]).delivered_to(&b);
        let other = Packet::other(a.address, b.address, 59).data(&[0; PART]).fragment(180, true);
        w.from_pod(&a, &other).delivered_to(&b);
        w.from_pod(&a, &parts[2]).delivered_to(&b);
    }

    V6 a_fragment_that_is_whole_is_a_packet_behind_a_header(w) {
        let (a, b) = guarded(w, 17, 5353);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip).fragment(0, false)).delivered_to(&b).shows(a.at(40000), b.at(5353));
        w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000)).fragment(0, false)).delivered_to(&a).shows(vip, a.at(40000));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(54)).fragment(0, false)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        assert_eq!(w.datagrams(), 0);
    }

    V6 one_fragment_header_to_a_packet(w) {
        let (a, b) = guarded(w, 17, 53);
        let second = [17, 0, 0, 0, 0, 0, 0, 1];
        let nested = Packet::other(a.address, b.address, 44).data(&[&second[..], &[0; 16]].concat()).fragment(0, false);
        w.from_pod(&a, &nested).dropped(hook::FROM_POD, Reason::Fragment);
    }

    // RFC 6980.
    V6 neighbours_do_not_speak_in_fragments(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (std::net::IpAddr::V6(own), std::net::IpAddr::V6(other)) = (a.address, b.address) else {
            unreachable!("an IPv6 row")
        };
        let all = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        for more in [true, false] {
            let packet = Packet::neighbour_solicitation(own, all, other).fragment(0, more);
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::Fragment);
        }
    }

    // Nothing is on the gate's other side here, so what is left to it is dropped, visibly.
    BOTH while_flows_move_a_fragment_that_follows_nothing_here_is_left_to_the_other_layout(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.moving(limits::LAYOUT);
        let parts = large(Packet::udp(a.at(40000), b.at(53)));
        w.from_pod(&a, &parts[1]).dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
        w.to_pod(&b, Via::Uplink, &parts[1]).dropped_untold(hook::TO_POD, Reason::RewriteFailed);
        let parts = large(Packet::udp(at(w.family.outside(1), 40000), b.at(53)));
        w.from_uplink(&parts[1]).dropped_untold(hook::FROM_UPLINK, Reason::RewriteFailed);
        // A connection that began here has its fragments here.
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        delivered(w, &a, &b, Packet::tcp(a.at(40000), b.at(80), tcp::PSH | tcp::ACK));
    }
}
