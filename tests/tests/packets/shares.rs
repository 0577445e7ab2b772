//! A pod's share of `conntrack`: what is beyond works, among the flows that were not answered.

use agent_common::Count;
use tests::packet::address::at;
use tests::packet::build::{Packet, tcp};
use tests::packet::outcome::Via;

rows! {
    // Fails with mutant "no-share".
    BOTH a_pod_at_its_share_goes_on_among_the_unanswered(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, 6, &[b.at(8080)]);
        // With no bound set, one flow is taken like any other.
        w.from_pod(&a, &Packet::syn(a.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(40000))).delivered_to(&a).counted(Count::FlowReplied, 1);
        assert_eq!((w.held_share(&a), w.held_share(&b)), (1, 0), "the opener pays");
        w.limit_share(&a, 1);
        for (port, beyond) in [(40001, false), (40002, true)] {
            w.from_pod(&a, &Packet::syn(a.at(port), vip)).delivered_to(&b).shows(a.at(port), b.at(8080));
            w.from_pod(&b, &Packet::syn_ack(b.at(8080), a.at(port)))
                .delivered_to(&a)
                .shows(vip, a.at(port))
                .counted(Count::FlowReplied, u64::from(!beyond))
                .counted(Count::ConntrackShare, u64::from(beyond));
        }
        assert_eq!(w.held_share(&a), 2);
        // It stays where it is, known as answered, and is translated in both directions; counted once.
        for _ in 0..3 {
            w.from_pod(&a, &Packet::ack(a.at(40002), vip).data(b"GET")).delivered_to(&b).shows(a.at(40002), b.at(8080));
            w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40002)).data(b"OK"))
                .delivered_to(&a)
                .shows(vip, a.at(40002))
                .counted(Count::ConntrackShare, 0);
        }
        assert!(w.answered(6, a.at(40002), vip).is_none());
        assert!(w.waiting(6, a.at(40002), vip).unwrap().answered());
        assert!(w.waiting(6, b.at(8080), a.at(40002)).unwrap().answered());
        // Another pod has its own share.
        w.limit_share(&c, 1);
        w.from_pod(&c, &Packet::syn(c.at(40000), vip)).delivered_to(&b);
        w.from_pod(&b, &Packet::syn_ack(b.at(8080), c.at(40000))).delivered_to(&c).counted(Count::FlowReplied, 1);
        // Once there is room, the next answer moves it.
        w.limit_share(&a, 1);
        w.from_pod(&b, &Packet::ack(b.at(8080), a.at(40002)).data(b"OK"))
            .delivered_to(&a)
            .counted(Count::FlowReplied, 1)
            .counted(Count::UnrepliedRemoved, 2);
        assert!(!w.answered(6, a.at(40002), vip).unwrap().answered());
        assert!(w.waiting(6, a.at(40002), vip).is_none());
    }

    BOTH what_comes_from_outside_is_charged_to_the_pod_that_is_reached(w) {
        let b = w.pod(2);
        let far = w.family.outside(1);
        w.limit_share(&b, 1);
        for (port, beyond) in [(40000, false), (40001, true)] {
            let syn = Packet::syn(at(far, port), b.at(80));
            w.from_uplink(&syn).passes_untouched();
            w.to_pod(&b, Via::Uplink, &syn).passes_untouched();
            w.from_pod(&b, &Packet::syn_ack(b.at(80), at(far, port)))
                .passes_untouched()
                .counted(Count::ConntrackShare, u64::from(beyond));
            w.from_uplink(&Packet::ack(at(far, port), b.at(80))).passes_untouched();
            w.to_pod(&b, Via::Uplink, &Packet::ack(at(far, port), b.at(80))).passes_untouched();
        }
        assert_eq!(w.held_share(&b), 1);
    }

    BOTH answers_from_outside_keep_a_flow_beyond_the_share_alive_and_close_it(w) {
        let a = w.pod(1);
        let far = at(w.family.outside(1), 443);
        w.limit_share(&a, 1);
        for port in [40000, 40001] {
            w.from_pod(&a, &Packet::syn(a.at(port), far)).passes();
            w.from_uplink(&Packet::syn_ack(far, a.at(port))).passes();
        }
        assert!(w.answered(6, a.at(40000), far).is_some());
        let waiting = w.waiting(6, a.at(40001), far).unwrap();
        assert_eq!((waiting.answered(), waiting.closing), (true, 0));
        w.from_uplink(&Packet::tcp(far, a.at(40001), tcp::RST | tcp::ACK)).passes();
        assert_eq!(w.waiting(6, far, a.at(40001)).unwrap().closing, 1);
        // A connection that is over makes room for the next with the same ends.
        w.from_pod(&a, &Packet::syn(a.at(40001), far)).passes().counted(Count::UnrepliedRemoved, 2);
        w.from_pod(&a, &Packet::tcp(a.at(40000), far, tcp::RST | tcp::ACK)).passes();
        w.from_pod(&a, &Packet::syn(a.at(40000), far)).passes().counted(Count::ConntrackRemoved, 2);
    }
}
