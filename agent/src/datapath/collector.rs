//! One pass through the tables of flows at a time: what is over goes, what each pod holds is counted, what the kernel evicted is
//! inferred.

use std::io;
use std::time::Duration;

use agent_common::{Count, limits::ENTRIES_PER_FLOW};
use nix::time::{ClockId, clock_gettime};

use super::DatapathError;
use super::conntrack::{Conntrack, Sweep, Table};
use super::counters::Counters;
use super::evictions::{Balance, Ledger, possible_cpus};
use super::pins::Pins;
use super::shares::{Holding, Shares};

/// Collects flows, pass after pass.
#[derive(Debug)]
pub struct Collector {
    conntrack: Conntrack,
    counters: Counters,
    shares: Shares,
    share: u32,
    ledgers: [Ledger; 2],
    expired: [u64; 2],
    cpu: Duration,
}

/// What passes have found and done so far, in entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TableState {
    /// Entries that the last pass saw and left.
    pub left: u64,
    /// Entries removed because they were idle for too long, since the agent's start.
    pub expired: u64,
    /// Entries that the kernel evicted, since the agent's start: inferred, and never too many.
    pub evicted: u64,
}

/// How the tables of flows are, after a pass.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Passed {
    /// `conntrack`.
    pub conntrack: TableState,
    /// `unreplied`.
    pub unreplied: TableState,
    /// Flows that a pod may hold in `conntrack`; 0: no bound.
    pub share: u32,
    /// What each pod holds, the most first.
    pub held: Vec<Holding>,
    /// CPU time of the last pass.
    pub cpu: Duration,
    /// CPU time of all passes since the agent's start.
    pub cpu_total: Duration,
}

/// Why a pass ended early. What it did before stays done.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// A table could not be walked.
    #[error("map {map}: {source}")]
    Table {
        /// Map name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The counters could not be read.
    #[error("map counters: {0}")]
    Counters(#[from] aya::maps::MapError),
    /// Shares could not be counted.
    #[error(transparent)]
    Shares(#[from] DatapathError),
}

impl Table {
    const ALL: [Self; 2] = [Self::Unreplied, Self::Conntrack];

    /// The map's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conntrack => "conntrack",
            Self::Unreplied => "unreplied",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Conntrack => 0,
            Self::Unreplied => 1,
        }
    }

    /// What programs count when an entry comes (each flow brings two), and when one goes.
    const fn counts(self) -> (Count, Count) {
        match self {
            Self::Conntrack => (Count::FlowReplied, Count::ConntrackRemoved),
            Self::Unreplied => (Count::FlowCreated, Count::UnrepliedRemoved),
        }
    }
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Collector {
    /// Sets the pods' shares in the pinned maps, and stands ready. `conntrack` must have been told the same timeouts as the programs.
    ///
    /// # Errors
    /// A pinned map cannot be used.
    pub fn new(
        conntrack: Conntrack,
        pins: &Pins,
        share_percent: u32,
    ) -> Result<Self, CollectError> {
        let capacity = |table| {
            conntrack
                .capacity(table)
                .map_err(|source| failed(table, source))
        };
        let (answered, waiting) = (capacity(Table::Conntrack)?, capacity(Table::Unreplied)?);
        let cpus = possible_cpus().map_err(|source| failed(Table::Conntrack, source))?;
        let share = share(answered, share_percent);
        let shares = Shares::open(pins)?;
        shares.set_limit(share)?;
        Ok(Self {
            ledgers: [answered, waiting].map(|entries| Ledger::new(entries.into(), cpus)),
            conntrack,
            counters: Counters::open(pins)?,
            shares,
            share,
            expired: [0; 2],
            cpu: Duration::ZERO,
        })
    }

    /// One pass through both tables. Blocks for as long as that takes.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub fn pass(&mut self) -> Result<Passed, CollectError> {
        let begun = cpu_time();
        let mut passed = Passed {
            share: self.share,
            ..Passed::default()
        };
        for table in Table::ALL {
            let (came, went) = table.counts();
            let added = self.counters.count(came)?.packets * u64::from(ENTRIES_PER_FLOW);
            let sweep = match table {
                Table::Unreplied => self.sweep(table, |_| ())?,
                Table::Conntrack => {
                    let mut count = self.shares.begin()?;
                    let sweep = self.sweep(table, |flow| count.note(flow))?;
                    passed.held = self.shares.end(&count)?;
                    sweep
                }
            };
            let left = sweep.left;
            let at = table.index();
            self.expired[at] += sweep.expired;
            let state = TableState {
                left,
                expired: self.expired[at],
                evicted: self.ledgers[at].settle(Balance {
                    added,
                    removed: self.counters.count(went)?.packets,
                    expired: self.expired[at],
                    left,
                }),
            };
            match table {
                Table::Conntrack => passed.conntrack = state,
                Table::Unreplied => passed.unreplied = state,
            }
        }
        passed.held.sort_unstable_by(|a, b| b.cmp(a));
        passed.cpu = cpu_time().saturating_sub(begun);
        self.cpu += passed.cpu;
        passed.cpu_total = self.cpu;
        Ok(passed)
    }

    fn sweep(
        &self,
        table: Table,
        note: impl FnMut(&agent_common::Flow),
    ) -> Result<Sweep, CollectError> {
        self.conntrack
            .collect(table, note)
            .map_err(|source| failed(table, source))
    }
}

fn failed(table: Table, source: io::Error) -> CollectError {
    CollectError::Table {
        map: table.name(),
        source,
    }
}

/// Flows of one pod, of a table of so many entries; 0: no bound.
fn share(entries: u32, percent: u32) -> u32 {
    if percent >= 100 {
        return 0;
    }
    let flows = u64::from(entries / ENTRIES_PER_FLOW) * u64::from(percent) / 100;
    u32::try_from(flows).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_flows_and_never_nothing() {
        assert_eq!(share(262_144, 50), 65_536);
        assert_eq!(share(2_048, 10), 102);
        assert_eq!(share(4, 1), 1);
        assert_eq!(share(262_144, 100), 0);
        assert_eq!(share(u32::MAX, 99), 2_126_008_810);
    }
}
