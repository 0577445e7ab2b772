//! Where a new flow goes: its backend, and ends that clash with no other flow.

use agent_common::{
    Backend, Count, Flow, NO_BACKEND, Reason, ServiceKey, address_kind, flow_flag, hook, limits,
    lookup,
    lookup::{Tables, Target},
    protocol,
};
use aya_ebpf::helpers::bpf_get_prandom_u32;

use crate::{
    conntrack::{is_over, partner, timeout},
    maps::{CONNTRACK, UNREPLIED},
    report::{count, count_many},
    sctp::in_pieces,
    tables::Maps,
    work::{Work, alone},
};

#[inline(always)]
fn random() -> u32 {
    // SAFETY: takes nothing, changes nothing but the generator.
    unsafe { bpf_get_prandom_u32() }
}

/// Fills in the ends of `work.forward` for the tuple in `work.forward_key`. 0: done; else the reason why not.
#[inline(always)]
pub fn choose(work: &mut Work) -> u32 {
    let reason = choose_ends(work);
    if reason == 0 && in_pieces(work, &work.forward) {
        return Reason::Fragment as u32;
    }
    reason
}

/// [`choose`], as a function that the verifier walks once and by itself (see `work.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_ends(work: *mut Work) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return Reason::NoEndpoint as u32;
    };
    let kind = work.forward_key.protocol;
    work.timeouts = [timeout(kind, true), timeout(kind, false)];
    work.forward = Flow::NONE;
    work.forward.flags = work.flags;
    work.forward.new_source = work.forward_key.source;
    work.forward.new_source_port_be = work.forward_key.source_port_be;
    work.forward.new_destination = work.forward_key.destination;
    work.forward.new_destination_port_be = work.forward_key.destination_port_be;
    let entry = Maps.address(&work.forward_key.destination);
    let found_midway = work.flags & flow_flag::MIDSTREAM != 0;
    if (work.hook == hook::TO_POD || found_midway)
        && matches!(entry, Some(entry) if entry.kind == address_kind::CLUSTER_IP)
        && !crate::mutant::removed!("cluster-ip-at-pod")
    {
        // What leaves the stack by a pod's link is past its translation, and a connection that is found in its middle has a backend already: one that
        // is chosen here would be another.
        return if found_midway {
            Reason::Midstream
        } else {
            Reason::ClusterIpFromOutside
        } as u32;
    }
    let port_be = if protocol::has_ports(kind) {
        work.forward_key.destination_port_be
    } else {
        0
    };
    let key = ServiceKey::new(work.forward_key.destination, port_be, kind);
    match lookup::target(&Maps, &key, entry) {
        Target::Direct => {
            if free(work) != 0 {
                return 0;
            }
            count(Count::Clash);
        }
        Target::Pool { pool, head, .. } => {
            if !protocol::has_ports(kind) {
                return Reason::ServiceProtocol as u32;
            }
            work.forward.service = pool;
            for _ in 0..limits::BACKEND_TRIES {
                if let Some((number, backend)) = lookup::backend_at(&Maps, head, random()) {
                    point(work, number, &backend);
                    if free(work) != 0 {
                        count(Count::BackendChosen);
                        return 0;
                    }
                    count(Count::Clash);
                }
            }
            if work.forward.backend == NO_BACKEND {
                // The pool lost its backends between the two looks.
                return Reason::NoEndpoint as u32;
            }
        }
        Target::NoEndpoint => return Reason::NoEndpoint as u32,
        Target::NoLocalEndpoint => return Reason::NoLocalEndpoint as u32,
        Target::NoServicePort => return Reason::NoServicePort as u32,
    }
    // Every try clashes with a live flow: another port for the client.
    if !protocol::has_ports(kind) {
        return Reason::PortClash as u32;
    }
    work.forward.flags |= flow_flag::TRANSLATE | flow_flag::PORT_REWRITTEN;
    for _ in 0..limits::PORT_TRIES {
        let room = u16::MAX - limits::PORT_FLOOR;
        let port = limits::PORT_FLOOR + (random() % room as u32) as u16;
        work.forward.new_source_port_be = port.to_be();
        if free(work) != 0 {
            return 0;
        }
    }
    Reason::PortClash as u32
}

/// Points the flow at a backend.
#[inline(always)]
fn point(work: &mut Work, number: u32, backend: &Backend) {
    let flow = &mut work.forward;
    flow.backend = number;
    flow.backend_generation = backend.word.generation;
    flow.new_destination = backend.address;
    flow.new_destination_port_be = backend.word.port_be;
    flow.flags |= flow_flag::TRANSLATE;
    // Hairpin: a pod takes nothing from its own address, so it sees the service's, which also routes back here.
    flow.new_source = if backend.address.same(&work.forward_key.source)
        && !crate::mutant::removed!("no-hairpin")
    {
        work.forward_key.destination
    } else {
        work.forward_key.source
    };
}

/// Whether a reply's entry belongs to the very flow that is being made.
#[inline(always)]
pub fn own(work: &Work, entry: &Flow) -> bool {
    entry.new_destination.same(&work.forward_key.source)
        && entry.new_source.same(&work.forward_key.destination)
        && entry.new_destination_port_be == work.forward_key.source_port_be
        && entry.new_source_port_be == work.forward_key.destination_port_be
}

/// Sets `work.reply_key`, and tells whether it is free: no live flow's replies look like that. What is left of a dead one is removed.
#[inline(always)]
fn free(work: &mut Work) -> u32 {
    free_reply(work)
}

/// [`free`], as a function that the verifier walks once and by itself (see `work.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn free_reply(work: *mut Work) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return 0;
    };
    let kind = work.forward_key.protocol;
    work.reply_key = partner(&work.forward, kind);
    if crate::mutant::removed!("clash-unseen") {
        return 1;
    }
    // A pod that asks its own service from the very port that it serves: both directions would have one key, and the one entry would be taken
    // for the responder's, which outlives its backend.
    if work.forward.backend != NO_BACKEND
        && own(work, &work.forward)
        && !crate::mutant::removed!("one-key-for-both")
    {
        return 0;
    }
    if let Some(entry) = CONNTRACK.get_ptr(&work.reply_key) {
        // SAFETY: a map value.
        let entry = unsafe { &*entry };
        if !own(work, entry) && !is_over(entry, work.timeouts[0]) {
            return 0;
        }
        let other = partner(entry, kind);
        let _ = CONNTRACK.remove(&other);
        let _ = CONNTRACK.remove(&work.reply_key);
        // A half that was gone already counts too: fewer evictions are inferred then, never more.
        count_many(Count::ConntrackRemoved, 2);
    }
    if let Some(entry) = UNREPLIED.get_ptr(&work.reply_key) {
        // SAFETY: a map value.
        let entry = unsafe { &*entry };
        if own(work, entry) {
            // Another CPU may be making the same flow at this moment: its entry stays until ours replaces it.
            return 1;
        }
        let timeout = if entry.answered() {
            work.timeouts[0]
        } else {
            work.timeouts[1]
        };
        if !is_over(entry, timeout) {
            return 0;
        }
        let other = partner(entry, kind);
        let _ = UNREPLIED.remove(&other);
        let _ = UNREPLIED.remove(&work.reply_key);
        count_many(Count::UnrepliedRemoved, 2);
    }
    1
}

/// Whether an address is a ClusterIP.
#[inline(always)]
pub fn is_cluster_ip(address: &agent_common::Address) -> bool {
    matches!(Maps.address(address), Some(entry) if entry.kind == address_kind::CLUSTER_IP)
}
