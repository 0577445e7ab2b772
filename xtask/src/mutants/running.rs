//! Builds the programs with their switches, and runs each mutant's test without its mechanism and with it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{BUILD, CHOICE, Mutant, SOAK, all};
use crate::soak;
use crate::test::tiers::Tier;
use crate::test::{Outcome, gist, runner};

/// The longest that one mutant's test may take.
const BOUND: Duration = Duration::from_mins(10);
/// Tests that need no root run so many at a time: most of them wait for nothing but a processor.
const AT_A_TIME: usize = 2;
/// The property that takes minutes, and how many cases of it run with nothing removed: enough to say that the build with switches works. The
/// unit tier has run them all.
const LONG: &str = "plan::tests::crash::";
const CONTROL: (&str, &str) = ("SLUICE_CASES", "1");

/// One run of a mutant's test.
#[derive(Clone, Copy, Debug)]
struct Run {
    mutant: &'static Mutant,
    /// Whether its mechanism is removed; else the test must pass, since one that fails anyway proves nothing.
    removed: bool,
}

/// Runs the mutants whose name contains `only`, and each of their tests once more with nothing removed.
///
/// # Errors
/// When there is none to run.
pub(crate) fn run(only: Option<&str>) -> Result<Outcome> {
    let chosen: Vec<&'static Mutant> = all()
        .filter(|mutant| only.is_none_or(|part| mutant.name.contains(part)))
        .collect();
    if chosen.is_empty() {
        bail!(
            "no such mutant: the table in xtask/src/mutants.rs has {} rows",
            all().count()
        );
    }
    let started = Instant::now();
    let targets: BTreeSet<_> = chosen.iter().map(|mutant| mutant.cargo).collect();
    for cargo in targets {
        if let Err(error) = runner::build(cargo, &[BUILD]) {
            let mut outcome = Outcome::default();
            outcome.trouble(format!("{error:#}"));
            return Ok(outcome);
        }
    }
    println!("mutants: built in {} s", started.elapsed().as_secs());

    let mut seen = BTreeSet::new();
    let unbroken = chosen
        .iter()
        .filter(|mutant| seen.insert((mutant.cargo, mutant.test)))
        .map(|mutant| (*mutant, false));
    let runs = chosen.iter().map(|mutant| (*mutant, true)).chain(unbroken);
    let (alone, beside): (Vec<Run>, Vec<Run>) = runs
        .map(|(mutant, removed)| Run { mutant, removed })
        .partition(|run| run.mutant.root);

    let total = Mutex::new(Outcome::default());
    let waiting = Mutex::new(beside.into_iter());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(run) = next() {
                    run.note(&total);
                }
            });
        }
    });
    for run in alone {
        run.note(&total);
    }
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.took = started.elapsed();
    Ok(total)
}

impl Run {
    /// Runs the test, says what came of it, and counts it.
    fn note(self, total: &Mutex<Outcome>) {
        let Mutant {
            name,
            removes,
            test,
            ..
        } = self.mutant;
        let started = Instant::now();
        let mut printed = Vec::new();
        let trouble = self.trouble(&mut printed);
        let took = started.elapsed().as_secs_f32();
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_some() {
            printed.iter().for_each(|line| println!("{line}"));
            // For the end of the whole run.
            printed.insert(0, format!("---- {test}, mutant {name} ----"));
            total.told.extend(gist(&printed));
        }
        match (trouble, self.removed) {
            (None, true) => println!("mutant {name}: caught in {took:.1} s by {test}"),
            (None, false) => println!("nothing removed: passed in {took:.1} s: {test}"),
            (Some(why), true) => {
                println!("mutant {name}: NOT CAUGHT in {took:.1} s: {why}");
                total.trouble(format!("mutant {name} ({removes}): {why}"));
                return;
            }
            (Some(why), false) => {
                println!("nothing removed: NOT PASSED in {took:.1} s: {why}");
                total.trouble(format!("{test} with nothing removed: {why}"));
                return;
            }
        }
        total.passed += 1;
    }

    /// Why the test did not come out as it should, if so; what it printed is kept.
    fn trouble(self, printed: &mut Vec<String>) -> Option<String> {
        let Mutant {
            name, test, cargo, ..
        } = *self.mutant;
        if self.removed && cargo == SOAK {
            return soak::uncaught(name, BOUND, printed);
        }
        let tier = Tier {
            name,
            about: self.mutant.removes,
            cargo,
            root: self.mutant.root,
            threads: Some(1),
            needs: &[],
            bound: BOUND,
            least: 1,
        };
        let choice = if self.removed { name } else { "" };
        let mut environment = vec![BUILD, (CHOICE, choice)];
        if !self.removed && test.starts_with(LONG) {
            environment.push(CONTROL);
        }
        let (outcome, lines) = runner::silently(&tier, &[test, "--exact"], &environment);
        *printed = lines;
        judge(&outcome, test, self.removed)
    }
}

/// Why a test did not come out as it should: without the mechanism it must fail, and with it pass.
fn judge(outcome: &Outcome, test: &str, removed: bool) -> Option<String> {
    // A crash or a time bound is no catch, and neither is another test's failure.
    if !outcome.troubles.is_empty() {
        return Some(outcome.troubles.join("; "));
    }
    if outcome.passed + outcome.failed != 1 {
        return Some(format!(
            "{} tests are called {test}",
            outcome.passed + outcome.failed
        ));
    }
    match (removed, outcome.failures.iter().any(|name| name == test)) {
        (true, true) | (false, false) => None,
        (true, false) => Some(format!("{test} passes without it")),
        (false, true) => Some(format!("{test} fails")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, judge};

    #[test]
    fn only_that_tests_failure_is_a_catch() {
        let ran = |lines: &[&str]| {
            let mut outcome = Outcome::default();
            lines.iter().for_each(|line| outcome.read_line(line));
            outcome
        };
        let failed = ran(&[
            "test a ... FAILED",
            "test result: FAILED. 0 passed; 1 failed",
        ]);
        let passed = ran(&["test a ... ok", "test result: ok. 1 passed; 0 failed"]);
        let none = ran(&["test result: ok. 0 passed; 0 failed"]);
        let mut stopped = Outcome::default();
        stopped.trouble("stopped".to_owned());
        assert_eq!(judge(&failed, "a", true), None);
        assert_eq!(judge(&passed, "a", false), None);
        assert!(judge(&failed, "a", false).is_some());
        assert!(judge(&failed, "b", true).is_some());
        for outcome in [&passed, &none, &stopped] {
            assert!(judge(outcome, "a", true).is_some());
        }
        for outcome in [&none, &stopped] {
            assert!(judge(outcome, "a", false).is_some());
        }
    }
}
