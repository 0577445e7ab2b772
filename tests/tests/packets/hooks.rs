//! What each hook guards: the host's own packets, the uplink, the source check.

use agent_common::{Count, GROUP_ANY, Reason, THIS_HOST, flow_flag, hook, pod_flag};
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::flows::tuple;
use tests::packet::outcome::Via;
use tests::packet::rules::Ports;

const SET: u32 = 11;

rows! {
    BOTH the_host_reaches_an_isolated_pod_and_gets_its_answer(w) {
        let b = w.pod(2);
        let host = at(w.family.host(), 50000);
        w.isolate_ingress(&b, SET);
        w.isolate_egress(&b, SET);
        w.to_pod(&b, Via::Host, &Packet::syn(host, b.at(80))).passes_untouched().counted(Count::FlowCreated, 1);
        let entry = w.waiting(6, host, b.at(80)).unwrap();
        assert_eq!((entry.flags & flow_flag::HOST, entry.ifindex), (flow_flag::HOST, THIS_HOST));
        w.from_pod(&b, &Packet::syn_ack(b.at(80), host)).passes_untouched().counted(Count::FlowReplied, 1);
        w.to_pod(&b, Via::Host, &Packet::ack(host, b.at(80))).passes_untouched();
        w.raise_epoch(&b);
        w.to_pod(&b, Via::Host, &Packet::ack(host, b.at(80))).passes_untouched();
        w.from_pod(&b, &Packet::ack(b.at(80), host)).passes_untouched();
        w.to_pod(&b, Via::Host, &Packet::tcp(host, b.at(80), tcp::FIN | tcp::ACK)).passes_untouched();
        assert_eq!(w.answered(6, host, b.at(80)).unwrap().fin, 1);
        w.from_pod(&b, &Packet::syn(b.at(80), at(host.ip(), 22))).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH the_host_goes_on_with_connections_older_than_the_agent(w) {
        let b = w.pod(2);
        let host = at(w.family.host(), 50000);
        w.isolate_ingress(&b, SET);
        w.isolate_egress(&b, SET);
        w.to_pod(&b, Via::Host, &Packet::ack(host, b.at(80))).passes_untouched();
        w.from_pod(&b, &Packet::ack(b.at(80), host)).passes_untouched();
    }

    BOTH the_host_sends_what_cannot_be_judged(w) {
        let b = w.pod(2);
        w.isolate_ingress(&b, SET);
        let host = w.family.host();
        w.to_pod(&b, Via::Host, &Packet::udp(at(host, 1), b.at(2)).fragment(0, true)).passes_untouched();
    }

    // An address is not what makes a packet the host's.
    BOTH the_hosts_address_from_elsewhere_is_judged(w) {
        let b = w.pod(2);
        w.isolate_ingress(&b, SET);
        let syn = Packet::syn(at(w.family.host(), 50000), b.at(80));
        w.to_pod(&b, Via::Uplink, &syn).dropped(hook::TO_POD, Reason::PolicyIngress);
    }

    BOTH nobody_else_may_use_the_hosts_own_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let host = at(w.family.host(), 50000);
        w.isolate_ingress(&b, SET);
        w.to_pod(&b, Via::Host, &Packet::udp(host, b.at(53))).passes();
        let packet = Packet::udp(host, b.at(53));
        w.to_pod(&b, Via::Pod(&a), &packet).dropped(hook::TO_POD, Reason::SourceMartian);
        w.from_pod(&b, &Packet::udp(b.at(53), host)).passes().counted(Count::FlowReplied, 1);
        w.to_pod(&b, Via::Pod(&a), &packet).dropped(hook::TO_POD, Reason::SourceMartian);
        w.to_pod(&b, Via::Uplink, &packet).dropped(hook::TO_POD, Reason::SourceMartian);
        w.to_pod(&b, Via::Host, &packet).passes();
    }

    BOTH a_pod_reaches_its_host_where_egress_allows(w) {
        let a = w.pod(1);
        let host = at(w.family.host(), 10250);
        w.isolate_egress(&a, SET);
        w.isolate_ingress(&a, SET + 1);
        w.set(SET + 1);
        w.from_pod(&a, &Packet::syn(a.at(40000), host)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.allow(SET, GROUP_ANY, Ports::One(6, 10250));
        w.from_pod(&a, &Packet::syn(a.at(40000), host)).passes_untouched();
        w.to_pod(&a, Via::Host, &Packet::syn_ack(host, a.at(40000))).passes_untouched().counted(Count::FlowReplied, 1);
    }

    BOTH a_pod_sends_from_its_own_addresses_only(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for source in [b.address, w.family.outside(1), w.family.host(), w.family.cluster_ip(1), w.family.loopback()] {
            let target = w.family.remote_pod(9);
            w.from_pod(&a, &Packet::syn(at(source, 1), at(target, 80))).dropped(hook::FROM_POD, Reason::SourceSpoofed);
            w.from_pod(&a, &Packet::udp(at(source, 1), at(target, 80)).fragment(0, true))
                .dropped(hook::FROM_POD, Reason::SourceSpoofed);
        }
        assert_eq!(w.entries(), 0);
    }

    BOTH an_established_flow_is_no_way_round_the_source_check(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        w.from_pod(&b, &Packet::udp(b.at(53), a.at(40000))).delivered_to(&a);
        w.from_pod(&c, &Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        w.from_pod(&c, &Packet::udp(b.at(53), a.at(40000))).dropped(hook::FROM_POD, Reason::SourceSpoofed);
        assert_eq!(w.entries(), 2);
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
    }

    BOTH a_router_by_annotation_sends_from_any_address(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.edit(&a, |p| p.flags |= pod_flag::ANY_SOURCE);
        let behind = w.family.outside(7);
        w.from_pod(&a, &Packet::syn(at(behind, 1), b.at(80))).passes();
    }

    BOTH the_uplink_brings_no_source_that_cannot_be_there(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for source in [a.address, w.family.host(), w.family.loopback(), w.family.multicast()] {
            w.from_uplink(&Packet::syn(at(source, 1), b.at(80))).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
            w.from_uplink(&Packet::udp(at(source, 1), b.at(80)).fragment(0, true))
                .dropped(hook::FROM_UPLINK, Reason::SourceMartian);
        }
    }

    BOTH the_uplink_brings_no_packet_of_a_local_pods_flow(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        w.from_pod(&a, &Packet::udp(a.at(40000), b.at(53))).delivered_to(&b);
        // The pod has ended, and its address is nobody's.
        w.forget_address(a.address);
        w.from_uplink(&Packet::udp(a.at(40000), b.at(53))).dropped(hook::FROM_UPLINK, Reason::SourceMartian);
    }

    BOTH what_the_host_itself_gets_is_the_stacks_to_check(w) {
        let host = at(w.family.host(), 22);
        w.from_uplink(&Packet::syn(at(w.family.loopback(), 1), host)).passes_untouched();
        w.from_uplink(&Packet::syn(at(w.family.node(), 1), host)).passes_untouched();
    }

    BOTH a_cluster_ip_is_not_reached_from_outside(w) {
        let b = w.pod(2);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        let far = at(w.family.outside(1), 1000);
        w.from_uplink(&Packet::syn(far, vip)).rejected_at(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
        w.from_uplink(&Packet::udp(far, vip).fragment(0, true)).rejected_at(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
        w.from_uplink(&Packet::udp(far, vip).fragment(2, true)).dropped(hook::FROM_UPLINK, Reason::ClusterIpFromOutside);
    }

    // The stack routes none there unless somebody makes it: nothing is translated behind it.
    BOTH a_cluster_ip_that_comes_round_to_a_pods_link_is_dropped_and_disturbs_nobody(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let (vip, far) = (at(w.family.cluster_ip(1), 80), at(w.family.outside(1), 1000));
        w.service(vip, 6, &[b.at(8080)]);
        w.service(vip, 17, &[b.at(8080)]);
        let packet = Packet::udp(a.at(40000), vip);
        w.from_pod(&a, &packet).delivered_to(&b);
        for answered in [false, true] {
            w.to_pod(&b, Via::Pod(&a), &packet).dropped(hook::TO_POD, Reason::ClusterIpFromOutside);
            w.to_pod(&b, Via::Host, &packet).passes_untouched();
            let known = if answered { w.answered(17, a.at(40000), vip) } else { w.waiting(17, a.at(40000), vip) };
            assert!(known.is_some());
            w.from_pod(&b, &Packet::udp(b.at(8080), a.at(40000))).delivered_to(&a).shows(vip, a.at(40000));
        }
        for packet in [Packet::syn(far, vip), Packet::udp(far, vip), Packet::ping(far.ip(), vip.ip(), 7)] {
            w.to_pod(&b, Via::Uplink, &packet).dropped(hook::TO_POD, Reason::ClusterIpFromOutside);
            w.to_pod(&b, Via::Host, &packet).passes_untouched().counted(Count::FlowCreated, 0);
        }
        w.to_pod(&b, Via::Uplink, &Packet::ack(far, vip)).dropped(hook::TO_POD, Reason::Midstream);
        assert_eq!(w.entries(), 2);
    }

    // A flow whose port was rewritten begins with the ends of the one that it clashed with.
    BOTH a_packet_whose_ends_are_a_live_flow_of_others_ends_at_once(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        let direct = Packet::syn(a.at(40000), b.at(8080));
        assert_ne!(w.from_pod(&a, &direct).delivered_to(&b).seen().source.port(), 40000);
        w.evict_waiting(&tuple(6, a.at(40000), vip));
        w.evict_waiting(&tuple(6, b.at(8080), a.at(40000)));
        w.to_pod(&b, Via::Pod(&a), &direct).dropped(hook::TO_POD, Reason::PortClash);
        w.to_pod(&b, Via::Host, &direct).passes_untouched();
        assert_eq!(w.entries(), 2);
        // What is left of a flow that was evicted is in nobody's way.
        let port = u16::from_be(w.waiting(6, a.at(40000), b.at(8080)).unwrap().new_source_port_be);
        w.evict_waiting(&tuple(6, b.at(8080), a.at(port)));
        w.to_pod(&b, Via::Pod(&a), &direct).passes_untouched().counted(Count::FlowCreated, 1);
        assert_eq!(w.entries(), 2);
    }

    BOTH a_first_packet_from_outside_waits_for_its_answer(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 1000);
        w.to_pod(&b, Via::Uplink, &Packet::udp(far, b.at(53))).passes();
        w.from_uplink(&Packet::udp(far, b.at(53))).passes_untouched().counted(Count::FlowReplied, 0);
        assert!(w.waiting(17, far, b.at(53)).is_some());
    }
}
