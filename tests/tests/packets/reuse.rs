//! Tuples that meet: two services with one backend, ports that are used again, openers on both sides, ends that have forgotten each other,
//! and flows that are silent for long.

use std::net::SocketAddr;

use agent_common::{Count, Reason, backend_state, flow_flag, hook, limits, path};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::flows::{now, tuple};
use tests::packet::outcome::{Outcome, Via};
use tests::packet::world::{LocalPod, Service, World};

/// Sets of the rows.
const EGRESS: u32 = 11;
const INGRESS: u32 = 12;
const FIN: u8 = tcp::FIN | tcp::ACK;

/// A client, and a service whose backend is the first of two pods; the other is there to be turned to.
struct Scene {
    client: LocalPod,
    backends: [LocalPod; 2],
    vip: SocketAddr,
    service: Service,
}

fn scene(w: &mut World) -> Scene {
    let (client, backends) = (w.pod(1), [w.pod(2), w.pod(3)]);
    let vip = at(w.family.cluster_ip(1), 80);
    let service = w.service(vip, 6, &backends.map(|pod| pod.at(8080)));
    w.resize(&service, 1);
    Scene {
        client,
        backends,
        vip,
        service,
    }
}

/// New flows go to the other backend.
fn turn(w: &mut World, scene: &Scene) {
    w.slot(&scene.service, 0, scene.service.backends[1]);
}

impl Scene {
    fn asker(&self) -> SocketAddr {
        self.client.at(40000)
    }

    /// The client sends a segment to the service, and this backend gets it.
    fn asks(&self, w: &mut World, flags: u8, backend: usize) -> Outcome {
        let to = &self.backends[backend];
        w.from_pod(&self.client, &Packet::tcp(self.asker(), self.vip, flags))
            .delivered_to(to)
            .shows(self.asker(), to.at(8080))
    }

    /// A backend sends a segment, and the client gets it from the service.
    fn answers(&self, w: &mut World, flags: u8, backend: usize) -> Outcome {
        let by = self.backends[backend];
        w.from_pod(&by, &Packet::tcp(by.at(8080), self.asker(), flags))
            .delivered_to(&self.client)
            .shows(self.vip, self.asker())
    }

    /// A whole connection, closed from both sides.
    fn over(&self, w: &mut World, backend: usize) {
        self.asks(w, tcp::SYN, backend)
            .counted(Count::FlowCreated, 1);
        self.answers(w, tcp::SYN | tcp::ACK, backend);
        self.asks(w, FIN, backend);
        self.answers(w, FIN, backend);
        self.asks(w, tcp::ACK, backend)
            .counted(Count::FlowCreated, 0);
        assert_eq!(w.answered(6, self.asker(), self.vip).unwrap().closing, 1);
        assert_eq!(w.entries(), 2);
    }
}

/// It is so many ticks since anybody heard of an answered flow, whose entries these are.
fn age(w: &mut World, protocol: u8, entries: [(SocketAddr, SocketAddr); 2], ticks: u32) {
    for (from, to) in entries {
        let mut old = w.answered(protocol, from, to).unwrap();
        old.last_seen = now().wrapping_sub(ticks);
        w.plant(tuple(protocol, from, to), old);
    }
}

