//! `cargo xtask build`: the one binary, with the eBPF object in it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{shell, workspace};

/// Builds `sluice`, the agent, the CLI and the control plane in one binary, with its eBPF programs inside.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Optimised, at target/release/sluice; without it, target/debug/sluice.
    #[arg(long)]
    release: bool,

    /// Programs that write a line for each packet that they drop or reject into the agent's log, for work on them.
    #[arg(long, conflicts_with = "release")]
    ebpf_log: bool,
}

/// What cargo is told to build for `sluice` alone. The tests' package is named beside it, so that what both depend on has the same features, and
/// is not built once for each.
pub(crate) const AGENT: [&str; 6] = [
    "--package",
    "sluice",
    "--package",
    "tests",
    "--bin",
    "sluice",
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Need::Ebpf])?;
    if arguments.ebpf_log {
        build(false, &[("SLUICE_EBPF_LOG", "1")])?;
    } else {
        binary(arguments.release)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the binary; returns its path.
pub(crate) fn binary(release: bool) -> Result<PathBuf> {
    build(release, &[])
}

/// Builds the binary with variables for its build script; returns its path.
pub(crate) fn build(release: bool, environment: &[(&str, &str)]) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.envs(environment.iter().copied());
    command.arg("build").args(AGENT);
    if release {
        command.arg("--release");
    }
    shell::run(setup::with_ebpf_toolchain(&mut command))?;
    let path = workspace::target()
        .join(if release { "release" } else { "debug" })
        .join("sluice");
    println!("{}", path.display());
    Ok(path)
}
