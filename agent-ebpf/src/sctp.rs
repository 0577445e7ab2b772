//! SCTP (RFC 9260): what a packet's first chunk says of its flow, and its checksum where ports are rewritten.
//!
//! **Flows** are keyed by addresses and ports, as UDP's. Any packet opens one, not INIT alone: an association that was idle for longer than its entry may be,
//! or that began before the programs looked, goes on, to the backend that it had where there is one only; another backend, which does not know it, answers with
//! an ABORT of its own (RFC 9260 8.4), and the client connects anew. The same becomes of packets whose backend has gone. So nothing here makes an ABORT.
//! An association is a connection: it stays with a backend that stops serving, until that is gone.
//!
//! ABORT and SHUTDOWN COMPLETE end a flow: it is remembered for as long as a TCP connection that was closed, and an INIT, whose own tag is zero (8.5.1), begins
//! anew at a backend of its own. Both are believed only if they bear the flow's **verification tag**, or the one of the other direction where they say that they
//! reflect it (8.5.1): whoever does not see the association's packets must guess one of 2^32, as its ends would have it too. An entry keeps the tag of
//! its direction in [`Flow::port_delta`], which SCTP has no other use for: INIT says which tag its answers will bear, and the first answer, an INIT ACK, which one the
//! packets after it. An association that restarts (5.2) has new tags, which nobody learns: its end is not seen then, and its entry goes
//! when it is idle; likewise that of an ABORT behind other control chunks (3.3.7), because only the first chunk is looked at.
//!
//! **Checksum.** It has no pseudo-header: new addresses leave it as it is, and new ports change it by [`crc32c::change`].
//! A zero is left a zero. It says that the sender leaves the sum to its device (Linux: `CHECKSUM_PARTIAL` with `csum_not_inet`, the field zero until
//! `skb_crc32c_csum_help` or the device sums what is there by then, new ports and all; every veth offers that), as every GSO packet's does, or that the
//! ends do without (RFC 9653). Programs cannot see which. Of all real sums one in 2^32 is zero, and of such a packet, should its ports be rewritten, the receiver waits for the next one.
//! Offloaded sums are untested here, since the machines that tests run on have no SCTP; rows show that a zero stays.
//!
//! A first fragment does not tell its datagram's length, which the change depends on: where it needs other ports it is dropped for [`Reason::Fragment`](agent_common::Reason),
//! and so those behind it, which follow nothing. (SCTP fragments its messages itself, and no more than the path takes.)
//!
//! Addresses that INIT lists in parameters (multi-homing) stay what they are: a flow is between the two addresses that its packets show.

use agent_common::{Flow, crc32c, flow_flag, protocol};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes, programs::TcContext};

use crate::{
    conntrack::{entry, partner},
    fragment::kind,
    nat::Rewritten,
    packet::{self, NO_TRANSPORT},
    quote::end,
    work::{Work, alone},
};

/// Bytes of the common header: ports, verification tag, checksum (RFC 9260 3.1).
pub const COMMON_HEADER: u32 = 12;
/// Bytes of a chunk's own header: type, flags, length (3.2).
pub const CHUNK_HEADER: u32 = 4;
/// Offset of the verification tag.
const TAG: u32 = 4;
/// Offset of the initiate tag, where the first chunk is INIT or INIT ACK (3.3.2, 3.3.3).
const INITIATE_TAG: u32 = COMMON_HEADER + CHUNK_HEADER;
/// Bytes of a tag.
const TAG_BYTES: u32 = 4;

/// What the first chunk says of its flow, in [`packet::Header::tcp_flags`], above TCP's eight bits.
pub mod flag {
    /// INIT, in a packet whose tag is zero: it begins an association.
    pub const INIT: u32 = 1 << 8;
    /// INIT ACK.
    pub const INIT_ACK: u32 = 1 << 9;
    /// ABORT or SHUTDOWN COMPLETE: the association is over.
    pub const END: u32 = 1 << 10;
    /// The same with the bit T: the packet bears the tag of those that go the other way.
    pub const REFLECTED: u32 = 1 << 11;
}

/// Types of chunks (3.2).
mod chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
    /// Of the flags of the last two: the tag is reflected (3.3.7, 3.3.13).
    pub(super) const T: u8 = 1;
}

/// See [`flag`]. `tagged` says that the packet's verification tag is not zero.
#[inline(always)]
pub const fn flags(kind: u8, flags: u8, tagged: bool) -> u32 {
    match kind {
        chunk::INIT if !tagged => flag::INIT,
        chunk::INIT_ACK => flag::INIT_ACK,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE if flags & chunk::T != 0 => {
            flag::END | flag::REFLECTED
        }
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE => flag::END,
        _ => 0,
    }
}

/// Fills in the packet's tags, where it is one of SCTP; to be called for each before anything is made of it but an established flow's.
///
/// Called for other packets too: behind a branch the verifier would walk all that follows twice.
#[inline(always)]
pub fn note(ctx: &TcContext, work: &mut Work) {
    note_tags(ctx.skb.skb, work);
}

