//! Counters and events. Nothing here runs for an established flow.

use core::cell::UnsafeCell;

use agent_common::{
    Address, Count, Event, NO_BACKEND, budget, count_index, event_kind, feature, limits,
};
use aya_ebpf::{
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    programs::TcContext,
};

use crate::{
    maps::{BUDGET, COUNTERS_MAP, EVENTS},
    tables::features,
    work::Work,
};

/// Coarse monotonic clock, nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes nothing, changes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// One aligned word that all CPUs read and write whole.
#[repr(transparent)]
struct Word(UnsafeCell<u64>);

// SAFETY: only ever read and written whole, by volatile accesses of eight aligned bytes, which no CPU tears.
unsafe impl Sync for Word {}

/// The tick, in the lower half, as it was when the kernel's count of timer interrupts ended in the upper half. 0: never asked for.
#[unsafe(no_mangle)]
static TICK: Word = Word(UnsafeCell::new(0));

/// Coarse monotonic clock, ticks.
///
/// The clock moves with the timer's interrupts and not between them, and their count is a load that the verifier puts in place of the call. So
/// the clock itself, which costs an established packet more than a tenth, is asked once an interrupt. Should the interrupt be half done, what is
/// kept is older by one interrupt until the next.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes nothing, changes nothing.
    let interrupts = unsafe { bpf_jiffies64() };
    // SAFETY: see `Word`.
    let kept = unsafe { core::ptr::read_volatile(TICK.0.get()) };
    let holds = (kept >> 32) as u32 == interrupts as u32 || crate::mutant::removed!("clock-moves");
    if kept != 0 && holds {
        return kept as u32;
    }
    let tick = agent_common::clock::tick(now_ns());
    // SAFETY: see `Word`.
    unsafe { core::ptr::write_volatile(TICK.0.get(), (interrupts << 32) | tick as u64) };
    tick
}

#[inline(always)]
fn add(index: u32, packets: u64, bytes: u32) {
    if let Some(counter) = COUNTERS_MAP.get_ptr_mut(index) {
        // SAFETY: this CPU's own element. A program that interrupts another of a different kind may lose one count.
        unsafe {
            (*counter).packets += packets;
            (*counter).bytes += bytes as u64;
        }
    }
}

/// Counts something that is not a drop.
#[inline(always)]
pub fn count(what: Count) {
    add(count_index(what), 1, 0);
}

/// Counts so many at once.
#[inline(always)]
pub fn count_many(what: Count, number: u64) {
    add(count_index(what), number, 0);
}

/// Counts a dropped or rejected packet.
#[inline(always)]
pub fn count_drop(hook: u32, reason: u32, bytes: u32) {
    if hook < agent_common::hook::HOOKS && reason < agent_common::REASONS {
        add(hook * agent_common::REASONS + reason, 1, bytes);
    }
}

/// Takes one token of a per-CPU budget; false when it is spent.
#[inline(always)]
pub fn allowance(index: u32, per_second: u32, burst: u32) -> bool {
    let Some(bucket) = BUDGET.get_ptr_mut(index) else {
        return false;
    };
    let now = now_ns();
    // SAFETY: this CPU's own element.
    let bucket = unsafe { &mut *bucket };
    let elapsed = now.wrapping_sub(bucket.refilled_ns);
    // A whole tick of a millisecond at least, so that small refills are not lost to rounding.
    if elapsed >= 1 << 20 {
        let ticks = if elapsed >> 20 > 1 << 12 {
            1 << 12
        } else {
            elapsed >> 20
        };
        let refilled = bucket.tokens + ((ticks * per_second as u64) >> 10);
        bucket.tokens = if refilled > burst as u64 {
            burst as u64
        } else {
            refilled
        };
        bucket.refilled_ns = now;
    }
    if bucket.tokens == 0 {
        return false;
    }
    bucket.tokens -= 1;
    true
}

/// Puts an event about the packet at hand into the ring.
#[inline(never)]
pub fn event(work: &mut Work, kind: u32) -> u32 {
    if kind == event_kind::ALLOW as u32 && features() & feature::EVENTS_ALLOWED == 0 {
        return 0;
    }
    if !allowance(
        budget::EVENTS,
        limits::EVENTS_PER_SECOND,
        limits::EVENT_BURST,
    ) {
        count(Count::EventSuppressed);
        return 0;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<Event>(0) else {
        count(Count::EventLost);
        return 0;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation is of the event's size, and every field is written before it is submitted.
    unsafe {
        (*event).time_ns = now_ns();
        (*event).tuple = work.tuple;
        (*event).translated = Address::NONE;
        (*event).translated_port_be = 0;
        if work.forward.backend != NO_BACKEND {
            (*event).tuple = work.forward_key;
            (*event).translated = work.forward.new_destination;
            (*event).translated_port_be = work.forward.new_destination_port_be;
        }
        (*event).kind = kind as u8;
        (*event).reason = work.reason as u8;
        (*event).egress_rule = work.egress.rule;
        (*event).ingress_rule = work.ingress.rule;
        (*event).ifindex = work.ifindex;
        (*event).length = work.length;
        (*event).service = if work.forward.backend == NO_BACKEND {
            NO_BACKEND
        } else {
            work.forward.service
        };
        (*event).backend = work.forward.backend;
        (*event).hook = work.hook as u8;
        (*event).tcp_flags = work.tcp_flags as u8;
        (*event)._zero = [0; 2];
    }
    entry.submit(0);
    0
}

/// A line for whoever works on the programs, in objects that are built to write them.
#[inline(always)]
pub fn logged(ctx: &TcContext, work: &Work) {
    #[cfg(feature = "log")]
    crate::log::refused(ctx, work);
    #[cfg(not(feature = "log"))]
    let _ = (ctx, work);
}

/// Counts and reports a drop.
#[inline(always)]
pub fn dropped(ctx: &TcContext, work: &mut Work) {
    logged(ctx, work);
    count_drop(work.hook, work.reason, work.length);
    event(work, event_kind::DROP as u32);
}
