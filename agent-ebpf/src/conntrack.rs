//! Entries that exist: finding them, keeping them, telling whether they still hold.

use agent_common::{
    Count, Flow, NO_BACKEND, NO_SLOT, Timeouts, Tuple, backend_state, flow_flag, lookup::Tables,
    protocol,
};

use crate::{
    gate::moving,
    maps::{CONNTRACK, UNREPLIED},
    packet::{begins, tcp},
    report::{count, count_many, now},
    sctp::learn_from_answer,
    service::own,
    tables::{Maps, epoch, has_room, pod, take_share},
    work::Work,
};

/// How long flows may be idle, as the agent was told by its flags: it writes them into the object when it loads it.
#[unsafe(no_mangle)]
static TIMEOUTS: Timeouts = Timeouts::DEFAULT;

/// How long a flow that is not closing may be idle, in ticks. `answered` says that it was answered.
#[inline(always)]
pub fn timeout(kind: u8, answered: bool) -> u32 {
    let timeout = TIMEOUTS.of(kind, false, answered);
    // SAFETY: a reference. Volatile, because what stands there is not what the compiler saw.
    unsafe { core::ptr::read_volatile(timeout) }
}

/// Whether an entry is of a flow that is over: closed, or idle for longer than it may.
#[inline(always)]
pub fn is_over(flow: &Flow, timeout: u32) -> bool {
    // Another CPU may have written a newer tick since ours was read: that is not old.
    let idle = now().wrapping_sub(flow.last_seen);
    flow.closing != 0 || (idle as i32 > 0 && idle > timeout)
}

/// The key of the other direction's entry: what a packet looks like after this entry's translation, reversed.
#[inline(always)]
pub fn partner(flow: &Flow, kind: u8) -> Tuple {
    Tuple {
        source: flow.new_destination,
        destination: flow.new_source,
        source_port_be: flow.new_destination_port_be,
        destination_port_be: flow.new_source_port_be,
        protocol: kind,
        _zero: [0; 3],
    }
}

/// Notes that the flow lives, once a tick, in both entries: or one half would be evicted or collected alone.
#[inline(always)]
pub fn touch(flow: &mut Flow, kind: u8) {
    let now = now();
    if flow.last_seen != now {
        flow.last_seen = now;
        let key = partner(flow, kind);
        touch_partner(&key, now);
    }
}

/// An entry, in whichever table it is.
#[inline(always)]
pub fn entry(key: &Tuple) -> Option<*mut Flow> {
    match CONNTRACK.get_ptr_mut(key) {
        Some(entry) => Some(entry),
        None => UNREPLIED.get_ptr_mut(key),
    }
}

#[inline(never)]
fn touch_partner(key: &Tuple, now: u32) -> u32 {
    let Some(entry) = entry(key) else {
        return 0;
    };
    // SAFETY: a map value; a whole word is stored.
    unsafe { (*entry).last_seen = now };
    1
}

/// Notes a FIN or RST in both entries. `same` says that the packet travels in the direction of `flow`'s key.
#[inline(always)]
pub fn close(flow: &mut Flow, tcp_flags: u32, same: bool) {
    let reset = tcp_flags & tcp::RST != 0;
    if !reset && same {
        flow.fin = 1;
    }
    if !reset && !same {
        flow.partner_fin = 1;
    }
    if reset || flow.fin & flow.partner_fin != 0 {
        flow.closing = 1;
    }
    let key = partner(flow, protocol::TCP);
    close_partner(&key, reset as u32, same as u32);
}

#[inline(never)]
fn close_partner(key: &Tuple, reset: u32, same: u32) -> u32 {
    let Some(entry) = entry(key) else {
        return 0;
    };
    // SAFETY: a map value; single bytes of it are raised.
    let flow = unsafe { &mut *entry };
    if reset == 0 && same != 0 {
        flow.partner_fin = 1;
    }
    if reset == 0 && same == 0 {
        flow.fin = 1;
    }
    if reset != 0 || flow.fin & flow.partner_fin != 0 {
        flow.closing = 1;
    }
    1
}

/// Whether both local ends were judged in the epoch that is in force: one array look-up for each local end. `ifindex` is the link of
/// the pod whose packets look like the entry's key: that end must have been judged as the pod of this link, whose address may have
/// been nobody's then, or another's. The other end has a link of its own, and is held to the same there.
#[inline(always)]
pub fn judged(flow: &Flow, ifindex: u32) -> bool {
    if crate::mutant::removed!("no-epoch") {
        return true;
    }
    // Policy does not apply to what this host opens.
    if flow.flags & flow_flag::HOST != 0 {
        return true;
    }
    // Nor to a pod that talks to itself, as long as it is the pod that it was: its link may have gone down and come up under another slot,
    // and the one that the flow leads to be another pod's by now.
    if flow.flags & flow_flag::SELF != 0 {
        let same = flow.opener == flow.responder
            && matches!(pod(flow.opener), Some(pod) if pod.ifindex == ifindex);
        return same || crate::mutant::removed!("self-anywhere");
    }
    let reply = flow.flags & flow_flag::REPLY != 0;
    if flow.opener != NO_SLOT {
        match pod(flow.opener) {
            Some(pod) if epoch(pod) == flow.egress.epoch && (reply || pod.ifindex == ifindex) => {}
            _ => return false,
        }
    } else if !reply && !crate::mutant::removed!("any-slot-here") {
        return false;
    }
    if flow.responder != NO_SLOT {
        match pod(flow.responder) {
            Some(pod) if epoch(pod) == flow.ingress.epoch && (!reply || pod.ifindex == ifindex) => {
            }
            _ => return false,
        }
    } else if reply && !crate::mutant::removed!("any-slot-here") {
        return false;
    }
    true
}

