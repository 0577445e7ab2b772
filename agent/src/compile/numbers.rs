//! Numbers of one kind (identities, groups, sets, slots), this node's own.

use std::collections::BTreeSet;

/// Gives out the lowest free number. A number given back rests for one whole update before it is given out again, so
/// that a grace period lies between: the delta that stops using it is applied before the one that uses it anew.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    next: u32,
    /// First number that is not allowed.
    end: u32,
    free: BTreeSet<u32>,
    /// Given back in this update, and in the one before.
    resting: [Vec<u32>; 2],
}

impl Numbers {
    /// Numbers from `first` to before `end`.
    pub(super) fn new(first: u32, end: u32) -> Self {
        Self {
            next: first,
            end,
            free: BTreeSet::new(),
            resting: [Vec::new(), Vec::new()],
        }
    }

    /// An update begins: what has rested long enough is free.
    pub(super) fn turn(&mut self) {
        let [last, before] = &mut self.resting;
        self.free.extend(before.drain(..));
        std::mem::swap(last, before);
    }

    /// A number, or None where all are taken.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        if self.next >= self.end {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(number)
    }

    /// Gives a number back.
    pub(super) fn give(&mut self, number: u32) {
        self.resting[0].push(number);
    }

    /// Starts over with `used` taken and `leaving` resting: the numbers that maps from before a restart hold.
    pub(super) fn restore(&mut self, first: u32, used: &BTreeSet<u32>, leaving: &BTreeSet<u32>) {
        let highest = used.last().max(leaving.last()).copied();
        self.next = highest.map_or(first, |n| n.saturating_add(1).max(first));
        self.free = (first..self.next)
            .filter(|n| !used.contains(n) && !leaving.contains(n))
            .collect();
        self.resting = [
            leaving
                .iter()
                .copied()
                .filter(|n| *n >= first && !used.contains(n))
                .collect(),
            Vec::new(),
        ];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_rests_for_one_whole_update() {
        let mut numbers = Numbers::new(1, 3);
        numbers.turn();
        assert_eq!((numbers.take(), numbers.take()), (Some(1), Some(2)));
        assert_eq!(numbers.take(), None);
        numbers.give(1);
        numbers.turn();
        assert_eq!(numbers.take(), None);
        numbers.turn();
        assert_eq!(numbers.take(), Some(1));
    }
}
