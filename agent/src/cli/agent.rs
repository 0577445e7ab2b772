//! The flags of `sluice agent`. What they mean to the datapath is decided in `app`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::conntrack::ConntrackArgs;
use crate::datapath::pins::DEFAULT_ROOT;
use crate::observe::logging::Format;

/// Run the agent of a node.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Name of this node, as its Node object has it
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: String,

    /// Take objects from a directory of manifests (YAML or JSON, subfolders too), and follow its changes
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Source"
    )]
    pub manifests: Option<PathBuf>,
    /// Take objects from the API server that this kubeconfig names; without it and --manifests, from the one of the
    /// cluster that the agent runs in
    #[arg(long, value_name = "FILE", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,

    /// Directory on a bpffs for maps, programs and links, which outlive the agent
    #[arg(
        long,
        value_name = "DIR",
        default_value = DEFAULT_ROOT,
        help_heading = "Datapath"
    )]
    pub pin_root: PathBuf,
    /// cgroup v2 whose processes' own connections to services are balanced; by default the root of the cgroup2 mount
    #[arg(long, value_name = "DIR", help_heading = "Datapath")]
    pub cgroup: Option<PathBuf>,
    /// Uplinks, instead of those found by the node's addresses and default routes
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        help_heading = "Datapath"
    )]
    pub devices: Vec<String>,
    /// How programs are attached: tcx needs Linux 6.6; auto takes it where it is there
    #[arg(
        long,
        value_name = "MODE",
        default_value = "auto",
        help_heading = "Datapath"
    )]
    pub attach: AttachFlag,
    /// How many flows are kept, and for how long.
    #[command(flatten)]
    pub conntrack: ConntrackArgs,

    /// Seconds between two checks whether programs, pins and maps are still as the agent left them; what is not is mended
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = crate::reconcile::DRIFT_INTERVAL.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=MAX_DRIFT_SECONDS),
        help_heading = "Datapath"
    )]
    pub drift_interval: u64,

    /// What an ipBlock matches: literal, what its CIDR says; cilium, never pods, nodes or this host
    #[arg(
        long,
        value_name = "MODE",
        default_value = "literal",
        help_heading = "Policy"
    )]
    pub ip_block_mode: IpBlockFlag,
    /// What holds for a pod link whose pod no source has told of yet
    #[arg(
        long,
        value_name = "VERDICT",
        default_value = "allow",
        help_heading = "Policy"
    )]
    pub unknown_pod: UnknownPodFlag,

    /// Serve Prometheus metrics (/metrics) and readiness (/readyz) at this address (such as 127.0.0.1:9966); by default neither is served
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Observability")]
    pub metrics_address: Option<SocketAddr>,
    /// What is logged: a level (error, warn, info, debug, trace), or directives such as info,sluice::source=debug
    #[arg(
        long,
        value_name = "FILTER",
        env = "RUST_LOG",
        default_value = "info",
        help_heading = "Observability"
    )]
    pub log_filter: String,
    /// How log lines are written, to standard error
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Observability"
    )]
    pub log_format: Format,
}

/// A check that comes once a day is none.
const MAX_DRIFT_SECONDS: u64 = 86_400;

/// `--attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AttachFlag {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// Links of tcx.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// `--ip-block-mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum IpBlockFlag {
    /// What the CIDR says.
    Literal,
    /// Never pods, nodes or this host.
    Cilium,
}

/// `--unknown-pod`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum UnknownPodFlag {
    /// It may talk.
    Allow,
    /// Only this host reaches it.
    Deny,
}
