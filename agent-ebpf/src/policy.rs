//! Judging a flow, in its opener's direction and after translation. Egress never vouches for ingress.

use agent_common::{
    Address, AddressEntry, Flow, NEVER_JUDGED, NO_SLOT, Reason, SetWord, Verdict, action,
    address_kind, flow_flag, lookup, lookup::Tables, path, set_flag,
};

use crate::{
    tables::{Maps, egress_set, epoch, ingress_set, pod},
    work::{Work, alone},
};

/// The slot of an address, if it is a local pod's.
#[inline(always)]
pub fn slot_of(entry: Option<AddressEntry>) -> u32 {
    match entry {
        Some(entry) if entry.kind == address_kind::LOCAL_POD => entry.slot as u32,
        _ => NO_SLOT,
    }
}

/// The reason of a denial.
#[inline(always)]
fn denial(word: SetWord, otherwise: Reason) -> u32 {
    if word.flags & set_flag::UNKNOWN != 0 {
        Reason::UnknownPod as u32
    } else {
        otherwise as u32
    }
}

/// What a set says of a peer.
#[inline(always)]
fn peer(word: SetWord, address: &Address, kind: u8, port_be: u16) -> Verdict {
    if word.flags & set_flag::ISOLATED == 0 {
        return Verdict::OPEN;
    }
    lookup::judge(&Maps, word, address, Maps.address(address), kind, port_be)
}

/// Judges the flow of `work.forward`, which holds its ends after translation in `new_destination` and, in
/// `work.forward_key.source`, the opener. Finds the ends' slots anew: the end at the hook's link is the link's pod, whoever has its
/// address (while its route is gone, nobody has); the other is whose address it is. Stores epochs, rules and slots in `work.forward`
/// and the verdicts in `work`. 0: allowed; else the reason.
///
/// The epoch is read before anything that it vouches for. The set is read before the peer's address and group: a change of policy writes
/// addresses and groups first and sets last, and a new set need not know a group that is gone.
#[inline(always)]
pub fn judge(work: &mut Work) -> u32 {
    judge_flow(work)
}

/// [`judge`], as a function that the verifier walks once and by itself (see `work.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_flow(work: *mut Work) -> u32 {
    // SAFETY: see `alone`.
    let Some(work) = (unsafe { alone(work) }) else {
        return Reason::UnknownPod as u32;
    };
    let opener_address: Address = work.forward_key.source;
    let responder_address: Address = work.forward.new_destination;
    let port_be = work.forward.new_destination_port_be;
    let kind = work.forward_key.protocol;
    let host = work.forward.flags & flow_flag::HOST != 0;
    let by_link = !crate::mutant::removed!("address-only");
    let opener = if host {
        NO_SLOT
    } else if work.here_responds == 0 && by_link {
        work.here
    } else {
        slot_of(Maps.address(&opener_address))
    };
    let responder = if host {
        NO_SLOT
    } else if work.here_responds != 0 && by_link {
        work.here
    } else {
        slot_of(Maps.address(&responder_address))
    };
    work.egress = Verdict::OPEN;
    work.ingress = Verdict::OPEN;
    work.forward.opener = opener;
    work.forward.responder = responder;
    work.forward.egress.epoch = NEVER_JUDGED;
    work.forward.ingress.epoch = NEVER_JUDGED;
    work.forward.egress.rule = 0;
    work.forward.ingress.rule = 0;
    work.forward.flags &= !(flow_flag::SELF | flow_flag::AUDIT);
    if opener != NO_SLOT && opener == responder {
        work.forward.flags |= flow_flag::SELF;
        return 0;
    }
    // The destination's port, for protocols that have one; an echo's id is none.
    let port_be =
        if agent_common::protocol::has_ports(kind) || crate::mutant::removed!("echo-by-id") {
            port_be
        } else {
            0
        };
    if opener != NO_SLOT {
        let Some(pod) = pod(opener) else {
            return Reason::UnknownPod as u32;
        };
        let at = epoch(pod);
        let word = egress_set(pod);
        let verdict = peer(word, &responder_address, kind, port_be);
        work.egress = verdict;
        work.forward.egress.epoch = at;
        work.forward.egress.rule = verdict.rule;
        if !verdict.passes() {
            return denial(word, Reason::PolicyEgress);
        }
    }
    if responder != NO_SLOT {
        let Some(pod) = pod(responder) else {
            return Reason::UnknownPod as u32;
        };
        let at = epoch(pod);
        let word = ingress_set(pod);
        let verdict = peer(word, &opener_address, kind, port_be);
        work.ingress = verdict;
        work.forward.ingress.epoch = at;
        work.forward.ingress.rule = verdict.rule;
        let unguarded = crate::mutant::removed!("redirect-without-ingress") && opener != NO_SLOT;
        if !(verdict.passes() || unguarded) {
            return denial(word, Reason::PolicyIngress);
        }
    }
    if (work.egress.action | work.ingress.action) & action::AUDIT != 0 {
        work.forward.flags |= flow_flag::AUDIT;
    }
    0
}

/// Carries a new judgement from `work.forward` into an entry that is in force. The epochs are withdrawn first and come
/// last: other CPUs read on, and must never see one pod's epoch beside another's slot.
#[inline(always)]
pub fn store(work: &Work, flow: &mut Flow) {
    // SAFETY: words of a map value that other CPUs read meanwhile; volatile keeps the order.
    unsafe {
        core::ptr::write_volatile(&raw mut flow.egress.epoch, NEVER_JUDGED);
        core::ptr::write_volatile(&raw mut flow.ingress.epoch, NEVER_JUDGED);
        core::ptr::write_volatile(&raw mut flow.opener, work.forward.opener);
        core::ptr::write_volatile(&raw mut flow.responder, work.forward.responder);
        if flow.path == path::PEER {
            let to = if flow.flags & flow_flag::REPLY != 0 {
                work.forward.opener
            } else {
                work.forward.responder
            };
            core::ptr::write_volatile(&raw mut flow.deliver, to);
        }
        flow.egress.rule = work.forward.egress.rule;
        flow.ingress.rule = work.forward.ingress.rule;
        core::ptr::write_volatile(&raw mut flow.egress.epoch, work.forward.egress.epoch);
        core::ptr::write_volatile(&raw mut flow.ingress.epoch, work.forward.ingress.epoch);
    }
}

/// Whether policy is in force for a pod in either direction: what cannot be judged is dropped then.
#[inline(always)]
pub fn enforced(slot: u32) -> bool {
    match pod(slot) {
        Some(pod) => (egress_set(pod).flags | ingress_set(pod).flags) & set_flag::ISOLATED != 0,
        None => false,
    }
}
