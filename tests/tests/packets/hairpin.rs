//! A pod that reaches itself through its service: it sees the service as its client, an address that routes back to its link and is not
//! its own, which its stack would take for forged (Linux drops what comes in from an address of the host's own: `fib_validate_source`).

use std::net::SocketAddr;

use agent_common::{Count, GROUP_ANY, Reason, backend_state, flow_flag, hook, path, pod_flag};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;
use tests::packet::seen::Seen;
use tests::packet::world::{LocalPod, World};

/// Sets of the rows.
const EGRESS: u32 = 11;
const INGRESS: u32 = 12;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A segment of a protocol; UDP has no flags.
fn segment(protocol: u8, from: SocketAddr, to: SocketAddr, flags: u8) -> Packet {
    if protocol == TCP {
        Packet::tcp(from, to, flags)
    } else {
        Packet::udp(from, to)
    }
}

/// What the pod sees of its client may be there: an address that its route leads out for, and none that its stack refuses as a source.
fn credible(seen: &Seen, pod: &LocalPod, vip: SocketAddr) {
    let source = seen.source.ip();
    assert_eq!(
        source,
        vip.ip(),
        "the service's, so the way back is the way to the service"
    );
    assert_ne!(source, pod.address);
    assert!(
        !(source.is_loopback() || source.is_unspecified() || source.is_multicast()),
        "{source}"
    );
}

/// Both ways, as far as the stack is left out.
fn there_and_back(
    w: &mut World,
    pod: &LocalPod,
    vip: SocketAddr,
    protocol: u8,
    [ask, answer]: [u8; 2],
) {
    let (client, server, seen_as) = (pod.at(40000), pod.at(8080), at(vip.ip(), 40000));
    let out = w
        .from_pod(pod, &segment(protocol, client, vip, ask))
        .delivered_to(pod)
        .shows(seen_as, server);
    credible(&out.seen(), pod, vip);
    // The answer to the very source that the pod has seen.
    w.from_pod(pod, &segment(protocol, server, out.seen().source, answer))
        .delivered_to(pod)
        .shows(vip, client);
}

