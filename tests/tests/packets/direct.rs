//! From pod to pod on one node.

use agent_common::{Count, NO_SLOT, flow_flag, path};
use tests::packet::build::Packet;

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
        assert_ne!(forward.deliver, NO_SLOT);
    }
}
