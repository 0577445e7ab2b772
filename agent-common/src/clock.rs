//! The clock of flows: coarse monotonic time (`CLOCK_MONOTONIC_COARSE`, `bpf_ktime_get_coarse_ns`) in ticks of 2^30 ns,
//! about 1.07 s. A shift, because a division by a thousand million is one of the dearer instructions of the packet path.

/// Nanoseconds per tick, as a shift.
pub const TICK_SHIFT: u32 = 30;

/// The tick of a time in nanoseconds. Wraps after 146 years.
#[inline(always)]
pub const fn tick(nanoseconds: u64) -> u32 {
    (nanoseconds >> TICK_SHIFT) as u32
}

/// Ticks in so many seconds, rounded up.
#[inline(always)]
pub const fn ticks(seconds: u32) -> u32 {
    ((seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT)) as u32
}
