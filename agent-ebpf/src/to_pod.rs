//! What reaches a pod through the stack: TC egress of the host's side of its link. Packets show what they are after
//! translation, so the entry is found by the reverse tuple, and says what the other direction does.

use agent_common::{
    Flow, NO_SLOT, Reason, THIS_HOST, address_kind, flow_flag, hook, lookup::Tables, protocol,
};
use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

use crate::{
    conntrack::{close, entry, forget, judged, partner, promote, reopens, touch},
    deliver::{DROP, NEXT, deliver, drop_packet, tail_call},
    flow::{Opened, midstream, open},
    from_pod::again_from,
    gate::{hand_over, moving, opens},
    maps::{CONNTRACK, UNREPLIED},
    packet::{Header, Parsed, parse, skb, tcp},
    policy::{enforced, slot_of},
    report::dropped,
    sctp,
    tables::{Maps, link, pod},
    walk::{ask, begin, follows, look_again},
    work::{Work, work},
};

/// An established flow: one look-up in `conntrack`, one in `pods` for each local end.
#[inline(always)]
pub fn established(ctx: &TcContext) -> i32 {
    let mut header = Header::new();
    if parse(ctx, &mut header) != Parsed::Flow {
        return tail_call(ctx, hook::TO_POD, hook::slot::NEW_TO_POD);
    }
    let key = header.tuple.reversed();
    let Some(flow) = CONNTRACK.get_ptr_mut(&key) else {
        return tail_call(ctx, hook::TO_POD, hook::slot::NEW_TO_POD);
    };
    // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
    let flow = unsafe { &mut *flow };
    if !judged(flow, skb(ctx).ifindex)
        || reopens(flow, header.tcp_flags)
        || borrowed(ctx, flow)
        || header.tcp_flags & sctp::flag::END != 0
    {
        return tail_call(ctx, hook::TO_POD, hook::slot::NEW_TO_POD);
    }
    if header.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        close(flow, header.tcp_flags, false);
    }
    touch(flow, key.protocol);
    NEXT
}

/// Whether somebody else's packet uses the host's own flow, which policy does not judge.
#[inline(always)]
pub fn borrowed(ctx: &TcContext, flow: &Flow) -> bool {
    const HOSTS: u32 = flow_flag::HOST | flow_flag::REPLY;
    flow.flags & HOSTS == HOSTS
        && skb(ctx).ingress_ifindex != 0
        && !crate::mutant::removed!("hosts-flow-for-all")
}

/// Whether the packet is a service's answer that nobody has translated back yet, because it entered by no hook as it is: this host's own, of
/// a backend on it, or one that the stack has just taken its masquerade from (at the uplink it was for this host). `enters` is what its entry says
/// of where it enters.
///
/// A packet that begins a connection answers nothing: it is judged as what it opens. Nor need new flows pay for the look.
///
/// Not 0: it is. The opener's entry is under `work.forward_key`, and a copy of the answers' in `work.reply`. A function of its own, for its place
/// on the stack.
#[inline(never)]
fn answers(work: &mut Work, enters: u32) -> u32 {
    const ANSWER: u32 = flow_flag::REPLY | flow_flag::TRANSLATE;
    if opens(work) && !crate::mutant::removed!("opening-answers") {
        return 0;
    }
    let Some(found) = entry(&work.tuple) else {
        return 0;
    };
    // SAFETY: a map value; its ends and these flags never change.
    let flow = unsafe { &*found };
    if flow.flags & ANSWER != ANSWER || flow.ifindex != enters {
        return 0;
    }
    work.reply_key = work.tuple;
    work.forward_key = partner(flow, work.tuple.protocol);
    work.reply = *flow;
    // The first answer, if it is still among those that wait.
    promote(work);
    // Without the opener's half, evicted alone, nothing says that it may pass.
    entry(&work.forward_key).is_some() as u32
}

/// Translates what [`answers`] has found, which the stack has routed here.
#[inline(never)]
fn translate_back(skb: *mut __sk_buff, work: &mut Work) -> i32 {
    work.reply.deliver = NO_SLOT;
    deliver::<false>(
        &TcContext::new(skb),
        hook::TO_POD,
        work.l4,
        work.v4 != 0,
        &work.tuple,
        &work.reply,
    )
}

