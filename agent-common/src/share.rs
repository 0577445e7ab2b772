//! How much of `conntrack` a pod may take.

use crate::{Flow, NO_SLOT, flow_flag};

/// Value of `shares`, index is a pod's slot. Each field has one writer; a program's and the agent's stores never meet in one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Share {
    /// Flows of the pod that ever moved to `conntrack`; wraps. Written by programs, by a plain load and store: two CPUs that
    /// do it at one instant count one. The agent's next count puts that right.
    pub made: u32,
    /// What [`Share::made`] had come to, less the flows that were there, when the agent last counted them.
    pub base: u32,
    /// Flows that the pod may hold in `conntrack`; 0: no bound.
    pub limit: u32,
    /// Always zero.
    pub _zero: u32,
}

impl Share {
    /// Flows that the pod holds, as far as is known between two counts. What was evicted or removed since the last is
    /// still in it.
    #[inline(always)]
    pub const fn held(&self) -> u32 {
        self.made.wrapping_sub(self.base)
    }

    /// Whether one flow more is within the bound.
    #[inline(always)]
    pub const fn has_room(&self) -> bool {
        self.limit == 0 || self.held() < self.limit
    }
}

impl Flow {
    /// The slot of the pod whose share the flow takes: the opener's, or else the responder's; [`NO_SLOT`] where the flow is
    /// this host's own, which is trusted.
    #[inline(always)]
    pub const fn charged(&self) -> u32 {
        if self.opener == NO_SLOT {
            self.responder
        } else {
            self.opener
        }
    }

    /// Whether this is the one of a flow's two entries that the charged pod's own packets find: its [`Flow::ifindex`] tells
    /// the pod from an earlier one in the same slot.
    pub const fn is_charged_half(&self) -> bool {
        let reply = self.flags & flow_flag::REPLY != 0;
        (self.opener == NO_SLOT) == reply
    }
}

const _: () = assert!(size_of::<Share>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_survives_the_wrap_of_the_count() {
        let share = Share {
            made: 2,
            base: u32::MAX - 7,
            limit: 10,
            _zero: 0,
        };
        assert_eq!(share.held(), 10);
        assert!(!share.has_room());
        assert!(Share { limit: 0, ..share }.has_room());
        assert!(Share { limit: 11, ..share }.has_room());
    }

    #[test]
    fn the_opener_pays_and_else_the_responder() {
        let both = Flow {
            opener: 3,
            responder: 4,
            ..Flow::NONE
        };
        assert_eq!(both.charged(), 3);
        assert!(both.is_charged_half());
        let reached = Flow {
            opener: NO_SLOT,
            flags: flow_flag::REPLY,
            ..both
        };
        assert_eq!(reached.charged(), 4);
        assert!(reached.is_charged_half());
        assert_eq!(Flow::NONE.charged(), NO_SLOT);
    }
}
