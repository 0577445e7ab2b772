//! `cargo xtask run`: the tour in a lab of network namespaces, or the agent with arguments of one's own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::{self, AGENT};
use crate::setup::{self, Need};
use crate::{shell, workspace};

/// Builds everything and shows it: a small lab of network namespaces as pods, the agent on the manifests of
/// deploy/samples, real traffic, and what became of it, step by step. Then it stays until Ctrl-C.
///
/// As root, through sudo where it must. The machine's own network namespace is left alone.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// End after the tour: exit code 0 only if every step showed what it should.
    #[arg(long, conflicts_with = "sluice")]
    once: bool,

    /// The tour on optimised builds, which take longer to make; without it those of the tests.
    #[arg(long, conflicts_with = "sluice")]
    release: bool,

    /// Run `sluice` with these arguments instead of the tour (a real cluster: `-- agent --kubeconfig FILE`).
    #[arg(last = true, value_name = "ARGS")]
    sluice: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.sluice.is_empty() {
        setup::ensure(&[Need::Ebpf])?;
        let mut command = shell::as_root(build::binary(true)?)?;
        command.args(&arguments.sluice);
        return become_process(command);
    }
    setup::ensure(&[Need::Ebpf, Need::Lab])?;
    let built = programs(arguments.release)?;
    let mut tour = shell::as_root(built.join("tour"))?;
    tour.current_dir(workspace::root())
        .env("SLUICE_BIN", built.join("sluice"));
    if arguments.once {
        tour.arg("--once");
    }
    become_process(tour)
}

/// Builds `sluice` and the tour; where they are.
fn programs(release: bool) -> Result<PathBuf> {
    // Both at once: built apart, dependencies would be built twice, with features of their own for each.
    let mut build = workspace::cargo();
    build.arg("build").args(AGENT).args(["--bin", "tour"]);
    if release {
        build.arg("--release");
    }
    shell::run(setup::with_ebpf_toolchain(&mut build))?;
    Ok(workspace::target().join(if release { "release" } else { "debug" }))
}

/// Replaces this process: Ctrl-C and the exit code are then the program's own affair.
pub(crate) fn become_process(mut command: std::process::Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", shell::line(&command)))
}
