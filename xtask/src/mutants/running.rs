//! Builds the programs with their switches, and runs each mutant's test without its mechanism and with it.

use std::collections::{BTreeMap, BTreeSet};
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
const AT_A_TIME: u32 = 2;
/// The property that takes minutes, and how many cases of it run with nothing removed: enough to say that the build with switches works. The
/// unit tier has run them all.
const LONG: &str = "plan::tests::crash::";
const CONTROL: (&str, &str) = ("SLUICE_CASES", "1");

/// Tests of one target that run with nothing removed, in one go: each must pass, since one that fails anyway proves nothing.
#[derive(Debug)]
struct Control {
    cargo: &'static [&'static str],
    root: bool,
    tests: Vec<&'static str>,
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

    let (alone, beside): (Vec<&Mutant>, Vec<&Mutant>) =
        chosen.iter().partition(|mutant| mutant.root);
    let total = Mutex::new(Outcome::default());
    let waiting = Mutex::new(beside.into_iter());
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next()
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(mutant) = next() {
                    mutant.note(&total);
                }
            });
        }
    });
    for mutant in alone {
        mutant.note(&total);
    }
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    for control in controls(&chosen) {
        control.note(&mut total);
    }
    total.took = started.elapsed();
    Ok(total)
}

/// Each test once, by target; those that take minutes by themselves.
fn controls(chosen: &[&'static Mutant]) -> Vec<Control> {
    let mut groups: BTreeMap<(&[&str], bool), Control> = BTreeMap::new();
    for mutant in chosen {
        let of = (mutant.cargo, mutant.test.starts_with(LONG));
        let control = groups.entry(of).or_insert_with(|| Control {
            cargo: mutant.cargo,
            root: mutant.root,
            tests: Vec::new(),
        });
        if !control.tests.contains(&mutant.test) {
            control.tests.push(mutant.test);
        }
    }
    groups.into_values().collect()
}

impl Control {
    /// Runs the tests, says what came of them, and counts them.
    fn note(&self, total: &mut Outcome) {
        let started = Instant::now();
        let tier = Tier {
            name: "nothing removed",
            about: "",
            cargo: self.cargo,
            root: self.root,
            threads: Some(if self.root { 1 } else { AT_A_TIME }),
            needs: &[],
            bound: BOUND,
            least: 1,
        };
        let mut environment = vec![BUILD, (CHOICE, "")];
        if self.tests.iter().all(|test| test.starts_with(LONG)) {
            environment.push(CONTROL);
        }
        let mut filter = self.tests.clone();
        filter.push("--exact");
        let (outcome, mut printed) = runner::silently(&tier, &filter, &environment);
        let took = started.elapsed().as_secs_f32();
        let Some(why) = uncontrolled(&outcome, &self.tests) else {
            println!(
                "nothing removed: {} passed in {took:.1} s: {}",
                outcome.passed,
                self.tests.join(" ")
            );
            total.passed += outcome.passed;
            return;
        };
        printed.iter().for_each(|line| println!("{line}"));
        println!("nothing removed: NOT PASSED in {took:.1} s: {why}");
        printed.insert(0, "---- nothing removed ----".to_owned());
        total.told.extend(gist(&printed));
        total.passed += outcome.passed;
        total.trouble(format!("with nothing removed: {why}"));
    }
}

/// Why tests with nothing removed did not come out as they should.
fn uncontrolled(outcome: &Outcome, tests: &[&str]) -> Option<String> {
    if !outcome.troubles.is_empty() {
        return Some(outcome.troubles.join("; "));
    }
    if !outcome.failures.is_empty() {
        return Some(format!("{} fails", outcome.failures.join(", ")));
    }
    let ran = (outcome.passed + outcome.failed) as usize;
    (ran != tests.len()).then(|| format!("{ran} tests are called {}", tests.join(" or ")))
}

impl Mutant {
    /// Runs its test without its mechanism, says what came of it, and counts it.
    fn note(&self, total: &Mutex<Outcome>) {
        let Self {
            name,
            removes,
            test,
            ..
        } = self;
        let started = Instant::now();
        let mut printed = Vec::new();
        let trouble = self.trouble(&mut printed);
        let took = started.elapsed().as_secs_f32();
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = trouble else {
            println!("mutant {name}: caught in {took:.1} s by {test}");
            total.passed += 1;
            return;
        };
        printed.iter().for_each(|line| println!("{line}"));
        // For the end of the whole run.
        printed.insert(0, format!("---- {test}, mutant {name} ----"));
        total.told.extend(gist(&printed));
        println!("mutant {name}: NOT CAUGHT in {took:.1} s: {why}");
        total.trouble(format!("mutant {name} ({removes}): {why}"));
    }

    /// Why the test did not come out as it should, if so; what it printed is kept.
    fn trouble(&self, printed: &mut Vec<String>) -> Option<String> {
        if self.cargo == SOAK {
            return soak::uncaught(self.name, BOUND, printed);
        }
        let tier = Tier {
            name: self.name,
            about: self.removes,
            cargo: self.cargo,
            root: self.root,
            threads: Some(1),
            needs: &[],
            bound: BOUND,
            least: 1,
        };
        let environment = [BUILD, (CHOICE, self.name)];
        let (outcome, lines) = runner::silently(&tier, &[self.test, "--exact"], &environment);
        *printed = lines;
        uncaught(&outcome, self.test)
    }
}

/// Why a test did not come out as it should without the mechanism: it must fail.
fn uncaught(outcome: &Outcome, test: &str) -> Option<String> {
    // A crash or a time bound is no catch, and neither is another test's failure.
    if !outcome.troubles.is_empty() {
        return Some(outcome.troubles.join("; "));
    }
    let ran = outcome.passed + outcome.failed;
    if ran != 1 {
        return Some(format!("{ran} tests are called {test}"));
    }
    let caught = outcome.failures.iter().any(|name| name == test);
    (!caught).then(|| format!("{test} passes without it"))
}

#[cfg(test)]
mod tests {
    use super::{Outcome, uncaught, uncontrolled};

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
        assert_eq!(uncaught(&failed, "a"), None);
        assert_eq!(uncontrolled(&passed, &["a"]), None);
        assert!(uncaught(&failed, "b").is_some());
        assert!(uncontrolled(&failed, &["a"]).is_some());
        assert!(uncontrolled(&passed, &["a", "b"]).is_some());
        for outcome in [&passed, &none, &stopped] {
            assert!(uncaught(outcome, "a").is_some());
        }
        for outcome in [&none, &stopped] {
            assert!(uncontrolled(outcome, &["a"]).is_some());
        }
    }
}
