//! `cargo xtask soak`: two nodes under random changes, kills and traffic, held against the oracle.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::run::become_process;
use crate::setup::{self, Need};
use crate::{mutants, shell, workspace};

/// Two nodes on this machine, each with its agent, in namespaces of their own: random changes of services, endpoints,
/// policies, pods and links, continuous traffic, and random kills of the agents; each connection is held against the oracle.
///
/// Ends with counts. Exit code 1 if a verdict was wrong, a connection lost or reset, or if there were too few changes, kills or
/// requests to say anything (`tests::soak::MINIMUM`).
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For how many minutes; fractions count.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,

    /// Repeats the sequence of changes, kills and connections of another run.
    #[arg(long)]
    seed: Option<u64>,

    /// Runs the agent without one mechanism (the mutants of `cargo xtask test mutants`): it must end with 1.
    #[arg(long = "break", value_name = "NAME", conflicts_with = "release")]
    broken: Option<String>,

    /// Optimised builds, as they run on nodes; without it those of the tests.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(name) = &arguments.broken {
        let known: BTreeSet<&str> = mutants::MUTANTS.iter().map(|m| m.name).collect();
        if !known.contains(name.as_str()) {
            let known: Vec<&str> = known.into_iter().collect();
            bail!("nothing is called {name}; there are: {}", known.join(", "));
        }
    }
    setup::ensure(&[Need::Ebpf, Need::Lab])?;
    let mut build = workspace::cargo();
    build.args(["build", "--package", "sluice", "--package", "tests"]);
    build.args(["--bin", "sluice", "--bin", "soak", "--bin", "lab-hand"]);
    if arguments.release {
        build.arg("--release");
    }
    if arguments.broken.is_some() {
        let (variable, value) = mutants::BUILD;
        build.env(variable, value);
    }
    shell::run(setup::with_ebpf_toolchain(&mut build))?;

    let profile = if arguments.release {
        "release"
    } else {
        "debug"
    };
    let built = workspace::target().join(profile);
    let mut soak = shell::as_root(built.join("soak"))?;
    soak.current_dir(workspace::root())
        .env("SLUICE_BIN", built.join("sluice"))
        .env(
            mutants::CHOICE,
            arguments.broken.as_deref().unwrap_or_default(),
        )
        .args(["--minutes", &arguments.minutes.to_string()]);
    if let Some(seed) = arguments.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    become_process(soak)
}
