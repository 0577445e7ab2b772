//! Numbers of backends and pools.

use std::collections::BTreeSet;

/// Numbers from 1 up to a capacity. Zero is never given: an empty slot means nobody.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    free: BTreeSet<u32>,
    next: u32,
    capacity: u32,
}

impl Numbers {
    /// All numbers but those in use are free.
    pub(super) fn new(used: &BTreeSet<u32>, capacity: u32) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        Self {
            free: (1..next).filter(|n| !used.contains(n)).collect(),
            next,
            capacity,
        }
    }

    /// Takes the lowest free number.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        (self.next < self.capacity).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Gives a number back.
    pub(super) fn give(&mut self, number: u32) {
        self.free.insert(number);
    }
}
