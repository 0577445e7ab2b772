//! Fragments of both families. A first fragment is judged like any packet, and leaves what it was to those behind it once it has passed;
//! each of these begins where the last ended and follows: the same flow, translated in its addresses alone, since ports and the
//! transport's checksum stand in the first. Whatever else leaves no pod, with [`Reason::Fragment`], also where no policy is in
//! force: of a fragment that follows nothing nobody can tell whether it is a service's answer, which must not go out untranslated.
//!
//! At an uplink such a fragment is left to the stack, which may put datagrams together that the network brings in disorder (as it does where
//! netfilter tracks connections). `to_pod` has the last word on what comes out: it drops fragments that follow nothing where policy is in force,
//! and else leaves it to the pod to put them together.

use agent_common::{Fragment, FragmentKey, Reason, clock, hook::slot, limits};
use aya_ebpf::programs::TcContext;

use crate::{
    deliver::{DROP, drop_packet},
    extension,
    gate::{hand_over, moving},
    maps::FRAGMENTS,
    packet::{self, Header, L3, NO_TRANSPORT, Parsed, TRANSPORT_MASK, V6_NEXT},
    report::now,
    walk::{answer, ask},
    work::{Work, work},
};

/// What a packet is of its datagram, in [`Work::fragment`].
pub mod kind {
    /// All of it.
    pub const NONE: u32 = 0;
    /// Its beginning, and more follows.
    pub const FIRST: u32 = 1;
    /// Not its beginning.
    pub const LATER: u32 = 2;
    /// All of it, behind a fragment header (RFC 6946).
    pub const ATOMIC: u32 = 3;
}

/// Bytes of IPv6's fragment header.
const V6_FRAGMENT: u32 = 8;
/// Bytes of a unit of offsets.
const UNIT: u32 = 8;
/// The longest that a datagram may become (RFC 791 3.1; RFC 8200 4.5 says the same of its payload).
const LONGEST: u32 = u16::MAX as u32;

/// What the fragment's own words say.
struct Place {
    /// Where it begins, in units.
    offset: u32,
    /// Bytes of it that are its datagram's.
    length: u32,
    /// Whether another one follows.
    more: bool,
}

/// The entry point: `work.tuple` has the addresses; `work.l4` is where the datagram's bytes begin in IPv4, and the fragment header in IPv6.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    let parsed = if work.v4 != 0 {
        v4(ctx, work)
    } else {
        v6(ctx, work)
    };
    if let Parsed::Walk(walker) = parsed {
        return ask(ctx, work, walker);
    }
    if parsed == Parsed::Refused(Reason::Fragment) && work.fragment == kind::LATER {
        let moving = moving();
        if moving != 0 {
            // Its first may have gone to the programs of the other side. (One that no side would take is dropped there.)
            return hand_over(ctx, moving, work.hook);
        }
    }
    answer(ctx, work, parsed)
}

#[inline(always)]
fn v4(ctx: &TcContext, work: &mut Work) -> Parsed {
    // Total length, identification, flags and offset.
    let mut header = [0; 6];
    if !packet::copy(ctx, L3 + 2, &mut header) {
        return Parsed::Short;
    }
    let [high, low, id0, id1, word0, word1] = header;
    let begins = work.l4;
    let total = u16::from_be_bytes([high, low]) as u32;
    let word = u16::from_be_bytes([word0, word1]) as u32;
    let place = Place {
        offset: word & 0x1fff,
        length: (L3 + total).saturating_sub(begins),
        more: word & 0x2000 != 0,
    };
    let kind = work.tuple.protocol;
    let id_be = u32::from_ne_bytes([id0, id1, 0, 0]);
    let parsed = admit(work, &place, id_be, kind);
    if parsed != Parsed::Flow || work.fragment == kind::LATER {
        return parsed;
    }
    let mut header = Header::new();
    header.v4 = true;
    header.tuple = work.tuple;
    header.l4 = core::hint::black_box(begins) & TRANSPORT_MASK;
    let parsed = packet::transport(ctx, &mut header, kind, place.length, 0);
    work.tuple = header.tuple;
    work.l4 = header.l4;
    work.tcp_flags = header.tcp_flags;
    whole(work, parsed)
}

