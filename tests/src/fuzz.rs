//! The fuzz run: sequences of random and mutated packets through every TC program, held against a model.
//!
//! ```text
//! dice ──> sequence ──> steps ──> machine ──┬──> programs (BPF_PROG_TEST_RUN) ──> observed ──┐
//!                        ^                  └──> model ──────────────────────────> expected ─┴──> differ? ──> coverage
//!                        └──────────────────────── shrink <── the first difference
//! ```
//!
//! - [`wire`]: frames as the RFCs have them: own parser, own sums. [`model`]: what a node must do, in plain lists and maps.
//! - [`step`]: what a sequence is made of. [`sequence`] and [`traffic`] throw the dice for one: a cluster, then mostly valid flows, opened, answered,
//!   translated, closed, used again, with changes of policies, epochs and backends between, and mutations.
//! - [`machine`]: does each step to both sides. Of each packet the return code, every byte that comes out, its sums and what the ring tells
//!   are compared; behind each sequence both tables of flows, entry by entry, what is kept of fragments, and all counters.
//! - [`shrink`]: of a sequence that shows a difference the shortest that shows the same.
//! - [`coverage`]: fails a run that met a verdict or a reason too seldom.
//!
//! **Choices at random.** The programs choose a backend by the kernel's random number. The model knows which may be chosen, and learns
//! from the flow that came of it which it was; so a sequence that is run again may go another way, and a failure is tried again some times.
//!
//! **Time.** A sequence takes milliseconds; where time matters a step moves all flows back in it.

pub mod coverage;
pub mod machine;
pub mod model;
pub mod sequence;
pub mod shrink;
pub mod step;
pub mod traffic;
pub mod wire;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::dice::Dice;
use coverage::Coverage;
use machine::{Difference, Machine};
use step::Step;

/// Tries to see a difference again: by chance a flow may get another backend.
const TRIES: usize = 6;

/// Kinds of differences that a run shows: one fault mostly makes a few, and hides others.
const KINDS: usize = 4;

/// Runs sequences of a seed until so many packets went through.
///
/// # Errors
/// The kernel refuses something, or the programs and the model differ: the message has the shortest sequence, of each of some kinds.
pub fn run(seed: u64, packets: u64) -> Result<Coverage> {
    let mut coverage = Coverage::default();
    let mut found = BTreeMap::new();
    let mut number = 0;
    while coverage.packets() < packets && found.len() < KINDS {
        let steps = sequence::make(&mut Dice::of(seed, number));
        if let Some(difference) = play(&steps, false, &mut coverage)?
            && !found.contains_key(&difference.what)
        {
            let explained = explain(seed, number, &steps, &difference);
            found.insert(difference.what, explained);
            // Nobody reads of a mechanism that was taken away on purpose more than that it was missed.
            if sluice::mutant::chosen().is_some() {
                break;
            }
        }
        number += 1;
    }
    ensure!(
        found.is_empty(),
        "{}",
        found.into_values().collect::<Vec<_>>().join("\n\n")
    );
    Ok(coverage)
}

/// Plays a sequence. `close` holds the tables after each packet.
///
/// # Errors
/// The kernel refuses something.
pub fn play(steps: &[Step], close: bool, coverage: &mut Coverage) -> Result<Option<Difference>> {
    let mut machine = Machine::new(close)?;
    for step in steps {
        if let Some(difference) = machine.take(step)? {
            machine.leave();
            return Ok(Some(difference));
        }
    }
    machine.finish(coverage)
}

/// What a person needs to see of a difference.
fn explain(seed: u64, number: u64, steps: &[Step], first: &Difference) -> String {
    let again = |steps: &[Step]| -> Option<Difference> {
        (0..TRIES).find_map(|_| play(steps, true, &mut Coverage::default()).ok().flatten())
    };
    // Held more closely it shows where it begins, which may be another difference than the one at the end.
    let begins = again(steps);
    let (shortest, difference) = match begins {
        Some(begins) if sluice::mutant::chosen().is_some() => (steps.to_vec(), begins),
        None => (steps.to_vec(), first.clone()),
        Some(begins) => {
            let shortest = shrink::shrink(steps, |steps| {
                again(steps).is_some_and(|difference| difference.what == begins.what)
            });
            let last = again(&shortest).unwrap_or(begins);
            (shortest, last)
        }
    };
    let table: Vec<String> = shortest
        .iter()
        .map(|step| format!("    {step:?},"))
        .collect();
    format!(
        "seed {seed}, sequence {number}: {}\n{}\nshortest sequence, {} of {} steps:\n[\n{}\n]",
        difference.what,
        difference.detail,
        shortest.len(),
        steps.len(),
        table.join("\n"),
    )
}
