//! How a packet leaves: to the stack, by redirect into a pod, or not at all.

use agent_common::{Flow, NO_SLOT, Reason, Tuple, hook};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect_peer,
    programs::TcContext,
};

use crate::{
    maps::PROGRAMS,
    nat::{self, Rewritten},
    report::{count_drop, dropped},
    tables::pod,
    work::Work,
};

/// On to the next program, and then the stack: never "OK", which would skip the programs of others.
pub const NEXT: i32 = TC_ACT_UNSPEC;
/// Gone.
pub const DROP: i32 = TC_ACT_SHOT;

/// What a program ends with: its verdict.
#[inline(always)]
pub fn leave(verdict: i32) -> i32 {
    if crate::mutant::removed!("pass-means-ok") && verdict == NEXT {
        return TC_ACT_OK;
    }
    verdict
}

/// Sends an allowed packet of a flow on its way: rewritten where the entry says so, into the local pod that it names or to the
/// stack. The entry was judged for both local ends before this is called; `to_pod` does not see what is redirected.
///
/// `WHOLE` says that the packet has a transport header for certain, see [`nat::translate`].
#[inline(always)]
pub fn deliver<const WHOLE: bool>(
    ctx: &TcContext,
    hook: u32,
    l4: u32,
    v4: bool,
    tuple: &Tuple,
    flow: &Flow,
) -> i32 {
    // A slot whose pod has ended has no interface: the stack tells the sender.
    if flow.deliver != NO_SLOT
        && let Some(target) = pod(flow.deliver)
        && target.ifindex != 0
    {
        match nat::time_to_live(ctx, v4) {
            // The stack answers that the time is exceeded, about the packet as its sender knows it.
            None | Some(0 | 1) => return NEXT,
            Some(_) => {}
        }
        if nat::translate::<WHOLE>(ctx, l4, v4, tuple.protocol, flow) == Rewritten::Failed
            || nat::forward(ctx, v4, target) == Rewritten::Failed
        {
            count_drop(hook, Reason::RewriteFailed as u32, ctx.len());
            return DROP;
        }
        // SAFETY: takes numbers only.
        return unsafe { bpf_redirect_peer(target.ifindex, 0) } as i32;
    }
    if nat::translate::<WHOLE>(ctx, l4, v4, tuple.protocol, flow) == Rewritten::Failed {
        count_drop(hook, Reason::RewriteFailed as u32, ctx.len());
        return DROP;
    }
    NEXT
}

/// Goes on in another program. Comes back only where the slot is empty or the kernel's limit of tail calls is reached; the
/// packet is dropped then, with nothing judged.
#[inline(always)]
pub fn tail_call(ctx: &TcContext, hook: u32, slot: u32) -> i32 {
    // SAFETY: the program behind the slot is of the same type, put there by the agent.
    unsafe { PROGRAMS.tail_call(ctx, slot) };
    count_drop(hook, Reason::RewriteFailed as u32, ctx.len());
    DROP
}

/// Drops a packet for `work.reason`, visibly.
#[inline(always)]
pub fn drop_packet(ctx: &TcContext, work: &mut Work, reason: Reason) -> i32 {
    work.reason = reason as u32;
    dropped(ctx, work);
    DROP
}

/// Refuses a packet for `work.reason`: answers it where the reason is one that a client should learn of at once, else drops it.
#[inline(always)]
pub fn refuse(ctx: &TcContext, work: &mut Work) -> i32 {
    let reason = work.reason;
    if reason == Reason::NoEndpoint as u32
        || reason == Reason::NoServicePort as u32
        || reason == Reason::BackendGone as u32
        || reason == Reason::ClusterIpFromOutside as u32
        || (reason == Reason::Midstream as u32 && work.hook == hook::FROM_POD)
    {
        return tail_call(ctx, work.hook, hook::slot::REJECT);
    }
    dropped(ctx, work);
    DROP
}
