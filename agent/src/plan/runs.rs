//! Runs of slots, in powers of two.

use std::collections::BTreeSet;

/// A run: `1 << order` slots from `first`, which is a multiple of that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Run {
    /// First slot.
    pub(super) first: u32,
    /// Binary logarithm of the length.
    pub(super) order: u32,
}

impl Run {
    /// Slots in the run.
    pub(super) const fn length(self) -> u32 {
        1 << self.order
    }

    /// The smallest order that holds so many slots.
    pub(super) fn order_for(slots: usize) -> u32 {
        slots.next_power_of_two().trailing_zeros()
    }
}

/// A buddy allocator.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    /// Free runs' first slots, by order.
    free: Vec<BTreeSet<u32>>,
}

impl Runs {
    /// Everything up to `slots`, a power of two, is free.
    pub(super) fn new(slots: u32) -> Self {
        let top = slots.trailing_zeros();
        let mut free = vec![BTreeSet::new(); top as usize + 1];
        if let Some(last) = free.last_mut() {
            last.insert(0);
        }
        Self { free }
    }

    /// Takes the lowest run of an order out of the smallest free one that holds it.
    pub(super) fn take(&mut self, order: u32) -> Option<Run> {
        let from = (order as usize..self.free.len()).find(|o| !self.free[*o].is_empty())?;
        let first = self.free[from].pop_first()?;
        self.split(first, from, first, order);
        Some(Run { first, order })
    }

    /// Takes a run that is in use already. False where part of it is taken.
    pub(super) fn reserve(&mut self, run: Run) -> bool {
        for from in run.order as usize..self.free.len() {
            let first = run.first & !((1u32 << from) - 1);
            if self.free[from].remove(&first) {
                self.split(first, from, run.first, run.order);
                return true;
            }
        }
        false
    }

    /// Gives back all of a free block but the run of `order` at `keep`.
    fn split(&mut self, mut first: u32, from: usize, keep: u32, order: u32) {
        for half in (order as usize..from).rev() {
            let upper = first + (1 << half);
            if keep >= upper {
                self.free[half].insert(first);
                first = upper;
            } else {
                self.free[half].insert(upper);
            }
        }
    }

    /// Gives a run back.
    pub(super) fn give(&mut self, run: Run) {
        let (mut first, mut order) = (run.first, run.order as usize);
        while order + 1 < self.free.len() && self.free[order].remove(&(first ^ (1 << order))) {
            first &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(orders in proptest::collection::vec(0u32..6, 1..60), keep in any::<u64>()) {
            let mut runs = Runs::new(256);
            let mut held: Vec<Run> = Vec::new();
            for (at, order) in orders.into_iter().enumerate() {
                if let Some(run) = runs.take(order) {
                    prop_assert_eq!(run.first % run.length(), 0);
                    for other in &held {
                        prop_assert!(run.first + run.length() <= other.first || other.first + other.length() <= run.first);
                    }
                    held.push(run);
                }
                if keep >> (at % 64) & 1 == 1 && !held.is_empty() {
                    runs.give(held.swap_remove(at % held.len()));
                }
            }
            // A second allocator that reserves what is held has the same room left.
            let mut again = Runs::new(256);
            for run in &held {
                prop_assert!(again.reserve(*run));
                prop_assert!(!again.reserve(*run));
            }
            prop_assert_eq!(&again.free, &runs.free);
            for run in held {
                runs.give(run);
            }
            prop_assert_eq!(runs.take(8), Some(Run { first: 0, order: 8 }));
        }
    }
}
