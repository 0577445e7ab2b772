//! A set that holds one value nearly always: the services of an address, the slices of a service.
//!
//! The smallest B-tree has room for eleven values, and there is one for each of ten thousand services.

/// A sorted array without duplicates, as long as what is in it. Adding and removing copy it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Few<T>(Box<[T]>);

impl<T: Ord> Few<T> {
    /// Puts a value in; false where it was there.
    pub fn insert(&mut self, value: T) -> bool {
        let Err(at) = self.0.binary_search(&value) else {
            return false;
        };
        let mut all = std::mem::take(&mut self.0).into_vec();
        all.reserve_exact(1);
        all.insert(at, value);
        self.0 = all.into_boxed_slice();
        true
    }

    /// Takes a value out; false where it was not there.
    pub fn remove(&mut self, value: &T) -> bool {
        let Ok(at) = self.0.binary_search(value) else {
            return false;
        };
        let mut all = std::mem::take(&mut self.0).into_vec();
        all.remove(at);
        self.0 = all.into_boxed_slice();
        true
    }

    /// Whether a value is there.
    pub fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }
}

impl<T> Few<T> {
    /// The values, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The least.
    pub fn first(&self) -> Option<&T> {
        self.0.first()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u8..8), 0..40)) {
            let (mut few, mut tree) = (Few::default(), BTreeSet::new());
            for (add, value) in steps {
                let (done, did) = if add {
                    (few.insert(value), tree.insert(value))
                } else {
                    (few.remove(&value), tree.remove(&value))
                };
                prop_assert_eq!(done, did);
                prop_assert!(few.iter().eq(tree.iter()));
                prop_assert_eq!(few.first(), tree.first());
                prop_assert_eq!(few.contains(&3), tree.contains(&3));
                prop_assert_eq!(few.is_empty(), tree.is_empty());
            }
        }
    }
}
