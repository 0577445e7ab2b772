//! What a pod sends: TC ingress of the host's side of its link.

use agent_common::{
    Address, AddressEntry, Count, Flow, NO_BACKEND, NO_SLOT, Reason, address_kind, flow_flag,
    gate::GateWord, hook, lookup::Tables, pod_flag, protocol,
};
use aya_ebpf::programs::TcContext;

use crate::{
    conntrack::{
        backend_holds, close, forget_found, judged, partner, promote, reopens, touch, whole,
    },
    deliver::{DROP, NEXT, deliver, drop_packet, refuse, tail_call},
    flow::{Opened, midstream, open},
    gate::{hand_over, moving, opens},
    maps::{CONNTRACK, UNREPLIED},
    packet::{Header, Parsed, arp_sender, at_transport, parse, skb, tcp},
    policy::{enforced, judge, slot_of, store},
    report::{count, dropped},
    sctp,
    service::is_cluster_ip,
    tables::{Maps, link, pod},
    walk::{ask, begin, follows, look_again},
    work::{Work, work},
};

/// An established flow: one look-up in `conntrack`, one in `pods` for each local end, one in `backends` for a service
/// flow. Everything else goes on in [`new`].
#[inline(always)]
pub fn established(ctx: &TcContext) -> i32 {
    let mut header = Header::new();
    if parse(ctx, &mut header) != Parsed::Flow {
        return tail_call(ctx, hook::FROM_POD, hook::slot::NEW_FROM_POD);
    }
    let Some(flow) = CONNTRACK.get_ptr_mut(&header.tuple) else {
        return tail_call(ctx, hook::FROM_POD, hook::slot::NEW_FROM_POD);
    };
    // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
    let flow = unsafe { &mut *flow };
    let kind = header.tuple.protocol;
    if flow.ifindex != skb(ctx).ifindex
        || !judged(flow, skb(ctx).ifindex)
        || !backend_holds(flow, kind)
        || reopens(flow, header.tcp_flags)
        || header.tcp_flags & sctp::flag::END != 0
    {
        return tail_call(ctx, hook::FROM_POD, hook::slot::NEW_FROM_POD);
    }
    if header.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        close(flow, header.tcp_flags, true);
    }
    touch(flow, kind);
    deliver::<true>(
        ctx,
        hook::FROM_POD,
        header.l4,
        header.v4,
        &header.tuple,
        flow,
    )
}

/// Everything that [`established`] cannot answer.
#[inline(always)]
pub fn new(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    let parsed = begin(ctx, work, hook::FROM_POD);
    let Some(slot) = link(work.ifindex) else {
        // Not a pod's link, or not any more.
        return NEXT;
    };
    work.here = slot;
    if to_loopback(work) {
        return drop_packet(ctx, work, Reason::DestinationMartian);
    }
    match parsed {
        Parsed::Flow => {}
        Parsed::Neighbour if on_link(&work.tuple.destination) => {
            return neighbour(ctx, work, slot);
        }
        // The stack would forward it like any packet.
        Parsed::Neighbour => {}
        Parsed::Walk(walker) => return ask(ctx, work, walker),
        Parsed::Unjudged(Reason::IcmpError) => {
            return tail_call(ctx, hook::FROM_POD, hook::slot::ICMP_ERROR);
        }
        Parsed::Unjudged(reason) => return unjudged(ctx, work, slot, reason, false),
        Parsed::Refused(reason) => return unjudged(ctx, work, slot, reason, true),
        Parsed::Short => return unjudged(ctx, work, slot, Reason::Malformed, false),
    }
    if !source_is_own(&work.tuple.source, slot) {
        return drop_packet(ctx, work, Reason::SourceSpoofed);
    }
    let mut found = CONNTRACK.get_ptr_mut(&work.tuple);
    if found.is_none()
        && let Some(waiting) = UNREPLIED.get_ptr_mut(&work.tuple)
    {
        found = Some(waiting);
        // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
        let flow = unsafe { &*waiting };
        if flow.flags & flow_flag::REPLY != 0 && !reopens(flow, work.tcp_flags) {
            // The first answer.
            work.reply_key = work.tuple;
            work.forward_key = partner(flow, work.tuple.protocol);
            if promote(work) != 0 {
                found = CONNTRACK.get_ptr_mut(&work.tuple);
            }
        }
    }
    if let Some(flow) = found {
        // SAFETY: a map value; see `established`.
        let flow = unsafe { &mut *flow };
        succeed(work, flow);
        // Opened when nobody had the service's address yet, from either end: it would never come to a backend. (Answers to one's own service have a backend.)
        let untranslated = flow.backend == NO_BACKEND
            && !crate::mutant::removed!("untranslated")
            && is_cluster_ip(&work.tuple.destination);
        if flow.ifindex == work.ifindex && !reopens(flow, work.tcp_flags) && !untranslated {
            if backend_holds(flow, work.tuple.protocol) {
                // Without the half that knows its answers they would come as the backend sends them, for as long as this packet's like keep
                // the flow alive. An answer without the opener's half still finds its way, and begins nothing.
                if flow.flags & flow_flag::REPLY != 0
                    || whole(work, flow) != 0
                    || crate::mutant::removed!("half-of-a-flow")
                {
                    return known(ctx, work, flow);
                }
            } else if work.tuple.protocol == protocol::TCP
                && work.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN
                && !follows(work)
            {
                // The client learns at once, and connects anew.
                work.forward = *flow;
                work.reason = Reason::BackendGone as u32;
                forget_found(work, flow);
                return refuse(ctx, work);
            }
        }
        // The address moved to another link, the flow is over, its backend is gone, or half of it is: begin anew.
        forget_found(work, flow);
    } else if !opens(work) {
        let moving = moving();
        // Nobody but an opener sends to a service.
        let stays = GateWord(moving).only_rest() && is_cluster_ip(&work.tuple.destination);
        if moving != 0 && !(stays && work.tuple.protocol != protocol::TCP) {
            return hand_over(ctx, moving, hook::FROM_POD);
        }
    }
    if follows(work) {
        // The flow of its first is not there any more.
        return drop_packet(ctx, work, Reason::Fragment);
    }
    work.forward_key = work.tuple;
    if work.tuple.protocol == protocol::TCP && work.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
        if is_cluster_ip(&work.tuple.destination) {
            work.forward.backend = NO_BACKEND;
            work.reason = Reason::Midstream as u32;
            return refuse(ctx, work);
        }
        let ifindex = work.ifindex;
        let reason = midstream(ctx, work, ifindex);
        if reason != 0 {
            work.reason = reason;
            dropped(ctx, work);
            return DROP;
        }
        return send(ctx, work);
    }
    let ifindex = work.ifindex;
    match open(work, ifindex) {
        Opened::Yes => send(ctx, work),
        Opened::Again => look_again(ctx, work),
        Opened::No => refuse(ctx, work),
    }
}

