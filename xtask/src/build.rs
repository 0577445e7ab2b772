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

fn build(release: bool, environment: &[(&str, &str)]) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.envs(environment.iter().copied());
    command.args(["build", "--package", "sluice", "--bin", "sluice"]);
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
