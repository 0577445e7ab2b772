//! From a pod to a service: a backend, and back.

use std::collections::BTreeSet;

use agent_common::{Count, Reason, backend_state, flow_flag, hook, path, service_flag};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::flows::{now, tuple};
use tests::packet::outcome::Via;

use super::reject::port_unreachable;

rows! {
    BOTH tcp_to_a_cluster_ip_goes_to_a_backend_and_comes_back_from_the_service(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip))
            .delivered_to(&b)
            .shows(a.at(40000), b.at(8080))
            .counted(Count::BackendChosen, 1);
        let there = w.waiting(6, a.at(40000), vip).expect("keyed by what the client sends");
        assert_eq!((there.backend, there.backend_generation, there.service), (service.backends[0], 1, service.pool));
        assert_eq!(there.flags & flow_flag::TRANSLATE, flow_flag::TRANSLATE);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000)))
            .delivered_to(&a)
            .shows(vip, a.at(40000))
            .counted(Count::FlowReplied, 1);
        w.from_pod(&a, &Packet::ack(a.at(40000), vip).data(b"GET")).delivered_to(&b).shows(a.at(40000), b.at(8080));
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40000)).data(b"OK")).delivered_to(&a).shows(vip, a.at(40000));
        assert_eq!(w.entries(), 2);
    }

    BOTH udp_to_a_cluster_ip_goes_to_a_backend_and_comes_back_from_the_service(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        for _ in 0..2 {
            w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b).shows(a.at(40000), b.at(5353));
            w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        }
    }

    // A client that asks before the service is there and goes on asking from the same port, as resolvers do.
    BOTH a_flow_to_an_address_that_becomes_a_services_goes_to_its_backend(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes_untouched();
        w.service(vip, 17, &[b.at(5353)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b).shows(a.at(40000), b.at(5353));
        w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        assert_eq!(w.entries(), 2);
    }

    // Every address and port carries into every bit of the sums somewhere.
    BOTH checksums_stay_right_whatever_the_ports(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for (n, port) in [1u16, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff].into_iter().enumerate() {
            let vip = at(w.family.cluster_ip(u8::try_from(n).unwrap() + 1), port);
            w.service(vip, 17, &[b.at(!port | 1)]);
            for data in [&b""[..], b"a", b"odd", b"even"] {
                w.from_pod(&a, &Packet::udp(a.at(port), vip).data(data))
                    .delivered_to(&b)
                    .shows(a.at(port), b.at(!port | 1));
            }
        }
    }

    V4 a_datagram_without_a_checksum_stays_without(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(5353)]);
        let out = w.from_pod(&a, &Packet::udp(a.at(40000), vip).without_checksum()).delivered_to(&b);
        assert_eq!(out.seen().udp_checksum(), 0);
        let out = w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000)).without_checksum()).delivered_to(&a);
        assert_eq!(out.seen().udp_checksum(), 0);
    }

    V4 options_of_the_ip_header_do_not_hide_the_ports(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip).ip_options(&[1; 8]))
            .delivered_to(&b)
            .shows(a.at(40000), b.at(8080));
    }

    BOTH every_backend_gets_flows(w) {
        let (a, b, c, d) = (w.pod(1), w.pod(2), w.pod(3), w.pod(4));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(80), c.at(80), d.at(80)]);
        let mut seen = BTreeSet::new();
        for port in 0..120 {
            let out = w.from_pod(&a, &Packet::syn(a.at(40000 + port), vip)).redirected();
            seen.insert(out.seen().destination.ip());
        }
        assert_eq!(seen.len(), 3, "in 120 choices each of three is met but once in 10^21: {seen:?}");
    }

    BOTH a_backend_on_another_node_is_reached_and_answers_through_the_stack(w) {
        let a = w.pod(1);
        let (far, _) = w.remote_pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[at(far, 8080)]);
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), vip)).passes().shows(a.at(40000), at(far, 8080));
        assert_eq!(out.seen().hops, 64, "the stack takes the hop");
        w.from_uplink(&Packet::syn_ack(at(far, 8080), a.at(40000)))
            .passes()
            .shows(vip, a.at(40000))
            .counted(Count::FlowReplied, 1);
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(vip, a.at(40000))).passes_untouched();
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).passes().shows(a.at(40000), at(far, 8080));
        w.from_uplink(&Packet::ack(at(far, 8080), a.at(40000))).passes().shows(vip, a.at(40000));
        assert_eq!(w.answered(6, a.at(40000), vip).unwrap().path, path::STACK);
    }

    BOTH a_closing_answer_from_outside_closes_both_entries(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        let vip = at(w.family.cluster_ip(1), 443);
        w.service(vip, 6, &[far]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).passes().shows(a.at(40000), far);
        w.from_uplink(&Packet::tcp(far, a.at(40000), tcp::RST | tcp::ACK)).passes().shows(vip, a.at(40000));
        assert_eq!(w.answered(6, a.at(40000), vip).unwrap().closing, 1);
        assert_eq!(w.answered(6, far, a.at(40000)).unwrap().closing, 1);
    }

    // A host-network pod of this node, the API server of a control-plane node: its answers enter by no hook.
    BOTH a_backend_on_this_host_answers_from_the_service(w) {
        let a = w.pod(1);
        let host = at(w.family.host(), 6443);
        let vip = at(w.family.cluster_ip(1), 443);
        w.service(vip, 6, &[host]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).passes().shows(a.at(40000), host);
        w.to_pod(&a, Via::Host, &Packet::syn_ack(host, a.at(40000)))
            .passes()
            .shows(vip, a.at(40000))
            .counted(Count::FlowReplied, 1);
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).passes().shows(a.at(40000), host);
        w.to_pod(&a, Via::Host, &Packet::tcp(host, a.at(40000), tcp::FIN | tcp::ACK)).passes().shows(vip, a.at(40000));
        assert_eq!(w.answered(6, host, a.at(40000)).unwrap().fin, 1);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_pod_reaches_itself_through_its_service(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[a.at(8080)]);
        w.isolate_ingress(&a, 1);
        let hairpin = at(vip.ip(), 40000);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&a).shows(hairpin, a.at(8080));
        w.from_pod(&a, &Packet::syn_ack(a.at(8080), hairpin)).delivered_to(&a).shows(vip, a.at(40000));
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&a).shows(hairpin, a.at(8080));
    }

    BOTH a_service_whose_endpoints_are_all_elsewhere_under_a_local_policy_drops(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service_with_flags(vip, 6, &[], service_flag::DROP_WHEN_EMPTY);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).dropped(hook::FROM_POD, Reason::NoLocalEndpoint);
    }

    // No agent writes one.
    BOTH a_service_without_ports_is_dropped_with_a_reason_of_its_own(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 0);
        w.service(vip, 47, &[b.at(0)]);
        w.from_pod(&a, &Packet::other(a.address, vip.ip(), 47)).dropped(hook::FROM_POD, Reason::ServiceProtocol);
    }

    BOTH a_syn_finds_another_backend_when_its_own_is_gone(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080), c.at(8080)]);
        w.resize(&service, 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        // Its number belongs to another backend by now.
        w.backend(service.backends[0], |word| word.generation += 1);
        w.resize(&service, 0);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).rejected(Reason::NoEndpoint);
        assert_eq!(w.entries(), 0);
        w.resize(&service, 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        assert_eq!(w.waiting(6, a.at(40000), vip).unwrap().backend_generation, 2);
    }

    BOTH a_pool_that_has_just_lost_its_backends_refuses(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080)]);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).rejected(Reason::NoEndpoint);
    }

    BOTH answers_pass_whatever_became_of_their_backend(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
    }

    BOTH datagrams_leave_a_backend_that_stops_serving_and_connections_stay(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 53);
        let tcp_service = w.service(vip, 6, &[b.at(53)]);
        let udp_service = w.service(vip, 17, &[b.at(53), c.at(53)]);
        w.resize(&udp_service, 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        for number in [tcp_service.backends[0], udp_service.backends[0]] {
            w.backend(number, |word| word.state = backend_state::NOT_SERVING);
        }
        // The agent has put the other into the first slot's place.
        w.slot(&udp_service, 0, udp_service.backends[1]);
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&c).counted(Count::BackendChosen, 1);
        assert_eq!(w.waiting(17, b.at(53), a.at(40000)), None, "nothing is left of the old flow");
    }

    BOTH a_terminating_backend_keeps_what_it_has(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        let service = w.service(vip, 17, &[b.at(53)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.backend(service.backends[0], |word| word.state = backend_state::TERMINATING);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b).counted(Count::FlowCreated, 0);
    }

    BOTH datagrams_leave_for_no_endpoint_too(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        let service = w.service(vip, 17, &[b.at(53)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.resize(&service, 0);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        let out = w.from_pod(&a, &Packet::udp(a.at(40000), vip)).rejected(Reason::NoEndpoint);
        port_unreachable(&out);
        assert_eq!(w.entries(), 0);
    }

    BOTH two_services_with_one_backend_get_two_flows_from_one_client_port(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[b.at(8080)]);
        w.service(second, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).delivered_to(&b).shows(a.at(40000), b.at(8080));
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), second)).delivered_to(&b);
        assert!(out.counts[&Count::Clash] >= 1);
        let seen = out.seen();
        assert_eq!(seen.destination, b.at(8080));
        assert_eq!(seen.source.ip(), a.address);
        assert!(seen.source.port() >= 61_000, "another port for the client: {}", seen.source);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a).shows(first, a.at(40000));
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), seen.source)).delivered_to(&a).shows(second, a.at(40000));
        w.from_pod(&a, &Packet::ack(a.at(40000), second)).delivered_to(&b).shows(seen.source, b.at(8080));
        assert_eq!(w.entries(), 4);
    }

    BOTH a_clash_takes_another_backend_where_there_is_one(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[b.at(8080)]);
        w.service(second, 6, &[b.at(8080), b.at(8081)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).delivered_to(&b);
        let mut moved = 0;
        for _ in 0..20 {
            let seen = w.from_pod(&a, &Packet::syn(a.at(40000), second)).delivered_to(&b).seen();
            assert!(seen.destination == b.at(8081) || seen.source.port() >= 61_000, "{seen:?}");
            moved += usize::from(seen.destination == b.at(8081));
            w.evict_waiting(&tuple(6, a.at(40000), second));
            w.evict_waiting(&tuple(6, seen.destination, seen.source));
        }
        // Four tries miss one of two in a sixteenth of all cases.
        assert!(moved >= 10, "{moved} of 20");
    }

    BOTH a_direct_flow_that_clashes_with_a_service_flow_gets_another_port(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        let seen = w
            .from_pod(&a, &Packet::syn(a.at(40000), b.at(8080)))
            .delivered_to(&b)
            .counted(Count::Clash, 1)
            .seen();
        assert!(seen.source.port() >= 61_000, "{}", seen.source);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), seen.source)).delivered_to(&a).shows(b.at(8080), a.at(40000));
    }

    BOTH what_is_left_of_a_dead_flow_is_no_clash(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 53), at(w.family.cluster_ip(2), 53));
        w.service(first, 17, &[b.at(53)]);
        w.service(second, 17, &[b.at(53)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), first)).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a);
        for (from, to) in [(a.at(40000), first), (b.at(53), a.at(40000))] {
            let mut old = w.answered(17, from, to).unwrap();
            old.last_seen = now().wrapping_sub(3600);
            w.plant(tuple(17, from, to), old);
        }
        w.from_pod(&a, &Packet::udp(a.at(40000), second))
            .delivered_to(&b)
            .shows(a.at(40000), b.at(53))
            .counted(Count::Clash, 0);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_client_whose_every_port_is_taken_is_dropped_with_a_reason(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[b.at(8080)]);
        w.service(second, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).delivered_to(&b);
        let reply = w.waiting(6, b.at(8080), a.at(40000)).unwrap();
        for port in 61_000..=u16::MAX {
            w.plant(tuple(6, b.at(8080), a.at(port)), reply);
        }
        w.from_pod(&a, &Packet::syn(a.at(40000), second)).dropped(hook::FROM_POD, Reason::PortClash);
        let kept = w.waiting(6, b.at(8080), a.at(40000)).unwrap();
        assert_eq!(kept, reply, "nothing is overwritten");
    }

    BOTH a_last_hop_to_a_service_goes_to_the_stack_as_its_sender_knows_it(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip).hops(1)).passes_untouched();
    }
}
