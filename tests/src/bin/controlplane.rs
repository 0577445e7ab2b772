//! The test control plane from the command line: built ahead of the tests, or started to look at.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tests::controlplane::{Binaries, ControlPlane, Options};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "etcd, kube-apiserver and kube-controller-manager for Sluice's tests")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the programs if they are not cached, and print the folder they are in
    Build,
    /// Start one, print its administrator's kubeconfig, and stay until Ctrl-C
    Run {
        /// Address the API server listens on
        #[arg(long, default_value = "127.0.0.1")]
        listen: IpAddr,
        /// Service CIDR; give it twice for dual stack, the family of --listen first
        #[arg(long = "service-cidr", value_name = "CIDR")]
        service_cidrs: Vec<String>,
    },
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // One line to act on: no backtrace, whatever the environment asks for.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Build => {
            println!("{}", Binaries::find_or_build()?.directory().display());
            Ok(())
        }
        Command::Run {
            listen,
            service_cidrs,
        } => {
            let mut options = Options {
                listen,
                ..Options::default()
            };
            if !service_cidrs.is_empty() {
                options.service_cidrs = service_cidrs;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(run(options))
        }
    }
}

async fn run(options: Options) -> Result<()> {
    let control_plane = ControlPlane::start(options).await?;
    println!("{}", control_plane.admin_kubeconfig().display());
    eprintln!(
        "running; logs are in {}; Ctrl-C ends it",
        control_plane.directory().display()
    );
    let mut terminated = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
        _ = terminated.recv() => Ok(()),
    }
}
