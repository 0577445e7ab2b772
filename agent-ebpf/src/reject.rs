//! Answers a pod's packet at once: TCP with RST, anything else with ICMP port unreachable. The packet is turned into its own answer
//! and put back into the pod it came from, by peer redirect, so that it meets no policy.

use agent_common::Count;
use agent_common::{budget, event_kind, limits, protocol};
use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail},
    programs::TcContext,
};

use crate::{
    deliver::DROP,
    packet::{self, L3, tcp},
    report::{allowance, count, count_drop, event, logged},
    work::{Work, work},
};

/// IPv4 header without options.
const V4_HEADER: u32 = 20;
/// IPv6 header.
const V6_HEADER: u32 = 40;
/// TCP header without options.
const TCP_HEADER: u32 = 20;
/// ICMP header of an error, in both families.
const ICMP_HEADER: u32 = 8;
/// Bytes of the offending packet's transport that an error carries (RFC 792; RFC 4443 allows more, and asks no more).
const ICMP_QUOTE: u32 = 8;
/// Hops that an answer may take: it goes to a pod of this node, but may be seen in captures.
const TTL: u8 = 64;

/// The entry point.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    logged(ctx, work);
    count_drop(work.hook, work.reason, work.length);
    event(work, event_kind::REJECT as u32);
    if !allowance(
        budget::REJECTS,
        limits::REJECTS_PER_SECOND,
        limits::REJECTS_PER_SECOND,
    ) {
        count(Count::RejectSuppressed);
        return DROP;
    }
    let done = if work.tuple.protocol == protocol::TCP {
        if work.tcp_flags & tcp::RST != 0 {
            // Never an answer to an RST, RFC 9293 3.5.2.
            return DROP;
        }
        reset(ctx, work)
    } else if work.v4 != 0 {
        unreachable_v4(ctx, work)
    } else {
        unreachable_v6(ctx, work)
    };
    if done.is_none() {
        return DROP;
    }
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect_peer(work.ifindex, 0) as i32 }
}

#[inline(always)]
fn swap_macs(ctx: &TcContext) -> Option<()> {
    let macs = packet::at::<[u16; 6]>(ctx, 0)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        let m = *macs;
        *macs = [m[3], m[4], m[5], m[0], m[1], m[2]];
    }
    Some(())
}

/// Folds a sum of 16-bit words and complements it.
#[inline(always)]
const fn finish(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Sum of both addresses of the work's tuple, for a pseudo-header.
#[inline(always)]
fn addresses(work: &Work) -> u64 {
    let (s, d) = (work.tuple.source.words(), work.tuple.destination.words());
    let (s, d) = if work.v4 != 0 {
        ([0, 0, 0, s[3]], [0, 0, 0, d[3]])
    } else {
        (s, d)
    };
    s[0] as u64
        + s[1] as u64
        + s[2] as u64
        + s[3] as u64
        + d[0] as u64
        + d[1] as u64
        + d[2] as u64
        + d[3] as u64
}

/// Writes an IPv4 header from the tuple's destination to its source, for `payload` bytes of a protocol.
#[inline(always)]
fn write_v4(ctx: &TcContext, work: &Work, kind: u8, payload: u32) -> Option<()> {
    let header = packet::at::<[u32; 5]>(ctx, L3)?;
    let total = ((V4_HEADER + payload) as u16).to_be_bytes();
    let (source, destination) = (
        work.tuple.destination.words()[3],
        work.tuple.source.words()[3],
    );
    let first = u32::from_ne_bytes([0x45, 0, total[0], total[1]]);
    // Identification 0, don't fragment.
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let third = u32::from_ne_bytes([TTL, kind, 0, 0]);
    let sum = first as u64 + second as u64 + third as u64 + source as u64 + destination as u64;
    let check = finish(sum).to_ne_bytes();
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *header = [
            first,
            second,
            u32::from_ne_bytes([TTL, kind, check[0], check[1]]),
            source,
            destination,
        ];
    }
    Some(())
}

