//! Making a flow.

use agent_common::{
    Address, Count, Flow, NO_SLOT, Reason, THIS_HOST, Tuple, address_kind, event_kind, flow_flag,
    hook, lookup::Tables, path, pod_flag,
};
use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

use crate::{
    conntrack::partner,
    maps::{CONNTRACK, UNREPLIED},
    nat::set_deltas,
    policy::{judge, slot_of},
    report::{count, count_many, event, now},
    role::{end, role_of},
    sctp::learn_from_opener,
    service::{choose, own},
    tables::{Maps, pod},
    work::{Work, alone},
};

/// What became of an attempt to make a flow.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The entries are in place.
    Yes,
    /// Another CPU made the same flow meanwhile: look again.
    Again,
    /// No, for `work.reason`.
    No,
}

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = 17;

/// Makes a flow for the tuple in `work.forward_key`: where it goes, whether it may, and its two entries. `work.flags` are the
/// entries' first flags, `ifindex` where the opener's packets enter.
#[inline(always)]
pub fn open(work: &mut Work, ifindex: u32) -> Opened {
    let reason = choose(work);
    if reason != 0 {
        work.reason = reason;
        return Opened::No;
    }
    let reason = judge(work);
    if reason != 0 {
        work.reason = reason;
        return Opened::No;
    }
    match insert(work, ifindex) {
        0 => Opened::Yes,
        1 => Opened::Again,
        reason => {
            work.reason = reason;
            Opened::No
        }
    }
}

/// Whether both ends are local pods whose links take a redirect: then the flow goes from one to the other directly. A flow
/// that was found in the middle stays in the stack, which may have seen its beginning; and so does one whose first packet came
/// through the stack, which may have translated it: its answers must be translated back there. What a router sends on for somebody
/// else stays there too: the stack knows which way answers go.
#[inline(always)]
fn direct(flow: &Flow, hook: u32, source: &Address) -> bool {
    if hook != hook::FROM_POD
        || flow.opener == NO_SLOT
        || flow.responder == NO_SLOT
        || flow.flags & flow_flag::MIDSTREAM != 0
    {
        return false;
    }
    match (pod(flow.opener), pod(flow.responder)) {
        (Some(a), Some(b)) => {
            a.flags & b.flags & pod_flag::REDIRECT != 0
                && (a.flags & pod_flag::ANY_SOURCE == 0
                    || slot_of(Maps.address(source)) == flow.opener)
        }
        _ => false,
    }
}

/// Puts an entry among those of flows that nobody has answered: however many there are, they evict no others.
#[inline(always)]
fn wait(key: &Tuple, flow: &Flow, flags: u64) -> Result<(), i32> {
    if crate::mutant::removed!("one-table") {
        return CONNTRACK.insert(key, flow, flags);
    }
    UNREPLIED.insert(key, flow, flags)
}

/// Completes both entries and puts them into `unreplied`. 0: done; 1: the flow is there already; else the reason why not.
#[inline(always)]
fn insert(work: &mut Work, ifindex: u32) -> u32 {
    insert_flow(work, ifindex)
}

/// [`insert`], as a function that the verifier walks once and by itself (see `work.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_flow(work: *mut Work, ifindex: u32) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return Reason::ConntrackFull as u32;
    };
    let now = now();
    let key = work.forward_key;
    let peer = direct(&work.forward, work.hook, &key.source);
    let forward = &mut work.forward;
    forward.path = if peer { path::PEER } else { path::STACK };
    forward.deliver = if peer { forward.responder } else { NO_SLOT };
    forward.ifindex = ifindex;
    forward.created = now;
    forward.last_seen = now;
    set_deltas(&key, forward);
    work.reply = work.forward;
    let reply = &mut work.reply;
    reply.flags |= flow_flag::REPLY;
    reply.new_source = key.destination;
    reply.new_source_port_be = key.destination_port_be;
    reply.new_destination = key.source;
    reply.new_destination_port_be = key.source_port_be;
    reply.deliver = if peer { reply.opener } else { NO_SLOT };
    reply.ifindex = match pod(reply.responder) {
        // The pod at this link, be it that nobody knows its address or that this host opens the flow and has it unjudged.
        _ if work.here_responds != 0 => work.ifindex,
        Some(pod) if reply.responder != NO_SLOT => pod.ifindex,
        _ => match Maps.address(&work.reply_key.source) {
            Some(entry) if entry.kind == address_kind::HOST => THIS_HOST,
            _ => 0,
        },
    };
    set_deltas(&work.reply_key, &mut work.reply);
    learn_from_opener(work);
    match wait(&work.forward_key, &work.forward, BPF_NOEXIST) {
        Ok(()) => {}
        Err(error) => {
            if error != -EEXIST {
                return Reason::ConntrackFull as u32;
            }
            forget_half(work);
            return 1;
        }
    }
    let mut put = wait(&work.reply_key, &work.reply, BPF_NOEXIST);
    if put == Err(-EEXIST) && own_reply(work) {
        // Left behind when the opener's half was evicted alone.
        put = wait(&work.reply_key, &work.reply, BPF_ANY);
        // One that was there, and is not any more.
        count(Count::UnrepliedRemoved);
    }
    if let Err(error) = put {
        let _ = UNREPLIED.remove(&work.forward_key);
        return if error == -EEXIST {
            Reason::PortClash as u32
        } else {
            Reason::ConntrackFull as u32
        };
    }
    count(Count::FlowCreated);
    if work.forward.flags & flow_flag::AUDIT != 0 {
        count(Count::Audited);
        event(work, event_kind::AUDIT as u32);
    } else {
        event(work, event_kind::ALLOW as u32);
    }
    0
}

