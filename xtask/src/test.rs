//! `cargo xtask test`: every tier that exists, or one of them.

mod outcome;
pub(crate) mod runner;
pub(crate) mod tiers;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{mutants, setup};
pub(crate) use outcome::{Outcome, gist};
use tiers::{TIERS, Tier};

/// Runs the test tiers and ends with the line `N passed, N failed` over all of them.
///
/// Tests that need root run through sudo where this is not root; cargo itself does not. A test that ignores itself
/// counts as failed, and so does a tier that does not build, runs no test, or exceeds its time.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this tier; `--list` names them.
    tier: Option<String>,

    /// Print the tiers and end.
    #[arg(long)]
    list: bool,

    /// Only tests whose name contains this (needs TIER).
    #[arg(long, requires = "tier")]
    only: Option<String>,

    /// Of the tier vm: everything that can run there, which takes most of an hour (needs TIER).
    #[arg(long, requires = "tier")]
    all: bool,

    /// Optimised builds, as they run on nodes (needs TIER, one of those of cargo).
    #[arg(long, requires = "tier")]
    release: bool,
}

/// The tier that is no row of [`TIERS`]: it builds other programs than the rest.
const MUTANTS: &str = "mutants";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for tier in TIERS {
            println!("{:<14} {}", tier.name, tier.about);
        }
        println!("{:<14} {}", vm::NAME, vm::ABOUT);
        println!("{MUTANTS:<14} each mechanism removed in turn; the test beside it must fail");
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = arguments.tier.as_deref();
    let chosen: Vec<&Tier<'_>> = TIERS
        .iter()
        .filter(|tier| wanted.is_none_or(|name| name == tier.name))
        .collect();
    let in_vm = wanted.is_none_or(|name| name == vm::NAME);
    if arguments.release && chosen.is_empty() {
        bail!("only tiers of cargo's have optimised builds; `--list` names them");
    }
    if chosen.is_empty() && !in_vm && wanted != Some(MUTANTS) {
        let names: Vec<_> = TIERS
            .iter()
            .map(|tier| tier.name)
            .chain([vm::NAME, MUTANTS])
            .collect();
        bail!(
            "no tier {}; there are: {}",
            wanted.unwrap_or_default(),
            names.join(", ")
        );
    }
    let mut needs = vec![setup::Need::Ebpf];
    needs.extend(chosen.iter().flat_map(|tier| tier.needs).copied());
    if in_vm || wanted == Some(MUTANTS) {
        needs.push(setup::Need::Lab);
    }
    if in_vm {
        needs.push(setup::Need::Vm);
    }
    setup::ensure(&needs)?;

    let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
    for tier in chosen {
        println!("\n=== tier {}: {}", tier.name, tier.about);
        let outcome = runner::tier(tier, arguments.only.as_deref(), arguments.release);
        println!("=== tier {}: {outcome}", tier.name);
        outcomes.push((tier.name, outcome));
    }
    if in_vm {
        println!("\n=== tier {}: {}", vm::NAME, vm::ABOUT);
        let outcome = vm::run(arguments.only.as_deref(), arguments.all);
        println!("=== tier {}: {outcome}", vm::NAME);
        outcomes.push((vm::NAME, outcome));
    }
    if wanted.is_none_or(|name| name == MUTANTS) {
        println!("\n=== tier {MUTANTS}");
        outcomes.push((MUTANTS, mutants::run(arguments.only.as_deref())?));
    }

    let mut total = Outcome::default();
    for (_, outcome) in &outcomes {
        total.add(outcome);
    }
    // Again at the end: a reader of a long log begins there.
    for line in &total.told {
        println!("{line}");
    }
    println!();
    for (name, outcome) in &outcomes {
        println!("{name:<14} {outcome}");
    }
    // The last line, plain, for programs that read it.
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
