//! The packet that an ICMP error quotes: where it stands, and of which flow it is.

use agent_common::{Address, Tuple, protocol};
use aya_ebpf::{helpers::bpf_skb_pull_data, programs::TcContext};

use crate::{
    packet::{self, L3},
    work::Work,
};

/// ICMP's header of an error, in both families; the quote stands behind it.
const ICMP_HEADER: u32 = 8;
/// Offset of the checksum in it.
pub const ICMP_CHECKSUM: u32 = 2;
/// IPv4 header without options.
const V4_HEADER: u32 = 20;
/// IPv6 header.
const V6_HEADER: u32 = 40;
/// Bytes of the quoted transport that are always there (RFC 792); an error with fewer tells nothing.
const TRANSPORT: u32 = 8;
/// Offset of TCP's checksum, which may lie behind the quote.
const TCP_CHECKSUM: u32 = 16;
/// Offset of UDP's.
const UDP_CHECKSUM: u32 = 6;
/// As many bytes as are read and written: the longest headers of the error, its own, and those of the quote up to TCP's checksum.
const HEADERS: u32 = 512;
/// Every offset of [`HEADERS`] fits in here.
const MASK: u32 = HEADERS - 1;

/// Where the quoted packet stands.
pub struct Quote {
    /// Offset of its IP header; 0: nothing is quoted whose flow can be known.
    pub l3: u32,
    /// Offset of its transport.
    pub l4: u32,
    /// Offset of its transport's checksum; 0: it has none, or it lies behind the quote.
    pub check: u32,
}

impl Quote {
    const NONE: Self = Self {
        l3: 0,
        l4: 0,
        check: 0,
    };

    /// Whether there is one.
    #[inline(always)]
    pub const fn known(&self) -> bool {
        self.l3 != 0
    }
}

/// A pointer into the error's or the quote's headers. The verifier has forgotten the offset's bounds, see [`packet::at_transport`].
#[inline(always)]
pub fn at<T>(ctx: &TcContext, offset: u32) -> Option<*mut T> {
    packet::at(ctx, core::hint::black_box(offset) & MASK)
}

/// Offset of the packet's end, as its IP header says: what follows in the frame is padding. The parser has held it against the frame.
#[inline(always)]
pub fn end(ctx: &TcContext, v4: bool) -> Option<u32> {
    let length = packet::at::<u16>(ctx, L3 + if v4 { 2 } else { 4 })?;
    // SAFETY: `at` has checked the bounds.
    let length = u16::from_be(unsafe { *length }) as u32;
    Some(L3 + length + if v4 { 0 } else { V6_HEADER })
}

/// Finds the quoted packet. Its tuple stands in `work.reply_key` then, and its reverse in `work.forward_key`.
#[inline(always)]
pub fn read(ctx: &TcContext, work: &mut Work) -> Quote {
    let length = ctx.len();
    let wanted = if length < HEADERS { length } else { HEADERS };
    // SAFETY: the context is the kernel's own. A failure shows as a quote that is too short.
    unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
    match find(ctx, work) {
        Some(quote)
            if work.reply_key.source.same(&work.tuple.destination)
                || crate::mutant::removed!("icmp-lies") =>
        {
            work.forward_key = work.reply_key.reversed();
            quote
        }
        // An error goes to the source of what it quotes: this one lies.
        _ => {
            work.forward_key = work.tuple;
            Quote::NONE
        }
    }
}

