//! What `cargo xtask bench` runs: see `tests::bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::bench::{self, Part, Plan};

/// Measures packets, changes, starts and traffic, and holds them against the plain path in the same run. Exit code 1 only if the harness
/// is broken: packets did not meet the programs, or met some where there should be none.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Fewer rounds of less, in under three minutes.
    #[arg(long)]
    quick: bool,

    /// Where bench.json, bench.txt and bench.svg go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Only these parts: packet, userspace, same-node, across-nodes, kube-proxy.
    #[arg(value_name = "NAME")]
    parts: Vec<Part>,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(bench::COLD_ARGUMENT) {
        return match bench::cold(&words.next().unwrap_or_default()) {
            Ok(told) => {
                println!("{told}");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        };
    }
    let arguments = Arguments::parse();
    let plan = Plan {
        quick: arguments.quick,
        parts: arguments.parts,
        directory: arguments.out,
    };
    match bench::run(&plan) {
        Ok(report) => {
            print!("{}", bench::table(&report));
            println!("\n{}", plan.directory.display());
            if report.packets_matched {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench: {error:#}");
    ExitCode::FAILURE
}