/// The sender's address was nobody's when the flow was made, or another pod's, whose place this one took while the opener went on: it is the
/// same flow, to be judged at this link. As a new one it would be taken for one that the sender opens.
///
/// A function of its own, behind which the verifier need not tell apart what became of it.
#[inline(never)]
fn succeed(work: &Work, flow: &mut Flow) -> u32 {
    let answers = flow.flags & flow_flag::REPLY != 0 && !opens(work);
    if flow.ifindex == 0 || (answers && !crate::mutant::removed!("successor-opens")) {
        flow.ifindex = work.ifindex;
    }
    0
}

/// Sends the packet by the entry in `work.forward`.
#[inline(always)]
fn send(ctx: &TcContext, work: &mut Work) -> i32 {
    deliver::<false>(
        ctx,
        hook::FROM_POD,
        work.l4,
        work.v4 != 0,
        &work.tuple,
        &work.forward,
    )
}

/// A packet of a flow that is known: judged again where an epoch rose.
#[inline(always)]
fn known(ctx: &TcContext, work: &mut Work, flow: &mut Flow) -> i32 {
    let kind = work.tuple.protocol;
    if !judged(flow, work.ifindex) {
        let reason = again(work, flow);
        if reason != 0 {
            work.reason = reason;
            dropped(ctx, work);
            return DROP;
        }
    }
    if work.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        close(flow, work.tcp_flags, true);
    }
    if work.tcp_flags & sctp::flag::END != 0 {
        sctp::close(work, flow, 1);
    }
    touch(flow, kind);
    if sctp::in_pieces(work, flow) {
        return drop_packet(ctx, work, Reason::Fragment);
    }
    deliver::<false>(
        ctx,
        hook::FROM_POD,
        work.l4,
        work.v4 != 0,
        &work.tuple,
        flow,
    )
}

/// Judges a flow again, in its opener's direction, whichever way the packet goes. 0: allowed, and stored; else the reason: the entry
/// stays as it is, so that each further packet is judged again.
#[inline(always)]
pub fn again(work: &mut Work, flow: &mut Flow) -> u32 {
    work.forward_key = work.tuple;
    again_from(work, flow, flow.flags & flow_flag::REPLY != 0)
}

/// [`again`] for an entry that was found under `work.forward_key`, which is how packets look that the pod at this link sends. (In the
/// working memory: older kernels leave `new_to_pod` no room for a tuple on its stack.)
#[inline(always)]
pub fn again_from(work: &mut Work, flow: &mut Flow, reply: bool) -> u32 {
    work.forward = *flow;
    work.here_responds = reply as u32;
    if reply {
        // The opener's packets, as the responder sees them, are this one's reverse; the opener itself is where replies go.
        work.forward.new_destination = work.forward_key.source;
        work.forward.new_destination_port_be = work.forward_key.source_port_be;
        work.forward_key = partner(flow, work.forward_key.protocol);
    }
    let reason = judge(work);
    if reason == 0 {
        store(work, flow);
        count(Count::FlowRejudged);
    }
    reason
}

