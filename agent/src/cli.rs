//! The command line.
//!
//! Exit codes: 0, it was done; 1, it failed, and the last line on standard error says why; 2, the command line is wrong;
//! 3, no agent answers at the socket.

pub mod agent;
mod ask;
mod cleanup;
mod color;
pub mod conntrack;
pub mod duration;
mod table;
mod text;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use agent::AgentArgs;
pub use cleanup::CleanupArgs;

use crate::admin;

/// Exit code where something failed.
pub const FAILED: u8 = 1;
/// Exit code where no agent answers.
pub const NO_AGENT: u8 = 3;

/// Sluice: services and network policy on a node, by eBPF.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = "Sluice: services and network policy on a node, by eBPF",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no agent answers at the socket.",
    propagate_version = true
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Admin socket of the agent: where it listens, and where the other commands ask
    #[arg(long, global = true, value_name = "PATH", default_value = admin::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How to print: text for people, json for programs (its field names are a contract)
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub output: Output,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the agent of a node, in the network namespace that it is started in
    Agent(Box<AgentArgs>),
    /// How the agent is: sources, attachments, maps, drops, what was rejected
    Status,
    /// Services and where they lead
    #[command(subcommand)]
    Service(ServiceCommand),
    /// The pods of this node, and what isolates them
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Network policies, and which pods of this node they select
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What was dropped, rejected or passed by audit, and why; as it happens, until Ctrl-C
    Flows(FlowArgs),
    /// Remove everything of Sluice's from this node: programs, pins, qdiscs, the socket. Run it as root, in the network
    /// namespace of the agent, when that has ended
    Cleanup(CleanupArgs),
    /// The version of this program
    Version,
}

/// Services.
#[derive(Clone, Debug, Subcommand)]
pub enum ServiceCommand {
    /// Every service: addresses, backends, which of them are chosen
    List(ListArgs),
}

/// Endpoints.
#[derive(Clone, Debug, Subcommand)]
pub enum EndpointCommand {
    /// Every pod of this node: addresses, interface, isolation and the policies behind it
    List(ListArgs),
}

/// Policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Every policy: directions, rules, the pods of this node that it selects
    List(ListArgs),
}

/// Which objects.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Which flows.
#[derive(Clone, Debug, Args)]
pub struct FlowArgs {
    /// Allowed connections too: each is reported once, when it is opened, while somebody watches
    #[arg(long)]
    pub allowed: bool,
    /// Print the last N events that were kept (1,024 at most), and end unless --follow is given
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Go on with what happens; this is so without --last
    #[arg(short, long)]
    pub follow: bool,
    /// Only flows that have this pod or service at one end (NAMESPACE/NAME, or NAMESPACE/ for all of one)
    #[arg(long = "of", value_name = "OBJECT", value_parser = object)]
    pub object: Option<String>,
    /// Only this reason, such as policy-ingress
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Option<String>,
}

fn object(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("write NAMESPACE/NAME, or NAMESPACE/ for all of a namespace".to_owned()),
    }
}

fn reason(text: &str) -> Result<String, String> {
    let names = agent_common::Reason::ALL.iter().map(|reason| reason.name());
    let names: Vec<_> = names.collect();
    if names.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("no such reason; there are {}", names.join(", ")))
    }
}

impl Cli {
    /// Runs any command but `agent`, which the caller runs.
    ///
    /// Writes to standard output, and a failure to standard error.
    #[must_use]
    pub fn run(&self, command: &Command) -> ExitCode {
        let out = io::stdout().lock();
        let color = color::wanted(&out);
        let mut out = io::BufWriter::new(out);
        let done = match command {
            Command::Version => version(self.global.output, &mut out),
            Command::Cleanup(args) => {
                cleanup::run(args, &self.global.socket, self.global.output, &mut out)
            }
            command => ask::ask(&self.global, command, &mut out, color),
        };
        match done.and_then(|()| out.flush().map_err(anyhow::Error::from)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        }
    }
}

/// Says why a command failed, and gives its exit code. A reader that went (`| head`) is no failure.
#[must_use]
pub fn failed(error: &anyhow::Error) -> ExitCode {
    let mut causes = error.chain();
    let pipe = causes.any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    });
    if pipe {
        return ExitCode::SUCCESS;
    }
    eprintln!("sluice: {error:#}");
    match error.downcast_ref::<admin::client::ClientError>() {
        Some(admin::client::ClientError::NotRunning(_)) => ExitCode::from(NO_AGENT),
        _ => ExitCode::from(FAILED),
    }
}

fn version(output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let version = crate::observe::VERSION;
    let layout = agent_common::limits::LAYOUT;
    match output {
        Output::Text => writeln!(out, "sluice {version} (map layout {layout})")?,
        Output::Json => {
            let document = serde_json::json!({ "version": version, "layout": layout });
            writeln!(out, "{document:#}")?;
        }
    }
    Ok(())
}
