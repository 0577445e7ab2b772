//! The gate: from a stub to the programs in force, and from them to those that were in force before.

use agent_common::{
    Reason,
    gate::{GateWord, slot},
    limits,
};
use aya_ebpf::{
    EbpfContext,
    btf_maps::ProgramArray,
    programs::{SockAddrContext, TcContext},
};

use crate::{
    deliver::{DROP, NEXT},
    maps::{GATE, GATE_WORD},
    packet::begins,
    report::count_drop,
    work::Work,
};

/// The array of one socket hook.
pub type SocketGate = ProgramArray<{ agent_common::gate::SOCKET_SLOTS as usize }>;

#[inline(always)]
fn word() -> GateWord {
    match GATE_WORD.get_ptr(0) {
        // SAFETY: a map value, read once.
        Some(word) => GateWord(unsafe { core::ptr::read_volatile(word) }),
        None => GateWord(0),
    }
}

/// Goes on in the program of a TC hook; with none in its slot the packet passes, as if nothing were attached.
#[inline(always)]
pub fn enter(ctx: &TcContext, hook: u32) -> i32 {
    // A call for each side, by a number that the compiler knows: the kernel makes a jump of it that it rewrites with the array, where for any other it
    // reads the array and jumps through a register, which costs a tenth of an established packet where that is guarded (retpolines).
    // SAFETY: the programs behind the slots are of the same type, put there by an agent.
    unsafe {
        if word().side() == 0 {
            GATE.tail_call(ctx, slot(0, hook));
        } else {
            GATE.tail_call(ctx, slot(1, hook));
            // Or the compiler makes one call of both.
            core::hint::black_box(hook);
        }
    }
    NEXT
}

/// Goes on in the program of a socket hook; with none in its slot the call does.
#[inline(always)]
pub fn enter_socket(ctx: &SockAddrContext, gate: &SocketGate) -> i32 {
    const PROCEED: i32 = 1;
    // SAFETY: the programs behind the slots have the same type and attach type, put there by an agent.
    unsafe { gate.tail_call(ctx, word().side()) };
    PROCEED
}

/// Whether the packet opens its flow for certain: no packet before it can stand in anybody's tables.
#[inline(always)]
pub fn opens(work: &Work) -> bool {
    begins(work.tcp_flags)
}

/// The gate's word while flows move here from the tables of another layout, else 0. The programs that they move from read it too, and
/// have nobody to leave a packet to.
#[inline(never)]
pub fn moving() -> u64 {
    let word = word();
    if word.handover() && word.layout() == limits::LAYOUT && !crate::mutant::removed!("no-handover")
    {
        word.0
    } else {
        0
    }
}

/// Leaves a packet of a flow that these tables do not know to the programs of the other side, which may. `moving` is what [`moving`] said.
#[inline(always)]
pub fn hand_over(ctx: &TcContext, moving: u64, hook: u32) -> i32 {
    // SAFETY: see `enter`.
    unsafe { GATE.tail_call(ctx, slot(GateWord(moving).other(), hook)) };
    count_drop(hook, Reason::RewriteFailed as u32, ctx.len());
    DROP
}

/// The same for a socket call whose socket these tables do not know. Comes back where nothing moves.
#[inline(always)]
pub fn hand_over_socket<C: EbpfContext>(ctx: &C, gate: &SocketGate) {
    let moving = moving();
    if moving != 0 {
        // SAFETY: see `enter_socket`.
        unsafe { gate.tail_call(ctx, GateWord(moving).other()) };
    }
}
