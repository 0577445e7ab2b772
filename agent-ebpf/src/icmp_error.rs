//! ICMP errors: each follows the flow that it is about, to the end that caused it, with the packet that it quotes translated back to what
//! that end sent.
//!
//! An error quotes the packet that caused it as its maker had it, and goes to that packet's source. The quote finds the flow, in
//! `conntrack` or `unreplied`, and the entry of the direction that the error takes, which is the quote's reverse, says how to write it:
//!
//! - outer destination: the entry's new destination; inner source: the same, with its port;
//! - inner destination: the entry's new source, with its port;
//! - outer source: the entry's new source where it was the inner destination (the end itself answered); a router keeps its own address.
//!
//! | hook | made by | quotes | entry | after |
//! | --- | --- | --- | --- | --- |
//! | `from_pod` | the pod, called | client -> backend | its replies' | client learns of client -> service; the source is the service |
//! | `from_pod` | the pod, caller | service -> client | its own | backend learns of backend -> client; the source stays |
//! | `from_pod` | the pod, of itself by a service | service -> pod (hairpin) | its replies' | the pod learns of pod -> service |
//! | `from_pod` | a router by annotation | another end -> another end | of what enters by its link | as above, but for the source |
//! | `from_uplink` | backend elsewhere, or a router before it | client -> backend | the backend's replies' | the stack has client -> service, and `to_pod` judges |
//! | `from_uplink` | anybody, of a flow that is not translated | pod -> outside | that of the answers | untouched; `to_pod` judges |
//! | `from_uplink` | anybody, of what a pod of this node was sent by another | | the pod's own | dropped: such a packet never left the node |
//! | `from_uplink` | anybody | this host's packet | | the stack's: its own flows, and what it masqueraded |
//! | `to_pod` | as above, translated already, or of a flow that is not | what this pod sent | that of the pod's packets | passes where judged |
//! | `to_pod` | this host's stack, of what it was to forward (path MTU, no route, time exceeded) | client -> backend | the backend's replies' | the pod learns of client -> service |
//! | `to_pod` | this host as a backend | client -> this host | its replies' | likewise; the source is the service |
//! | `to_pod` | anybody, once the stack has taken its masquerade back | client -> backend | the backend's replies' | likewise |
//! | any | anybody | a fragment but the first, another error, nobody's packet | none | dropped under policy, else the stack's |
//!
//! A client's port that was rewritten for a clash is written back with the addresses. What this host makes always passes, as all that it sends to
//! its pods. What the stack makes of a *reply* that it was to forward, after its translation, goes to the service's address, and so nowhere: that takes
//! two pods of this node on the stack's path and links of different MTU.
//!
//! **Related, and no more.** An error passes where its flow's judgement holds: the packet that it quotes was judged in the epoch in force, or it would not
//! have come so far. It revives no flow, keeps none alive and closes none (RFC 5927: whoever guesses a tuple can forge one; what to believe is the
//! sockets' business, which know sequence numbers). From a pod it must be about what came to that pod, from an address of its own.
//!
//! Redirects (RFC 792) and source quench (RFC 6633) are about no packet that somebody waits for, and ICMPv6 errors without a meaning yet have no
//! known place for a quote: these are errors of no flow. Quotes are read through IPv4 options, and not through IPv6 extension headers.

use agent_common::{
    Address, Flow, NO_BACKEND, NO_SLOT, Reason, address_kind, flow_flag, hook, lookup::Tables,
    protocol,
};
use aya_ebpf::programs::TcContext;

use crate::{
    conntrack::{backend_holds, entry, judged, partner},
    deliver::{DROP, NEXT, deliver, drop_packet},
    from_pod,
    gate::{hand_over, moving},
    nat::{Rewritten, difference, fold32, update},
    packet::{L3, V4_CHECKSUM, V4_SOURCE, V6_SOURCE, skb},
    quote::{ICMP_CHECKSUM, Quote, at, read},
    report::{count_drop, dropped},
    tables::Maps,
    to_pod,
    work::{Work, work},
};

/// No verdict: the error follows the flow, as the entry in `work.forward` says.
const FOLLOWS: i32 = i32::MIN;

/// The entry point: what `work` holds of the packet is what the hook's program has parsed.
#[inline(always)]
pub fn follow(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    let quote = read(ctx, work);
    let known = quote.known();
    let verdict = match work.hook {
        hook::FROM_POD => sent(ctx, work, known),
        hook::TO_POD => received(ctx, work, known),
        _ => brought(ctx, work, known),
    };
    if verdict == FOLLOWS {
        return send(ctx, work, &quote);
    }
    verdict
}

