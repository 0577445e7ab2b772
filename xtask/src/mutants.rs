//! `cargo xtask test mutants`: each mechanism that guards something is removed in turn, and a test must notice.
//!
//! A mutant is a switch at build time: `SLUICE_MUTANT=name`, which `agent/build.rs` turns into `--cfg mutant="name"`
//! for both halves. Adding one takes the `#[cfg(not(mutant = "name"))]` around the mechanism and a row here.
//! All are built in the ordinary target directory, where only what the switch changes is built again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::test::runner;
use crate::test::tiers::Tier;

pub(crate) use crate::test::Outcome;

/// A mechanism that can be removed, and the test that must fail without it.
#[derive(Debug)]
pub(crate) struct Mutant {
    /// The value of `SLUICE_MUTANT`.
    pub(crate) name: &'static str,
    /// What it removes, and in which file.
    pub(crate) removes: &'static str,
    /// `cargo test`'s arguments for the target of the test.
    pub(crate) cargo: &'static [&'static str],
    /// The test's whole name.
    pub(crate) test: &'static str,
    /// Whether the test runs as root.
    pub(crate) root: bool,
}

/// Tests of the agent's library, which run anywhere.
const fn unit(name: &'static str, removes: &'static str, test: &'static str) -> Mutant {
    Mutant {
        name,
        removes,
        // Beside the crate of tests, so that dependencies have the features that they were built with before.
        cargo: &["--package", "sluice", "--package", "tests", "--lib"],
        test,
        root: false,
    }
}

/// Every mutant.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "redirect-without-ingress",
        removes: "agent-ebpf/src/policy.rs: the ingress judgement of what a local pod sends",
        cargo: &["--package", "tests", "--test", "packets"],
        test: "policy::ingress_is_judged_before_a_redirect",
        root: true,
    },
    Mutant {
        name: "no-epoch",
        removes: "agent-ebpf/src/conntrack.rs: the comparison of a flow's epoch with its pods'",
        cargo: &["--package", "tests", "--test", "packets"],
        test: "policy::a_flow_is_judged_again_when_something_was_taken_from_the_responder",
        root: true,
    },
    Mutant {
        name: "walked-on-each-path",
        removes: "agent-ebpf/src/{policy,service}.rs: the linkage by which the verifier walks the large steps once",
        cargo: &["--package", "tests", "--test", "packets"],
        test: "verifier::every_program_passes_the_verifier_within_its_bound",
        root: true,
    },
    unit(
        "no-grace",
        "agent/src/plan/apply.rs, agent/src/datapath/grace.rs: the grace period before anything is collected and used again",
        "plan::tests::services::a_slow_reader_never_meets_a_backend_of_nobody_or_of_another_service",
    ),
    unit(
        "no-epoch-raise",
        "agent/src/plan/steps.rs: epochs that rise where something was taken away",
        "plan::tests::policy::every_write_and_every_slow_reader_is_told_the_old_or_the_new",
    ),
    unit(
        "epoch-before-write",
        "agent/src/plan/steps.rs: epochs that rise after the last write and not before the first",
        "plan::tests::policy::every_write_and_every_slow_reader_is_told_the_old_or_the_new",
    ),
    unit(
        "prune-before-sync",
        "agent/src/reconcile.rs: the wait for every kind before the first apply",
        "reconcile::tests::nothing_is_removed_before_all_is_told_and_a_failed_write_is_tried_again",
    ),
];

/// The longest that one mutant's test may take, without its build.
const BOUND: Duration = Duration::from_mins(10);

/// Runs the mutants whose name contains `only`, then each of their tests once more with nothing removed.
///
/// # Errors
/// When there is none to run.
pub(crate) fn run(only: Option<&str>) -> Result<Outcome> {
    let chosen: Vec<&Mutant> = MUTANTS
        .iter()
        .filter(|mutant| only.is_none_or(|part| mutant.name.contains(part)))
        .collect();
    if chosen.is_empty() {
        bail!(
            "no such mutant: the table in xtask/src/mutants.rs has {} rows",
            MUTANTS.len()
        );
    }
    let started = Instant::now();
    let mut total = Outcome::default();
    for mutant in &chosen {
        match survives(mutant) {
            None => {
                println!("mutant {}: caught by {}", mutant.name, mutant.test);
                total.passed += 1;
            }
            Some(why) => total.trouble(format!(
                "mutant {} ({}): {why}",
                mutant.name, mutant.removes
            )),
        }
    }
    // Last, so that the target directory is left without a mutant: a test that fails anyway proves nothing.
    let mut seen = BTreeSet::new();
    for mutant in chosen
        .iter()
        .filter(|mutant| seen.insert((mutant.cargo, mutant.test)))
    {
        let outcome = test(mutant, &[]);
        match outcome {
            Ok(outcome) if outcome.passed == 1 && outcome.failed == 0 => total.passed += 1,
            Ok(outcome) => {
                total.trouble(format!("{} with nothing removed: {outcome}", mutant.test))
            }
            Err(error) => total.trouble(format!("{} with nothing removed: {error:#}", mutant.test)),
        }
    }
    total.took = started.elapsed();
    Ok(total)
}

/// Why the mutant was not caught; `None` when its test failed as it should.
fn survives(mutant: &Mutant) -> Option<String> {
    match test(mutant, &[("SLUICE_MUTANT", mutant.name)]) {
        // A failed build is no catch, and neither is another test's failure, a time bound or a crash.
        Err(error) => Some(format!("{error:#}")),
        Ok(outcome) if !outcome.troubles.is_empty() => Some(outcome.troubles.join("; ")),
        Ok(outcome) if outcome.failures.iter().any(|name| name == mutant.test) => None,
        Ok(outcome) if outcome.passed + outcome.failed == 0 => {
            Some(format!("there is no test {}", mutant.test))
        }
        Ok(_) => Some(format!("{} passes without it", mutant.test)),
    }
}

/// Builds and runs the mutant's test in this environment.
fn test(mutant: &Mutant, environment: &[(&str, &str)]) -> Result<Outcome> {
    runner::build(mutant.cargo, environment)?;
    let tier = Tier {
        name: mutant.name,
        about: mutant.removes,
        cargo: mutant.cargo,
        root: mutant.root,
        threads: Some(1),
        needs: &[],
        bound: BOUND,
        least: 1,
    };
    Ok(runner::tests(&tier, &[mutant.test, "--exact"], environment))
}
