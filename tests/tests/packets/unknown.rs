//! Pods whose address nobody knows for a while: its route went away with a link that went down, or the agent was just
//! starting. Their link tells whose policy holds.

use agent_common::{Count, Flow, GROUP_ANY, NO_SLOT, Reason, flow_flag, hook, pod_flag, set_flag};
use tests::packet::address::at;
use tests::packet::build::Packet;
use tests::packet::flows::tuple;
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;

const SET: u32 = 11;

rows! {
    BOTH a_flow_judged_while_its_responder_was_unknown_is_cut_by_a_later_denial(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        let (there, back) = (Packet::ack(far, b.at(80)), Packet::ack(b.at(80), far));
        w.to_pod(&b, Via::Uplink, &Packet::syn(far, b.at(80))).passes();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), far)).passes();
        w.forget_address(b.address);
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Uplink, &there).passes().counted(Count::FlowRejudged, 1);
        w.move_address(b.address, &b);
        w.isolate_ingress(&b, SET);
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Uplink, &there).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&b, &back).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.allow(SET, GROUP_ANY, Ports::Any);
        w.to_pod(&b, Via::Uplink, &there).passes().counted(Count::FlowRejudged, 1);
        w.from_pod(&b, &back).passes().counted(Count::FlowRejudged, 0);
    }

    BOTH a_flow_opened_while_its_responder_was_unknown_is_cut_by_a_later_denial(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        w.forget_address(b.address);
        w.to_pod(&b, Via::Uplink, &Packet::syn(far, b.at(80))).passes();
        let entry = w.waiting(6, b.at(80), far).unwrap();
        assert_eq!((entry.responder, entry.ifindex), (b.slot, b.ifindex));
        w.move_address(b.address, &b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), far)).passes().counted(Count::FlowReplied, 1);
        w.isolate_ingress(&b, SET);
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, b.at(80))).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&b, &Packet::ack(b.at(80), far)).dropped(hook::FROM_POD, Reason::PolicyIngress);
    }

    // Such entries are left behind by programs that asked the addresses alone.
    BOTH an_entry_that_knows_no_slot_at_the_pods_end_is_judged_with_the_next_packet(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        w.to_pod(&b, Via::Uplink, &Packet::syn(far, b.at(80))).passes();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), far)).passes();
        for (from, to) in [(far, b.at(80)), (b.at(80), far)] {
            let mut entry = w.answered(6, from, to).unwrap();
            entry.responder = NO_SLOT;
            w.plant(tuple(6, from, to), entry);
        }
        w.isolate_ingress(&b, SET);
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, b.at(80))).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&b, &Packet::ack(b.at(80), far)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.allow(SET, GROUP_ANY, Ports::Any);
        w.from_pod(&b, &Packet::ack(b.at(80), far)).passes().counted(Count::FlowRejudged, 1);
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, b.at(80))).passes().counted(Count::FlowRejudged, 0);
    }

    BOTH a_flow_judged_while_its_opener_was_unknown_is_cut_by_a_later_denial(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        w.from_pod(&a, &Packet::syn(a.at(40000), far)).passes();
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, a.at(40000))).passes();
        w.forget_address(a.address);
        w.raise_epoch(&a);
        w.to_pod(&a, Via::Uplink, &Packet::ack(far, a.at(40000))).passes();
        w.from_pod(&a, &Packet::ack(a.at(40000), far)).passes();
        w.move_address(a.address, &a);
        w.isolate_egress(&a, SET);
        w.raise_epoch(&a);
        w.from_pod(&a, &Packet::ack(a.at(40000), far)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.to_pod(&a, Via::Uplink, &Packet::ack(far, a.at(40000))).dropped(hook::TO_POD, Reason::PolicyEgress);
    }

    BOTH between_two_pods_the_end_that_was_unknown_is_judged_at_its_own_link(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (there, back) = (Packet::ack(a.at(40000), b.at(80)), Packet::ack(b.at(80), a.at(40000)));
        w.forget_address(b.address);
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).passes_untouched();
        assert_eq!(w.waiting(6, a.at(40000), b.at(80)).unwrap().responder, NO_SLOT);
        w.isolate_ingress(&b, SET);
        w.to_pod(&b, Via::Pod(&a), &syn).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.allow(SET, GROUP_ANY, Ports::Any);
        w.to_pod(&b, Via::Pod(&a), &syn).passes_untouched();
        w.move_address(b.address, &b);
        // The answer is one: it opens nothing of its own, which a denial of what b takes would not reach.
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000)))
            .passes_untouched()
            .counted(Count::FlowReplied, 1)
            .counted(Count::MidstreamAdmitted, 0);
        w.to_pod(&a, Via::Pod(&b), &Packet::syn_ack(b.at(80), a.at(40000))).passes_untouched();
        w.from_pod(&a, &there).passes_untouched();
        w.to_pod(&b, Via::Pod(&a), &there).passes_untouched();
        w.withdraw(SET, GROUP_ANY, Ports::Any);
        w.raise_epoch(&b);
        w.from_pod(&b, &back).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.from_pod(&a, &there).passes_untouched();
        w.to_pod(&b, Via::Pod(&a), &there).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    // Datagrams go on to an address that another pod has by now; so does what is judged: what it takes, not what it may open.
    BOTH a_pod_that_took_anothers_place_answers_its_flows_and_opens_none_by_that(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let far = at(w.family.outside(1), 40000);
        let clients = [(a.at(40000), Via::Pod(&a)), (far, Via::Uplink)];
        for (client, via) in clients {
            w.to_pod(&b, via, &Packet::udp(client, b.at(53))).passes();
            w.from_pod(&b, &Packet::udp(b.at(53), client));
            assert!(w.answered(17, client, b.at(53)).is_some());
        }
        w.detach(&b);
        w.move_address(b.address, &c);
        w.isolate_egress(&c, SET);
        w.raise_epoch(&c);
        for (client, via) in clients {
            w.to_pod(&c, via, &Packet::udp(client, b.at(53))).passes();
            w.from_pod(&c, &Packet::udp(b.at(53), client)).counted(Count::FlowCreated, 0);
            let entry = w.answered(17, b.at(53), client).unwrap();
            assert_eq!((entry.flags & flow_flag::REPLY, entry.responder), (flow_flag::REPLY, c.slot));
        }
        w.isolate_ingress(&c, SET + 1);
        w.raise_epoch(&c);
        for (client, via) in clients {
            w.to_pod(&c, via, &Packet::udp(client, b.at(53))).dropped(hook::TO_POD, Reason::PolicyIngress);
            w.from_pod(&c, &Packet::udp(b.at(53), client)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        }
    }

    BOTH a_pod_that_comes_back_in_another_slot_still_reaches_itself_through_its_service(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[a.at(8080)]);
        let hairpin = at(vip.ip(), 40000);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&a).shows(hairpin, a.at(8080));
        w.from_pod(&a, &Packet::syn_ack(a.at(8080), hairpin)).delivered_to(&a).shows(vip, a.at(40000));
        // The link went down and came up, and the slot that the pod had then is another's.
        for (from, to) in [(a.at(40000), vip), (a.at(8080), hairpin)] {
            let entry = w.answered(6, from, to).unwrap();
            let there = Flow { opener: b.slot, responder: b.slot, deliver: b.slot, ..entry };
            w.plant(tuple(6, from, to), there);
        }
        for _ in 0..2 {
            w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&a).shows(hairpin, a.at(8080));
            w.from_pod(&a, &Packet::ack(a.at(8080), hairpin)).delivered_to(&a).shows(vip, a.at(40000));
        }
        let entry = w.answered(6, a.at(40000), vip).unwrap();
        assert_eq!((entry.opener, entry.responder, entry.deliver), (a.slot, a.slot, a.slot));
        // As fast as before from then on.
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&a).counted(Count::FlowRejudged, 0);
    }

    BOTH the_policy_of_an_unknown_address_is_its_links(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        w.isolate_ingress(&b, SET);
        w.forget_address(b.address);
        let syn = Packet::syn(far, b.at(80));
        w.to_pod(&b, Via::Uplink, &syn).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.to_pod(&b, Via::Uplink, &Packet::udp(far, b.at(53))).dropped(hook::TO_POD, Reason::PolicyIngress);
        assert_eq!(w.entries(), 0);
        // The host reaches its pods whatever policy says, and goes on to.
        let host = at(w.family.host(), 1);
        w.to_pod(&b, Via::Host, &Packet::syn(host, b.at(80))).passes();
        assert_eq!(w.waiting(6, b.at(80), host).unwrap().ifindex, b.ifindex);
        w.move_address(b.address, &b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), host)).passes().counted(Count::FlowReplied, 1);
        w.to_pod(&b, Via::Host, &Packet::ack(host, b.at(80))).passes();
        // No source has told of the pod: denied for that, or open.
        let unknown = set_flag::ISOLATED | set_flag::UNKNOWN;
        w.forget_address(b.address);
        w.edit(&b, |p| (p.ingress.flags, p.egress.flags) = (unknown, unknown));
        w.to_pod(&b, Via::Uplink, &syn).dropped(hook::TO_POD, Reason::UnknownPod);
        w.edit(&b, |p| (p.ingress.flags, p.egress.flags) = (0, 0));
        w.to_pod(&b, Via::Uplink, &syn).passes();
    }

    BOTH the_middle_of_a_connection_is_taken_up_under_the_links_policy(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 443);
        let (there, back) = (Packet::ack(far, b.at(40000)), Packet::ack(b.at(40000), far));
        w.isolate_ingress(&b, SET);
        w.isolate_egress(&b, SET + 1);
        w.forget_address(b.address);
        w.to_pod(&b, Via::Uplink, &there).dropped(hook::TO_POD, Reason::Midstream);
        w.allow(SET + 1, GROUP_ANY, Ports::One(6, 443));
        w.to_pod(&b, Via::Uplink, &there).passes().counted(Count::MidstreamAdmitted, 1);
        let opener = w.waiting(6, b.at(40000), far).unwrap();
        assert_eq!((opener.opener, opener.responder, opener.ifindex), (b.slot, NO_SLOT, b.ifindex));
        w.move_address(b.address, &b);
        w.withdraw(SET + 1, GROUP_ANY, Ports::One(6, 443));
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Uplink, &there).dropped(hook::TO_POD, Reason::PolicyEgress);
        w.from_pod(&b, &back).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    // The first pod's mere end raises no epoch of its slot.
    BOTH a_pod_that_takes_over_an_address_takes_over_no_judgement(w) {
        let (b, c) = (w.pod(2), w.pod(3));
        let far = at(w.family.outside(1), 40000);
        w.to_pod(&b, Via::Uplink, &Packet::udp(far, b.at(53))).passes();
        w.from_pod(&b, &Packet::udp(b.at(53), far)).passes();
        w.isolate_ingress(&c, SET);
        w.move_address(b.address, &c);
        w.to_pod(&c, Via::Uplink, &Packet::udp(far, b.at(53))).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    BOTH a_pod_that_may_send_from_any_address_does_so_under_its_own_policy(w) {
        let a = w.pod(1);
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        w.isolate_egress(&a, SET);
        let (inner, far) = (at(w.family.outside(7), 1000), at(w.family.outside(1), 53));
        w.from_pod(&a, &Packet::udp(inner, far)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.allow(SET, GROUP_ANY, Ports::One(17, 53));
        w.from_pod(&a, &Packet::udp(inner, far)).passes();
        w.to_pod(&a, Via::Uplink, &Packet::udp(far, inner)).passes().counted(Count::FlowReplied, 1);
    }
}