/// The source check: a pod sends from its own addresses only.
///
/// One with the annotation sends on for others (a router, the host of virtual machines), whose addresses are none of this node's. Not from
/// another local pod's or this host's: a tuple has one entry, so it would end their flows and answer in their place. Not from a ClusterIP,
/// which no sender has, nor from an address that no packet may come from.
#[inline(always)]
pub fn source_is_own(source: &Address, slot: u32) -> bool {
    let entry = Maps.address(source);
    if slot_of(entry) == slot || crate::mutant::removed!("any-source") {
        return true;
    }
    if !is_router(slot) {
        return false;
    }
    !(is_ours(entry) || source.is_no_source()) || crate::mutant::removed!("router-as-anybody")
}

/// Whether a pod has the annotation.
#[inline(always)]
fn is_router(slot: u32) -> bool {
    matches!(pod(slot), Some(pod) if pod.flags & pod_flag::ANY_SOURCE != 0)
}

/// Whether an address is of this node's own: a local pod's, the host's, or a ClusterIP, which every node has to itself. What comes in from
/// elsewhere has none of them as its source.
#[inline(always)]
pub fn is_ours(entry: Option<AddressEntry>) -> bool {
    match entry {
        Some(entry) => matches!(
            entry.kind,
            address_kind::LOCAL_POD | address_kind::HOST | address_kind::CLUSTER_IP
        ),
        None => false,
    }
}

/// Whether a packet is for a loopback address, which processes listen on because nobody else reaches it. Zeros, of a frame without addresses, are none.
#[inline(always)]
pub fn to_loopback(work: &Work) -> bool {
    work.tuple.destination.is_loopback() && !crate::mutant::removed!("loopback-reached")
}

/// Whether a neighbour's message goes no further than this host. ARP has no address here.
#[inline(always)]
fn on_link(destination: &Address) -> bool {
    destination.is_unspecified()
        || destination.is_multicast()
        || destination.is_link_local()
        || matches!(Maps.address(destination), Some(entry) if entry.kind == address_kind::HOST)
}

/// Router advertisement, RFC 4861 4.2.
const ADVERTISEMENT: u8 = 134;
/// Redirect, RFC 4861 4.5.
const REDIRECT: u8 = 137;

/// Whether a message of neighbour discovery is one that only routers send. A host that believes it gives its traffic away (CVE-2020-10749).
#[inline(always)]
fn routers(ctx: &TcContext, work: &Work) -> bool {
    if work.tuple.protocol != protocol::ICMPV6 {
        return false;
    }
    match at_transport::<[u8; 2]>(ctx, work.l4) {
        // SAFETY: `at` has checked the bounds.
        Some(message) => matches!(unsafe { (*message)[0] }, ADVERTISEMENT | REDIRECT),
        None => false,
    }
}

/// ARP, neighbour discovery and the like always pass, from the pod's own addresses, none, or link-local ones; but only a router speaks as one.
#[inline(always)]
fn neighbour(ctx: &TcContext, work: &mut Work, slot: u32) -> i32 {
    if routers(ctx, work) && !is_router(slot) && !crate::mutant::removed!("anybody-routes") {
        return drop_packet(ctx, work, Reason::NeighbourSpoofed);
    }
    let sender = match arp_sender(ctx) {
        Some(sender) => sender,
        None => work.tuple.source,
    };
    if sender.is_unspecified()
        || (sender.is_link_local() && !sender.is_v4())
        || source_is_own(&sender, slot)
    {
        return NEXT;
    }
    drop_packet(ctx, work, Reason::NeighbourSpoofed)
}

/// A packet whose flow cannot be known: dropped where policy is in force, a service would have to translate it or it is `refused` in any
/// case, else left to the stack.
#[inline(always)]
pub fn unjudged(ctx: &TcContext, work: &mut Work, slot: u32, reason: Reason, refused: bool) -> i32 {
    // A frame without a whole IP header has no addresses. (`::` is one that a packet may show.)
    let ip = reason != Reason::Vlan
        && reason != Reason::Ethertype
        && (work.parsed != Parsed::Short.number() || work.l4 != 0);
    if ip && !source_is_own(&work.tuple.source, slot) {
        return drop_packet(ctx, work, Reason::SourceSpoofed);
    }
    if refused || enforced(slot) {
        return drop_packet(ctx, work, reason);
    }
    match Maps.address(&work.tuple.destination) {
        Some(entry) if ip && entry.kind == address_kind::CLUSTER_IP => {
            drop_packet(ctx, work, reason)
        }
        // Its flow is unknown, so no reply would be taken for one.
        Some(entry)
            if ip
                && entry.slot as u32 != NO_SLOT
                && entry.kind == address_kind::LOCAL_POD
                && enforced(entry.slot as u32) =>
        {
            drop_packet(ctx, work, reason)
        }
        _ => NEXT,
    }
}
