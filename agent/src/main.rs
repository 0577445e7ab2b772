//! The `sluice` command: the agent, and what asks it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sluice::app::{self, Config, FlowChoice, SourceChoice};
use sluice::cli::agent::{AgentArgs, AttachFlag, IpBlockFlag, UnknownPodFlag};
use sluice::cli::{self, Cli, Command};
use sluice::compile::{IpBlockMode, UnknownPod};
use sluice::datapath::attach::Mode;
use sluice::observe::logging;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Agent(args) => match agent(&cli, args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cli::failed(&error),
        },
        command => cli.run(command),
    }
}

fn agent(cli: &Cli, args: &AgentArgs) -> anyhow::Result<()> {
    logging::init(&args.log_filter, args.log_format)?;
    app::run(config(cli, args))
}

fn config(cli: &Cli, args: &AgentArgs) -> Config {
    Config {
        node_name: args.node_name.clone(),
        source: match &args.manifests {
            Some(directory) => SourceChoice::Manifests(directory.clone()),
            None => SourceChoice::Kubernetes(args.kubeconfig.clone()),
        },
        pin_root: args.pin_root.clone(),
        socket: cli.global.socket.clone(),
        cgroup: args.cgroup.clone(),
        devices: args.devices.clone(),
        attach: match args.attach {
            AttachFlag::Auto => Mode::Auto,
            AttachFlag::Tcx => Mode::Tcx,
            AttachFlag::Clsact => Mode::Clsact,
        },
        ip_block_mode: match args.ip_block_mode {
            IpBlockFlag::Literal => IpBlockMode::Literal,
            IpBlockFlag::Cilium => IpBlockMode::Cilium,
        },
        unknown_pod: match args.unknown_pod {
            UnknownPodFlag::Allow => UnknownPod::Allow,
            UnknownPodFlag::Deny => UnknownPod::Deny,
        },
        drift_interval: Duration::from_secs(args.drift_interval),
        flows: FlowChoice {
            max: args.conntrack.max,
            share_percent: args.conntrack.share,
            timeouts: args.conntrack.timeouts(),
        },
        metrics_address: args.metrics_address,
    }
}
