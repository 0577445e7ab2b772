//! TCP connections that are older than what conntrack knows.

use agent_common::{Count, GROUP_ANY, Reason, flow_flag, hook, limits, path};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;

const SET: u32 = 11;

rows! {
    // Who had it is connected to a backend that nobody here knows; to be led to another would end it as surely, and later.
    BOTH the_answers_of_an_unknown_connection_to_a_service_begin_none(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        for isolated in [false, true] {
            if isolated {
                w.isolate_ingress(&a, SET);
            }
            w.to_pod(&a, Via::Uplink, &Packet::ack(vip, a.at(40000))).dropped(hook::TO_POD, Reason::SourceMartian);
            assert_eq!(w.entries(), 0);
        }
    }

    BOTH the_middle_of_a_connection_is_taken_up_in_its_own_orientation_and_in_the_stack(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80)))
            .passes_untouched()
            .counted(Count::MidstreamAdmitted, 1);
        let entry = w.waiting(6, a.at(40000), b.at(80)).unwrap();
        assert_eq!(entry.path, path::STACK);
        assert_eq!(entry.flags & (flow_flag::MIDSTREAM | flow_flag::REPLY), flow_flag::MIDSTREAM);
        w.from_pod(&b, &Packet::ack(b.at(80), a.at(40000))).passes_untouched().counted(Count::FlowReplied, 1);
    }

    BOTH an_answer_is_taken_up_in_the_reversed_orientation(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        // b may be opened to, and may open nothing.
        w.isolate_egress(&b, SET);
        w.from_pod(&b, &Packet::ack(b.at(80), a.at(40000)))
            .passes_untouched()
            .counted(Count::MidstreamAdmitted, 1);
        let entry = w.waiting(6, b.at(80), a.at(40000)).unwrap();
        assert_eq!(entry.flags & flow_flag::REPLY, flow_flag::REPLY);
        let opener = w.waiting(6, a.at(40000), b.at(80)).unwrap();
        assert_eq!((opener.opener, opener.responder, opener.ifindex), (a.slot, b.slot, a.ifindex));
        w.to_pod(&a, Via::Pod(&b), &Packet::ack(b.at(80), a.at(40000))).passes_untouched();
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).passes_untouched();
    }

    BOTH a_connection_that_no_orientation_allows_is_dropped(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, SET);
        w.isolate_ingress(&a, SET);
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::Midstream);
        w.to_pod(&a, Via::Uplink, &Packet::ack(at(w.family.outside(1), 80), a.at(40000)))
            .dropped(hook::TO_POD, Reason::Midstream);
        assert_eq!(w.entries(), 0);
    }

    BOTH an_answer_from_outside_is_taken_up_for_a_pod_that_may_open(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        w.isolate_ingress(&a, SET);
        w.isolate_egress(&a, SET + 1);
        w.allow(SET + 1, GROUP_ANY, Ports::One(6, 443));
        w.to_pod(&a, Via::Uplink, &Packet::ack(far, a.at(40000))).passes_untouched().counted(Count::MidstreamAdmitted, 1);
        assert_eq!(w.waiting(6, a.at(40000), far).unwrap().ifindex, a.ifindex);
        assert_eq!(w.waiting(6, far, a.at(40000)).unwrap().flags & flow_flag::REPLY, flow_flag::REPLY);
        w.from_pod(&a, &Packet::ack(a.at(40000), far)).passes_untouched();
        w.to_pod(&a, Via::Uplink, &Packet::ack(at(far.ip(), 444), a.at(40000))).dropped(hook::TO_POD, Reason::Midstream);
    }

    // Nothing is on the gate's other side here, so what is left to it is dropped, visibly.
    BOTH while_flows_move_what_is_unknown_is_left_to_the_other_layout(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.moving(limits::LAYOUT);
        let ack = Packet::ack(a.at(40000), b.at(80));
        w.from_pod(&a, &ack).dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
        w.to_pod(&b, Via::Pod(&a), &ack).dropped_untold(hook::TO_POD, Reason::RewriteFailed);
        let udp = Packet::udp(a.at(40000), b.at(53));
        w.from_pod(&a, &udp).dropped_untold(hook::FROM_POD, Reason::RewriteFailed);
        // Its way began at the other side; it is no opener here.
        let syn = Packet::syn(a.at(40001), b.at(80));
        w.to_pod(&b, Via::Pod(&a), &syn).dropped_untold(hook::TO_POD, Reason::RewriteFailed);
        // What opens is known not to be known, and what is known from then on.
        w.from_pod(&a, &syn).redirected();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40001))).redirected();
        w.from_pod(&a, &Packet::ack(a.at(40001), b.at(80))).redirected();
    }

    // The programs that flows move from read the same word.
    BOTH while_flows_move_away_nothing_is_left_to_the_other_layout(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.moving(limits::LAYOUT + 1);
        w.from_pod(&a, &Packet::ack(a.at(40000), b.at(80)))
            .passes_untouched()
            .counted(Count::MidstreamAdmitted, 1);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).redirected();
    }

    BOTH a_late_reset_is_no_new_connection_to_anybody_isolated(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&b, SET);
        w.isolate_egress(&b, SET);
        w.from_pod(&a, &Packet::tcp(a.at(40000), b.at(80), tcp::RST)).dropped(hook::FROM_POD, Reason::Midstream);
    }
}
