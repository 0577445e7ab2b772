//! Switches that take a mechanism away, see `agent_common::mutant`: `removed!("name")` is `false` in every ordinary build.
//!
//! In builds with `cfg(mutants)` it reads frozen data, so that the verifier knows the answer and walks only the branch that is taken.

/// Number of the mechanism to run without, 0 for none; set by the agent before loading.
#[cfg(mutants)]
#[unsafe(no_mangle)]
static MUTANT: u32 = 0;

/// Whether the programs run without the mechanism of this number.
#[cfg(mutants)]
#[inline(always)]
pub fn is(number: u32) -> bool {
    // SAFETY: read-only data, read as it was loaded and not as it was compiled.
    unsafe { core::ptr::read_volatile(&raw const MUTANT) == number }
}

/// Whether the programs run without the mechanism of this number: never.
#[cfg(not(mutants))]
#[inline(always)]
pub const fn is(_number: u32) -> bool {
    false
}

/// Whether the programs run without the mechanism of this name.
macro_rules! removed {
    ($name:literal) => {
        $crate::mutant::is(const { agent_common::mutant::number($name) })
    };
}
pub(crate) use removed;
