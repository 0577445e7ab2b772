//! A map that is made whole and replaced whole: a sorted array, which all who hold it share.
//!
//! A B-tree of a few entries takes the room of eleven, one that was filled in order twice its entries; and each copy takes it again.

use std::sync::Arc;

/// A sorted array of keys and values. A clone is the same array.
pub struct Sorted<K, V>(Arc<[(K, V)]>);

/// The entries of a [`Sorted`], by key.
type Iter<'a, K, V> =
    std::iter::Map<std::slice::Iter<'a, (K, V)>, for<'b> fn(&'b (K, V)) -> (&'b K, &'b V)>;

const fn parts<K, V>(entry: &(K, V)) -> (&K, &V) {
    (&entry.0, &entry.1)
}

impl<K: Ord, V> Sorted<K, V> {
    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = self.0.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Whether a key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }
}

impl<K, V> Sorted<K, V> {
    /// The entries, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.0.iter().map(parts::<K, V>)
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether another is the same array, not just an equal one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<'a, K, V> IntoIterator for &'a Sorted<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// In any order; of entries with one key the last stays.
impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        if entries.is_empty() {
            return Self::default();
        }
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            // Stable, so that what came last stands last among equals.
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    std::mem::swap(later, kept);
                }
                same
            });
        }
        Self(entries.into())
    }
}

impl<K, V> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0 == other.0
    }
}

impl<K: Eq, V: Eq> Eq for Sorted<K, V> {}

impl<K: std::fmt::Debug, V: std::fmt::Debug> std::fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_answers_as_a_tree_does(entries in proptest::collection::vec((0u8..20, any::<u8>()), 0..30)) {
            let tree: BTreeMap<u8, u8> = entries.iter().copied().collect();
            let sorted: Sorted<u8, u8> = entries.into_iter().collect();
            prop_assert!(sorted.iter().eq(tree.iter()));
            prop_assert!((0..20).all(|key| sorted.get(&key) == tree.get(&key)));
            prop_assert_eq!(sorted.len(), tree.len());
            prop_assert_eq!(&sorted, &tree.into_iter().collect());
        }
    }
}
