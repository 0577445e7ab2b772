//! Judging a flow, in its opener's direction and after translation. Egress never vouches for ingress.

use agent_common::{
    Address, AddressEntry, Flow, NEVER_JUDGED, NO_SLOT, Reason, SetWord, Verdict, action,
    address_kind, flow_flag, lookup, lookup::Tables, path, set_flag,
};

use crate::{
    tables::{Maps, address_at, address_word, egress_set, epoch, ingress_set, pod},
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

/// What a set says of a peer; `entry` is what `addresses` says of that one, read behind the set, see [`address_word`].
#[inline(always)]
fn peer(word: SetWord, address: &Address, entry: u64, kind: u8, port_be: u16) -> Verdict {
    if word.flags & set_flag::ISOLATED == 0 {
        return Verdict::OPEN;
    }
    lookup::judge(&Maps, word, address, address_at(entry), kind, port_be)
}

/// Judges the flow of `work.forward`, which holds its ends after translation in `new_destination` and, in
/// `work.forward_key.source`, the opener. Finds the ends' slots anew: the end at the hook's link is the link's pod, whoever has its
/// address (while its route is gone, nobody has); the other is whose address it is. Stores epochs, rules and slots in `work.forward`
/// and the verdicts in `work`. 0: allowed; else the reason.
///
/// The epoch is read before anything that it vouches for. The set is read before the peer's address and group: a change of policy writes
/// addresses and groups first and sets last, and a new set need not know a group that is gone. So the set of the link's pod, which needs no
/// look-up to be found, is read first of all: then one look-up of the far address says both whose it is and what that set makes of it.
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
    // Where they lie: copies would be 32 bytes of a stack that has none to spare.
    let opener_address = &work.forward_key.source;
    let responder_address = &work.forward.new_destination;
    let port_be = work.forward.new_destination_port_be;
    let kind = work.forward_key.protocol;
    work.egress = Verdict::OPEN;
    work.ingress = Verdict::OPEN;
    work.forward.opener = NO_SLOT;
    work.forward.responder = NO_SLOT;
    work.forward.egress.epoch = NEVER_JUDGED;
    work.forward.ingress.epoch = NEVER_JUDGED;
    work.forward.egress.rule = 0;
    work.forward.ingress.rule = 0;
    work.forward.flags &= !(flow_flag::SELF | flow_flag::AUDIT);
    if work.forward.flags & flow_flag::HOST != 0 {
        return 0;
    }
    // The destination's port, for protocols that have one; an echo's id is none.
    let port_be =
        if agent_common::protocol::has_ports(kind) || crate::mutant::removed!("echo-by-id") {
            port_be
        } else {
            0
        };
    let responds = work.here_responds != 0;
    let (near_address, far_address) = if responds {
        (responder_address, opener_address)
    } else {
        (opener_address, responder_address)
    };
    let near = if crate::mutant::removed!("address-only") {
        slot_of(Maps.address(near_address))
    } else {
        work.here
    };
    let mut near_epoch = NEVER_JUDGED;
    let mut near_word = SetWord::default();
    if near != NO_SLOT {
        let Some(pod) = pod(near) else {
            return Reason::UnknownPod as u32;
        };
        near_epoch = epoch(pod);
        near_word = if responds {
            ingress_set(pod)
        } else {
            egress_set(pod)
        };
    }
    let far_entry = address_word(far_address);
    let far = slot_of(address_at(far_entry));
    let (opener, responder) = if responds { (far, near) } else { (near, far) };
    work.forward.opener = opener;
    work.forward.responder = responder;
    if near != NO_SLOT && near == far {
        work.forward.flags |= flow_flag::SELF;
        return 0;
    }
    if opener != NO_SLOT {
        let (mut at, mut word, mut entry) = (near_epoch, near_word, far_entry);
        if responds {
            let Some(pod) = pod(opener) else {
                return Reason::UnknownPod as u32;
            };
            at = epoch(pod);
            word = egress_set(pod);
            entry = address_word(responder_address);
        }
        let verdict = peer(word, responder_address, entry, kind, port_be);
        work.egress = verdict;
        work.forward.egress.epoch = at;
        work.forward.egress.rule = verdict.rule;
        if !verdict.passes() {
            return denial(word, Reason::PolicyEgress);
        }
    }
    if responder != NO_SLOT {
        let (mut at, mut word, mut entry) = (near_epoch, near_word, far_entry);
        if !responds {
            let Some(pod) = pod(responder) else {
                return Reason::UnknownPod as u32;
            };
            at = epoch(pod);
            word = ingress_set(pod);
            entry = address_word(opener_address);
        }
        let verdict = peer(word, opener_address, entry, kind, port_be);
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