/// Writes an IPv6 header from the tuple's destination to its source.
#[inline(always)]
fn write_v6(ctx: &TcContext, work: &Work, kind: u8, payload: u32) -> Option<()> {
    let header = packet::at::<[u32; 10]>(ctx, L3)?;
    let length = (payload as u16).to_be_bytes();
    let (s, d) = (work.tuple.destination.words(), work.tuple.source.words());
    // SAFETY: `at` has checked the bounds.
    unsafe {
        (*header)[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        (*header)[1] = u32::from_ne_bytes([length[0], length[1], kind, TTL]);
        (*header)[2] = s[0];
        (*header)[3] = s[1];
        (*header)[4] = s[2];
        (*header)[5] = s[3];
        (*header)[6] = d[0];
        (*header)[7] = d[1];
        (*header)[8] = d[2];
        (*header)[9] = d[3];
    }
    Some(())
}

/// Turns a segment into the RST that RFC 9293 3.10.7.1 gives for a closed port: with the acknowledgement it asks for, or else
/// acknowledging all that it occupies.
#[inline(always)]
fn reset(ctx: &TcContext, work: &Work) -> Option<()> {
    // Before the transport's bounds are checked: from those the compiler would derive these, and the verifier cannot.
    let l3_length = if work.v4 != 0 {
        let total = packet::at::<u16>(ctx, L3 + 2)?;
        // SAFETY: `at` has checked the bounds.
        u16::from_be(unsafe { *total }) as u32
    } else {
        let payload = packet::at::<u16>(ctx, L3 + 4)?;
        // SAFETY: `at` has checked the bounds.
        u16::from_be(unsafe { *payload }) as u32 + V6_HEADER
    };
    let segment = packet::at_transport::<[u32; 5]>(ctx, work.l4)?;
    // SAFETY: `at` has checked the bounds.
    let segment = unsafe { *segment };
    let sequence = u32::from_be(segment[1]);
    let acknowledged = segment[2];
    let offset = (segment[3].to_ne_bytes()[0] >> 4) as u32 * 4;
    let headers = work.l4 - L3 + offset;
    let data = l3_length.saturating_sub(headers);
    let occupied =
        data + (work.tcp_flags & tcp::SYN != 0) as u32 + (work.tcp_flags & tcp::FIN != 0) as u32;
    let (sequence, acknowledgement, flags) = if work.tcp_flags & tcp::ACK != 0 {
        (acknowledged, 0, tcp::RST)
    } else {
        (
            0,
            sequence.wrapping_add(occupied).to_be(),
            tcp::RST | tcp::ACK,
        )
    };
    let header = if work.v4 != 0 { V4_HEADER } else { V6_HEADER };
    // SAFETY: the context is the kernel's own; the helper keeps what it must.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, L3 + header + TCP_HEADER, 0) } != 0 {
        return None;
    }
    swap_macs(ctx)?;
    let l4 = if work.v4 != 0 {
        write_v4(ctx, work, protocol::TCP, TCP_HEADER)?;
        L3 + V4_HEADER
    } else {
        write_v6(ctx, work, protocol::TCP, TCP_HEADER)?;
        L3 + V6_HEADER
    };
    let (from, to) = (
        work.tuple.destination_port_be.to_ne_bytes(),
        work.tuple.source_port_be.to_ne_bytes(),
    );
    let ports = u32::from_ne_bytes([from[0], from[1], to[0], to[1]]);
    let control = u32::from_ne_bytes([0x50, flags as u8, 0, 0]);
    let pseudo =
        addresses(work) + u32::from_ne_bytes([0, protocol::TCP, 0, TCP_HEADER as u8]) as u64;
    let sum = pseudo + ports as u64 + sequence as u64 + acknowledgement as u64 + control as u64;
    let check = finish(sum).to_ne_bytes();
    let out = packet::at::<[u32; 5]>(ctx, l4)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *out = [
            ports,
            sequence,
            acknowledgement,
            control,
            u32::from_ne_bytes([check[0], check[1], 0, 0]),
        ];
    }
    Some(())
}

/// Trims the packet to what an error quotes, and makes room for the error's headers before it.
#[inline(always)]
fn quote(ctx: &TcContext, header: u32) -> Option<()> {
    let quoted = L3 + header + ICMP_QUOTE;
    if ctx.len() < quoted {
        return None;
    }
    // SAFETY: the context is the kernel's own; both helpers check what they are asked.
    unsafe {
        if bpf_skb_change_tail(ctx.skb.skb, quoted, 0) != 0 {
            return None;
        }
        if bpf_skb_adjust_room(
            ctx.skb.skb,
            (header + ICMP_HEADER) as i32,
            BPF_ADJ_ROOM_MAC,
            0,
        ) != 0
        {
            return None;
        }
    }
    swap_macs(ctx)
}

/// Port unreachable, RFC 792. A packet with options is dropped without an answer.
#[inline(always)]
fn unreachable_v4(ctx: &TcContext, work: &Work) -> Option<()> {
    const QUOTED: u32 = V4_HEADER + ICMP_QUOTE;
    if work.l4 != L3 + V4_HEADER {
        return None;
    }
    quote(ctx, V4_HEADER)?;
    write_v4(ctx, work, protocol::ICMP, ICMP_HEADER + QUOTED)?;
    let message = packet::at::<[u32; ((ICMP_HEADER + QUOTED) / 4) as usize]>(ctx, L3 + V4_HEADER)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        // Destination unreachable, port.
        (*message)[0] = u32::from_ne_bytes([3, 3, 0, 0]);
        (*message)[1] = 0;
        let mut sum = (*message)[0] as u64;
        let mut i = 2;
        while i < ((ICMP_HEADER + QUOTED) / 4) as usize {
            sum += (*message)[i] as u64;
            i += 1;
        }
        let check = finish(sum).to_ne_bytes();
        (*message)[0] = u32::from_ne_bytes([3, 3, check[0], check[1]]);
    }
    Some(())
}

/// Port unreachable, RFC 4443 3.1.
#[inline(always)]
fn unreachable_v6(ctx: &TcContext, work: &Work) -> Option<()> {
    const QUOTED: u32 = V6_HEADER + ICMP_QUOTE;
    quote(ctx, V6_HEADER)?;
    write_v6(ctx, work, protocol::ICMPV6, ICMP_HEADER + QUOTED)?;
    let message = packet::at::<[u32; ((ICMP_HEADER + QUOTED) / 4) as usize]>(ctx, L3 + V6_HEADER)?;
    let pseudo = addresses(work)
        + u32::from_ne_bytes([0, protocol::ICMPV6, 0, (ICMP_HEADER + QUOTED) as u8]) as u64;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        // Destination unreachable, port.
        (*message)[0] = u32::from_ne_bytes([1, 4, 0, 0]);
        (*message)[1] = 0;
        let mut sum = pseudo + (*message)[0] as u64;
        let mut i = 2;
        while i < ((ICMP_HEADER + QUOTED) / 4) as usize {
            sum += (*message)[i] as u64;
            i += 1;
        }
        let check = finish(sum).to_ne_bytes();
        (*message)[0] = u32::from_ne_bytes([1, 4, check[0], check[1]]);
    }
    Some(())
}
