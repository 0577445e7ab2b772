//! Rewriting a packet: addresses, ports, time to live, MACs, and every checksum they are part of.

use agent_common::{Address, Flow, Pod, Tuple, flow_flag, protocol};
use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_l4_csum_replace,
    programs::TcContext,
};

use crate::{
    packet::{self, L3, V4_CHECKSUM, V4_SOURCE, V4_TTL, V6_HOP_LIMIT, V6_SOURCE},
    sctp,
};

/// Folds a sum of 32-bit words into 32 bits with end-around carry.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Folds a sum into 16 bits with end-around carry.
#[inline(always)]
const fn fold16(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after the words it covers changed by `delta` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, delta: u32) -> u16 {
    !fold16((!checksum) as u64 + delta as u64)
}

/// New minus old, in ones' complement.
#[inline(always)]
pub fn difference(old: &Address, new: &Address) -> u64 {
    let (old, new) = (old.words(), new.words());
    let mut sum = 0u64;
    sum += new[0] as u64 + !old[0] as u64;
    sum += new[1] as u64 + !old[1] as u64;
    sum += new[2] as u64 + !old[2] as u64;
    sum += new[3] as u64 + !old[3] as u64;
    sum
}

/// Stores in an entry what rewriting from `key` to the entry's ends does to checksums.
#[inline(always)]
pub fn set_deltas(key: &Tuple, flow: &mut Flow) {
    let addresses = difference(&key.source, &flow.new_source)
        + difference(&key.destination, &flow.new_destination);
    flow.address_delta = fold32(addresses);
    // Ports that stay say so, and cost no update: what the sum would come to then is zero by another name (RFC 1624 3).
    flow.port_delta = 0;
    if flow.new_source_port_be != key.source_port_be
        || flow.new_destination_port_be != key.destination_port_be
    {
        flow.port_delta = fold32(
            flow.new_source_port_be as u64
                + !key.source_port_be as u64
                + flow.new_destination_port_be as u64
                + !key.destination_port_be as u64,
        );
    }
}

/// Whether rewriting went well.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rewritten {
    /// Yes.
    Done,
    /// A helper refused, or the headers are not where they were.
    Failed,
}

/// Rewrites a packet to an entry's ends. One checksum update for the addresses (which are part of the pseudo-header) and one for
/// the ports where they change (which are not: with an offloaded checksum they are the device's business).
///
/// A fragment without a transport header ([`packet::NO_TRANSPORT`]) has its addresses rewritten alone. `WHOLE` says that `l4` is none
/// such for certain: what answers for established flows does not ask.
#[inline(always)]
pub fn translate<const WHOLE: bool>(
    ctx: &TcContext,
    l4: u32,
    v4: bool,
    kind: u8,
    flow: &Flow,
) -> Rewritten {
    if flow.flags & flow_flag::TRANSLATE == 0 {
        return Rewritten::Done;
    }
    if flow.flags & flow_flag::REPLY != 0 && crate::mutant::removed!("replies-as-they-are") {
        return Rewritten::Done;
    }
    if (WHOLE || l4 != packet::NO_TRANSPORT)
        && translate_transport(ctx, l4, v4, kind, flow) == Rewritten::Failed
    {
        return Rewritten::Failed;
    }
    translate_addresses(ctx, v4, flow)
}