#[inline(always)]
fn v6(ctx: &TcContext, work: &mut Work) -> Parsed {
    let at = work.l4;
    if at == V6_NEXT {
        // The parser has found it, and not the walk through a chain, which counts.
        work.extensions = 1;
    }
    let end = extension::end_of(ctx);
    let mut header = [0; V6_FRAGMENT as usize];
    if end == 0 || !packet::copy(ctx, at, &mut header) {
        return Parsed::Unjudged(Reason::Malformed);
    }
    let [following, _, word0, word1, id0, id1, id2, id3] = header;
    let begins = at + V6_FRAGMENT;
    if begins > end {
        return Parsed::Unjudged(Reason::Malformed);
    }
    let word = u16::from_be_bytes([word0, word1]) as u32;
    let place = Place {
        offset: word >> 3,
        length: end - begins,
        more: word & 1 != 0,
    };
    // In IPv6 the protocol is no part of what fragments share.
    let parsed = admit(work, &place, u32::from_ne_bytes([id0, id1, id2, id3]), 0);
    if parsed != Parsed::Flow || work.fragment == kind::LATER {
        return parsed;
    }
    // More headers may stand between, in the first fragment; the walk ends there in any case.
    work.l4 = begins;
    work.tuple.protocol = following;
    Parsed::Walk(slot::EXTENSION)
}

/// Finds out what the fragment is of its datagram, and of a later one the flow.
#[inline(always)]
fn admit(work: &mut Work, place: &Place, id_be: u32, protocol: u8) -> Parsed {
    let end = place.offset * UNIT + place.length;
    work.fragment = if place.offset != 0 {
        kind::LATER
    } else if place.more {
        kind::FIRST
    } else {
        kind::ATOMIC
    };
    // All but the last are whole units, and none is empty: what follows an empty one would begin where it did.
    let uneven = place.more && (!place.length.is_multiple_of(UNIT) || place.length == 0);
    if uneven || end > LONGEST {
        return Parsed::Refused(Reason::Fragment);
    }
    work.next_fragment = if place.more { end / UNIT } else { 0 };
    work.fragment_key = FragmentKey {
        source: work.tuple.source,
        destination: work.tuple.destination,
        id_be,
        offset: if crate::mutant::removed!("fragment-anywhere") {
            0
        } else {
            place.offset as u16
        },
        protocol,
        hook: work.hook as u8,
    };
    if work.fragment != kind::LATER {
        return Parsed::Flow;
    }
    let Some(entry) = FRAGMENTS.get_ptr(&work.fragment_key) else {
        return Parsed::Refused(Reason::Fragment);
    };
    // SAFETY: a map value. Should it become another datagram's at this moment, the flow that it names was judged as well.
    let first = unsafe { *entry };
    if now().wrapping_sub(first.begun) as i32 > clock::ticks(limits::REASSEMBLY_SECONDS) as i32 {
        return Parsed::Refused(Reason::Fragment);
    }
    work.fragment_begun = first.begun;
    work.tuple.protocol = first.protocol;
    work.tuple.source_port_be = first.source_port_be;
    work.tuple.destination_port_be = first.destination_port_be;
    work.l4 = NO_TRANSPORT;
    work.tcp_flags = 0;
    Parsed::Flow
}

/// What parsing made of what is behind the fragment's own words, for a packet that may be a fragment: of a fragmented datagram only a flow's whole
/// ports will do, and all headers before them (RFC 1858 3, RFC 7112 5; neighbour discovery is never fragmented, RFC 6980 5).
#[inline(always)]
pub fn whole(work: &Work, parsed: Parsed) -> Parsed {
    match (work.fragment, parsed) {
        (kind::NONE, _) | (_, Parsed::Flow | Parsed::Refused(_) | Parsed::Walk(_)) => parsed,
        (kind::ATOMIC, parsed) if parsed != Parsed::Neighbour => parsed,
        _ => Parsed::Refused(Reason::Fragment),
    }
}

/// Settles what a fragment leaves for the next one, once its verdict is known. To be called where a program ends.
#[inline(always)]
pub fn settle(ctx: &TcContext, verdict: i32) -> i32 {
    if verdict == DROP && !crate::mutant::removed!("fragment-before-verdict") {
        return verdict;
    }
    if pass_on() != 0 {
        return verdict;
    }
    let Some(work) = work() else {
        return DROP;
    };
    drop_packet(ctx, work, Reason::Fragment)
}

/// Takes a later fragment's place out of the map, and puts the next one's in. 0: another CPU has been here with the same fragment.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pass_on() -> u32 {
    let Some(work) = work() else {
        return 1;
    };
    if work.parsed != Parsed::Flow.number() {
        // Left to the stack as what it is: nothing follows it, and its words in the memory may be another packet's.
        return 1;
    }
    let begun = match work.fragment {
        kind::FIRST => now(),
        // The removal is atomic in the kernel, and says whether there was something to remove.
        kind::LATER if FRAGMENTS.remove(&work.fragment_key).is_ok() => work.fragment_begun,
        kind::LATER => return 0,
        _ => return 1,
    };
    if work.next_fragment != 0 {
        work.fragment_key.offset = if crate::mutant::removed!("fragment-anywhere") {
            0
        } else {
            work.next_fragment as u16
        };
        let left = Fragment::of(&work.tuple, begun);
        let _ = FRAGMENTS.insert(&work.fragment_key, &left, 0);
    }
    1
}
