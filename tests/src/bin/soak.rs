//! What `cargo xtask soak` runs: see `tests::soak`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::soak::{self, MINIMUM, Plan};

/// Two nodes, each with its agent, under random changes, random kills and continuous traffic, each connection held against
/// the oracle. Exit code 1 if anything was wrong, lost or reset, or if there was too little of anything to count.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// For how many minutes; fractions count.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,

    /// Repeats the sequence of changes, kills and connections of another run.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(soak::fresh_seed);
    let time = Duration::try_from_secs_f64(arguments.minutes * 60.0).unwrap_or_default();
    println!("soak: {:.1} minutes, --seed {seed}", arguments.minutes);
    let began = Instant::now();
    match soak::run(&Plan { time, seed }) {
        Ok(tally) => {
            println!(
                "soak: {:.0} s, --seed {seed}: {tally}",
                began.elapsed().as_secs_f64()
            );
            let complaints = tally.complaints(time, &MINIMUM);
            for complaint in &complaints {
                eprintln!("soak: {complaint}");
            }
            if complaints.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("soak: --seed {seed}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
