//! Rows: each runs once in a process, whoever asks first, so that the test of coverage can ask for all of them.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use agent_common::{Count, Reason};

use super::address::Family;
use super::outcome::Outcome;
use super::world::World;

/// A row that holds for both families.
pub const BOTH: &[Family] = &[Family::V4, Family::V6];
/// A row about IPv4.
pub const V4: &[Family] = &[Family::V4];
/// A row about IPv6.
pub const V6: &[Family] = &[Family::V6];

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Its name: a sentence.
    pub name: &'static str,
    families: &'static [Family],
    run: fn(&mut World),
    done: OnceLock<Result<(), String>>,
}

impl Row {
    /// A row for these families.
    pub const fn new(name: &'static str, families: &'static [Family], run: fn(&mut World)) -> Self {
        Self {
            name,
            families,
            run,
            done: OnceLock::new(),
        }
    }

    /// Runs the row, unless it has run already.
    ///
    /// # Errors
    /// What failed.
    pub fn result(&self) -> &Result<(), String> {
        self.done.get_or_init(|| {
            for family in self.families {
                let run = || match World::new(*family) {
                    Ok(mut world) => {
                        (self.run)(&mut world);
                        world.leave();
                        Ok(())
                    }
                    Err(error) => Err(format!("{error:#}")),
                };
                catch_unwind(AssertUnwindSafe(run))
                    .unwrap_or_else(|panic| Err(words(panic.as_ref())))
                    .map_err(|error| format!("{} in {family:?}: {error}", self.name))?;
            }
            Ok(())
        })
    }

    /// Runs the row, and panics where it fails.
    pub fn pass(&self) {
        if let Err(error) = self.result() {
            panic!("{error}");
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned())
}

/// What all rows together have seen counted.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Reasons of drops and rejections, by hook.
    pub reasons: BTreeSet<(u32, Reason)>,
    /// Other counts.
    pub counts: BTreeSet<Count>,
}

static COVERAGE: Mutex<Coverage> = Mutex::new(Coverage {
    reasons: BTreeSet::new(),
    counts: BTreeSet::new(),
});

pub(super) fn remember(outcome: &Outcome) {
    let mut coverage = COVERAGE.lock().unwrap_or_else(PoisonError::into_inner);
    coverage.reasons.extend(outcome.drops.keys());
    coverage.counts.extend(outcome.counts.keys());
}

/// What the rows that have run so far have seen.
pub fn coverage() -> Coverage {
    COVERAGE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}