/// What a pod sends.
#[inline(always)]
fn sent(ctx: &TcContext, work: &mut Work, known: bool) -> i32 {
    if !from_pod::source_is_own(&work.tuple.source, work.here) {
        return drop_packet(ctx, work, Reason::SourceSpoofed);
    }
    if known && let Some(found) = entry(&work.forward_key) {
        // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
        let flow = unsafe { &*found };
        if flow.ifindex == work.ifindex || crate::mutant::removed!("icmp-anybodys") {
            if !holds(flow, work) || !backend_holds(flow, work.forward_key.protocol) {
                return drop_packet(ctx, work, Reason::IcmpError);
            }
            work.forward = *flow;
            return FOLLOWS;
        }
        if flow.ifindex != 0 {
            // About what came to somebody else.
            return drop_packet(ctx, work, Reason::SourceSpoofed);
        }
    }
    let moving = moving();
    if moving != 0 {
        return hand_over(ctx, moving, hook::FROM_POD);
    }
    let slot = work.here;
    from_pod::unjudged(ctx, work, slot, Reason::IcmpError, false)
}

/// What reaches a pod through the stack.
#[inline(always)]
fn received(ctx: &TcContext, work: &mut Work, known: bool) -> i32 {
    let host = skb(ctx).ingress_ifindex == 0;
    let mut own = None;
    if known {
        // The stack of this host has packets as they are behind translation, and what comes from elsewhere was translated back.
        if !host {
            own = entry(&work.reply_key);
        }
        if own.is_none()
            && let Some(answers) = entry(&work.forward_key)
        {
            // SAFETY: a map value; see `sent`.
            let flow = unsafe { &*answers };
            if flow.flags & flow_flag::TRANSLATE != 0 {
                work.forward = *flow;
                // As the pod knows it.
                work.reply_key = partner(&work.forward, work.forward_key.protocol);
                own = entry(&work.reply_key);
            }
        }
    }
    let Some(own) = own else {
        if host {
            return NEXT;
        }
        let moving = moving();
        if moving != 0 {
            return hand_over(ctx, moving, hook::TO_POD);
        }
        let slot = work.here;
        return to_pod::unjudged(ctx, work, slot, Reason::IcmpError);
    };
    // SAFETY: a map value; see `sent`.
    let flow = unsafe { &*own };
    if !host {
        let reason = if to_pod::borrowed(ctx, flow) {
            Reason::SourceMartian as u32
        } else if !holds(flow, work) {
            Reason::IcmpError as u32
        } else {
            0
        };
        if reason != 0 {
            // What is told is the error's own tuple.
            work.forward.backend = NO_BACKEND;
            work.reason = reason;
            dropped(ctx, work);
            return DROP;
        }
    }
    // The stack has routed it here.
    work.forward.deliver = NO_SLOT;
    FOLLOWS
}

/// What comes from outside, to anybody but this host.
#[inline(always)]
fn brought(ctx: &TcContext, work: &mut Work, known: bool) -> i32 {
    if known && let Some(found) = entry(&work.forward_key) {
        // SAFETY: a map value; see `sent`.
        let flow = unsafe { &*found };
        if flow.ifindex != 0 {
            return drop_packet(ctx, work, Reason::SourceMartian);
        }
        work.forward = *flow;
        // `to_pod` judges it, whatever path the flow's packets take.
        work.forward.deliver = NO_SLOT;
        return FOLLOWS;
    }
    let moving = moving();
    if moving != 0 {
        return hand_over(ctx, moving, hook::FROM_UPLINK);
    }
    match Maps.address(&work.tuple.destination) {
        Some(entry) if entry.kind == address_kind::CLUSTER_IP => {
            drop_packet(ctx, work, Reason::ClusterIpFromOutside)
        }
        _ => NEXT,
    }
}

/// Whether the flow's judgement holds, of whose entries this is the one with the pod at this link as its sender. Each direction's packets are judged by
/// the entry of their own: where what caused the error went by redirect, it was the other's.
#[inline(always)]
fn holds(flow: &Flow, work: &Work) -> bool {
    if judged(flow, work.ifindex) || crate::mutant::removed!("icmp-epoch") {
        return true;
    }
    let key = partner(flow, work.forward_key.protocol);
    let Some(other) = entry(&key) else {
        return false;
    };
    if crate::mutant::removed!("icmp-other-half") {
        return false;
    }
    // SAFETY: a map value; see `sent`.
    let other = unsafe { &*other };
    let here = if flow.flags & flow_flag::REPLY != 0 {
        other.responder
    } else {
        other.opener
    };
    here == work.here && judged(other, other.ifindex)
}