/// [`note`], as a function that the verifier walks once and by itself (see `work.rs`): it knows the context by its type's name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_tags(ctx: *mut __sk_buff, work: *mut Work) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return 0;
    };
    work.tag_be = 0;
    work.initiate_tag_be = 0;
    if work.tuple.protocol != protocol::SCTP || work.l4 == NO_TRANSPORT {
        return 0;
    }
    // SAFETY: the context is the kernel's own, and the helper writes four bytes: zeros, where the packet has none.
    unsafe {
        bpf_skb_load_bytes(
            ctx.cast_const().cast(),
            work.l4 + TAG,
            (&raw mut work.tag_be).cast(),
            TAG_BYTES,
        );
        if work.tcp_flags & (flag::INIT | flag::INIT_ACK) != 0 {
            bpf_skb_load_bytes(
                ctx.cast_const().cast(),
                work.l4 + INITIATE_TAG,
                (&raw mut work.initiate_tag_be).cast(),
                TAG_BYTES,
            );
        }
    }
    1
}

/// Keeps in both entries of a flow that is being made what its first packet says of tags. Zero: nobody knows yet.
#[inline(always)]
pub fn learn_from_opener(work: &mut Work) {
    if work.forward_key.protocol == protocol::SCTP {
        work.forward.port_delta = work.tag_be;
        work.reply.port_delta = work.initiate_tag_be;
    }
}

/// Keeps in `work.forward` and `work.reply`, which are put among answered flows, what the first answer says of tags.
#[inline(always)]
pub fn learn_from_answer(work: &mut Work) {
    if work.forward_key.protocol != protocol::SCTP || work.tcp_flags & flag::REFLECTED != 0 {
        return;
    }
    if work.reply.port_delta == 0 {
        work.reply.port_delta = work.tag_be;
    }
    if work.forward.port_delta == 0
        && work.tcp_flags & flag::INIT_ACK != 0
        && work.reply.port_delta == work.tag_be
    {
        work.forward.port_delta = work.initiate_tag_be;
    }
}

/// Closes both entries of a flow whose packet says that the association is over, if it bears the right tag. `same` says that the packet
/// travels in the direction of `flow`'s key.
#[inline(never)]
pub fn close(work: &Work, flow: &mut Flow, same: u32) -> u32 {
    let key = partner(flow, protocol::SCTP);
    let Some(other) = entry(&key) else {
        return 0;
    };
    let reflected = (work.tcp_flags & flag::REFLECTED != 0) as u32;
    // Of the packet's own direction, or of the other where that is reflected.
    let tag_be = if same != reflected {
        flow.port_delta
    } else {
        // SAFETY: a map value; its tag changes no more.
        unsafe { (*other).port_delta }
    };
    if (tag_be == 0 || tag_be != work.tag_be) && !crate::mutant::removed!("sctp-tag") {
        return 0;
    }
    flow.closing = 1;
    // SAFETY: a map value; a single byte of it is raised.
    unsafe { (*other).closing = 1 };
    1
}

/// Whether the packet is a first fragment that needs other ports: its checksum cannot be known.
#[inline(always)]
pub fn in_pieces(work: &Work, flow: &Flow) -> bool {
    work.fragment == kind::FIRST
        && work.tuple.protocol == protocol::SCTP
        && flow.flags & flow_flag::TRANSLATE != 0
        && (flow.new_source_port_be != work.tuple.source_port_be
            || flow.new_destination_port_be != work.tuple.destination_port_be)
        && !crate::mutant::removed!("sctp-fragment")
}

/// The ports, and the checksum.
#[inline(always)]
pub fn translate(ctx: &TcContext, l4: u32, v4: bool, flow: &Flow) -> Rewritten {
    if sctp_rewrite(ctx.skb.skb, l4, v4 as u32, flow) != 0 {
        Rewritten::Done
    } else {
        Rewritten::Failed
    }
}

/// [`translate`], as a function that the verifier walks once and by itself, for any entry. It has a stack of its own: `new_to_pod` has none to spare.
/// 0: it failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_rewrite(ctx: *mut __sk_buff, l4: u32, v4: u32, flow: *const Flow) -> u32 {
    if flow.is_null() {
        return 0;
    }
    // SAFETY: an entry, which the caller has looked up or made.
    let flow = unsafe { &*flow };
    let ctx = &TcContext::new(ctx);
    let (from, to) = (
        flow.new_source_port_be.to_ne_bytes(),
        flow.new_destination_port_be.to_ne_bytes(),
    );
    let new = u32::from_ne_bytes([from[0], from[1], to[0], to[1]]);
    // Before the transport's bounds are checked: from those the compiler would derive these, and the verifier cannot.
    let Some(end) = end(ctx, v4 != 0) else {
        return 0;
    };
    let Some(header) = packet::at_transport::<[u32; 3]>(ctx, l4) else {
        return 0;
    };
    // SAFETY: `at` has checked the bounds, here and below.
    let [old, _, sum] = unsafe { *header };
    if old == new {
        return 1;
    }
    // A jumbogram's length stands elsewhere; see `extension::end_of`.
    let end = if end < l4 { ctx.len() } else { end };
    let offloaded = sum == 0 && !crate::mutant::removed!("sctp-offloaded");
    let changed = if offloaded || crate::mutant::removed!("sctp-checksum") {
        sum
    } else {
        sum ^ sctp_change(old ^ new, end - l4)
    };
    let Some(header) = packet::at_transport::<[u32; 3]>(ctx, l4) else {
        return 0;
    };
    // SAFETY: see above.
    unsafe {
        (*header)[0] = new;
        (*header)[2] = changed;
    }
    1
}

/// [`crc32c::change`], as a function that the verifier walks once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_change(delta: u32, length: u32) -> u32 {
    crc32c::change(delta, length)
}
