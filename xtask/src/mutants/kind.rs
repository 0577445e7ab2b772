//! Rows of the table, by the target whose test notices.

use super::{Mutant, SOAK};
use crate::test::tiers::target;

/// Tests of the agent's library, which run anywhere.
pub(super) const fn unit(name: &'static str, removes: &'static str, test: &'static str) -> Mutant {
    Mutant {
        name,
        removes,
        // Beside the crate of tests, so that dependencies have the features that they were built with before.
        cargo: &["--package", "sluice", "--package", "tests", "--lib"],
        test,
        root: false,
    }
}

/// Tests of a file, which run as root.
pub(super) const fn root(
    name: &'static str,
    removes: &'static str,
    cargo: &'static [&'static str],
    test: &'static str,
) -> Mutant {
    Mutant {
        name,
        removes,
        cargo,
        test,
        root: true,
    }
}

/// Packets through the programs.
pub(super) const fn packets(
    name: &'static str,
    removes: &'static str,
    test: &'static str,
) -> Mutant {
    root(name, removes, target!("packets"), test)
}

/// Tests of the real maps.
pub(super) const fn kernel(
    name: &'static str,
    removes: &'static str,
    test: &'static str,
) -> Mutant {
    root(name, removes, target!("kernel"), test)
}

/// Tests of the lab, which start the agent as a process.
pub(super) const fn lab(name: &'static str, removes: &'static str, test: &'static str) -> Mutant {
    root(name, removes, target!("lab"), test)
}

/// The upgrade to another layout, in the lab.
pub(super) const fn upgrade(name: &'static str, removes: &'static str) -> Mutant {
    lab(
        name,
        removes,
        "upgrade::an_agent_of_another_layout_takes_over_and_an_older_one_refuses",
    )
}

/// Two nodes under random changes, kills and traffic, with dice that are always the same. The test runs the soak's program, and without the
/// mechanism `cargo xtask soak --break=NAME` runs it.
pub(super) const fn soak(name: &'static str, removes: &'static str) -> Mutant {
    root(
        name,
        removes,
        SOAK,
        "a_quarter_of_a_minute_of_a_known_seed_is_clean",
    )
}

/// Random packets of a seed that is always the same, against the model.
pub(super) const fn fuzz(name: &'static str, removes: &'static str) -> Mutant {
    root(
        name,
        removes,
        target!("fuzz"),
        "random_packets_of_a_known_seed_fare_as_the_model_says",
    )
}
