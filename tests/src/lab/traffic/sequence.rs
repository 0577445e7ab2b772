//! Keeps the book of a numbered stream: what came, what is missing, what came twice, what was overtaken.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// Numbers seen so far.
#[derive(Debug, Default, Clone)]
pub struct Sequence {
    /// Every number below this has come.
    whole: u64,
    /// Numbers above `whole` that have come.
    ahead: HashSet<u64>,
    highest: Option<u64>,
    received: u64,
    duplicates: u64,
    reordered: u64,
}

/// What a sequence held when it was asked, against the numbers that were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceReport {
    /// Datagrams that came, doubles included.
    pub received: u64,
    /// Numbers below `sent` that never came, all of them.
    pub missing: Vec<u64>,
    /// Datagrams whose number had come before.
    pub duplicates: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
}

impl SequenceReport {
    /// Whether every number came once and in order.
    pub fn is_perfect(&self) -> bool {
        self.missing.is_empty() && self.duplicates == 0 && self.reordered == 0
    }
}

impl Sequence {
    /// Notes that `number` has come.
    pub fn note(&mut self, number: u64) {
        self.received += 1;
        if number < self.whole || !self.ahead.insert(number) {
            self.duplicates += 1;
            return;
        }
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        while self.ahead.remove(&self.whole) {
            self.whole += 1;
        }
    }

    /// Whether every number below `sent` has come.
    pub fn is_whole(&self, sent: u64) -> bool {
        self.whole >= sent
    }

    /// The book, for a stream of which the numbers below `sent` were sent.
    pub fn report(&self, sent: u64) -> SequenceReport {
        let missing = (self.whole..sent)
            .filter(|n| !self.ahead.contains(n))
            .collect();
        SequenceReport {
            received: self.received,
            missing,
            duplicates: self.duplicates,
            reordered: self.reordered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(numbers: &[u64], sent: u64) -> SequenceReport {
        let mut sequence = Sequence::default();
        numbers.iter().for_each(|n| sequence.note(*n));
        sequence.report(sent)
    }

    #[test]
    fn in_order_and_whole_is_perfect() {
        assert!(report(&[0, 1, 2, 3], 4).is_perfect());
    }

    #[test]
    fn a_gap_and_an_unsent_end_are_missing() {
        assert_eq!(report(&[0, 2, 3], 6).missing, [1, 4, 5]);
        assert_eq!(report(&[], 2).missing, [0, 1]);
    }

    #[test]
    fn a_late_number_is_reordered_once_and_not_missing() {
        let report = report(&[0, 2, 1, 3], 4);
        assert_eq!(
            (report.reordered, report.missing.len(), report.duplicates),
            (1, 0, 0)
        );
    }

    #[test]
    fn doubles_count_below_and_above_the_gap() {
        let report = report(&[0, 0, 2, 2, 1], 3);
        assert_eq!(
            (report.duplicates, report.reordered, report.received),
            (2, 1, 5)
        );
    }
}
