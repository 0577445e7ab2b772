//! Entries that exist: finding them, keeping them, telling whether they still hold.

use agent_common::{
    Count, Flow, NO_BACKEND, NO_SLOT, Tuple, backend_state, flow_flag, lookup::Tables, protocol,
};

use crate::{
    maps::{CONNTRACK, UNREPLIED},
    packet::tcp,
    report::{count, now},
    tables::{Maps, epoch, pod},
    work::Work,
};

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

#[inline(never)]
fn touch_partner(key: &Tuple, now: u32) -> u32 {
    let entry = match CONNTRACK.get_ptr_mut(key) {
        Some(entry) => entry,
        None => match UNREPLIED.get_ptr_mut(key) {
            Some(entry) => entry,
            None => return 0,
        },
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
    let entry = match CONNTRACK.get_ptr_mut(key) {
        Some(entry) => entry,
        None => match UNREPLIED.get_ptr_mut(key) {
            Some(entry) => entry,
            None => return 0,
        },
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

/// Whether both local ends were judged in the epoch that is in force: one array look-up for each local end.
#[inline(always)]
pub fn judged(flow: &Flow) -> bool {
    if cfg!(mutant = "no-epoch") {
        return true;
    }
    if flow.flags & flow_flag::SELF != 0 {
        return true;
    }
    if flow.opener != NO_SLOT {
        match pod(flow.opener) {
            Some(pod) if epoch(pod) == flow.egress.epoch => {}
            _ => return false,
        }
    }
    if flow.responder != NO_SLOT {
        match pod(flow.responder) {
            Some(pod) if epoch(pod) == flow.ingress.epoch => {}
            _ => return false,
        }
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
    // Datagrams leave a backend that stops serving at once; a TCP connection stays until it ends.
    kind == protocol::TCP || backend.word.state != backend_state::NOT_SERVING
}

/// A SYN on a closing entry opens a new flow.
#[inline(always)]
pub fn reopens(flow: &Flow, tcp_flags: u32) -> bool {
    flow.closing != 0 && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Moves both entries of a flow from `unreplied` to `conntrack`, with its first answer. The entries go in before they go
/// out, so that no packet misses them.
#[inline(never)]
pub fn promote(work: &mut Work) -> u32 {
    // The flow's keys, from the entry that was found under `reply_key`'s or `forward_key`'s place.
    let Some(found) = UNREPLIED.get_ptr(&work.forward_key) else {
        return 0;
    };
    // SAFETY: a map value, copied whole.
    work.forward = unsafe { *found };
    let Some(found) = UNREPLIED.get_ptr(&work.reply_key) else {
        return 0;
    };
    // SAFETY: see above.
    work.reply = unsafe { *found };
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
    // Gone already where another CPU did the same: no harm.
    let _ = UNREPLIED.remove(&work.forward_key);
    let _ = UNREPLIED.remove(&work.reply_key);
    count(Count::FlowReplied);
    1
}

/// Forgets a flow, in whichever table it is. The keys stand in `work`.
#[inline(never)]
pub fn forget(work: &mut Work) -> u32 {
    let _ = CONNTRACK.remove(&work.forward_key);
    let _ = CONNTRACK.remove(&work.reply_key);
    let _ = UNREPLIED.remove(&work.forward_key);
    let _ = UNREPLIED.remove(&work.reply_key);
    0
}