/// Everything that [`established`] cannot answer.
#[inline(always)]
pub fn new(ctx: &TcContext) -> i32 {
    let Some(work) = work() else {
        return DROP;
    };
    let parsed = begin(ctx, work, hook::TO_POD);
    let Some(slot) = link(work.ifindex) else {
        return NEXT;
    };
    work.here = slot;
    work.here_responds = 1;
    // Made on this host, and so by no interface: the host reaches its pods whatever policy says.
    let host = skb(ctx).ingress_ifindex == 0;
    match parsed {
        Parsed::Flow => {}
        Parsed::Neighbour => return NEXT,
        Parsed::Walk(walker) => return ask(ctx, work, walker),
        Parsed::Unjudged(Reason::IcmpError) => {
            return tail_call(ctx, hook::TO_POD, hook::slot::ICMP_ERROR);
        }
        _ if host => return NEXT,
        Parsed::Unjudged(reason) | Parsed::Refused(reason) => {
            return unjudged(ctx, work, slot, reason);
        }
        Parsed::Short => return unjudged(ctx, work, slot, Reason::Malformed),
    }
    // This host's packets all come as they are.
    let mut back = host && answers(work, THIS_HOST) != 0;
    let mut found = None;
    if !back {
        // In the working memory: older kernels leave this program no room for a tuple on its stack.
        work.forward_key = work.tuple.reversed();
        found = CONNTRACK.get_ptr_mut(&work.forward_key);
        if found.is_none()
            && let Some(waiting) = UNREPLIED.get_ptr_mut(&work.forward_key)
        {
            found = Some(waiting);
            // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
            let flow = unsafe { &*waiting };
            if flow.flags & flow_flag::REPLY == 0 && !reopens(flow, work.tcp_flags) {
                // The opener's own entry, and the packet goes against it: the first answer.
                work.reply_key = partner(flow, work.tuple.protocol);
                if promote(work) != 0 {
                    found = CONNTRACK.get_ptr_mut(&work.forward_key);
                }
            }
        }
        back = found.is_none()
            && !host
            && !crate::mutant::removed!("masquerade-lost")
            && answers(work, 0) != 0;
    }
    if back {
        found = entry(&work.forward_key);
    }
    if let Some(flow) = found {
        // SAFETY: a map value; see `established`.
        let flow = unsafe { &mut *flow };
        if !reopens(flow, work.tcp_flags) {
            if borrowed(ctx, flow) {
                return drop_packet(ctx, work, Reason::SourceMartian);
            }
            if !host && !judged(flow, work.ifindex) {
                let reply = flow.flags & flow_flag::REPLY != 0;
                let reason = again_from(work, flow, reply);
                if reason != 0 {
                    work.reason = reason;
                    dropped(ctx, work);
                    return DROP;
                }
            }
            if work.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
                close(flow, work.tcp_flags, false);
            }
            if work.tcp_flags & sctp::flag::END != 0 {
                sctp::close(work, flow, 0);
            }
            touch(flow, work.tuple.protocol);
            if back {
                if sctp::in_pieces(work, &work.reply) {
                    return drop_packet(ctx, work, Reason::Fragment);
                }
                return translate_back(ctx.skb.skb, work);
            }
            return NEXT;
        }
        work.reply_key = partner(flow, work.forward_key.protocol);
        forget(work);
    } else {
        let moving = moving();
        // What a pod of this node opens was seen in `from_pod`: if it is not known here, the programs of the other side were
        // in force in that instant, and know it.
        if moving != 0
            && (!opens(work) || (!host && slot_of(Maps.address(&work.tuple.source)) != NO_SLOT))
        {
            return hand_over(ctx, moving, hook::TO_POD);
        }
    }
    if follows(work) {
        // The flow of its first is not there any more.
        return if host {
            NEXT
        } else {
            unjudged(ctx, work, slot, Reason::Fragment)
        };
    }
    work.forward_key = work.tuple;
    if host {
        work.flags = flow_flag::HOST;
        return match open(work, THIS_HOST) {
            Opened::Yes | Opened::No => NEXT,
            // A live flow of others has its ends; the host's packet passes all the same.
            Opened::Again if work.again != 0 => NEXT,
            Opened::Again => look_again(ctx, work),
        };
    }
    let source = Maps.address(&work.tuple.source);
    if matches!(source, Some(entry) if entry.kind == address_kind::CLUSTER_IP)
        && !crate::mutant::removed!("service-opens")
    {
        // Nobody has that address but services, which answer and begin nothing: the opener's half was evicted alone. What is opened here instead would
        // pass the client's next packets on to the service's address as they are; now they begin anew.
        return drop_packet(ctx, work, Reason::SourceMartian);
    }
    let enters = match slot_of(source) {
        NO_SLOT => 0,
        slot => pod(slot).map_or(0, |opener| opener.ifindex),
    };
    if work.tuple.protocol == protocol::TCP && work.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
        let reason = midstream(ctx, work, enters);
        if reason != 0 {
            work.reason = reason;
            dropped(ctx, work);
            return DROP;
        }
        return NEXT;
    }
    match open(work, enters) {
        Opened::Yes => {
            // The stack carries this packet already; so it carries the flow.
            NEXT
        }
        Opened::Again => look_again(ctx, work),
        Opened::No => {
            dropped(ctx, work);
            DROP
        }
    }
}

/// A packet whose flow cannot be known: dropped where policy is in force.
#[inline(always)]
pub fn unjudged(ctx: &TcContext, work: &mut Work, slot: u32, reason: Reason) -> i32 {
    if enforced(slot) {
        return drop_packet(ctx, work, reason);
    }
    NEXT
}