/// Removes the opener's half of a flow that has lost the responder's (the kernel evicts one entry at a time), so that the
/// packet at hand begins anew; a whole flow stays.
#[inline(never)]
fn forget_half(work: &mut Work) -> u32 {
    let Some(half) = UNREPLIED.get_ptr(&work.forward_key) else {
        return 0;
    };
    // SAFETY: a map value; its ends never change.
    work.reply_key = partner(unsafe { &*half }, work.forward_key.protocol);
    if UNREPLIED.get_ptr(&work.reply_key).is_none() {
        let removed = UNREPLIED.remove(&work.forward_key).is_ok();
        count_many(Count::UnrepliedRemoved, removed as u64);
    }
    0
}

/// Whether the entry under `work.reply_key` is of the flow that is being made.
#[inline(always)]
fn own_reply(work: &Work) -> bool {
    match UNREPLIED.get_ptr(&work.reply_key) {
        // SAFETY: a map value; its ends never change.
        Some(entry) => own(work, unsafe { &*entry }),
        None => false,
    }
}

/// Takes up the middle of a TCP connection that nothing knows: in the orientation in which both ends' policies allow it, the
/// packet's own first; but in one only where the pod's own sockets say which it is. `ctx` is the program's context, `ifindex` where the
/// packet enters.
#[inline(always)]
pub fn midstream(ctx: &TcContext, work: &mut Work, ifindex: u32) -> u32 {
    take_up(ctx.skb.skb, work, ifindex)
}

/// [`midstream`], as a function that the verifier walks once and by itself (see `work.rs`): it knows the context by its type's name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_up(ctx: *mut __sk_buff, work: *mut Work, ifindex: u32) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return Reason::Midstream as u32;
    };
    let role = role_of(ctx.cast(), work);
    let own = (role == end::RESPONDER) == (work.here_responds != 0);
    work.flags |= flow_flag::MIDSTREAM;
    work.forward_key = work.tuple;
    if role == end::UNKNOWN || own {
        if let Opened::Yes = open(work, ifindex) {
            count(Count::MidstreamAdmitted);
            return 0;
        }
        let denied = work.reason == Reason::PolicyEgress as u32
            || work.reason == Reason::PolicyIngress as u32;
        if role != end::UNKNOWN || !denied {
            return work.reason;
        }
    }
    // What is told of the flow says nothing of the orientation that was denied.
    work.reason = 0;
    work.forward_key = work.tuple.reversed();
    work.here_responds ^= 1;
    let entry = Maps.address(&work.forward_key.source);
    let enters = match entry {
        // The opener is the pod at this link, whether or not anybody knows its address.
        _ if work.here_responds == 0 => work.ifindex,
        Some(entry) if entry.kind == address_kind::LOCAL_POD => match pod(entry.slot as u32) {
            Some(pod) => pod.ifindex,
            None => 0,
        },
        Some(entry) if entry.kind == address_kind::HOST => THIS_HOST,
        _ => 0,
    };
    if let Opened::Yes = open(work, enters) {
        // The packet is a reply then: its entry is the other one.
        work.forward = work.reply;
        count(Count::MidstreamAdmitted);
        return 0;
    }
    if role == end::UNKNOWN || work.reason == 0 {
        return Reason::Midstream as u32;
    }
    work.reason
}
