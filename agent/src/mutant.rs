//! Switches that take a mechanism away, so that `cargo xtask test mutants` can see whether a test notices.
//!
//! They are there in builds with `SLUICE_MUTANTS=1` only, which are never releases; in all others [`removed`] is `false` before the
//! program runs. This is the one module that knows where the choice comes from.

#[cfg(mutants)]
use std::sync::OnceLock;

/// Names the mechanism to run without.
#[cfg(mutants)]
const VARIABLE: &str = "SLUICE_MUTANT";

/// Whether the agent runs without the mechanism of this name. One name for each mechanism, and a row in `xtask/src/mutants.rs`.
#[inline(always)]
#[must_use]
pub fn removed(name: &str) -> bool {
    chosen() == Some(name)
}

/// The mechanism that this process runs without, read once; `None` in every ordinary build.
#[cfg(mutants)]
#[must_use]
pub fn chosen() -> Option<&'static str> {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN
        .get_or_init(|| std::env::var(VARIABLE).ok().filter(|name| !name.is_empty()))
        .as_deref()
}

/// The mechanism that this process runs without: none.
#[cfg(not(mutants))]
#[inline(always)]
#[must_use]
pub const fn chosen() -> Option<&'static str> {
    None
}

/// What the programs' `MUTANT` must be, see [`agent_common::mutant`]; `None` where they have no such word, as in every ordinary build.
#[must_use]
pub fn word() -> Option<u32> {
    cfg!(mutants).then(|| chosen().map_or(0, agent_common::mutant::number))
}
