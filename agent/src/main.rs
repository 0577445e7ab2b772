//! The `sluice` command: the agent, and what asks it.

use std::process::ExitCode;

use clap::Parser;
use sluice::cli::{self, Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Agent(_) => cli::failed(&anyhow::anyhow!("this build has no agent in it")),
        command => cli.run(command),
    }
}
