//! What a packet's programs know of it, kept from step to step and from tail call to tail call.

use agent_common::{Flow, FragmentKey, Tuple, Verdict};

use crate::maps::SCRATCH;

/// One packet's working memory. Lives in a per-CPU map, because two flow entries and their keys leave nothing of a
/// 512-byte stack.
#[repr(C, align(8))]
pub struct Work {
    /// The packet's tuple, as it shows it here.
    pub tuple: Tuple,
    /// Key of the opener's entry.
    pub forward_key: Tuple,
    /// Key of the responder's entry.
    pub reply_key: Tuple,
    /// The opener's entry while it is made, or a copy of the one that was found.
    pub forward: Flow,
    /// The responder's entry while it is made.
    pub reply: Flow,
    /// Verdict on the opener's egress.
    pub egress: Verdict,
    /// Verdict on the responder's ingress.
    pub ingress: Verdict,
    /// Hook, see [`agent_common::hook`].
    pub hook: u32,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Slot of the pod whose link the hook is on; [`agent_common::NO_SLOT`] at an uplink, where nothing is judged.
    pub here: u32,
    /// 1: that pod is the flow's responder; 0: its opener.
    pub here_responds: u32,
    /// Length of the packet.
    pub length: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// 1 for IPv4, 0 for IPv6.
    pub v4: u32,
    /// See [`crate::packet::Header::tcp_flags`].
    pub tcp_flags: u32,
    /// Of SCTP: the packet's verification tag. See [`crate::sctp::note`], here and below.
    pub tag_be: u32,
    /// Of SCTP: the tag that an INIT or INIT ACK asks for, else 0.
    pub initiate_tag_be: u32,
    /// What parsing made of the packet, see [`crate::packet::Parsed::number`].
    pub parsed: u32,
    /// Not 0 while a walker goes back to the program that asked it: its answer, likewise. That program takes it and the fields that the walker
    /// has filled (`tuple`, `l4`, `v4`, `tcp_flags`, `fragment`, its two, and `fragment_key`) in place of parsing, and puts 0 here.
    pub resumed: u32,
    /// Extension headers walked so far.
    pub extensions: u32,
    /// 1: the packet is looked at once more, see [`crate::walk::look_again`].
    pub again: u32,
    /// See [`crate::fragment::kind`].
    pub fragment: u32,
    /// Where the next fragment of the datagram begins, in units of eight bytes; 0: this is the last.
    pub next_fragment: u32,
    /// Tick of the datagram's first fragment, where this is a later one.
    pub fragment_begun: u32,
    /// Why the packet is dropped or rejected, a [`agent_common::Reason`].
    pub reason: u32,
    /// Flags of the entries that are to be made, see [`agent_common::flow_flag`].
    pub flags: u32,
    /// Ticks that flows of the packet's protocol may be idle: those that were answered, and those that were not. Kept here, so that each
    /// look at a clashing flow need not choose anew, and the verifier with it.
    pub timeouts: [u32; 2],
    /// The fragment's own place in `fragments`.
    pub fragment_key: FragmentKey,
}

/// This CPU's working memory.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    let work = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: TC programs run with bottom halves off and to their end, so nothing else on this CPU uses the
    // element meanwhile, and each program takes the reference once.
    Some(unsafe { &mut *work })
}

/// The working memory inside a function that the verifier walks by itself.
///
/// A function with external linkage is a "global" one to the verifier (since Linux 5.6; with pointers to memory since 5.13): walked
/// once, for any argument, and not again on each path that leads to a call. Older kernels prune paths less: without this 6.1 walked
/// 676,000 instructions of one program, and takes a million.
///
/// The memory is looked up anew, because before 6.2 the key of a map may lie in a map's value but not behind an argument. The
/// argument is passed for the compiler, which must see that the caller's memory goes in.
///
/// # Safety
/// `passed` is what [`work`] gave to the caller, which uses nothing of it before the function returns.
#[inline(always)]
pub unsafe fn alone<'a>(passed: *mut Work) -> Option<&'a mut Work> {
    if passed.is_null() {
        return None;
    }
    work()
}
