//! What a field of some entries meant in a layout that was, where it means something else now.

use agent_common::{Flow, Tuple, protocol};

/// Layout 3 was the first to track SCTP by verification tags, in `port_delta`.
const TAGS_SINCE: u32 = 3;

/// A flow of the layout `from`, as this layout says it; its fields have found their places by name.
pub(super) const fn flow(from: u32, key: &Tuple, mut flow: Flow) -> Flow {
    if from < TAGS_SINCE && key.protocol == protocol::SCTP {
        // There it was a sum of ports, never 0, which would be taken for a tag that nobody bears. 0: its next packet tells.
        flow.port_delta = 0;
    }
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_ports_is_no_verification_tag() {
        let of = |protocol, from| {
            let key = Tuple {
                protocol,
                ..Tuple::default()
            };
            let old = Flow {
                port_delta: 0x1_fffe,
                ifindex: 7,
                ..Flow::NONE
            };
            let new = flow(from, &key, old);
            assert_eq!(new.ifindex, 7);
            new.port_delta
        };
        assert_eq!(of(protocol::SCTP, 2), 0);
        assert_eq!(of(protocol::SCTP, 3), 0x1_fffe);
        assert_eq!(of(protocol::TCP, 2), 0x1_fffe);
    }
}
