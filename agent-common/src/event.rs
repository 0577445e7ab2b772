//! What the programs tell the agent through the ring `events`.

use crate::{Address, Tuple};

/// Kinds of events.
pub mod event_kind {
    /// A packet was dropped; `reason` says why.
    pub const DROP: u8 = 1;
    /// A packet was answered with RST or ICMP unreachable; `reason` says why.
    pub const REJECT: u8 = 2;
    /// A new flow was allowed (only while [`crate::feature::EVENTS_ALLOWED`] is set).
    pub const ALLOW: u8 = 3;
    /// A new flow was allowed only because the policies that deny it are audited.
    pub const AUDIT: u8 = 4;
}

/// One event.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Event {
    /// Coarse monotonic clock, nanoseconds.
    pub time_ns: u64,
    /// The flow, in its opener's direction where it is known, else as the packet shows it.
    pub tuple: Tuple,
    /// Destination after translation; the tuple's own where there is none.
    pub translated: Address,
    /// Its port, network order.
    pub translated_port_be: u16,
    /// See [`event_kind`].
    pub kind: u8,
    /// [`crate::Reason`], or 0.
    pub reason: u8,
    /// Number of the rule, or of the set's default, that decided egress; 0 where no policy applied.
    pub egress_rule: u32,
    /// Likewise for ingress.
    pub ingress_rule: u32,
    /// Interface the packet was seen on.
    pub ifindex: u32,
    /// Length of the packet, bytes.
    pub length: u32,
    /// Number of the service pool, or [`crate::NO_BACKEND`] where the flow has none.
    pub service: u32,
    /// Backend number, or [`crate::NO_BACKEND`].
    pub backend: u32,
    /// See [`crate::hook`].
    pub hook: u8,
    /// TCP flags of the packet, 0 for other protocols.
    pub tcp_flags: u8,
    /// Always zero.
    pub _zero: [u8; 2],
}

/// Value of `seen_flows`: recently seen traffic between workloads, for `policy preview`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SeenFlow {
    /// How many flows.
    pub count: u64,
    /// Tick ([`crate::clock`]) of the last one.
    pub last_seen: u32,
    /// The last one was allowed (1) or denied (2).
    pub verdict: u32,
}

/// Key of `seen_flows`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SeenFlowKey {
    /// Identity of the opener.
    pub source_identity: u32,
    /// Identity of the responder.
    pub destination_identity: u32,
    /// Destination port after translation, network order.
    pub port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 5],
}

const _: () = {
    assert!(size_of::<Event>() == 96);
    assert!(size_of::<SeenFlow>() == 16);
    assert!(size_of::<SeenFlowKey>() == 16);
};
