//! Protocols without ports: allowed where no policy isolates, or a rule allows all ports; never because some port is allowed.

use std::net::IpAddr;

use agent_common::{Count, GROUP_ANY, Reason, hook};
use tests::packet::address::at;
use tests::packet::build::Packet;
use tests::packet::outcome::{Outcome, Via};
use tests::packet::rules::{ALLOW_RULE, DEFAULT_RULE, Ports};
use tests::packet::world::World;

use super::reject::port_unreachable;

/// Sets of the rows.
const EGRESS: u32 = 11;
const INGRESS: u32 = 12;
/// A group that a peer may be in.
const FRIENDS: u32 = 5;

/// Packets of each protocol without ports, and what comes back: (name, there, back). Numbers are IANA's.
fn pairs(from: IpAddr, to: IpAddr) -> Vec<(&'static str, Packet, Packet)> {
    let other = |name, protocol| {
        (
            name,
            Packet::other(from, to, protocol),
            Packet::other(to, from, protocol),
        )
    };
    let mut all = vec![
        other("IGMP", 2),
        other("IP in IP", 4),
        other("6in4", 41),
        other("GRE", 47),
        other("ESP", 50),
        other("OSPF", 89),
        other("VRRP", 112),
        other("an experiment", 253),
        ("echo", Packet::ping(from, to, 7), Packet::pong(to, from, 7)),
    ];
    // A question of ICMP that is no echo: a time stamp; information about a node. And the other family's ICMP, which is none here.
    if from.is_ipv4() {
        all.extend([
            other("protocol 0", 0),
            other("AH", 51),
            other("ICMPv6 in IPv4", 58),
            (
                "time stamp",
                Packet::icmp(from, to, 13, 0, [0, 9, 0, 1]),
                Packet::icmp(to, from, 14, 0, [0, 9, 0, 1]),
            ),
        ]);
    } else {
        all.extend([
            other("no next header", 59),
            other("mobility", 135),
            other("ICMP in IPv6", 1),
            (
                "node information",
                Packet::icmp(from, to, 139, 0, [0; 4]),
                Packet::icmp(to, from, 140, 0, [0; 4]),
            ),
        ]);
    }
    all
}

/// Rules that allow every port that there is, and yet not all ports.
fn allow_every_port(w: &mut World, set: u32) {
    for protocol in [6, 17, 132] {
        w.allow(set, GROUP_ANY, Ports::Protocol(protocol));
        w.allow(set, GROUP_ANY, Ports::One(protocol, 0));
        w.allow(set, GROUP_ANY, Ports::Prefix(protocol, 0x8000, 1));
    }
}

/// Denied for want of a rule.
fn denied(out: Outcome, name: &str, hook: u32, reason: Reason) {
    let out = out.dropped(hook, reason);
    let told = &out.events[0];
    let rule = if reason == Reason::PolicyEgress {
        told.egress_rule
    } else {
        told.ingress_rule
    };
    assert_eq!(rule, DEFAULT_RULE, "{name}");
}

