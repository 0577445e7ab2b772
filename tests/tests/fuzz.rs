//! The fuzz run: see [`tests::fuzz`].
//!
//! `SLUICE_CASES` sets the number of packets of each run, `SLUICE_SEED` the seed of the second.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tests::fuzz::coverage::LEAST;
use tests::{fuzz, say};

/// Packets of a run where nobody asks for another number: some twenty seconds of one CPU.
const PACKETS: u64 = 200_000;
/// The seed that is always run.
const KNOWN: u64 = 1;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) {
    say(format!("fuzz: seed {seed}"));
    let began = Instant::now();
    let coverage = match fuzz::run(seed, number("SLUICE_CASES").unwrap_or(PACKETS)) {
        Ok(coverage) => coverage,
        Err(error) => panic!("{error:#}"),
    };
    let packets = coverage.packets();
    say(format!(
        "fuzz: seed {seed}, {packets} packets in {:.1} s, no difference\n{coverage}",
        began.elapsed().as_secs_f32()
    ));
    // A shorter run than usual is asked for by who looks for something else.
    let least = if packets < PACKETS { 0 } else { LEAST };
    let gaps = coverage.gaps(least);
    assert!(gaps.is_empty(), "seed {seed}: {gaps:#?}");
}

#[test]
fn random_packets_of_a_known_seed_fare_as_the_model_says() {
    run(KNOWN);
}

#[test]
fn random_packets_of_a_new_seed_fare_as_the_model_says() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    run(number("SLUICE_SEED").unwrap_or(now.as_secs()));
}
