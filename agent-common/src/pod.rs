//! Local pods.

use crate::SetWord;

/// Flags of a pod slot.
pub mod pod_flag {
    /// The slot is taken.
    pub const USED: u32 = 1 << 0;
    /// The pod may send from addresses that are not its own, but for those of this node (annotation `sluice.dev/source-check: "false"`).
    pub const ANY_SOURCE: u32 = 1 << 1;
    /// Deliver by peer redirect: the link is a veth with a peer in another namespace, and its MACs are known.
    pub const REDIRECT: u32 = 1 << 2;
    /// No source has told of the pod yet: the link and its route are all that is known.
    pub const UNKNOWN: u32 = 1 << 3;
}

/// Value of `pods`, index is the slot. The two set words and the epoch are stored atomically, each by itself; the
/// rest is written before anything points to the slot.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Pod {
    /// What the pod may send.
    pub egress: SetWord,
    /// What may reach the pod.
    pub ingress: SetWord,
    /// Raised by each change that may take something away from the pod; never set back, not even when the slot
    /// goes to another pod. A flow judged in another epoch is judged again.
    pub epoch: u32,
    /// Interface of the host's side of the pod's link; 0 in a free slot.
    pub ifindex: u32,
    /// See [`pod_flag`].
    pub flags: u32,
    /// MAC of the pod's side, the destination of what is delivered by redirect.
    pub mac: [u8; 6],
    /// MAC of the host's side, the source of what is delivered by redirect.
    pub host_mac: [u8; 6],
    /// The number by which the host's network namespace knows the pod's, plus one: where its sockets are. 0: not known.
    pub namespace: u32,
    /// Always zero.
    pub _zero: [u8; 4],
}

/// Value of `links`, key is the interface index.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct LinkEntry {
    /// Slot in `pods`.
    pub slot: u32,
    /// Always zero.
    pub _zero: u32,
}

const _: () = {
    assert!(size_of::<Pod>() == 48);
    assert!(size_of::<LinkEntry>() == 8);
};
