//! What comes from outside the node: TC ingress of an uplink. Replies of service flows are translated back here; whether a
//! packet may reach a pod is judged in `to_pod`, where every one of them passes.

use agent_common::{Reason, address_kind, flow_flag, hook, lookup::Tables};
use aya_ebpf::programs::TcContext;

use crate::{
    conntrack::{close, partner, promote, touch},
    deliver::{DROP, NEXT, deliver, drop_packet, refuse, tail_call},
    fragment::settle,
    from_pod::{is_ours, to_loopback},
    gate::{hand_over, moving, opens},
    maps::{CONNTRACK, UNREPLIED},
    packet::{Header, Parsed, parse, tcp},
    sctp,
    tables::Maps,
    walk::{ask, begin, follows},
    work::work,
};

/// An established flow: one look-up.
#[inline(always)]
pub fn established(ctx: &TcContext) -> i32 {
    let mut header = Header::new();
    if parse(ctx, &mut header) != Parsed::Flow {
        return tail_call(ctx, hook::FROM_UPLINK, hook::slot::NEW_FROM_UPLINK);
    }
    let Some(flow) = CONNTRACK.get_ptr_mut(&header.tuple) else {
        return tail_call(ctx, hook::FROM_UPLINK, hook::slot::NEW_FROM_UPLINK);
    };
    // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
    let flow = unsafe { &mut *flow };
    // It claims to be a pod of this node, or this node; or it ends an association of SCTP.
    if flow.ifindex != 0 || header.tcp_flags & sctp::flag::END != 0 {
        return tail_call(ctx, hook::FROM_UPLINK, hook::slot::NEW_FROM_UPLINK);
    }
    if header.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        close(flow, header.tcp_flags, true);
    }
    touch(flow, header.tuple.protocol);
    deliver::<true>(
        ctx,
        hook::FROM_UPLINK,
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
    let parsed = begin(ctx, work, hook::FROM_UPLINK);
    let flow_known = match parsed {
        Parsed::Flow => true,
        Parsed::Refused(Reason::Vlan) => return drop_packet(ctx, work, Reason::Vlan),
        Parsed::Unjudged(Reason::Vlan | Reason::Ethertype) | Parsed::Neighbour | Parsed::Short => {
            return NEXT;
        }
        _ => false,
    };
    if to_loopback(work) {
        return drop_packet(ctx, work, Reason::DestinationMartian);
    }
    let source = Maps.address(&work.tuple.source);
    let destination = Maps.address(&work.tuple.destination);
    // The stack has its own check for what it keeps; what could reach a pod is checked here, since a pod's policy
    // would take the sender for who it claims to be.
    let to_host = matches!(destination, Some(entry) if entry.kind == address_kind::HOST);
    if !to_host {
        let nobodys = work.tuple.source.is_no_source()
            // Who has no address yet speaks to groups and to the whole link (RFC 2131 4.1, RFC 3376 4.2.13).
            && !(work.tuple.source.is_unspecified() && work.tuple.destination.is_multicast());
        if (is_ours(source) || nobodys) && !crate::mutant::removed!("uplink-any-source") {
            return drop_packet(ctx, work, Reason::SourceMartian);
        }
        // What this host gets is its stack's to put together.
        if let Parsed::Walk(walker) = parsed {
            return ask(ctx, work, walker);
        }
    }
    // What this host gets itself is its stack's: it knows what it sent, and what it masqueraded.
    if parsed == Parsed::Unjudged(Reason::IcmpError) && !to_host {
        return tail_call(ctx, hook::FROM_UPLINK, hook::slot::ICMP_ERROR);
    }
    let mut found = None;
    let mut waiting = false;
    if flow_known {
        // Fragments, and what is behind extension headers, come here for established flows too.
        found = CONNTRACK.get_ptr_mut(&work.tuple);
        if found.is_none() {
            found = UNREPLIED.get_ptr_mut(&work.tuple);
            waiting = true;
        }
    }
    if let Some(entry) = found {
        // SAFETY: a map value; other CPUs change words of it, none of which is relied on twice.
        let mut flow = unsafe { &mut *entry };
        if flow.ifindex != 0 {
            return drop_packet(ctx, work, Reason::SourceMartian);
        }
        if waiting && flow.flags & flow_flag::REPLY == 0 {
            return NEXT;
        }
        work.reply = *flow;
        if waiting {
            work.reply_key = work.tuple;
            work.forward_key = partner(flow, work.tuple.protocol);
            if promote(work) == 0 {
                // It stays where it is, and lives on there.
                touch(flow, work.tuple.protocol);
                work.reply = *flow;
            } else if let Some(promoted) = CONNTRACK.get_ptr_mut(&work.tuple) {
                // SAFETY: a map value; see above.
                flow = unsafe { &mut *promoted };
            }
        } else {
            touch(flow, work.tuple.protocol);
        }
        if work.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            close(flow, work.tcp_flags, true);
        }
        if work.tcp_flags & sctp::flag::END != 0 {
            sctp::close(work, flow, 1);
        }
        if sctp::in_pieces(work, flow) {
            return drop_packet(ctx, work, Reason::Fragment);
        }
        return settle(
            ctx,
            deliver::<false>(
                ctx,
                hook::FROM_UPLINK,
                work.l4,
                work.v4 != 0,
                &work.tuple,
                &work.reply,
            ),
        );
    }
    if flow_known && !opens(work) {
        let moving = moving();
        if moving != 0 {
            return hand_over(ctx, moving, hook::FROM_UPLINK);
        }
    }
    if matches!(destination, Some(entry) if entry.kind == address_kind::CLUSTER_IP) {
        work.reason = Reason::ClusterIpFromOutside as u32;
        if flow_known && !follows(work) && !crate::mutant::removed!("reject-outside") {
            return refuse(ctx, work);
        }
        return drop_packet(ctx, work, Reason::ClusterIpFromOutside);
    }
    NEXT
}