/// The ports, and the transport's checksum.
#[inline(always)]
fn translate_transport(ctx: &TcContext, l4: u32, v4: bool, kind: u8, flow: &Flow) -> Rewritten {
    let (offset, mangled) = match kind {
        protocol::TCP => (l4 + 16, 0),
        protocol::UDP => (l4 + 6, BPF_F_MARK_MANGLED_0 as u64),
        protocol::SCTP => return sctp::translate(ctx, l4, v4, flow),
        _ => return Rewritten::Failed,
    };
    // SAFETY: the context is the kernel's own; the helper checks the offset.
    unsafe {
        if bpf_l4_csum_replace(
            ctx.skb.skb,
            offset,
            0,
            flow.address_delta as u64,
            BPF_F_PSEUDO_HDR as u64 | mangled,
        ) != 0
        {
            return Rewritten::Failed;
        }
        if flow.port_delta != 0
            && !crate::mutant::removed!("no-port-delta")
            && bpf_l4_csum_replace(ctx.skb.skb, offset, 0, flow.port_delta as u64, mangled) != 0
        {
            return Rewritten::Failed;
        }
    }
    let Some(ports) = packet::at_transport::<[u16; 2]>(ctx, l4) else {
        return Rewritten::Failed;
    };
    // SAFETY: `at` has checked the bounds.
    unsafe { *ports = [flow.new_source_port_be, flow.new_destination_port_be] };
    Rewritten::Done
}

/// The addresses, and IPv4's checksum.
#[inline(always)]
fn translate_addresses(ctx: &TcContext, v4: bool, flow: &Flow) -> Rewritten {
    let (source, destination) = (flow.new_source.words(), flow.new_destination.words());
    if v4 {
        let Some(check) = packet::at::<u16>(ctx, L3 + V4_CHECKSUM) else {
            return Rewritten::Failed;
        };
        // SAFETY: `at` has checked the bounds, here and below.
        unsafe { *check = update(*check, flow.address_delta) };
        let Some(ends) = packet::at::<[u32; 2]>(ctx, L3 + V4_SOURCE) else {
            return Rewritten::Failed;
        };
        // SAFETY: see above.
        unsafe { *ends = [source[3], destination[3]] };
    } else {
        let Some(ends) = packet::at::<[u32; 8]>(ctx, L3 + V6_SOURCE) else {
            return Rewritten::Failed;
        };
        // SAFETY: see above.
        unsafe {
            (*ends)[0] = source[0];
            (*ends)[1] = source[1];
            (*ends)[2] = source[2];
            (*ends)[3] = source[3];
            (*ends)[4] = destination[0];
            (*ends)[5] = destination[1];
            (*ends)[6] = destination[2];
            (*ends)[7] = destination[3];
        }
    }
    Rewritten::Done
}

/// The time to live, or hop limit.
#[inline(always)]
pub fn time_to_live(ctx: &TcContext, v4: bool) -> Option<u8> {
    let pointer = packet::at::<u8>(ctx, L3 + if v4 { V4_TTL } else { V6_HOP_LIMIT })?;
    // SAFETY: `at` has checked the bounds.
    Some(unsafe { *pointer })
}

/// Does to a packet what forwarding does: one hop less, and the MACs of the pod's link.
#[inline(always)]
pub fn forward(ctx: &TcContext, v4: bool, pod: &Pod) -> Rewritten {
    if v4 {
        let Some(ttl) = packet::at::<u8>(ctx, L3 + V4_TTL) else {
            return Rewritten::Failed;
        };
        let Some(check) = packet::at::<u16>(ctx, L3 + V4_CHECKSUM) else {
            return Rewritten::Failed;
        };
        // SAFETY: `at` has checked the bounds. The time to live is the upper byte of its 16-bit word, so one
        // less there is 0x0100 less in network order.
        unsafe {
            *ttl = (*ttl).wrapping_sub(1);
            *check = update(*check, !(0x0100u16.to_be()) as u32);
        }
    } else {
        let Some(limit) = packet::at::<u8>(ctx, L3 + V6_HOP_LIMIT) else {
            return Rewritten::Failed;
        };
        // SAFETY: `at` has checked the bounds.
        unsafe { *limit = (*limit).wrapping_sub(1) };
    }
    let Some(macs) = packet::at::<[u8; 12]>(ctx, 0) else {
        return Rewritten::Failed;
    };
    let (to, from) = (&pod.mac, &pod.host_mac);
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *macs = [
            to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4],
            from[5],
        ];
    }
    Rewritten::Done
}
