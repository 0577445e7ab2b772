//! Flows of which the kernel has evicted one entry alone: nothing is taken for what it is not because of that, and the client's next packet mends it.

use agent_common::{Count, Reason, hook, limits};
use tests::packet::address::at;
use tests::packet::build::Packet;
use tests::packet::flows::tuple;
use tests::packet::outcome::Via;

const SET: u32 = 11;

rows! {
    // Fails with mutant "service-opens".
    BOTH a_service_opens_nothing(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        let client = a.at(40000);
        for (protocol, question, answer, translated) in [
            (17, Packet::udp(client, vip), Packet::udp(far, client), Packet::udp(vip, client)),
            (6, Packet::syn(client, vip), Packet::syn_ack(far, client), Packet::syn_ack(vip, client)),
        ] {
            w.service(vip, protocol, &[far]);
            w.from_pod(&a, &question).passes().shows(client, far);
            w.evict_waiting(&tuple(protocol, client, vip));
            w.from_uplink(&answer).passes().shows(vip, client);
            w.to_pod(&a, Via::Uplink, &translated).dropped(hook::TO_POD, Reason::SourceMartian);
            assert_eq!(w.waiting(protocol, client, vip), None);
            // With its half there again all is as if nothing had been.
            w.from_pod(&a, &question).passes().shows(client, far);
            w.from_uplink(&answer).passes().shows(vip, client).counted(Count::FlowReplied, 1);
            w.to_pod(&a, Via::Uplink, &translated).passes_untouched();
            w.from_pod(&a, &question).passes().shows(client, far);
        }
        assert_eq!(w.entries(), 4);
    }

    BOTH an_address_that_opened_a_flow_and_became_a_services_is_asked_as_one(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        w.to_pod(&a, Via::Uplink, &Packet::udp(vip, a.at(40000))).passes_untouched();
        w.service(vip, 17, &[far]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes().shows(a.at(40000), far);
        assert_eq!(w.entries(), 2);
    }

    // Fails with mutant "half-of-a-flow".
    BOTH the_openers_half_alone_begins_anew(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        let client = a.at(40000);
        w.service(vip, 17, &[far]);
        let (question, answer) = (Packet::udp(client, vip), Packet::udp(far, client));
        w.from_pod(&a, &question).passes().shows(client, far);
        w.evict_waiting(&tuple(17, far, client));
        // Nobody knows it for an answer: it looks like a flow that the backend opens.
        w.from_uplink(&answer).passes_untouched();
        w.to_pod(&a, Via::Uplink, &answer).passes_untouched().counted(Count::FlowCreated, 1);
        let out = w.from_pod(&a, &question).passes().counted(Count::UnrepliedRemoved, 1).counted(Count::FlowCreated, 1);
        let moved = out.seen().source;
        assert_ne!(moved, client, "that one is alive, and has the ends");
        w.from_uplink(&Packet::udp(far, moved)).passes().shows(vip, client);
        w.to_pod(&a, Via::Uplink, &Packet::udp(vip, client)).passes_untouched();
        w.from_pod(&a, &question).passes().shows(moved, far).counted(Count::FlowCreated, 0);
        w.from_pod(&a, &Packet::udp(client, far)).passes_untouched();
        assert_eq!(w.entries(), 4);
    }

    BOTH under_policy_too(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        let client = a.at(40000);
        w.isolate_ingress(&a, SET);
        for (protocol, question, answer) in [
            (17, Packet::udp(client, vip), Packet::udp(far, client)),
            (6, Packet::syn(client, vip), Packet::syn_ack(far, client)),
        ] {
            w.service(vip, protocol, &[far]);
            w.from_pod(&a, &question).passes().shows(client, far);
            w.evict_waiting(&tuple(protocol, far, client));
            w.from_pod(&a, &question).passes().shows(client, far).counted(Count::UnrepliedRemoved, 1);
            w.from_uplink(&answer).passes().shows(vip, client).counted(Count::FlowReplied, 1);
        }
        assert_eq!(w.entries(), 4);
    }

    BOTH a_connection_of_which_the_answers_half_is_gone_is_reset_and_begins_anew(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        let vip = at(w.family.cluster_ip(1), 443);
        w.service(vip, 6, &[far]);
        w.from_pod(&a, &Packet::syn(a.at(39999), vip)).passes();
        w.from_uplink(&Packet::syn_ack(far, a.at(39999))).passes();
        // No room for another one: its halves stay where a scan evicts them.
        w.limit_share(&a, 0);
        let client = a.at(40000);
        w.from_pod(&a, &Packet::syn(client, vip)).passes();
        w.from_uplink(&Packet::syn_ack(far, client)).passes().shows(vip, client).counted(Count::ConntrackShare, 1);
        w.from_pod(&a, &Packet::ack(client, vip)).passes().shows(client, far);
        w.evict_waiting(&tuple(6, far, client));
        w.from_pod(&a, &Packet::ack(client, vip).numbers(5, 77)).rejected(Reason::Midstream);
        assert_eq!(w.entries(), 2);
        w.from_pod(&a, &Packet::syn(client, vip)).passes().shows(client, far);
    }

    BOTH an_answer_without_the_openers_half_finds_its_way_and_begins_nothing(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[b.at(53)]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.evict_waiting(&tuple(17, a.at(40000), vip));
        let answer = Packet::udp(b.at(53), a.at(40000));
        w.from_pod(&b, &answer).delivered_to(&a).shows(vip, a.at(40000)).counted(Count::FlowCreated, 0);
        assert_eq!(w.entries(), 1);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &answer).delivered_to(&a).shows(vip, a.at(40000)).counted(Count::FlowReplied, 1);
    }

    // Its other half is on its way from the tables of the other layout.
    BOTH while_flows_move_half_a_flow_goes_on(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 53);
        let vip = at(w.family.cluster_ip(1), 53);
        w.service(vip, 17, &[far]);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip)).passes();
        w.evict_waiting(&tuple(17, far, a.at(40000)));
        w.moving(limits::LAYOUT);
        w.from_pod(&a, &Packet::udp(a.at(40000), vip))
            .passes()
            .shows(a.at(40000), far)
            .counted(Count::FlowCreated, 0);
        assert_eq!(w.entries(), 1);
    }
}