rows! {
    // Fails with mutant "clash-unseen".
    BOTH datagrams_to_two_services_with_one_backend_are_two_flows(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 53), at(w.family.cluster_ip(2), 53));
        w.service(first, 17, &[b.at(5353)]);
        w.service(second, 17, &[b.at(5353)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), first)).delivered_to(&b).shows(a.at(40000), b.at(5353));
        let moved = w.from_pod(&a, &Packet::udp(a.at(40000), second)).delivered_to(&b).seen().source;
        assert_eq!(moved.ip(), a.address);
        assert!(moved.port() >= limits::PORT_FLOOR, "another port for the client: {moved}");
        let flags = |w: &World, to| w.waiting(17, a.at(40000), to).unwrap().flags & flow_flag::PORT_REWRITTEN;
        assert_eq!((flags(w, first), flags(w, second)), (0, flow_flag::PORT_REWRITTEN));
        for _ in 0..2 {
            w.from_pod(&b, &Packet::udp(b.at(5353), moved)).delivered_to(&a).shows(second, a.at(40000));
            w.from_pod(&b, &Packet::udp(b.at(5353), a.at(40000))).delivered_to(&a).shows(first, a.at(40000));
            w.from_pod(&a, &Packet::udp(a.at(40000), second)).delivered_to(&b).shows(moved, b.at(5353));
            w.from_pod(&a, &Packet::udp(a.at(40000), first)).delivered_to(&b).shows(a.at(40000), b.at(5353));
        }
        assert_eq!(w.entries(), 4);
    }

    BOTH so_they_are_with_a_backend_elsewhere(w) {
        let a = w.pod(1);
        let (far, _) = w.remote_pod(1);
        let far = at(far, 8080);
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[far]);
        w.service(second, 6, &[far]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).passes().shows(a.at(40000), far);
        let moved = w.from_pod(&a, &Packet::syn(a.at(40000), second)).passes().seen().source;
        assert_ne!(moved, a.at(40000));
        for (client, vip) in [(moved, second), (a.at(40000), first)] {
            w.from_uplink(&Packet::syn_ack(far, client)).passes().shows(vip, a.at(40000)).counted(Count::FlowReplied, 1);
            w.to_pod(&a, Via::Uplink, &Packet::syn_ack(vip, a.at(40000))).passes_untouched().counted(Count::FlowCreated, 0);
            w.from_pod(&a, &Packet::ack(a.at(40000), vip)).passes().shows(client, far);
            w.from_uplink(&Packet::ack(far, client)).passes().shows(vip, a.at(40000));
        }
        assert_eq!(w.entries(), 4);
    }

    BOTH one_of_two_ends_without_the_other(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (first, second) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(first, 6, &[b.at(8080)]);
        w.service(second, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), first)).delivered_to(&b);
        let moved = w.from_pod(&a, &Packet::syn(a.at(40000), second)).delivered_to(&b).seen().source;
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), moved)).delivered_to(&a);
        w.from_pod(&b, &Packet::tcp(b.at(8080), moved, tcp::RST)).delivered_to(&a).shows(second, a.at(40000));
        assert_eq!(w.answered(6, a.at(40000), second).unwrap().closing, 1);
        assert_eq!(w.answered(6, a.at(40000), first).unwrap().closing, 0);
        w.from_pod(&a, &Packet::ack(a.at(40000), first)).delivered_to(&b).shows(a.at(40000), b.at(8080));
        // The other begins anew, and clashes anew.
        let again = w.from_pod(&a, &Packet::syn(a.at(40000), second)).delivered_to(&b).counted(Count::FlowCreated, 1).seen().source;
        assert_ne!(again, a.at(40000));
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40000))).delivered_to(&a).shows(first, a.at(40000));
        assert_eq!(w.entries(), 4);
        // The first is over: what begins behind it may have its place.
        for flags in [FIN, tcp::RST] {
            w.from_pod(&a, &Packet::tcp(a.at(40000), first, flags)).delivered_to(&b);
        }
        w.from_pod(&a, &Packet::tcp(a.at(40000), second, tcp::RST)).delivered_to(&b);
        w.from_pod(&a, &Packet::syn(a.at(40000), second)).delivered_to(&b).shows(a.at(40000), b.at(8080)).counted(Count::Clash, 0);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a).shows(second, a.at(40000));
    }

    BOTH two_clients_with_one_port_do_not_clash(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        for client in [a, c] {
            w.from_pod(&client, &Packet::syn(client.at(40000), vip))
                .delivered_to(&b)
                .shows(client.at(40000), b.at(8080))
                .counted(Count::Clash, 0);
        }
        for client in [a, c] {
            w.from_pod(&b, &Packet::syn_ack(b.at(8080), client.at(40000))).delivered_to(&client).shows(vip, client.at(40000));
        }
    }

    // Fails with mutant "closed-for-good".
    BOTH a_port_used_again_within_time_wait_gets_a_backend_of_its_own(w) {
        let scene = scene(w);
        scene.over(w, 0);
        turn(w, &scene);
        scene.asks(w, tcp::SYN, 1)
            .counted(Count::FlowCreated, 1)
            .counted(Count::BackendChosen, 1)
            .counted(Count::ConntrackRemoved, 2);
        scene.answers(w, tcp::SYN | tcp::ACK, 1).counted(Count::FlowReplied, 1);
        scene.asks(w, tcp::ACK, 1);
        // What the first backend sends once more is not the new connection's.
        let [late, _] = scene.backends;
        let last = Packet::tcp(late.at(8080), scene.asker(), FIN);
        w.from_pod(&late, &last).passes_untouched().counted(Count::MidstreamAdmitted, 1);
        scene.asks(w, tcp::ACK, 1).counted(Count::FlowCreated, 0);
        assert_eq!(w.answered(6, scene.asker(), scene.vip).unwrap().closing, 0);
    }

    // The backend's socket is in TIME_WAIT, and holds the SYN for an old one: RFC 9293 3.10.7.4, RFC 6191.
    BOTH a_backend_that_remembers_the_last_connection_has_its_say(w) {
        let scene = scene(w);
        scene.over(w, 0);
        scene.asks(w, tcp::SYN, 0).counted(Count::FlowCreated, 1);
        scene.answers(w, tcp::ACK, 0).counted(Count::FlowReplied, 1);
        scene.asks(w, tcp::RST, 0);
        assert_eq!(w.answered(6, scene.asker(), scene.vip).unwrap().closing, 1);
        scene.asks(w, tcp::SYN, 0).counted(Count::FlowCreated, 1);
        scene.answers(w, tcp::SYN | tcp::ACK, 0);
        scene.asks(w, tcp::ACK, 0);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_port_is_used_again_between_pods_and_judged_again(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (there, back) = ((a.at(40000), b.at(80)), (b.at(80), a.at(40000)));
        for flags in [tcp::SYN, FIN, tcp::ACK] {
            w.from_pod(&a, &Packet::tcp(there.0, there.1, flags)).delivered_to(&b);
            if flags != tcp::ACK {
                w.from_pod(&b, &Packet::tcp(back.0, back.1, flags | tcp::ACK)).delivered_to(&a);
            }
        }
        // No epoch rises for what comes to be: only a new connection is judged by it.
        w.isolate_ingress(&b, INGRESS);
        w.from_pod(&a, &Packet::ack(there.0, there.1)).delivered_to(&b);
        w.from_pod(&a, &Packet::syn(there.0, there.1)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        assert_eq!(w.entries(), 0, "and nothing is left of the old");
    }

    BOTH who_was_called_may_call_back_and_is_judged_as_the_caller(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let over = |w: &mut World| {
            w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
            w.from_pod(&b, &Packet::tcp(b.at(80), a.at(40000), tcp::RST | tcp::ACK)).delivered_to(&a);
        };
        over(w);
        w.from_pod(&b, &Packet::syn(b.at(80), a.at(40000))).delivered_to(&a).counted(Count::FlowCreated, 1);
        let entry = w.waiting(6, b.at(80), a.at(40000)).unwrap();
        assert_eq!((entry.flags & flow_flag::REPLY, entry.opener, entry.responder), (0, b.slot, a.slot));
        w.clear_flows();
        over(w);
        w.isolate_egress(&b, EGRESS);
        w.from_pod(&b, &Packet::syn(b.at(80), a.at(40000))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        assert_eq!(w.entries(), 0);
    }

    BOTH a_port_is_used_again_from_outside(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        let comes = |w: &mut World, flags| {
            let packet = Packet::tcp(far, b.at(80), flags);
            w.from_uplink(&packet).passes_untouched();
            w.to_pod(&b, Via::Uplink, &packet)
        };
        comes(w, tcp::SYN).passes_untouched().counted(Count::FlowCreated, 1);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), far)).passes_untouched();
        comes(w, FIN).passes_untouched();
        w.from_pod(&b, &Packet::tcp(b.at(80), far, FIN)).passes_untouched();
        comes(w, tcp::ACK).passes_untouched().counted(Count::FlowCreated, 0);
        comes(w, tcp::SYN).passes_untouched().counted(Count::FlowCreated, 1).counted(Count::ConntrackRemoved, 2);
        w.from_pod(&b, &Packet::tcp(b.at(80), far, tcp::RST | tcp::ACK)).passes_untouched();
        w.isolate_ingress(&b, INGRESS);
        comes(w, tcp::SYN).dropped(hook::TO_POD, Reason::PolicyIngress);
        assert_eq!(w.entries(), 0);
    }

    // RFC 9293 3.5, figure 7: one connection that both began.
    BOTH an_open_from_both_sides_is_one_connection(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (there, back) = ((a.at(40000), b.at(40001)), (b.at(40001), a.at(40000)));
        // Each may be called by nobody, and one may call nobody.
        w.isolate_ingress(&a, INGRESS);
        w.isolate_egress(&b, EGRESS);
        w.from_pod(&b, &Packet::syn(back.0, back.1)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &Packet::syn(there.0, there.1)).delivered_to(&b).counted(Count::FlowCreated, 1);
        w.from_pod(&b, &Packet::syn(back.0, back.1))
            .delivered_to(&a)
            .counted(Count::FlowCreated, 0)
            .counted(Count::FlowReplied, 1);
        w.from_pod(&a, &Packet::syn_ack(there.0, there.1)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(back.0, back.1)).delivered_to(&a);
        w.from_pod(&a, &Packet::ack(there.0, there.1)).delivered_to(&b);
        let entry = w.answered(6, there.0, there.1).unwrap();
        assert_eq!((entry.opener, entry.flags & flow_flag::REPLY, entry.closing), (a.slot, 0, 0));
        assert_eq!(w.entries(), 2);
        // Both close at once, too.
        w.from_pod(&a, &Packet::tcp(there.0, there.1, FIN)).delivered_to(&b);
        w.from_pod(&b, &Packet::tcp(back.0, back.1, FIN)).delivered_to(&a);
        w.from_pod(&a, &Packet::ack(there.0, there.1)).delivered_to(&b);
        w.from_pod(&b, &Packet::ack(back.0, back.1)).delivered_to(&a);
        assert_eq!(w.answered(6, there.0, there.1).unwrap().closing, 1);
    }

    BOTH an_open_from_both_sides_of_the_uplink_is_one_connection(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 40001);
        w.isolate_ingress(&a, INGRESS);
        let theirs = Packet::syn(far, a.at(40000));
        w.from_uplink(&theirs).passes_untouched();
        w.to_pod(&a, Via::Uplink, &theirs).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&a, &Packet::syn(a.at(40000), far)).passes_untouched().counted(Count::FlowCreated, 1);
        w.from_uplink(&theirs).passes_untouched().counted(Count::FlowReplied, 1);
        w.to_pod(&a, Via::Uplink, &theirs).passes_untouched().counted(Count::FlowCreated, 0);
        w.from_pod(&a, &Packet::syn_ack(a.at(40000), far)).passes_untouched();
        assert_eq!(w.entries(), 2);
    }

    // A client that lost its connection and does not know asks from the same port: the backend tells it, and is then left.
    BOTH a_syn_in_a_live_connection_goes_to_its_backend_which_resets(w) {
        let scene = scene(w);
        scene.asks(w, tcp::SYN, 0);
        scene.answers(w, tcp::SYN | tcp::ACK, 0);
        scene.asks(w, tcp::ACK, 0);
        turn(w, &scene);
        scene.asks(w, tcp::SYN, 0).counted(Count::FlowCreated, 0);
        scene.answers(w, tcp::ACK, 0);
        scene.asks(w, tcp::RST, 0);
        scene.asks(w, tcp::SYN, 1).counted(Count::FlowCreated, 1);
        assert_eq!(w.entries(), 2);
    }

    BOTH what_a_client_sends_after_its_backends_reset_is_reset_there(w) {
        let scene = scene(w);
        scene.asks(w, tcp::SYN, 0);
        scene.answers(w, tcp::SYN | tcp::ACK, 0);
        scene.answers(w, tcp::RST, 0);
        assert_eq!(w.answered(6, scene.asker(), scene.vip).unwrap().closing, 1);
        turn(w, &scene);
        // The reset was lost on the way: the client goes on, and learns of it from who knows.
        for _ in 0..2 {
            scene.asks(w, tcp::PSH | tcp::ACK, 0);
            scene.answers(w, tcp::RST, 0);
        }
        assert_eq!(w.entries(), 2);
        // Once the flow is collected, from us, as the service.
        w.clear_flows();
        let late = Packet::ack(scene.asker(), scene.vip).numbers(5, 77);
        let out = w.from_pod(&scene.client, &late).rejected(Reason::Midstream).shows(scene.vip, scene.asker());
        assert_eq!(out.seen().bare_segment().unwrap(), (77, 0, tcp::RST));
        scene.asks(w, tcp::SYN, 1).counted(Count::FlowCreated, 1);
    }

    BOTH a_connection_refused_by_one_backend_is_not_bound_to_it(w) {
        let scene = scene(w);
        scene.asks(w, tcp::SYN, 0);
        scene.answers(w, tcp::RST | tcp::ACK, 0).counted(Count::FlowReplied, 1);
        turn(w, &scene);
        scene.asks(w, tcp::SYN, 1).counted(Count::BackendChosen, 1);
        assert_eq!(w.answered(6, scene.backends[0].at(8080), scene.asker()), None);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_flow_that_was_idle_for_longer_than_it_may_goes_on_while_it_is_there(w) {
        let scene = scene(w);
        let backend = scene.backends[0];
        scene.asks(w, tcp::SYN, 0);
        scene.answers(w, tcp::SYN | tcp::ACK, 0);
        turn(w, &scene);
        let both = [(scene.asker(), scene.vip), (backend.at(8080), scene.asker())];
        let idle = agent_common::clock::ticks(limits::TCP_ESTABLISHED_SECONDS) + 10;
        let fresh = |w: &World| {
            for (from, to) in both {
                let seen = w.answered(6, from, to).unwrap().last_seen;
                assert!(now().wrapping_sub(seen) <= 1, "{from} to {to}");
            }
        };
        age(w, 6, both, idle);
        scene.asks(w, tcp::ACK, 0).counted(Count::FlowCreated, 0);
        fresh(w);
        age(w, 6, both, idle);
        scene.answers(w, tcp::ACK, 0);
        fresh(w);
        // Until somebody else needs its place, see timeouts.rs.
        age(w, 6, both, idle);
        let second = at(w.family.cluster_ip(2), 80);
        w.service(second, 6, &[backend.at(8080)]);
        w.from_pod(&scene.client, &Packet::syn(scene.asker(), second))
            .delivered_to(&backend)
            .shows(scene.asker(), backend.at(8080))
            .counted(Count::Clash, 0)
            .counted(Count::ConntrackRemoved, 2);
        let late = Packet::ack(scene.asker(), scene.vip).numbers(5, 77);
        w.from_pod(&scene.client, &late).rejected(Reason::Midstream);
    }

    BOTH a_connection_that_was_forgotten_for_its_silence_is_taken_up(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).delivered_to(&a);
        w.clear_flows();
        // Who was called speaks first, and may open nothing.
        w.isolate_egress(&b, EGRESS);
        w.from_pod(&b, &Packet::ack(b.at(80), a.at(40000)).data(b"still there"))
            .passes_untouched()
            .counted(Count::MidstreamAdmitted, 1);
        let entry = w.waiting(6, a.at(40000), b.at(80)).unwrap();
        assert_eq!((entry.opener, entry.path), (a.slot, path::STACK));
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).passes_untouched();
        // A datagram says nothing of who began.
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH half_of_a_flow_makes_room_for_all_of_it(w) {
        let scene = scene(w);
        let backend = scene.backends[0];
        scene.asks(w, tcp::SYN, 0);
        scene.answers(w, tcp::SYN | tcp::ACK, 0);
        w.evict(&tuple(6, scene.asker(), scene.vip));
        w.from_pod(&scene.client, &Packet::ack(scene.asker(), scene.vip)).rejected(Reason::Midstream);
        scene.asks(w, tcp::SYN, 0).counted(Count::FlowCreated, 1).counted(Count::Clash, 0);
        scene.answers(w, tcp::SYN | tcp::ACK, 0).counted(Count::FlowReplied, 1);
        assert_eq!(w.entries(), 2);
        w.evict(&tuple(6, backend.at(8080), scene.asker()));
        // What the backend sends is then in its own name: the client does not know it, and resets it.
        let more = Packet::ack(backend.at(8080), scene.asker());
        w.from_pod(&backend, &more).passes_untouched().counted(Count::MidstreamAdmitted, 1);
        scene.asks(w, tcp::ACK, 0).counted(Count::FlowCreated, 0);
    }

    BOTH datagrams_leave_a_port_that_others_used(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 53);
        let service = w.service(vip, 17, &[b.at(53), c.at(53)]);
        w.resize(&service, 1);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        // The same client asks the backend itself, from the same port.
        let own = w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b).counted(Count::Clash, 1).seen().source;
        assert_ne!(own, a.at(40000));
        w.slot(&service, 0, service.backends[1]);
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&c).counted(Count::BackendChosen, 1);
        // Its direct flow stays what it was.
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b).shows(own, b.at(53)).counted(Count::FlowCreated, 0);
        w.from_pod(&b, &Packet::udp(b.at(53), own)).delivered_to(&a).shows(b.at(53), a.at(40000));
        assert_eq!(w.entries(), 4);
    }
}