/// Translates the error by the entry in `work.forward`, and sends it the flow's way.
#[inline(always)]
fn send(ctx: &TcContext, work: &mut Work, quote: &Quote) -> i32 {
    if work.forward.flags & flow_flag::TRANSLATE != 0
        && translate(ctx, work, quote) == Rewritten::Failed
    {
        count_drop(work.hook, Reason::RewriteFailed as u32, work.length);
        return DROP;
    }
    // What is left to do is the same for all packets of the flow.
    work.forward.flags &= !flow_flag::TRANSLATE;
    deliver::<false>(
        ctx,
        work.hook,
        work.l4,
        work.v4 != 0,
        &work.tuple,
        &work.forward,
    )
}

/// Writes new ends into the error and into what it quotes, and every checksum that covers them:
/// those of both IPv4 headers, that of the quoted transport where it is within the quote, and ICMP's own, which covers the whole quote, and in IPv6
/// the outer addresses too. All that changes in the packet cancels out, so a sum that the device made of it stays right.
#[inline(always)]
fn translate(ctx: &TcContext, work: &Work, quote: &Quote) -> Rewritten {
    match rewrite(ctx, work, quote) {
        Some(()) => Rewritten::Done,
        None => Rewritten::Failed,
    }
}

#[inline(always)]
fn rewrite(ctx: &TcContext, work: &Work, quote: &Quote) -> Option<()> {
    let v4 = work.v4 != 0;
    let flow = &work.forward;
    let to = &flow.new_destination;
    let from = if work.tuple.source.same(&work.forward_key.source) {
        &flow.new_source
    } else {
        &work.tuple.source
    };
    let outer =
        fold32(difference(&work.tuple.source, from) + difference(&work.tuple.destination, to));
    let header = write_ends(ctx, v4, L3, from, to, outer)?;
    // The sum of what changes under ICMP's checksum.
    let mut sum = if v4 { 0 } else { header };
    if !crate::mutant::removed!("icmp-quote") {
        // The quote goes the other way, so its ends change places, and the sum of what changes is the flow's own.
        sum += write_ends(ctx, v4, quote.l3, to, &flow.new_source, flow.address_delta)?;
        if !protocol::has_ports(work.forward_key.protocol) {
            return None;
        }
        let ports = at::<[u16; 2]>(ctx, quote.l4)?;
        let new = [flow.new_destination_port_be, flow.new_source_port_be];
        // SAFETY: `at` has checked the bounds, here and below.
        let moved = unsafe {
            let old = *ports;
            *ports = new;
            new[0] as u64 + !old[0] as u64 + new[1] as u64 + !old[1] as u64
        };
        sum += moved;
        if quote.check != 0 {
            let check = at::<u16>(ctx, quote.check)?;
            // SAFETY: see above.
            unsafe {
                let old = *check;
                let mut new = update(old, fold32(flow.address_delta as u64 + moved));
                if new == 0 && work.forward_key.protocol == protocol::UDP {
                    // Zero would say that there is none.
                    new = u16::MAX;
                }
                *check = new;
                sum += new as u64 + !old as u64;
            }
        }
    }
    let check = at::<u16>(ctx, work.l4 + ICMP_CHECKSUM)?;
    if !crate::mutant::removed!("icmp-checksum") {
        // SAFETY: see above.
        unsafe { *check = update(*check, fold32(sum)) };
    }
    Some(())
}

/// Writes a header's addresses, of which the sum of changes is `delta`, and IPv4's checksum. Answers the sum of all that changes in the header.
#[inline(always)]
fn write_ends(
    ctx: &TcContext,
    v4: bool,
    l3: u32,
    source: &Address,
    destination: &Address,
    delta: u32,
) -> Option<u64> {
    let (s, d) = (source.words(), destination.words());
    if v4 {
        let check = at::<u16>(ctx, l3 + V4_CHECKSUM)?;
        // SAFETY: `at` has checked the bounds, here and below.
        let change = unsafe {
            let old = *check;
            *check = update(old, delta);
            *check as u64 + !old as u64
        };
        let ends = at::<[u32; 2]>(ctx, l3 + V4_SOURCE)?;
        // SAFETY: see above.
        unsafe { *ends = [s[3], d[3]] };
        return Some(change + delta as u64);
    }
    let ends = at::<[u32; 8]>(ctx, l3 + V6_SOURCE)?;
    // SAFETY: see above.
    unsafe {
        (*ends)[0] = s[0];
        (*ends)[1] = s[1];
        (*ends)[2] = s[2];
        (*ends)[3] = s[3];
        (*ends)[4] = d[0];
        (*ends)[5] = d[1];
        (*ends)[6] = d[2];
        (*ends)[7] = d[3];
    }
    Some(delta as u64)
}
