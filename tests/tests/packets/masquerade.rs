//! Services whose backends are outside, beside a stack that masquerades what leaves the cluster (`kubernetes.default`, databases): answers come to
//! this host's address at the uplink, and show what the backend sent only behind the stack, at the pod's link.

use agent_common::{Count, GROUP_ANY, Reason, hook};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::flows::tuple;
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;

/// Sets of the rows.
const EGRESS: u32 = 11;
const INGRESS: u32 = 12;
/// The port that the stack gave the connection.
const MASQUERADED: u16 = 61_234;

rows! {
    // Fails with mutant "masquerade-lost".
    BOTH an_answer_that_the_stack_gives_back_comes_from_the_service(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        let host = at(w.family.host(), MASQUERADED);
        let vips = [at(w.family.cluster_ip(1), 443), at(w.family.cluster_ip(2), 443)];
        for vip in vips {
            w.service(vip, 6, &[far]);
        }
        w.isolate_ingress(&a, INGRESS);
        w.from_pod(&a, &Packet::syn(a.at(40000), vips[0])).passes().shows(a.at(40000), far);
        // The same backend again, by a port that was rewritten.
        let moved = w.from_pod(&a, &Packet::syn(a.at(40000), vips[1])).passes().seen().source;
        assert_ne!(moved, a.at(40000));
        for (client, vip) in [(a.at(40000), vips[0]), (moved, vips[1])] {
            w.from_uplink(&Packet::syn_ack(far, host)).passes_untouched();
            w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, client))
                .passes()
                .shows(vip, a.at(40000))
                .counted(Count::FlowReplied, 1)
                .counted(Count::FlowCreated, 0);
            w.from_pod(&a, &Packet::ack(a.at(40000), vip).data(b"GET")).passes().shows(client, far);
            w.to_pod(&a, Via::Uplink, &Packet::ack(far, client).data(b"OK")).passes().shows(vip, a.at(40000));
            // Where nobody masquerades they come as they are.
            w.from_uplink(&Packet::ack(far, client)).passes().shows(vip, a.at(40000));
            w.to_pod(&a, Via::Uplink, &Packet::ack(vip, a.at(40000))).passes_untouched();
        }
        assert_eq!(w.entries(), 4);
        w.to_pod(&a, Via::Uplink, &Packet::tcp(far, a.at(40000), tcp::FIN | tcp::ACK)).passes().shows(vips[0], a.at(40000));
        assert_eq!(w.answered(6, far, a.at(40000)).unwrap().fin, 1);
        assert_eq!(w.answered(6, a.at(40000), vips[0]).unwrap().partner_fin, 1);
        assert_eq!(w.answered(6, a.at(40000), vips[1]).unwrap().partner_fin, 0);
    }

    BOTH so_do_datagrams_and_from_another_node(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 53);
        let node = at(w.family.node(), 5353);
        w.service(vip, 17, &[node]);
        w.isolate_ingress(&a, INGRESS);
        for replied in [1, 0] {
            w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes().shows(a.at(40000), node);
            w.to_pod(&a, Via::Uplink, &Packet::udp(node, a.at(40000)))
                .passes()
                .shows(vip, a.at(40000))
                .counted(Count::FlowReplied, replied);
        }
        assert_eq!(w.entries(), 2);
    }

    BOTH it_is_judged_as_its_flow_is(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        let vip = at(w.family.cluster_ip(1), 443);
        w.service(vip, 6, &[far]);
        w.isolate_egress(&a, EGRESS);
        w.isolate_ingress(&a, INGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::One(6, 443));
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).passes();
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, a.at(40000))).passes().shows(vip, a.at(40000));
        w.withdraw(EGRESS, GROUP_ANY, Ports::One(6, 443));
        w.raise_epoch(&a);
        let more = Packet::ack(far, a.at(40000));
        w.to_pod(&a, Via::Uplink, &more).dropped(hook::TO_POD, Reason::PolicyEgress);
        w.allow(EGRESS, GROUP_ANY, Ports::One(6, 443));
        w.to_pod(&a, Via::Uplink, &more).passes().shows(vip, a.at(40000)).counted(Count::FlowRejudged, 1);
        w.to_pod(&a, Via::Uplink, &more).passes().shows(vip, a.at(40000)).counted(Count::FlowRejudged, 0);
        // What answers nothing is what it was.
        w.to_pod(&a, Via::Uplink, &Packet::ack(at(far.ip(), 444), a.at(40000))).dropped(hook::TO_POD, Reason::Midstream);
        w.to_pod(&a, Via::Uplink, &Packet::udp(far, a.at(40000))).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    // Fails with mutant "opening-answers".
    BOTH what_begins_a_connection_answers_nothing(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        let host = at(w.family.host(), 8080);
        let vips = [at(w.family.cluster_ip(1), 443), at(w.family.cluster_ip(2), 443)];
        for (vip, backend) in vips.into_iter().zip([far, host]) {
            w.service(vip, 6, &[backend]);
            w.from_pod(&a, &Packet::syn(a.at(40000), vip)).passes().shows(a.at(40000), backend);
        }
        w.isolate_ingress(&a, INGRESS);
        // It would open a connection of its backend's own, which is judged as one.
        w.to_pod(&a, Via::Uplink, &Packet::syn(far, a.at(40000))).dropped(hook::TO_POD, Reason::PolicyIngress);
        // The host reaches its pods whatever policy says, as itself.
        w.to_pod(&a, Via::Host, &Packet::syn(host, a.at(40000))).passes_untouched().counted(Count::FlowReplied, 0);
        w.to_pod(&a, Via::Uplink, &Packet::syn_ack(far, a.at(40000))).passes().shows(vips[0], a.at(40000));
        w.to_pod(&a, Via::Host, &Packet::syn_ack(host, a.at(40000))).passes().shows(vips[1], a.at(40000));
    }

    BOTH half_of_its_flow_vouches_for_nothing(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[far]);
        w.isolate_ingress(&a, INGRESS);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes();
        w.evict_waiting(&tuple(17, a.at(40000), vip));
        w.to_pod(&a, Via::Uplink, &Packet::udp(far, a.at(40000))).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes().shows(a.at(40000), far);
        w.to_pod(&a, Via::Uplink, &Packet::udp(far, a.at(40000))).passes().shows(vip, a.at(40000));
    }
}
