//! What `cargo xtask soak` runs: see `tests::soak`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::tests::soak::{self, MINIMUM, Plan, SHORTEST};
use clap::Parser;

/// A year: a longer run is a slip of the hand.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Two nodes, each with its agent, under random changes, random kills and continuous traffic, each connection held against
/// the oracle. Exit code 1 if anything was wrong, lost or reset, or if there was too little of anything to count.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// For how many minutes, a quarter at least; fractions count.
    #[arg(long, value_name = "MINUTES", default_value = "2", value_parser = minutes)]
    minutes: Duration,

    /// Repeats the sequence of changes, kills and connections of another run.
    #[arg(long)]
    seed: Option<u64>,
}

/// The value of `--minutes`.
fn minutes(text: &str) -> Result<Duration, String> {
    const MINUTE: f64 = 60.0;
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let range = SHORTEST.as_secs_f64() / MINUTE..=LONGEST.as_secs_f64() / MINUTE;
    // What is no number is in no range.
    if !range.contains(&minutes) {
        let (least, most) = range.into_inner();
        return Err(format!("a run takes from {least} to {most} minutes"));
    }
    Ok(Duration::from_secs_f64(minutes * MINUTE))
}

fn main() -> ExitCode {
    let Arguments {
        minutes: time,
        seed,
    } = Arguments::parse();
    let seed = seed.unwrap_or_else(soak::fresh_seed);
    println!("soak: {:.0} s, --seed {seed}", time.as_secs_f64());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::minutes;

    #[test]
    fn a_run_takes_a_quarter_of_a_minute_at_least() {
        assert_eq!(minutes("0.25"), Ok(Duration::from_secs(15)));
        assert_eq!(minutes("60"), Ok(Duration::from_hours(1)));
        for text in [
            "0.01", "0.249", "0", "-0", "-1", "NaN", "-inf", "inf", "1e300", "", "two",
        ] {
            assert!(minutes(text).is_err(), "{text}");
        }
    }
}
