//! `cargo xtask build`: the one binary, with the eBPF object in it.

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
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Need::Ebpf])?;
    binary(arguments.release)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the binary; returns its path.
pub(crate) fn binary(release: bool) -> Result<std::path::PathBuf> {
    let mut command = workspace::cargo();
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