/// Whether the flow's backend still takes its packets: one array look-up for a service flow. A reply is let through whatever
/// became of its sender.
#[inline(always)]
pub fn backend_holds(flow: &Flow, kind: u8) -> bool {
    if flow.backend == NO_BACKEND || flow.flags & flow_flag::REPLY != 0 {
        return true;
    }
    let Some(backend) = Maps.backend(flow.backend) else {
        return false;
    };
    if backend.word.generation != flow.backend_generation
        || backend.word.state == backend_state::GONE
    {
        return false;
    }
    // Datagrams leave a backend that stops serving at once; a connection stays until it ends.
    kind == protocol::TCP
        || kind == protocol::SCTP
        || backend.word.state != backend_state::NOT_SERVING
}

/// A SYN, or SCTP's INIT, on a closing entry opens a new flow.
#[inline(always)]
pub fn reopens(flow: &Flow, tcp_flags: u32) -> bool {
    flow.closing != 0 && begins(tcp_flags) && !crate::mutant::removed!("closed-for-good")
}

/// Moves both entries of a flow from `unreplied` to `conntrack`, with its first answer. The entries go in before they go
/// out, so that no packet misses them. 0: they stay, because their pod holds its share or the kernel took none.
#[inline(never)]
pub fn promote(work: &mut Work) -> u32 {
    // The flow's keys, from the entry that was found under `reply_key`'s or `forward_key`'s place.
    let Some(found) = UNREPLIED.get_ptr_mut(&work.forward_key) else {
        return 0;
    };
    // SAFETY: a map value; its ends never change.
    let waiting = unsafe { &mut *found };
    let slot = waiting.charged();
    if !has_room(slot) {
        if !waiting.answered() {
            waiting.flags |= flow_flag::ANSWERED;
            if let Some(reply) = UNREPLIED.get_ptr_mut(&work.reply_key) {
                // SAFETY: see above.
                unsafe { (*reply).flags |= flow_flag::ANSWERED };
            }
            count(Count::ConntrackShare);
        }
        return 0;
    }
    work.forward = *waiting;
    let Some(found) = UNREPLIED.get_ptr(&work.reply_key) else {
        return 0;
    };
    // SAFETY: see above.
    work.reply = unsafe { *found };
    work.forward.flags &= !flow_flag::ANSWERED;
    work.reply.flags &= !flow_flag::ANSWERED;
    learn_from_answer(work);
    if CONNTRACK
        .insert(&work.forward_key, &work.forward, 0)
        .is_err()
    {
        count(Count::InsertFailed);
        return 0;
    }
    if CONNTRACK.insert(&work.reply_key, &work.reply, 0).is_err() {
        count(Count::InsertFailed);
        let _ = CONNTRACK.remove(&work.forward_key);
        return 0;
    }
    // Where another CPU does the same, the entries are the same; the one that finds the opener's still there counts it.
    if forget_waiting(work) != 0 {
        take_share(slot);
        count(Count::FlowReplied);
    }
    1
}

/// Puts the keys of the flow whose entry was found under `work.tuple` into the working memory, and tells whether its other half is there.
///
/// 0: the kernel has evicted that one alone, for it evicts one entry at a time, and what stands in its place, if anything does, is another flow's: `work.reply_key`
/// does not name it then, so that [`forget`] takes away no more than the half. While flows move here from the tables of another layout, the other
/// half may be on its way.
#[inline(never)]
pub fn whole(work: &mut Work, flow: &Flow) -> u32 {
    work.forward_key = work.tuple;
    work.reply_key = partner(flow, work.tuple.protocol);
    let found = match entry(&work.reply_key) {
        Some(found) => Some(found),
        // Another CPU may have promoted it between those two looks.
        None => CONNTRACK.get_ptr_mut(&work.reply_key),
    };
    if let Some(other) = found
        // SAFETY: a map value; its ends never change.
        && own(work, unsafe { &*other })
    {
        return 1;
    }
    if moving() != 0 {
        return 1;
    }
    work.reply_key = work.tuple;
    0
}

/// Forgets the flow whose entry was found under `work.tuple`, or what is left of it.
#[inline(never)]
pub fn forget_found(work: &mut Work, flow: &Flow) -> u32 {
    whole(work, flow);
    forget(work)
}

/// Forgets a flow, in whichever table it is. The keys stand in `work`.
#[inline(never)]
pub fn forget(work: &mut Work) -> u32 {
    let removed = CONNTRACK.remove(&work.forward_key).is_ok() as u64
        + CONNTRACK.remove(&work.reply_key).is_ok() as u64;
    count_many(Count::ConntrackRemoved, removed);
    forget_waiting(work);
    0
}

/// Forgets a flow of `unreplied`. 1: its opener's entry was there.
#[inline(always)]
fn forget_waiting(work: &Work) -> u64 {
    let opener = UNREPLIED.remove(&work.forward_key).is_ok() as u64;
    let responder = UNREPLIED.remove(&work.reply_key).is_ok() as u64;
    count_many(Count::UnrepliedRemoved, opener + responder);
    opener
}
