//! Answers a packet at once: TCP with RST, anything else with ICMP port unreachable. The packet is turned into its own answer and goes back
//! where it came from: into the pod by peer redirect, so that it meets no policy, or out of the uplink.
//!
//! **What is answered**: whatever a ClusterIP does not take, from pods and from outside, be it a port that no service has, a service without
//! endpoints, an echo, or another protocol; and a TCP segment of a connection that is gone. **Why port unreachable**, and not protocol or host:
//! kube-proxy answers so, for every protocol (`reject` of nftables and of iptables), sockets see "connection refused" of it (the others are softer errors,
//! which connected sockets may never be told), and the address exists: its neighbours among ports answer.
//!
//! **What is never answered** (RFC 1122 3.2.2, RFC 4443 2.4, RFC 9293 3.5.2): an RST, an ICMP error (none comes here), a fragment that is not the first,
//! a source that is nobody's own (unspecified, multicast, broadcast, loopback: none comes here either), a frame to a group of stations, or one that
//! is another station's.
//!
//! A checksum that the sender left to its device stays marked as such, and with it the answer; whoever is on the same machine takes it so.

use agent_common::{Count, Reason, budget, event_kind, hook, limits, protocol};
use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{
        bpf_csum_diff, bpf_redirect, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
    },
    programs::TcContext,
};

use crate::{
    deliver::{DROP, drop_packet},
    packet::{self, L3, skb, tcp},
    quote::end,
    report::{allowance, count, count_drop, dropped, event, logged},
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
/// An error's length at most, from its IP header on: as much as can be quoted in it is (RFC 1812 4.3.2.3; RFC 4443 2.4 c: the least MTU of IPv6).
const V4_LONGEST: u32 = 576;
/// See [`V4_LONGEST`].
const V6_LONGEST: u32 = 1280;
/// Bytes that are summed at once.
const BLOCK: u32 = 64;
/// Hops that an answer may take: those of a host's own packet.
const TTL: u8 = 64;
/// A frame's kind (`PACKET_OTHERHOST`, linux/if_packet.h): to another station, seen because the device sees all.
const OTHER_HOST: u32 = 3;

/// The entry point.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    if !answerable(ctx, work) && !crate::mutant::removed!("reject-anybody") {
        dropped(ctx, work);
        return DROP;
    }
    if !allowance(
        budget::REJECTS,
        limits::REJECTS_PER_SECOND,
        limits::REJECTS_PER_SECOND,
    ) {
        count(Count::RejectSuppressed);
        dropped(ctx, work);
        return DROP;
    }
    let done = if work.tuple.protocol == protocol::TCP {
        reset(ctx, work)
    } else {
        unreachable(ctx, work)
    };
    if done.is_none() {
        return drop_packet(ctx, work, Reason::RewriteFailed);
    }
    // Told only now: whoever reads of a rejection may take it that the sender knows.
    logged(ctx, work);
    count_drop(work.hook, work.reason, work.length);
    event(work, event_kind::REJECT as u32);
    // SAFETY: these take numbers only.
    unsafe {
        if work.hook == hook::FROM_UPLINK {
            bpf_redirect(work.ifindex, 0) as i32
        } else {
            bpf_redirect_peer(work.ifindex, 0) as i32
        }
    }
}

