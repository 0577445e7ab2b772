//! Walks a chain of IPv6 extension headers to the transport behind it (RFC 8200 4): hop-by-hop, routing, authentication, destination
//! options, and the fragment header by way of fragment.rs, up to [`limits::EXTENSION_HEADERS`] and [`limits::EXTENSION_BYTES`].
//!
//! Everything else ends the chain, as what receivers take it for: a protocol without ports. So do ESP and "no next header"; and mobility
//! (RFC 6275), behind whose header there is never another.

use agent_common::{Reason, hook, hook::slot, limits};
use aya_ebpf::programs::TcContext;

use crate::{
    deliver::DROP,
    fragment::{kind as fragment, whole},
    packet::{self, Header, L3, Parsed, TRANSPORT_MASK, V6_NEXT, WALKED_HEADERS, next, pull},
    walk::{answer, ask},
    work::{Work, work},
};

/// The routing header that lets a packet visit nodes at its sender's will, deprecated by RFC 5095.
const ROUTING_TYPE_0: u8 = 0;

/// The entry point: goes on from `work.l4`, where a header of kind `work.tuple.protocol` begins.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    pull(ctx, WALKED_HEADERS);
    let parsed = chain(ctx, work);
    let parsed = whole(work, parsed);
    if let Parsed::Walk(walker) = parsed {
        return ask(ctx, work, walker);
    }
    answer(ctx, work, parsed)
}

/// How far the packet's payload reaches; 0 where that cannot be read.
#[inline(always)]
pub fn end_of(ctx: &TcContext) -> u32 {
    // Payload length, next header, hop limit.
    let mut header = [0; 4];
    if !packet::copy(ctx, L3 + 4, &mut header) {
        return 0;
    }
    let [high, low, kind, _] = header;
    let length = u16::from_be_bytes([high, low]) as u32;
    if length == 0 && kind == next::HOP_BY_HOP {
        // A jumbogram (RFC 2675), as which Linux also carries TCP segments together that are more than 64 KiB.
        return ctx.len();
    }
    V6_NEXT + length
}

#[inline(always)]
fn chain(ctx: &TcContext, work: &mut Work) -> Parsed {
    let end = end_of(ctx);
    if end == 0 {
        return Parsed::Unjudged(Reason::Malformed);
    }
    if work.l4 > V6_NEXT + limits::EXTENSION_BYTES {
        // By a fragment header.
        return Parsed::Unjudged(Reason::ExtensionHeader);
    }
    let mut kind = work.tuple.protocol;
    let mut offset = work.l4;
    let mut walked = work.extensions;
    for _ in 0..limits::EXTENSION_HEADERS {
        if !is_extension(kind) {
            break;
        }
        if walked == limits::EXTENSION_HEADERS || crate::mutant::removed!("extension-unwalked") {
            return Parsed::Unjudged(Reason::ExtensionHeader);
        }
        walked += 1;
        if kind == next::FRAGMENT {
            work.tuple.protocol = kind;
            work.l4 = offset;
            work.extensions = walked;
            if work.fragment != fragment::NONE {
                // One fragment header to a packet.
                return Parsed::Unjudged(Reason::Fragment);
            }
            return Parsed::Walk(slot::FRAGMENT);
        }
        // Next header, length; of a routing header also type, segments left.
        let mut header = [0; 4];
        if !packet::copy(ctx, offset, &mut header) {
            return Parsed::Unjudged(Reason::Malformed);
        }
        let [following, length, route, left] = header;
        let begins = offset;
        offset += if kind == next::AUTHENTICATION {
            (length as u32 + 2) * 4
        } else {
            (length as u32 + 1) * 8
        };
        // Before anything is asked of it: behind the packet's end there may be more of the frame.
        if offset > end {
            return Parsed::Unjudged(Reason::Malformed);
        }
        if kind == next::HOP_BY_HOP && begins != V6_NEXT {
            // It stands first or nowhere.
            return Parsed::Unjudged(Reason::ExtensionHeader);
        }
        if kind == next::ROUTING {
            if route == ROUTING_TYPE_0
                && work.hook == hook::FROM_POD
                && !crate::mutant::removed!("routing-type-0")
            {
                return Parsed::Refused(Reason::ExtensionHeader);
            }
            if left != 0 {
                // The destination is a stop on the way: it is not where the flow goes.
                return Parsed::Unjudged(Reason::ExtensionHeader);
            }
        }
        kind = following;
        if offset > V6_NEXT + limits::EXTENSION_BYTES {
            return Parsed::Unjudged(Reason::ExtensionHeader);
        }
    }
    if is_extension(kind) {
        return Parsed::Unjudged(Reason::ExtensionHeader);
    }
    work.extensions = walked;
    let mut header = Header::new();
    header.tuple = work.tuple;
    header.tuple.protocol = kind;
    // The verifier has forgotten the bounds where the compiler knows them.
    header.l4 = core::hint::black_box(offset) & TRANSPORT_MASK;
    let Some([_, hops]) = packet::load::<[u8; 2]>(ctx, L3 + 6) else {
        return Parsed::Short;
    };
    let parsed = packet::transport(ctx, &mut header, kind, end.saturating_sub(offset), hops);
    work.tuple = header.tuple;
    work.l4 = header.l4;
    work.tcp_flags = header.tcp_flags;
    parsed
}

/// Whether something may follow a header of this kind.
#[inline(always)]
const fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        next::HOP_BY_HOP
            | next::ROUTING
            | next::FRAGMENT
            | next::AUTHENTICATION
            | next::DESTINATION
    )
}
