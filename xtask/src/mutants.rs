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

/// Tests of the lab, which start the agent as a process.
const fn lab(name: &'static str, removes: &'static str, test: &'static str) -> Mutant {
    Mutant {
        name,
        removes,
        cargo: &["--package", "tests", "--test", "lab"],
        test,
        root: true,
    }
}

/// The upgrade to another layout, in the lab.
const fn upgrade(name: &'static str, removes: &'static str) -> Mutant {
    lab(
        name,
        removes,
        "upgrade::an_agent_of_another_layout_takes_over_and_an_older_one_refuses",
    )
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
        name: "no-share",
        removes: "agent-ebpf/src/tables.rs: the bound on what one pod takes of conntrack",
        cargo: &["--package", "tests", "--test", "packets"],
        test: "shares::a_pod_at_its_share_goes_on_among_the_unanswered",
        root: true,
    },
    Mutant {
        name: "gc-without-recheck",
        removes: "agent/src/datapath/conntrack.rs: the second look at a flow, and at what was deleted of it, when flows are collected",
        cargo: &["--package", "tests", "--test", "kernel"],
        test: "flows::a_flow_that_comes_back_while_it_is_collected_stays",
        root: true,
    },
    // The same once more: what the soak is worth. `cargo xtask soak --break=no-epoch` is this by hand.
    Mutant {
        name: "no-epoch",
        removes: "agent-ebpf/src/conntrack.rs: as above, to be noticed among random changes and kills",
        cargo: &["--package", "tests", "--test", "soak"],
        test: "half_a_minute_of_a_known_seed_is_clean",
        root: true,
    },
    Mutant {
        name: "untranslated",
        removes: "agent-ebpf/src/from_pod.rs: a flow that was opened before its service was there begins anew",
        cargo: &["--package", "tests", "--test", "packets"],
        test: "services::a_flow_to_an_address_that_becomes_a_services_goes_to_its_backend",
        root: true,
    },
    unit(
        "no-grace",
        "agent/src/plan/apply.rs, agent/src/datapath/grace.rs: the grace period before anything is collected and used again",
        "plan::tests::services::a_slow_reader_never_meets_a_backend_of_nobody_or_of_another_service",
    ),
    unit(
        "turning-pool",
        "agent/src/plan/steps/services.rs: a service's pool that stays when the service turns to its local endpoints, or back",
        "plan::tests::services::every_write_leaves_the_old_answer_or_the_new",
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
    upgrade(
        "upgrade-without-copy",
        "agent/src/datapath/migrate/moving.rs: the copy of flows from the tables of another layout",
    ),
    upgrade(
        "no-handover",
        "agent-ebpf/src/gate.rs: packets of flows that are not copied yet go to the programs of the other layout",
    ),
    upgrade(
        "flip-before-fill",
        "agent/src/datapath/load.rs: the new layout's maps are filled before its programs are in force",
    ),
    unit(
        "no-stage",
        "agent/src/plan/stage.rs: the stage of peers that become somebody else while pods turn to other policies",
        "plan::tests::crash::every_prefix_of_a_batch_is_a_whole_state_from_which_a_start_converges",
    ),
    unit(
        "reuse-while-pointed",
        "agent/src/compile/enforcement.rs: the rest of numbers that something may still point to because a write failed",
        "plan::tests::faults::changes_under_a_fault_that_lasts_are_never_torn_and_made_good_when_it_ends",
    ),
    unit(
        "prune-before-sync",
        "agent/src/reconcile.rs: the wait for every kind before the first apply",
        "reconcile::tests::nothing_is_removed_before_all_is_told_and_a_failed_write_is_tried_again",
    ),
    unit(
        "relist-without-deletes",
        "agent/src/source/kube/known.rs: the deletions that a relist tells",
        "source::kube::follow::tests::outage::objects_that_changed_while_the_history_was_lost_are_one_difference",
    ),
    unit(
        "silent-watch",
        "agent/src/source/kube/follow.rs: the bound for a watch that says nothing",
        "source::kube::follow::tests::outage::a_silent_watch_is_opened_anew_from_its_place",
    ),
    unit(
        "stale-since-now",
        "agent/src/source/kube/follow.rs: the first failure's time, which later ones keep",
        "source::kube::follow::tests::outage::a_server_that_is_gone_for_minutes_is_asked_ever_less_and_then_watched_on",
    ),
    unit(
        "credentials-once",
        "agent/src/source/kube/access.rs: reading refused credentials again",
        "source::kube::follow::tests::outage::refused_credentials_are_read_again",
    ),
    unit(
        "vanished-at-once",
        "agent/src/source/manifests/worker.rs: waiting for what replaces a file that vanished",
        "source::manifests::tests::outage::removed_file_by_file_it_is_missing_and_not_emptied",
    ),
    unit(
        "empty-file-counts",
        "agent/src/source/manifests/files.rs: an emptied file as a broken one",
        "source::manifests::tests::outage::an_emptied_file_is_a_broken_one",
    ),
    lab(
        "full-disk-counts",
        "agent/src/source/manifests/worker.rs: what was written to a full file system as broken",
        "directory::what_is_written_to_a_full_disk_changes_nothing",
    ),
    lab(
        "unmounted-is-empty",
        "agent/src/source/manifests/worker.rs: another file system without manifests as a failure",
        "directory::a_file_system_that_is_unmounted_is_missing_and_not_empty",
    ),
    lab(
        "pass-means-ok",
        "agent-ebpf/src/deliver.rs: packets that pass go on to the programs of others",
        "node_parts::by_tcx_a_program_of_somebody_else_behind_ours_still_runs",
    ),
    lab(
        "no-drift-check",
        "agent/src/reconcile/drift.rs: the look whether what was made is still there",
        "node_parts::links_that_are_detached_come_back",
    ),
    lab(
        "no-rejudge",
        "agent/src/reconcile/drift.rs: flows judged while the maps were wrong are judged again",
        "node_parts::elements_of_maps_that_are_changed_are_set_back_and_flows_judged_again",
    ),
    lab(
        "cleanup-leaves-qdisc",
        "agent/src/datapath/attach/clsact.rs: the qdisc that goes with its last filter",
        "cleanup::cleanup_removes_filters_and_the_qdiscs_that_sluice_made",
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
