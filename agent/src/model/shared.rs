//! Values that clusters repeat by the ten thousand, each kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Values in a pool before it is swept for the first time.
const FIRST_SWEEP: usize = 4_096;

/// A pool of shared values: one that nobody else holds is dropped when the pool next doubles.
pub(super) struct Shared<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The shared copy of a value, which is made where there is none.
    pub(super) fn get(&mut self, value: &T, new: impl FnOnce(&T) -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return Arc::clone(known);
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(FIRST_SWEEP);
        }
        let new = new(value);
        self.values.insert(Arc::clone(&new));
        new
    }
}
