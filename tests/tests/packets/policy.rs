//! Policy: in both directions, after translation, by epochs.

use agent_common::{
    Count, GROUP_ANY, NEVER_JUDGED, Reason, action, event_kind, feature, flow_flag, hook, set_flag,
};
use tests::packet::address::at;
use tests::packet::build::Packet;
use tests::packet::flows::attempts;
use tests::packet::outcome::Via;
use tests::packet::rules::{ALLOW_RULE, DEFAULT_RULE, Ports};

/// Sets of the rows.
const EGRESS: u32 = 11;
const INGRESS: u32 = 12;
/// A group that a peer may be in.
const FRIENDS: u32 = 5;
const STRANGERS: u32 = 6;

rows! {
    BOTH egress_under_default_deny_is_dropped_and_not_remembered(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        for packet in [
            Packet::syn(a.at(40000), b.at(80)),
            Packet::udp(a.at(40000), b.at(53)),
            Packet::sctp(a.at(40000), b.at(53)),
            Packet::ping(a.address, b.address, 1),
            Packet::other(a.address, b.address, 47),
        ] {
            let out = w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::PolicyEgress);
            assert_eq!(out.events[0].egress_rule, DEFAULT_RULE);
            assert_eq!(out.events[0].source.ip(), a.address);
            assert_eq!(out.events[0].destination.ip(), b.address);
        }
        assert_eq!(w.entries(), 0);
    }

    // Fails with mutant "redirect-without-ingress".
    BOTH ingress_is_judged_before_a_redirect(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&b, INGRESS);
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::PolicyIngress);
        assert_eq!((out.events[0].egress_rule, out.events[0].ingress_rule), (0, DEFAULT_RULE));
        assert_eq!(w.entries(), 0);
    }

    BOTH egress_alone_never_admits(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::Any);
        w.isolate_ingress(&b, INGRESS);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        let entry = w.waiting(6, a.at(40000), b.at(80)).unwrap();
        assert_eq!((entry.egress.rule, entry.ingress.rule), (ALLOW_RULE, ALLOW_RULE));
        assert_ne!(entry.egress.epoch, NEVER_JUDGED);
        assert_ne!(entry.ingress.epoch, NEVER_JUDGED);
    }

    BOTH ingress_is_judged_for_what_comes_through_the_stack(w) {
        let b = w.pod(2);
        let far = w.family.outside(1);
        w.isolate_ingress(&b, INGRESS);
        let syn = Packet::syn(at(far, 40000), b.at(80));
        w.from_uplink(&syn).passes_untouched();
        let out = w.to_pod(&b, Via::Uplink, &syn).dropped(hook::TO_POD, Reason::PolicyIngress);
        assert_eq!(out.events[0].ingress_rule, DEFAULT_RULE);
        assert_eq!(w.entries(), 0);
        w.allow(INGRESS, GROUP_ANY, Ports::One(6, 80));
        w.to_pod(&b, Via::Uplink, &syn).passes_untouched().counted(Count::FlowCreated, 1);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), at(far, 40000))).passes_untouched().counted(Count::FlowReplied, 1);
        w.from_uplink(&Packet::ack(at(far, 40000), b.at(80))).passes_untouched();
        w.to_pod(&b, Via::Uplink, &Packet::ack(at(far, 40000), b.at(80))).passes_untouched();
    }

    BOTH answers_of_an_allowed_flow_are_not_judged_alone(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&a, INGRESS);
        w.isolate_egress(&b, EGRESS);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).delivered_to(&a);
        w.from_pod(&b, &Packet::syn(b.at(40000), a.at(80))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH a_group_is_allowed_and_others_are_not(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        w.isolate_ingress(&b, INGRESS);
        w.group(a.identity, FRIENDS);
        w.group(c.identity, STRANGERS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&c, &Packet::syn(c.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::PolicyIngress);
    }

    BOTH a_pod_of_another_node_is_known_by_its_group(w) {
        let b = w.pod(2);
        let (friend, identity) = w.remote_pod(1);
        let (stranger, _) = w.remote_pod(2);
        w.isolate_ingress(&b, INGRESS);
        w.group(identity, FRIENDS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        w.to_pod(&b, Via::Uplink, &Packet::udp(at(friend, 1000), b.at(53))).passes();
        w.to_pod(&b, Via::Uplink, &Packet::udp(at(stranger, 1000), b.at(53))).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    BOTH ports_and_protocols_are_told_apart(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::One(6, 80));
        w.allow(EGRESS, GROUP_ANY, Ports::Protocol(132));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&a, &Packet::sctp(a.at(40000), b.at(9))).delivered_to(&b);
        for packet in [
            Packet::syn(a.at(40000), b.at(81)),
            // The source's port is not asked.
            Packet::syn(a.at(80), b.at(40000)),
            Packet::udp(a.at(40000), b.at(80)),
            Packet::ping(a.address, b.address, 80),
        ] {
            w.from_pod(&a, &packet).dropped(hook::FROM_POD, Reason::PolicyEgress);
        }
    }

    // endPort: 8000 to 8003 is one prefix of 14 bits, 8004 one of 16.
    BOTH a_port_range_is_a_few_prefixes(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::Prefix(6, 8000, 14));
        w.allow(EGRESS, GROUP_ANY, Ports::One(6, 8004));
        for port in 8000..=8004 {
            w.from_pod(&a, &Packet::syn(a.at(40000), b.at(port))).delivered_to(&b);
        }
        for port in [7999, 8005] {
            w.from_pod(&a, &Packet::syn(a.at(40000), b.at(port))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        }
    }

    BOTH an_echo_is_judged_by_protocol_never_by_its_id(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let icmp = w.family.icmp();
        w.isolate_ingress(&b, INGRESS);
        w.allow(INGRESS, GROUP_ANY, Ports::Protocol(icmp));
        w.from_pod(&a, &Packet::ping(a.address, b.address, 4711)).delivered_to(&b);
        w.from_pod(&b, &Packet::pong(b.address, a.address, 4711)).delivered_to(&a);
    }

    BOTH a_prefix_is_allowed_less_its_exception(w) {
        let a = w.pod(1);
        let (inside, except, outside) = (w.family.outside(5), w.family.outside(77), w.family.remote_pod(200));
        let bits = |n: u32| if inside.is_ipv4() { n } else { n + 96 };
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, FRIENDS, Ports::Any);
        w.prefix(w.family.outside(0), bits(24), 50, FRIENDS);
        // The exception's identity carries no rule.
        w.prefix(except, bits(32), 51, GROUP_ANY);
        w.from_pod(&a, &Packet::syn(a.at(1), at(inside, 443))).passes();
        w.from_pod(&a, &Packet::syn(a.at(1), at(except, 443))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &Packet::syn(a.at(1), at(outside, 443))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH a_prefix_matches_pods_in_literal_mode_only(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&b, INGRESS);
        w.group(a.identity, STRANGERS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        let bits = if a.address.is_ipv4() { 24 } else { 120 };
        w.prefix(w.family.pod(0), bits, 50, FRIENDS);
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.features(feature::LITERAL).unwrap();
        w.from_pod(&a, &syn).delivered_to(&b);
    }

    BOTH a_node_is_no_match_for_a_prefix_in_cilium_mode(w) {
        let b = w.pod(2);
        let node = w.family.node();
        w.isolate_ingress(&b, INGRESS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        w.prefix(node, if node.is_ipv4() { 32 } else { 128 }, 50, FRIENDS);
        let syn = Packet::syn(at(node, 40000), b.at(80));
        w.to_pod(&b, Via::Uplink, &syn).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.features(feature::LITERAL).unwrap();
        w.to_pod(&b, Via::Uplink, &syn).passes();
    }

    BOTH a_service_is_judged_by_the_backend_behind_it(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let (open, shut) = (at(w.family.cluster_ip(1), 80), at(w.family.cluster_ip(2), 80));
        w.service(open, 6, &[b.at(8080)]);
        w.service(shut, 6, &[c.at(80)]);
        w.isolate_egress(&a, EGRESS);
        w.group(b.identity, FRIENDS);
        w.allow(EGRESS, FRIENDS, Ports::One(6, 8080));
        w.from_pod(&a, &Packet::syn(a.at(40000), open)).delivered_to(&b);
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), shut)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        assert_eq!(out.events[0].destination, shut, "told as the client knows it");
    }

    BOTH a_denial_is_not_remembered(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&b, INGRESS);
        let syn = Packet::syn(a.at(40000), b.at(80));
        w.from_pod(&a, &syn).dropped(hook::FROM_POD, Reason::PolicyIngress);
        // An addition raises no epoch.
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        w.from_pod(&a, &syn).delivered_to(&b);
    }

    // Fails with mutant "no-epoch".
    BOTH a_flow_is_judged_again_when_something_was_taken_from_the_responder(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(80), a.at(40000))).delivered_to(&a);
        w.isolate_ingress(&b, INGRESS);
        w.raise_epoch(&b);
        let (there, back) = (Packet::ack(a.at(40000), b.at(80)), Packet::ack(b.at(80), a.at(40000)));
        w.from_pod(&a, &there).dropped(hook::FROM_POD, Reason::PolicyIngress).counted(Count::FlowRejudged, 0);
        // The answer is judged in the opener's direction, and so denied for the same reason.
        w.from_pod(&b, &back).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        w.from_pod(&a, &there).delivered_to(&b).counted(Count::FlowRejudged, 1);
        w.from_pod(&b, &back).delivered_to(&a).counted(Count::FlowRejudged, 1);
        w.from_pod(&a, &there).delivered_to(&b).counted(Count::FlowRejudged, 0);
        w.from_pod(&b, &back).delivered_to(&a).counted(Count::FlowRejudged, 0);
        assert_eq!(w.entries(), 2);
    }

    // Fails with mutant "no-epoch".
    BOTH a_flow_is_judged_again_when_something_was_taken_from_the_opener(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::One(17, 53));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a);
        w.withdraw(EGRESS, GROUP_ANY, Ports::One(17, 53));
        w.raise_epoch(&a);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH a_flow_that_nobody_answered_is_judged_again_too(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        w.isolate_egress(&a, EGRESS);
        w.raise_epoch(&a);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    // Fails with mutant "no-epoch".
    BOTH a_flow_through_the_stack_is_judged_again_both_ways(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 40000);
        w.to_pod(&b, Via::Uplink, &Packet::syn(far, b.at(80))).passes();
        w.from_pod(&b, &Packet::syn_ack(b.at(80), far)).passes();
        w.isolate_ingress(&b, INGRESS);
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, b.at(80))).dropped(hook::TO_POD, Reason::PolicyIngress);
        w.from_pod(&b, &Packet::ack(b.at(80), far)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, b.at(80))).passes().counted(Count::FlowRejudged, 1);
        // Both hooks of the pod ask the same entry.
        w.from_pod(&b, &Packet::ack(b.at(80), far)).passes().counted(Count::FlowRejudged, 0);
        w.raise_epoch(&b);
        w.from_pod(&b, &Packet::ack(b.at(80), far)).passes().counted(Count::FlowRejudged, 1);
    }

    BOTH a_service_flow_is_judged_again_by_its_backend(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a);
        w.isolate_ingress(&b, INGRESS);
        w.allow(INGRESS, GROUP_ANY, Ports::One(6, 8080));
        w.raise_epoch(&b);
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40000))).delivered_to(&a).counted(Count::FlowRejudged, 1).shows(vip, a.at(40000));
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).delivered_to(&b).counted(Count::FlowRejudged, 1);
        w.withdraw(INGRESS, GROUP_ANY, Ports::One(6, 8080));
        w.raise_epoch(&b);
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40000))).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.from_pod(&a, &Packet::ack(a.at(40000), vip)).dropped(hook::FROM_POD, Reason::PolicyIngress);
    }

    BOTH a_slot_that_goes_to_another_pod_vouches_for_nothing(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&b, INGRESS);
        w.group(a.identity, FRIENDS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a);
        // Another pod with a's link and address, but not its labels.
        w.group(a.identity, STRANGERS);
        w.raise_epoch(&a);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_POD, Reason::PolicyIngress);
    }

    BOTH an_audited_denial_passes_and_is_told(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.rule(EGRESS, GROUP_ANY, Ports::Any, action::DENY | action::AUDIT);
        let out = w
            .from_pod(&a, &Packet::syn(a.at(40000), b.at(80)))
            .delivered_to(&b)
            .counted(Count::Audited, 1);
        assert_eq!(out.events.len(), 1);
        assert_eq!(out.events[0].kind, event_kind::AUDIT);
        let entry = w.waiting(6, a.at(40000), b.at(80)).unwrap();
        assert_eq!(entry.flags & flow_flag::AUDIT, flow_flag::AUDIT);
    }

    BOTH an_allowed_flow_is_told_on_request_only(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let out = w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).delivered_to(&b);
        assert!(out.events.is_empty());
        w.features(feature::EVENTS_ALLOWED).unwrap();
        let out = w.from_pod(&a, &Packet::syn(a.at(40001), b.at(80))).delivered_to(&b);
        assert_eq!(out.events.len(), 1);
        assert_eq!(out.events[0].kind, event_kind::ALLOW);
        assert_eq!((out.events[0].source, out.events[0].destination), (a.at(40001), b.at(80)));
    }

    BOTH an_unknown_pod_under_deny_says_so(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let unknown = set_flag::ISOLATED | set_flag::UNKNOWN;
        w.edit(&b, |p| (p.ingress.flags, p.egress.flags) = (unknown, unknown));
        w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80))).dropped(hook::FROM_POD, Reason::UnknownPod);
        w.from_pod(&b, &Packet::syn(b.at(40000), a.at(80))).dropped(hook::FROM_POD, Reason::UnknownPod);
        w.to_pod(&b, Via::Host, &Packet::syn(at(w.family.host(), 1), b.at(80))).passes();
    }

    BOTH drops_are_told_at_a_limited_rate_and_all_counted(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        let out = attempts()
            .map(|()| {
                w.spend_budgets();
                w.from_pod(&a, &Packet::syn(a.at(40000), b.at(80)))
            })
            .find(|out| out.events.is_empty())
            .expect("a run within a tick of the clock");
        out.dropped_untold(hook::FROM_POD, Reason::PolicyEgress).counted(Count::EventSuppressed, 1);
    }

    BOTH a_ring_that_nobody_reads_loses_events_and_counts_them(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        let lost = w.overflow(&a, &Packet::syn(a.at(40000), b.at(80)));
        lost.dropped_untold(hook::FROM_POD, Reason::PolicyEgress).counted(Count::EventLost, 1);
    }
}