rows! {
    // Fails with mutant "no-hairpin".
    BOTH a_pod_reaches_itself_whatever_policy_says(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        for protocol in [TCP, UDP] {
            w.service(vip, protocol, &[a.at(8080)]);
        }
        for (egress, ingress) in [(false, false), (true, false), (false, true), (true, true)] {
            w.edit(&a, |p| (p.egress.flags, p.ingress.flags) = (0, 0));
            if egress {
                w.isolate_egress(&a, EGRESS);
            }
            if ingress {
                w.isolate_ingress(&a, INGRESS);
            }
            for protocol in [TCP, UDP] {
                let entry = |w: &World, from, to| w.answered(protocol, from, to).unwrap();
                there_and_back(w, &a, vip, protocol, [tcp::SYN, tcp::SYN | tcp::ACK]);
                let flags = entry(w, a.at(40000), vip).flags;
                assert_eq!(flags & (flow_flag::SELF | flow_flag::REPLY), flow_flag::SELF);
                let flags = entry(w, a.at(8080), at(vip.ip(), 40000)).flags;
                assert_eq!(flags & (flow_flag::SELF | flow_flag::REPLY), flow_flag::SELF | flow_flag::REPLY);
                // Something is taken away from the pod, but nothing that is between it and itself.
                w.raise_epoch(&a);
                there_and_back(w, &a, vip, protocol, [tcp::ACK; 2]);
                there_and_back(w, &a, vip, protocol, [tcp::FIN | tcp::ACK; 2]);
                assert_eq!(w.entries(), 2);
                if protocol == TCP {
                    assert_eq!(entry(w, a.at(40000), vip).closing, 1);
                    // And from the same port again.
                    there_and_back(w, &a, vip, protocol, [tcp::SYN, tcp::SYN | tcp::ACK]);
                }
                w.clear_flows();
            }
        }
        // To others its policy is what it was.
        let b = w.pod(2);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&b, &Packet::syn(b.at(40000), vip)).dropped(hook::FROM_POD, Reason::PolicyIngress);
    }

    BOTH through_the_stack_it_does_too(w) {
        let a = w.pod(1);
        w.edit(&a, |p| p.flags &= !pod_flag::REDIRECT);
        w.isolate_egress(&a, EGRESS);
        w.isolate_ingress(&a, INGRESS);
        let vip = at(w.family.cluster_ip(1), 80);
        let seen_as = at(vip.ip(), 40000);
        for protocol in [TCP, UDP] {
            w.service(vip, protocol, &[a.at(8080)]);
            for [ask, answer] in [[tcp::SYN, tcp::SYN | tcp::ACK], [tcp::ACK; 2]] {
                w.from_pod(&a, &segment(protocol, a.at(40000), vip, ask)).passes().shows(seen_as, a.at(8080));
                w.to_pod(&a, Via::Pod(&a), &segment(protocol, seen_as, a.at(8080), ask)).passes_untouched();
                w.from_pod(&a, &segment(protocol, a.at(8080), seen_as, answer)).passes().shows(vip, a.at(40000));
                w.to_pod(&a, Via::Pod(&a), &segment(protocol, vip, a.at(40000), answer)).passes_untouched();
            }
            assert_eq!(w.answered(protocol, a.at(40000), vip).unwrap().path, path::STACK);
            assert_eq!(w.entries(), 2);
            w.clear_flows();
        }
    }

    BOTH two_services_of_one_pod_are_two_clients_to_it(w) {
        let a = w.pod(1);
        let vips = [at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80)];
        for vip in vips {
            w.service(vip, UDP, &[a.at(8080)]);
        }
        for vip in vips {
            w.from_pod(&a, &Packet::udp(a.at(40000), vip))
                .delivered_to(&a)
                .shows(at(vip.ip(), 40000), a.at(8080))
                .counted(Count::Clash, 0);
        }
        for vip in vips {
            there_and_back(w, &a, vip, UDP, [0; 2]);
        }
        assert_eq!(w.entries(), 4);
    }

    // One port of a service and another, of one address, and one client port: the same two ends.
    BOTH two_ports_of_one_service_clash_and_are_told_apart(w) {
        let a = w.pod(1);
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(1), 81));
        w.service(first, UDP, &[a.at(8080)]);
        w.service(second, UDP, &[a.at(8080)]);
        there_and_back(w, &a, first, UDP, [0; 2]);
        let moved = w.from_pod(&a, &Packet::udp(a.at(40000), second)).delivered_to(&a).seen().source;
        assert_eq!(moved.ip(), second.ip());
        assert_ne!(moved.port(), 40000);
        w.from_pod(&a, &Packet::udp(a.at(8080), moved)).delivered_to(&a).shows(second, a.at(40000));
        there_and_back(w, &a, first, UDP, [0; 2]);
        assert_eq!(w.entries(), 4);
    }

    // Gossip: everybody sends from the port that everybody listens on. Fails with mutant "one-key-for-both".
    BOTH from_the_port_that_it_serves_it_gets_another_one(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for protocol in [TCP, UDP] {
            let vip = at(w.family.cluster_ip(protocol), 7946);
            let service = w.service(vip, protocol, &[a.at(7946), b.at(7946)]);
            w.resize(&service, 1);
            let [ask, answer] = [tcp::SYN, tcp::SYN | tcp::ACK];
            let seen = w.from_pod(&a, &segment(protocol, a.at(7946), vip, ask)).delivered_to(&a).seen();
            credible(&seen, &a, vip);
            assert_eq!(seen.destination, a.at(7946));
            assert_ne!(seen.source.port(), 7946, "two directions, two keys");
            w.from_pod(&a, &segment(protocol, a.at(7946), seen.source, answer)).delivered_to(&a).shows(vip, a.at(7946));
            assert_eq!(w.entries(), 2);
            let flow = w.answered(protocol, a.at(7946), vip).unwrap();
            assert_eq!(flow.flags & flow_flag::REPLY, 0, "the opener's entry");
            // So datagrams leave it once it does not serve any more.
            w.slot(&service, 0, service.backends[1]);
            w.backend(service.backends[0], |word| word.state = backend_state::NOT_SERVING);
            let to = if protocol == UDP { &b } else { &a };
            w.from_pod(&a, &segment(protocol, a.at(7946), vip, tcp::ACK)).delivered_to(to);
            w.clear_flows();
        }
    }

    BOTH among_several_backends_it_is_one(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, TCP, &[a.at(8080), b.at(8080)]);
        let mut own = 0;
        for port in 40000..40060 {
            let out = w.from_pod(&a, &Packet::syn(a.at(port), vip)).redirected();
            let seen = out.seen();
            if seen.destination == a.at(8080) {
                own += 1;
                out.shows(at(vip.ip(), port), a.at(8080));
            } else {
                out.shows(a.at(port), b.at(8080));
            }
        }
        assert!((1..60).contains(&own), "{own} of 60: all or none is met once in 10^17");
    }

    BOTH it_is_refused_like_any_client(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        for protocol in [TCP, UDP] {
            let service = w.service(vip, protocol, &[a.at(8080)]);
            there_and_back(w, &a, vip, protocol, [tcp::SYN, tcp::SYN | tcp::ACK]);
            w.resize(&service, 0);
            w.backend(service.backends[0], |word| word.state = backend_state::GONE);
            let reason = if protocol == TCP { Reason::BackendGone } else { Reason::NoEndpoint };
            let seen = w.from_pod(&a, &segment(protocol, a.at(40000), vip, tcp::ACK)).rejected(reason).seen();
            assert_eq!((seen.source.ip(), seen.destination.ip()), (vip.ip(), a.address));
            assert_eq!(w.entries(), 0);
        }
    }

    // Its own end of the flow is reached from its own link only.
    BOTH nobody_else_answers_in_its_place(w) {
        let (a, c) = (w.pod(1), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, UDP, &[a.at(8080)]);
        there_and_back(w, &a, vip, UDP, [0; 2]);
        let seen_as = at(vip.ip(), 40000);
        for (from, to) in [(a.at(8080), seen_as), (a.at(40000), vip), (seen_as, a.at(8080)), (vip, a.at(40000))] {
            w.from_pod(&c, &Packet::udp(from, to)).dropped(hook::FROM_POD, Reason::SourceSpoofed);
            w.from_uplink(&Packet::udp(from, to)).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        }
        there_and_back(w, &a, vip, UDP, [0; 2]);
        assert_eq!(w.entries(), 2);
    }

    // What comes of a router's client is the client's, be the router itself the backend.
    BOTH a_client_behind_a_router_keeps_its_address(w) {
        let a = w.pod(1);
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::Any);
        let (behind, vip) = (at(w.family.outside(7), 40000), at(w.family.cluster_ip(1), 80));
        w.service(vip, UDP, &[a.at(8080)]);
        w.from_pod(&a, &Packet::udp(behind, vip)).passes().shows(behind, a.at(8080));
        w.to_pod(&a, Via::Pod(&a), &Packet::udp(behind, a.at(8080))).passes_untouched();
        w.from_pod(&a, &Packet::udp(a.at(8080), behind)).passes().shows(vip, behind);
        there_and_back(w, &a, vip, UDP, [0; 2]);
    }
}
