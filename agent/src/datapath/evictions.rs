//! How many entries the kernel evicted. It tells nobody: what came, less what went by somebody's hand, less what is left, is what
//! it took.

use std::io;

/// Free elements that the kernel keeps for each CPU (`LOCAL_FREE_TARGET` in `kernel/bpf/bpf_lru_list.c`): it evicts for one CPU while
/// others still have theirs.
const FREE_PER_CPU: u64 = 128;

/// What is known of a table after a pass through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Balance {
    /// Entries that programs had ever added before the pass.
    pub(super) added: u64,
    /// Entries that programs had ever removed after it.
    pub(super) removed: u64,
    /// Entries that the agent has ever removed.
    pub(super) expired: u64,
    /// Entries that the pass saw and left.
    pub(super) left: u64,
}

/// The account of one table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ledger {
    /// From so many entries on, the kernel may evict.
    full_from: u64,
    /// What was missing, and is accounted for: the most so far.
    settled: Option<i128>,
    /// The last balance.
    last: Balance,
    /// Entries evicted since the agent's start.
    evicted: u64,
}

impl Ledger {
    /// The account of a table with room for so many entries.
    pub(super) fn new(capacity: u64, cpus: u64) -> Self {
        let spare = (FREE_PER_CPU * cpus).min(capacity / 2);
        Self {
            full_from: capacity - spare,
            settled: None,
            last: Balance {
                added: 0,
                removed: 0,
                expired: 0,
                left: 0,
            },
            evicted: 0,
        }
    }

    /// Entries evicted since the agent's start, after one more pass. Never too many: what came during the pass is left out, what
    /// went is taken for removed, and where the table cannot have been full since the last pass nothing was evicted. What this
    /// leaves out, later passes catch up with.
    pub(super) fn settle(&mut self, now: Balance) -> u64 {
        let missing = i128::from(now.added)
            - i128::from(now.removed)
            - i128::from(now.expired)
            - i128::from(now.left);
        let came = now.added.saturating_sub(self.last.added);
        let was_full = self.last.left.max(now.left).saturating_add(came) >= self.full_from;
        if let Some(settled) = self.settled
            && was_full
            && !crate::mutant::removed("no-evictions")
        {
            let more = u64::try_from(missing - settled).unwrap_or(0);
            self.evicted = self.evicted.saturating_add(more);
        }
        self.settled = Some(self.settled.map_or(missing, |settled| settled.max(missing)));
        self.last = now;
        self.evicted
    }
}

/// CPUs that the kernel keeps free elements for: all that there may ever be.
pub(super) fn possible_cpus() -> io::Result<u64> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    Ok(cpus as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(added: u64, removed: u64, expired: u64, left: u64) -> Balance {
        Balance {
            added,
            removed,
            expired,
            left,
        }
    }

    #[test]
    fn what_is_missing_was_evicted() {
        let mut ledger = Ledger::new(2_048, 2);
        // What came before the agent's start is nobody's.
        assert_eq!(ledger.settle(balance(9_000, 0, 0, 2_000)), 0);
        assert_eq!(ledger.settle(balance(9_500, 0, 0, 2_000)), 500);
        assert_eq!(ledger.settle(balance(9_500, 0, 0, 2_000)), 500);
        // Removed and expired are known.
        assert_eq!(ledger.settle(balance(9_500, 700, 300, 1_000)), 500);
        assert_eq!(ledger.settle(balance(11_500, 700, 300, 2_000)), 1_500);
    }

    #[test]
    fn a_pass_that_missed_entries_is_made_good_and_never_counted_twice() {
        let mut ledger = Ledger::new(2_048, 1);
        ledger.settle(balance(2_000, 0, 0, 2_000));
        assert_eq!(ledger.settle(balance(3_000, 0, 0, 2_000)), 1_000);
        // This one saw more than it should: entries came behind the reading of the counters.
        assert_eq!(ledger.settle(balance(3_000, 0, 0, 2_040)), 1_000);
        assert_eq!(ledger.settle(balance(3_100, 0, 0, 2_040)), 1_060);
        assert_eq!(ledger.settle(balance(3_100, 0, 0, 2_000)), 1_100);
    }

    #[test]
    fn a_table_with_room_evicts_nothing_whatever_the_counters_say() {
        let mut ledger = Ledger::new(2_048, 2);
        ledger.settle(balance(100, 0, 0, 100));
        assert_eq!(ledger.settle(balance(200, 0, 0, 150)), 0);
        assert_eq!(ledger.settle(balance(300, 0, 0, 250)), 0);
        // And what was missing then does not count when it fills.
        assert_eq!(ledger.settle(balance(2_300, 0, 0, 2_040)), 210);
    }
}
