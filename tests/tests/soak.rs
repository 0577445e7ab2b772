//! The soak tier: two minutes of it, in two runs. `cargo xtask soak` is the same for as long as one likes.
//!
//! Needs root.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::soak::{self, MINIMUM, Plan};

fn soak(seconds: u64, seed: u64) -> Result<()> {
    let time = Duration::from_secs(seconds);
    tests::say(format_args!("{seconds} s, --seed {seed}"));
    let tally = soak::run(&Plan { time, seed })?;
    tests::say(&tally);
    let complaints = tally.complaints(time, &MINIMUM);
    ensure!(complaints.is_empty(), "{complaints:#?}; --seed {seed}");
    Ok(())
}

/// Also what mutants are run with: it is over sooner, and always throws the same dice.
#[test]
fn a_quarter_of_a_minute_of_a_known_seed_is_clean() -> Result<()> {
    soak(15, 4)
}

#[test]
fn the_rest_of_two_minutes_of_a_new_seed_is_clean() -> Result<()> {
    soak(105, soak::fresh_seed())
}