/// Whether the packet may be answered.
#[inline(always)]
fn answerable(ctx: &TcContext, work: &Work) -> bool {
    if work.tuple.protocol == protocol::TCP && work.tcp_flags & tcp::RST != 0 {
        return false;
    }
    // Without a transport header, as fragments but the first.
    if work.l4 < L3 + V4_HEADER {
        return false;
    }
    // A pod's frames reach this host by its own link only.
    if work.hook == hook::FROM_UPLINK && skb(ctx).pkt_type == OTHER_HOST {
        return false;
    }
    match packet::at::<[u8; 2]>(ctx, 0) {
        // SAFETY: `at` has checked the bounds. The lowest bit of an address's first byte stands for a group (IEEE 802 8.2).
        Some(mac) => (unsafe { (*mac)[0] }) & 1 == 0,
        None => false,
    }
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
    let end = end(ctx, work.v4 != 0)?;
    // No length says how much it is that the kernel carries together: see `packet::is_carried_together` and `extension::end_of`.
    let end = if end < work.l4 { ctx.len() } else { end };
    let segment = packet::at_transport::<[u32; 5]>(ctx, work.l4)?;
    // SAFETY: `at` has checked the bounds.
    let segment = unsafe { *segment };
    let sequence = u32::from_be(segment[1]);
    let acknowledged = segment[2];
    let offset = (segment[3].to_ne_bytes()[0] >> 4) as u32 * 4;
    let data = end.saturating_sub(work.l4 + offset);
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
    // IPv4's options, or IPv6's extension headers.
    let between = work.l4.saturating_sub(L3 + header);
    // First what is behind the header, then what is before it: the kernel cuts off nothing that a checksum which is left to the device is made of, up to the
    // checksum itself (`__bpf_skb_min_len` in net/core/filter.c), and that of TCP stands in the header's last words.
    // SAFETY: the context is the kernel's own; the helpers keep what they must.
    unsafe {
        if bpf_skb_change_tail(ctx.skb.skb, work.l4 + TCP_HEADER, 0) != 0 {
            return None;
        }
        if between != 0
            && !crate::mutant::removed!("reset-options")
            && bpf_skb_adjust_room(ctx.skb.skb, -(between as i32), BPF_ADJ_ROOM_MAC, 0) != 0
        {
            return None;
        }
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

/// Port unreachable: RFC 792, RFC 4443 3.1. It quotes the packet as it came, as much of it as may be.
#[inline(always)]
fn unreachable(ctx: &TcContext, work: &Work) -> Option<()> {
    let v4 = work.v4 != 0;
    let (header, longest) = if v4 {
        (V4_HEADER, V4_LONGEST)
    } else {
        (V6_HEADER, V6_LONGEST)
    };
    let headers = header + ICMP_HEADER;
    let length = end(ctx, v4)? - L3;
    let room = longest - headers;
    let quoted = if length < room { length } else { room };
    // Zeros behind, to whole blocks, do not change a sum, and go when it is made.
    let whole = (quoted + BLOCK - 1) & !(BLOCK - 1);
    // SAFETY: the context is the kernel's own; the helpers check what they are asked.
    unsafe {
        // First cut: behind the quote there may be more of the packet, or padding.
        if bpf_skb_change_tail(ctx.skb.skb, L3 + quoted, 0) != 0
            || bpf_skb_change_tail(ctx.skb.skb, L3 + whole, 0) != 0
            || bpf_skb_adjust_room(ctx.skb.skb, headers as i32, BPF_ADJ_ROOM_MAC, 0) != 0
        {
            return None;
        }
    }
    swap_macs(ctx)?;
    let payload = ICMP_HEADER + quoted;
    let (message, pseudo) = if v4 {
        write_v4(ctx, work, protocol::ICMP, payload)?;
        // Destination unreachable, port.
        ([3, 3], 0)
    } else {
        write_v6(ctx, work, protocol::ICMPV6, payload)?;
        let length = (payload as u16).to_be_bytes();
        let rest = u32::from_ne_bytes([0, protocol::ICMPV6, length[0], length[1]]);
        ([1, 4], addresses(work) + rest as u64)
    };
    let start = L3 + headers;
    let mut sum = pseudo + u32::from_ne_bytes([message[0], message[1], 0, 0]) as u64;
    for block in 0..V6_LONGEST / BLOCK {
        if block * BLOCK >= whole {
            break;
        }
        let bytes = packet::at::<[u32; (BLOCK / 4) as usize]>(ctx, start + block * BLOCK)?;
        // SAFETY: `at` has checked the bounds; of nothing nothing is read.
        let part = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast(), BLOCK, 0) };
        sum += part as u32 as u64;
    }
    let check = finish(sum).to_ne_bytes();
    let icmp = packet::at::<[u32; 2]>(ctx, L3 + header)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *icmp = [
            u32::from_ne_bytes([message[0], message[1], check[0], check[1]]),
            0,
        ];
    }
    // SAFETY: see above.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, start + quoted, 0) } != 0 {
        return None;
    }
    Some(())
}
