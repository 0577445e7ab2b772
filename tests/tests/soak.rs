//! The soak tier: two minutes of it, in two runs. `cargo xtask soak` is the same for as long as one likes.
//!
//! Needs root.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::soak::{self, MINIMUM, Plan};

/// How the program is run, here and without each of the mechanisms for which `xtask/src/mutants.rs` has a row of the soak's: it is over soon,
/// and always throws the same dice.
const KNOWN: [&str; 4] = ["--minutes", "0.25", "--seed", "4"];

/// The program itself, whose exit code is its verdict.
#[test]
fn a_quarter_of_a_minute_of_a_known_seed_is_clean() -> Result<()> {
    let run = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(KNOWN)
        .stdin(Stdio::null())
        .output()
        .context("running the soak")?;
    let (said, complained) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    tests::say(said.trim());
    ensure!(
        run.status.code() == Some(0) && said.contains("reset 0"),
        "{}: {complained}",
        run.status
    );
    Ok(())
}

#[test]
fn the_rest_of_two_minutes_of_a_new_seed_is_clean() -> Result<()> {
    let (time, seed) = (Duration::from_secs(105), soak::fresh_seed());
    tests::say(format_args!("{} s, --seed {seed}", time.as_secs()));
    let tally = soak::run(&Plan { time, seed })?;
    tests::say(&tally);
    let complaints = tally.complaints(time, &MINIMUM);
    ensure!(complaints.is_empty(), "{complaints:#?}; --seed {seed}");
    Ok(())
}
