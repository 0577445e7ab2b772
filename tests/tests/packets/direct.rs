//! From pod to pod on one node, without a service between them.

use std::time::Duration;

use agent_common::{Count, Reason, flow_flag, hook, path, pod_flag};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::flows::{now, tuple};
use tests::packet::outcome::Via;
use tests::packet::world::World;

/// Between two looks at the clock: longer than from one interrupt of any kernel's timer to the next (10 ms at 100 a second).
const LOOK: Duration = Duration::from_millis(20);

rows! {
    BOTH the_first_packet_of_a_flow_goes_straight_into_the_other_pod(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)))
            .delivered_to(&b)
            .shows(a.at(40000), b.at(80))
            .counted(Count::FlowCreated, 1);
        let forward = w.waiting(6, a.at(40000), b.at(80)).expect("the opener's entry");
        let reply = w.waiting(6, b.at(80), a.at(40000)).expect("the responder's entry");
        assert_eq!((forward.path, reply.path), (path::PEER, path::PEER));
        assert_eq!((forward.deliver, reply.deliver), (b.slot, a.slot));
        assert_eq!((forward.opener, forward.responder), (a.slot, b.slot));
        assert_eq!((forward.ifindex, reply.ifindex), (a.ifindex, b.ifindex));
        assert_eq!(forward.flags & (flow_flag::REPLY | flow_flag::TRANSLATE), 0);
        assert_eq!(reply.flags & flow_flag::REPLY, flow_flag::REPLY);
        assert_eq!(w.entries(), 2);
    }

    BOTH the_first_answer_moves_the_flow_to_conntrack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000)))
            .delivered_to(&a)
            .counted(Count::FlowReplied, 1)
            .counted(Count::FlowCreated, 0);
        assert!(w.waiting(6, a.at(40000), b.at(80)).is_none());
        assert!(w.waiting(6, b.at(80), a.at(40000)).is_none());
        assert!(w.answered(6, a.at(40000), b.at(80)).is_some());
        assert!(w.answered(6, b.at(80), a.at(40000)).is_some());
    }

    BOTH an_established_flow_goes_on_both_ways_and_counts_nothing(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a);
        for (from, to, there, back) in [(a, b, 40000, 53), (b, a, 53, 40000)] {
            let out = w.from_pod(&from, &Packet::udp(from.at(there), to.at(back))).delivered_to(&to);
            assert!(out.counts.is_empty(), "{:?}", out.counts);
        }
        assert_eq!(w.entries(), 2);
    }

    BOTH a_repeated_first_packet_makes_no_second_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).delivered_to(&b);
        w.from_pod(&a, &syn).delivered_to(&b).counted(Count::FlowCreated, 0);
        assert_eq!(w.entries(), 2);
    }

    BOTH an_echo_and_its_answer_are_one_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::ping(a.address, b.address, 7)).delivered_to(&b);
        w.from_pod(&b, &Packet::pong(b.address, a.address, 7))
            .delivered_to(&a)
            .counted(Count::FlowReplied, 1);
        assert_eq!(w.entries(), 2);
    }

    BOTH sctp_goes_straight_too(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::sctp(a.at(4000), b.at(5000))).delivered_to(&b);
        w.from_pod(&b, &Packet::sctp(b.at(5000), a.at(4000)))
            .delivered_to(&a)
            .counted(Count::FlowReplied, 1);
    }

    BOTH a_protocol_without_ports_is_a_flow_by_its_addresses(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::other(a.address, b.address, 47)).delivered_to(&b);
        w.from_pod(&b, &Packet::other(b.address, a.address, 47)).delivered_to(&a);
        assert_eq!(w.entries(), 2);
    }

    V4 options_of_the_ip_header_are_walked_and_kept(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)).ip_options(&[1; 40])).delivered_to(&b);
        assert!(w.waiting(6, a.at(40000), b.at(80)).is_some());
    }

    BOTH bytes_behind_the_ip_packet_do_no_harm(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let out = w.from_pod(&a, &Packet::udp(a.at(1), b.at(2)).padded(9)).redirected();
        assert_eq!(out.frame.len(), out.sent.len());
    }

    BOTH the_last_hop_is_left_to_the_stack_which_tells_the_sender(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for hops in [0, 1] {
            w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)).hops(hops)).passes_untouched();
        }
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)).hops(2)).delivered_to(&b);
    }

    BOTH a_link_that_takes_no_redirect_is_served_by_the_stack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.edit(&b, |p| p.flags &= !pod_flag::REDIRECT);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).passes_untouched();
        w.to_pod(&b, Via::Pod(&a), &Packet::syn(a.at(40000), b.at(80)))
            .passes_untouched()
            .counted(Count::FlowCreated, 0);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000)))
            .passes_untouched()
            .counted(Count::FlowReplied, 1);
        w.to_pod(&a, Via::Pod(&b), &Packet::syn_ack(b.at(80), a.at(40000))).passes_untouched();
        assert_eq!(w.entries(), 2);
    }

    // Somebody else's translation on the way (a host port, a service of kube-proxy's) must see the answers too.
    BOTH a_flow_that_came_through_the_stack_is_answered_through_the_stack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.to_pod(&b, Via::Pod(&a), &Packet::syn(a.at(40000), b.at(80)))
            .passes_untouched()
            .counted(Count::FlowCreated, 1);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).passes_untouched();
        let reply = w.answered(6, b.at(80), a.at(40000)).expect("the responder's entry");
        assert_eq!(reply.path, path::STACK);
    }

    BOTH a_flow_to_an_unknown_address_stays_in_the_stack(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(9), 443);
        w.from_pod(&a, &Packet::syn(a.at(40000), far)).passes_untouched();
        w.from_uplink(&Packet::syn_ack(far, a.at(40000)))
            .passes_untouched()
            .counted(Count::FlowReplied, 1);
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, a.at(40000))).passes_untouched();
        assert_eq!(w.answered(6, far, a.at(40000)).expect("its entry").ifindex, 0);
    }

    BOTH a_pod_that_speaks_to_itself_is_no_business_of_policy(w) {
        let a = w.pod(1);
        w.isolate_egress(&a, 1);
        w.isolate_ingress(&a, 2);
        w.from_pod(&a, &Packet::syn(a.at(40000), a.at(80))).redirected();
    }

    BOTH a_fin_of_each_side_closes_both_entries_and_a_syn_begins_anew(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).redirected();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).redirected();
        w.from_pod(&a, &Packet::tcp(a.at(40000), b.at(80), tcp::FIN | tcp::ACK)).redirected();
        let (there, back) = (
            w.answered(6, a.at(40000), b.at(80)).unwrap(),
            w.answered(6, b.at(80), a.at(40000)).unwrap(),
        );
        assert_eq!((there.fin, there.partner_fin, there.closing), (1, 0, 0));
        assert_eq!((back.fin, back.partner_fin, back.closing), (0, 1, 0));
        w.from_pod(&b, &Packet::tcp(b.at(80), a.at(40000), tcp::FIN | tcp::ACK)).redirected();
        for entry in [w.answered(6, a.at(40000), b.at(80)), w.answered(6, b.at(80), a.at(40000))] {
            let entry = entry.unwrap();
            assert_eq!((entry.fin, entry.partner_fin, entry.closing), (1, 1, 1));
        }
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).redirected().counted(Count::FlowCreated, 0);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).redirected().counted(Count::FlowCreated, 1);
        assert_eq!(w.waiting(6, a.at(40000), b.at(80)).unwrap().closing, 0);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_reset_closes_both_entries(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).redirected();
        w.from_pod(&b, &Packet::tcp(b.at(80), a.at(40000), tcp::RST | tcp::ACK)).redirected();
        for entry in [w.answered(6, a.at(40000), b.at(80)), w.answered(6, b.at(80), a.at(40000))] {
            assert_eq!(entry.expect("it was an answer").closing, 1);
        }
    }

    BOTH a_fin_through_the_stack_marks_the_side_that_sent_it(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(9), 443);
        w.from_pod(&a, &Packet::syn(a.at(40000), far)).passes();
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, a.at(40000))).passes();
        w.to_pod(&a, Via::Uplink, &Packet::tcp(far, a.at(40000), tcp::FIN | tcp::ACK)).passes();
        let there = w.answered(6, a.at(40000), far).unwrap();
        let back = w.answered(6, far, a.at(40000)).unwrap();
        assert_eq!((there.fin, there.partner_fin), (0, 1));
        assert_eq!((back.fin, back.partner_fin), (1, 0));
    }

    BOTH a_packet_keeps_both_entries_alive(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).redirected();
        for (from, to) in [(a.at(40000), b.at(53)), (b.at(53), a.at(40000))] {
            let mut old = w.answered(17, from, to).unwrap();
            old.last_seen = now().wrapping_sub(50);
            w.plant(tuple(17, from, to), old);
        }
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
        for (from, to) in [(a.at(40000), b.at(53)), (b.at(53), a.at(40000))] {
            let seen = w.answered(17, from, to).unwrap().last_seen;
            assert!(now() - seen <= 1, "last seen {} ticks ago", now() - seen);
        }
    }

    // Fails with mutant "clock-moves".
    V4 the_programs_clock_goes_on_between_packets(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).redirected();
        let seen = |w: &World| w.answered(17, a.at(40000), b.at(53)).unwrap().last_seen;
        let first = seen(w);
        while now() == first {
            std::thread::sleep(LOOK);
        }
        // The programs ask for the time once in an interrupt of the timer, which this one may still be.
        std::thread::sleep(LOOK);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
        assert_ne!(seen(w), first);
    }

    BOTH an_interface_without_a_slot_is_left_alone(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let stranger = w.family.outside(3);
        w.detach(&a);
        w.from_pod(&a, &Packet::syn(at(stranger, 1), b.at(80))).passes_untouched();
        w.to_pod(&a, Via::Uplink, &Packet::syn(at(stranger, 1), a.at(80))).passes_untouched();
        assert_eq!(w.entries(), 0);
    }

    BOTH a_flow_to_a_pod_that_has_ended_goes_to_the_stack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).redirected();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).redirected();
        w.edit(&b, |p| (p.ifindex, p.flags) = (0, 0));
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).passes_untouched();
    }

    BOTH an_address_that_moved_to_another_link_begins_anew_there(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).redirected();
        w.move_address(a.address, &c);
        w.from_pod(&c, &Packet::udp(a.at(40000), b.at(53)))
            .delivered_to(&b)
            .counted(Count::FlowCreated, 1);
        assert_eq!(w.waiting(17, a.at(40000), b.at(53)).unwrap().ifindex, c.ifindex);
        assert_eq!(w.waiting(17, b.at(53), a.at(40000)).unwrap().deliver, c.slot);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        assert_eq!(w.entries(), 2);
    }

    BOTH the_kernel_may_evict_the_answers_entry_of_a_waiting_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.edit(&b, |p| p.flags &= !pod_flag::REDIRECT);
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).passes();
        w.evict_waiting(&tuple(6, b.at(80), a.at(40000)));
        w.to_pod(&b, Via::Pod(&a), &syn).passes_untouched().counted(Count::FlowCreated, 1);
        assert_eq!(w.entries(), 2);
    }

    BOTH the_kernel_may_evict_the_openers_entry_of_a_waiting_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).redirected();
        w.evict_waiting(&tuple(6, a.at(40000), b.at(80)));
        w.from_pod(&a, &syn).delivered_to(&b).counted(Count::FlowCreated, 1);
        assert_eq!(w.entries(), 2);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).delivered_to(&a);
    }

    BOTH an_upgrade_that_leaves_a_slot_empty_drops_with_a_reason(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.unload(hook::slot::NEW_FROM_POD);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)))
            .dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
    }

    BOTH a_hook_without_a_program_is_as_if_nothing_were_attached(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.unload(hook::FROM_POD);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).passes_untouched();
    }

    BOTH an_entry_that_asks_for_what_cannot_be_done_drops_with_a_reason(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let packet = Packet::other(a.address, b.address, 47);
        w.from_pod(&a, &packet).redirected();
        let mut flow = w.waiting(47, a.at(0), b.at(0)).unwrap();
        flow.flags |= flow_flag::TRANSLATE;
        w.plant(tuple(47, a.at(0), b.at(0)), flow);
        w.from_pod(&a, &packet)
            .dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
    }
}
