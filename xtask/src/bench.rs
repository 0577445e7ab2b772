//! `cargo xtask bench`: what packets, changes and starts cost, against the plain path of the same machine in the same run.

use std::process::ExitCode;

use anyhow::Result;

use crate::build::AGENT;
use crate::run::become_process;
use crate::setup::{self, Need};
use crate::{shell, workspace};

/// The part that wants a control plane, and which the short run leaves out.
const KUBE_PROXY: &str = "kube-proxy";

/// Measures what Sluice costs: traffic pod to pod against nodes without an agent, nanoseconds a packet, the agent's own work on
/// changes and starts. The figures stand beside their bars, in target/bench/ as JSON, table and picture.
///
/// The machine should have nothing else to do. Exit code 1 only if the harness is broken: packets that did not meet the programs, or met some
/// where there should be none. A bar that is missed fails nothing.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fewer rounds of less, in under three minutes, and no kube-proxy unless it is named.
    #[arg(long)]
    quick: bool,

    /// Only these parts: packet, userspace, same-node, across-nodes, kube-proxy.
    #[arg(value_name = "NAME")]
    parts: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Need::Ebpf, Need::Lab])?;
    let named = |name: &str| arguments.parts.iter().any(|part| part == name);
    if named(KUBE_PROXY) || (arguments.parts.is_empty() && !arguments.quick) {
        setup::ensure(&[Need::ControlPlane])?;
    }
    // What is measured is what runs on nodes: the release build.
    let mut build = workspace::cargo();
    build.args(["build", "--release"]).args(AGENT);
    build.args(["--bin", "bench"]);
    shell::run(setup::with_ebpf_toolchain(&mut build))?;

    let release = workspace::target().join("release");
    let mut bench = shell::as_root(release.join("bench"))?;
    bench
        .current_dir(workspace::root())
        .env("SLUICE_BIN", release.join("sluice"))
        .arg("--out")
        .arg(workspace::target().join("bench"));
    if arguments.quick {
        bench.arg("--quick");
    }
    bench.args(&arguments.parts);
    become_process(bench)
}