rows! {
    BOTH without_policy_each_is_a_flow_of_two_addresses(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        for (name, there, back) in pairs(a.address, b.address) {
            w.from_pod(&a, &there).redirected().counted(Count::FlowCreated, 1);
            w.from_pod(&b, &back).redirected().counted(Count::FlowReplied, 1);
            w.from_pod(&a, &there).redirected().counted(Count::FlowCreated, 0);
            assert_eq!(w.entries(), 2, "{name}");
            w.clear_flows();
        }
        for (name, there, back) in pairs(a.address, far) {
            w.from_pod(&a, &there).passes_untouched();
            w.from_uplink(&back).passes_untouched().counted(Count::FlowReplied, 1);
            w.to_pod(&a, Via::Uplink, &back).passes_untouched().counted(Count::FlowCreated, 0);
            assert_eq!(w.entries(), 2, "{name}");
            w.clear_flows();
        }
        for (_, there, _) in pairs(far, b.address) {
            w.from_uplink(&there).passes_untouched();
            w.to_pod(&b, Via::Uplink, &there).passes_untouched().counted(Count::FlowCreated, 1);
        }
    }

    BOTH an_isolated_pod_sends_none_whatever_ports_are_allowed(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        w.isolate_egress(&a, EGRESS);
        for every_port in [false, true] {
            if every_port {
                allow_every_port(w, EGRESS);
                w.from_pod(&a, &Packet::udp(a.at(1), b.at(53))).delivered_to(&b);
                w.clear_flows();
            }
            for to in [b.address, far, w.family.host(), w.family.multicast()] {
                for (name, there, _) in pairs(a.address, to) {
                    denied(w.from_pod(&a, &there), name, hook::FROM_POD, Reason::PolicyEgress);
                }
            }
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH an_isolated_pod_gets_none_whatever_ports_are_allowed(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        w.isolate_ingress(&b, INGRESS);
        for every_port in [false, true] {
            if every_port {
                allow_every_port(w, INGRESS);
                w.from_pod(&a, &Packet::udp(a.at(1), b.at(53))).delivered_to(&b);
                w.clear_flows();
            }
            for (name, there, _) in pairs(a.address, b.address) {
                denied(w.from_pod(&a, &there), name, hook::FROM_POD, Reason::PolicyIngress);
                denied(w.to_pod(&b, Via::Pod(&a), &there), name, hook::TO_POD, Reason::PolicyIngress);
            }
            for (name, there, _) in pairs(far, b.address) {
                w.from_uplink(&there).passes_untouched();
                denied(w.to_pod(&b, Via::Uplink, &there), name, hook::TO_POD, Reason::PolicyIngress);
            }
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH a_rule_for_all_ports_allows_them(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let far = w.family.outside(1);
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::Any);
        w.isolate_ingress(&b, INGRESS);
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        for (name, there, back) in pairs(a.address, b.address) {
            w.from_pod(&a, &there).redirected().counted(Count::FlowCreated, 1);
            w.from_pod(&b, &back).redirected().counted(Count::FlowReplied, 1);
            let rules = w.tables().unwrap()[0].iter().map(|(_, flow)| (flow.egress.rule, flow.ingress.rule)).collect::<Vec<_>>();
            assert_eq!(rules, [(ALLOW_RULE, ALLOW_RULE); 2], "{name}");
            w.clear_flows();
        }
        for (_, there, back) in pairs(far, b.address) {
            w.to_pod(&b, Via::Uplink, &there).passes_untouched().counted(Count::FlowCreated, 1);
            w.from_pod(&b, &back).passes_untouched().counted(Count::FlowReplied, 1);
            w.clear_flows();
        }
    }

    BOTH in_one_direction_it_says_nothing_of_the_other(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.isolate_ingress(&b, INGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::Any);
        allow_every_port(w, INGRESS);
        for (name, there, _) in pairs(a.address, b.address) {
            denied(w.from_pod(&a, &there), name, hook::FROM_POD, Reason::PolicyIngress);
        }
        w.withdraw(EGRESS, GROUP_ANY, Ports::Any);
        w.allow(INGRESS, GROUP_ANY, Ports::Any);
        for (name, there, _) in pairs(a.address, b.address) {
            denied(w.from_pod(&a, &there), name, hook::FROM_POD, Reason::PolicyEgress);
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH a_rule_for_all_ports_is_for_its_peers(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let (inside, outside) = (w.family.outside(5), w.family.remote_pod(200));
        let bits = if inside.is_ipv4() { 24 } else { 120 };
        w.isolate_ingress(&b, INGRESS);
        w.allow(INGRESS, FRIENDS, Ports::Any);
        w.group(a.identity, FRIENDS);
        w.prefix(w.family.outside(0), bits, 50, FRIENDS);
        for (_, there, _) in pairs(a.address, b.address) {
            w.from_pod(&a, &there).redirected();
        }
        for (name, there, _) in pairs(c.address, b.address) {
            denied(w.from_pod(&c, &there), name, hook::FROM_POD, Reason::PolicyIngress);
        }
        for (_, there, _) in pairs(inside, b.address) {
            w.to_pod(&b, Via::Uplink, &there).passes_untouched();
        }
        for (name, there, _) in pairs(outside, b.address) {
            denied(w.to_pod(&b, Via::Uplink, &there), name, hook::TO_POD, Reason::PolicyIngress);
        }
    }

    BOTH answers_pass_and_what_answers_opens_nothing_else(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_ingress(&a, INGRESS);
        w.isolate_egress(&b, EGRESS);
        for (name, there, back) in pairs(a.address, b.address) {
            denied(w.from_pod(&b, &back), name, hook::FROM_POD, Reason::PolicyEgress);
            w.from_pod(&a, &there).redirected();
            w.from_pod(&b, &back).redirected().counted(Count::FlowReplied, 1);
            w.clear_flows();
        }
    }

    BOTH a_rule_that_is_taken_away_cuts_them_both_ways(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for (name, there, back) in pairs(a.address, b.address) {
            w.isolate_egress(&a, EGRESS);
            w.allow(EGRESS, GROUP_ANY, Ports::Any);
            w.from_pod(&a, &there).redirected();
            w.from_pod(&b, &back).redirected();
            w.withdraw(EGRESS, GROUP_ANY, Ports::Any);
            w.raise_epoch(&a);
            denied(w.from_pod(&a, &there), name, hook::FROM_POD, Reason::PolicyEgress);
            denied(w.from_pod(&b, &back), name, hook::FROM_POD, Reason::PolicyEgress);
            w.clear_flows();
        }
    }

    BOTH the_host_sends_them_to_an_isolated_pod(w) {
        let b = w.pod(2);
        w.isolate_ingress(&b, INGRESS);
        w.isolate_egress(&b, EGRESS);
        for (_, there, back) in pairs(w.family.host(), b.address) {
            w.to_pod(&b, Via::Host, &there).passes_untouched();
            w.from_pod(&b, &back).passes_untouched().counted(Count::FlowReplied, 1);
        }
    }

    // A service's port is of TCP, UDP or SCTP; nobody is left to wait.
    BOTH none_is_a_services(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = w.family.cluster_ip(1);
        for protocol in [6, 17] {
            w.service(at(vip, 80), protocol, &[b.at(8080)]);
        }
        for isolated in [false, true] {
            if isolated {
                w.isolate_egress(&a, EGRESS);
            }
            for (_, there, _) in pairs(a.address, vip) {
                port_unreachable(&w.from_pod(&a, &there).rejected(Reason::NoServicePort));
            }
        }
        assert_eq!(w.entries(), 0);
    }

    // Fails with mutant "echo-by-id".
    BOTH an_echos_id_is_no_port(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.isolate_egress(&a, EGRESS);
        w.allow(EGRESS, GROUP_ANY, Ports::One(w.family.icmp(), 4711));
        for packet in [Packet::ping(a.address, b.address, 4711), Packet::pong(a.address, b.address, 4711)] {
            denied(w.from_pod(&a, &packet), "echo", hook::FROM_POD, Reason::PolicyEgress);
        }
        w.allow(EGRESS, GROUP_ANY, Ports::Any);
        // Each question by its id, each with its own answers.
        for id in [4711, 4712] {
            w.from_pod(&a, &Packet::ping(a.address, b.address, id)).delivered_to(&b).counted(Count::FlowCreated, 1);
        }
        w.isolate_ingress(&a, INGRESS);
        w.from_pod(&b, &Packet::pong(b.address, a.address, 4712)).delivered_to(&a).counted(Count::FlowReplied, 1);
        denied(w.from_pod(&b, &Packet::pong(b.address, a.address, 4713)), "echo", hook::FROM_POD, Reason::PolicyIngress);
        assert_eq!(w.entries(), 4);
    }
}