/// Whether an error of this type is about the packet that stands behind its header.
#[inline(always)]
const fn about_a_packet(kind: u8, v4: bool) -> bool {
    if v4 {
        // Unreachable, time exceeded, parameter problem.
        matches!(kind, 3 | 11 | 12)
    } else {
        // Unreachable, too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    }
}

#[inline(always)]
fn find(ctx: &TcContext, work: &mut Work) -> Option<Quote> {
    let v4 = work.v4 != 0;
    let message = at::<[u8; 2]>(ctx, work.l4)?;
    // SAFETY: `at` has checked the bounds, here and below.
    if !about_a_packet(unsafe { (*message)[0] }, v4) {
        return None;
    }
    let end = if crate::mutant::removed!("icmp-padding") {
        u32::MAX
    } else {
        end(ctx, v4)?
    };
    let l3 = work.l4 + ICMP_HEADER;
    let (l4, kind) = if v4 {
        quoted_v4(ctx, &mut work.reply_key, l3)?
    } else {
        quoted_v6(ctx, &mut work.reply_key, l3)?
    };
    if l4 + TRANSPORT > end {
        return None;
    }
    let first = at::<[u16; 4]>(ctx, l4)?;
    // SAFETY: see above.
    let first = unsafe { *first };
    let tuple = &mut work.reply_key;
    let message = first[0].to_ne_bytes()[0];
    match kind {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            tuple.source_port_be = first[0];
            tuple.destination_port_be = first[1];
        }
        // As the parser has it: an echo's id is the port of the end that asks; of an error there is no error (RFC 1122 3.2.2).
        protocol::ICMP if v4 => match message {
            8 => tuple.source_port_be = first[2],
            0 => tuple.destination_port_be = first[2],
            3 | 4 | 5 | 11 | 12 => return None,
            _ => {}
        },
        protocol::ICMPV6 if !v4 => match message {
            128 => tuple.source_port_be = first[2],
            129 => tuple.destination_port_be = first[2],
            0..=127 => return None,
            _ => {}
        },
        _ => {}
    }
    let check = match kind {
        protocol::TCP if l4 + TCP_CHECKSUM + 2 <= end => l4 + TCP_CHECKSUM,
        // None was sent where it is zero (RFC 768).
        protocol::UDP if first[3] != 0 => l4 + UDP_CHECKSUM,
        // SCTP's is at an offset of 8, mostly behind the quote, and nobody who gets an error looks at it.
        _ => 0,
    };
    Some(Quote { l3, l4, check })
}

/// Reads a quoted IPv4 header: where its transport stands, and of which protocol it is.
#[inline(always)]
fn quoted_v4(ctx: &TcContext, tuple: &mut Tuple, l3: u32) -> Option<(u32, u8)> {
    let header = at::<[u32; 5]>(ctx, l3)?;
    // SAFETY: `at` has checked the bounds.
    let words = unsafe { *header };
    let first = words[0].to_ne_bytes()[0];
    let length = ((first & 0x0f) as u32) * 4;
    let fragment = words[1].to_ne_bytes();
    // Behind the first fragment there are no ports.
    if first >> 4 != 4 || length < V4_HEADER || (fragment[2] & 0x1f) | fragment[3] != 0 {
        return None;
    }
    let kind = words[2].to_ne_bytes()[1];
    *tuple = Tuple {
        source: Address::v4(words[3].to_ne_bytes()),
        destination: Address::v4(words[4].to_ne_bytes()),
        source_port_be: 0,
        destination_port_be: 0,
        protocol: kind,
        _zero: [0; 3],
    };
    Some((l3 + length, kind))
}

/// The same of IPv6.
#[inline(always)]
fn quoted_v6(ctx: &TcContext, tuple: &mut Tuple, l3: u32) -> Option<(u32, u8)> {
    let header = at::<[u32; 10]>(ctx, l3)?;
    // SAFETY: `at` has checked the bounds.
    let words = unsafe { *header };
    let kind = words[1].to_ne_bytes()[2];
    *tuple = Tuple {
        source: Address::from_words([words[2], words[3], words[4], words[5]]),
        destination: Address::from_words([words[6], words[7], words[8], words[9]]),
        source_port_be: 0,
        destination_port_be: 0,
        protocol: kind,
        _zero: [0; 3],
    };
    // A mapped address would be taken for IPv4's.
    if words[0].to_ne_bytes()[0] >> 4 != 6 || tuple.source.is_v4() || tuple.destination.is_v4() {
        return None;
    }
    Some((l3 + V6_HEADER, kind))
}
