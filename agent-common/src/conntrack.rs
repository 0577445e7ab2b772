//! What conntrack keeps of a flow.
//!
//! A flow has two entries, each keyed by the tuple that its packets show **where they enter** (`from_pod`,
//! `from_uplink`): the *forward* one, keyed by the opener's packets, and the *reply* one. `to_pod` sees packets after their
//! translation; the reverse of what it sees is the key of the other direction's entry, so one look-up serves every hook.
//!
//! Flows that have not been answered live in `unreplied`, and move to `conntrack` with the first reply; but where their pod
//! ([`Flow::charged`]) holds its share of `conntrack` already, they stay: they work as before, and look-ups take longer.

use crate::Address;

/// No pod slot: the end is not a local pod.
pub const NO_SLOT: u32 = u32::MAX;
/// In [`Flow::ifindex`]: packets with this tuple are made on this host, and enter by no interface.
pub const THIS_HOST: u32 = u32::MAX;
/// No backend: the flow is no service flow.
pub const NO_BACKEND: u32 = u32::MAX;

/// How packets of the flow travel; the same for both directions for the flow's whole life, or the kernel's own
/// conntrack would see half of it.
pub mod path {
    /// Through the stack: routing, the kernel's conntrack and netfilter see every packet.
    pub const STACK: u8 = 0;
    /// By peer redirect from one local pod to another.
    pub const PEER: u8 = 1;
    /// By neighbour redirect between a local pod and the uplink.
    pub const UPLINK: u8 = 2;
}

/// Flags of an entry.
pub mod flow_flag {
    /// The entry is keyed by the reply's tuple; without it, by the opener's.
    pub const REPLY: u32 = 1 << 0;
    /// Packets with this tuple are rewritten to the entry's new ends.
    pub const TRANSLATE: u32 = 1 << 1;
    /// The opener is this host: its own processes reach its pods whatever the policy says.
    pub const HOST: u32 = 1 << 4;
    /// The opener is the responder: policy does not apply to a pod that talks to itself.
    pub const SELF: u32 = 1 << 5;
    /// The entry was made from a packet in the middle of a connection.
    pub const MIDSTREAM: u32 = 1 << 6;
    /// The client's port was rewritten, because its own clashed with another flow to the same backend.
    pub const PORT_REWRITTEN: u32 = 1 << 7;
    /// Egress or ingress was allowed only because the denying policies are audited.
    pub const AUDIT: u32 = 1 << 8;
    /// The flow was answered, and stays in `unreplied` because its pod holds its share of `conntrack`. Raised by a plain store:
    /// no other flag changes once the entry is there.
    pub const ANSWERED: u32 = 1 << 9;
}

/// Epoch of a direction that was never judged; pods' epochs begin at 1. Denials are not cached, so an entry's direction is
/// allowed where its epoch is the pod's, and to be judged where it is not.
pub const NEVER_JUDGED: u32 = 0;

/// One direction's judgement.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Judgement {
    /// The pod's epoch that was read before judging; another epoch in the pod's slot asks for a new judgement.
    pub epoch: u32,
    /// Number of the rule (or of the set's default) that decided; 0 where no policy applied.
    pub rule: u32,
}

/// What to do with a packet that shows the entry's tuple.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Flow {
    /// As below: the tests' next layout has the addresses the other way round.
    #[cfg(feature = "layout-next")]
    pub new_destination: Address,
    /// Source address after translation; the packet's own without [`flow_flag::TRANSLATE`].
    pub new_source: Address,
    /// Destination address after translation; the packet's own without [`flow_flag::TRANSLATE`].
    #[cfg(not(feature = "layout-next"))]
    pub new_destination: Address,
    /// Source port after translation, network order.
    pub new_source_port_be: u16,
    /// Destination port after translation, network order.
    pub new_destination_port_be: u16,
    /// Ones' complement sum of what translation changes in the addresses (RFC 1624), for the IPv4 header's and the
    /// transport's checksum. In the byte order of the packet.
    pub address_delta: u32,
    /// See [`flow_flag`].
    pub flags: u32,
    /// Interface that packets with this tuple enter by; 0 where that is no pod's link. Comparing it is the source check.
    pub ifindex: u32,
    /// Likewise for the ports: the transport's checksum only. Of SCTP, whose checksum is none of these sums: the verification tag that packets with this
    /// tuple bear, in network order, or 0 while nobody knows it. (Up to layout 2 it was a sum for SCTP too.)
    pub port_delta: u32,
    /// Slot of the pod to deliver to by peer redirect; [`NO_SLOT`]: pass to the stack.
    pub deliver: u32,
    /// Slot of the opener, or [`NO_SLOT`].
    pub opener: u32,
    /// Slot of the responder, or [`NO_SLOT`].
    pub responder: u32,
    /// Egress of the opener, judged on the translated destination.
    pub egress: Judgement,
    /// Ingress of the responder.
    pub ingress: Judgement,
    /// Backend number, or [`NO_BACKEND`].
    pub backend: u32,
    /// Generation of the backend number when the flow was made: another one in `backends` means that it is gone.
    pub backend_generation: u32,
    /// Number of the service pool the backend was chosen from; meaningless without a backend.
    pub service: u32,
    /// Tick ([`crate::clock`]) of the last packet, written once a tick at most.
    pub last_seen: u32,
    /// Tick when the flow was made.
    pub created: u32,
    /// See [`path`].
    pub path: u8,
    /// 1: a FIN was seen from the side whose packets have this entry's tuple. This and the next two are bytes of their own because
    /// each is only ever raised, by a plain store: both directions' packets may do so at once.
    pub fin: u8,
    /// 1: a FIN was seen from the other side.
    pub partner_fin: u8,
    /// 1: an RST was seen from either side, or both FINs were: a SYN opens a new flow. Of SCTP: ABORT or SHUTDOWN COMPLETE, and INIT.
    pub closing: u8,
    /// Always zero: an entry of the tests' next layout is longer.
    #[cfg(feature = "layout-next")]
    pub _next: u64,
}

impl Flow {
    /// An entry that does nothing: no translation, no judgement, through the stack.
    pub const NONE: Self = Self {
        new_source: Address::NONE,
        new_destination: Address::NONE,
        new_source_port_be: 0,
        new_destination_port_be: 0,
        address_delta: 0,
        port_delta: 0,
        flags: 0,
        ifindex: 0,
        deliver: NO_SLOT,
        opener: NO_SLOT,
        responder: NO_SLOT,
        egress: Judgement { epoch: 0, rule: 0 },
        ingress: Judgement { epoch: 0, rule: 0 },
        backend: NO_BACKEND,
        backend_generation: 0,
        service: 0,
        last_seen: 0,
        created: 0,
        path: path::STACK,
        fin: 0,
        partner_fin: 0,
        closing: 0,
        #[cfg(feature = "layout-next")]
        _next: 0,
    };
}

const _: () = assert!(
    size_of::<Flow>()
        == if cfg!(feature = "layout-next") {
            112
        } else {
            104
        }
);
