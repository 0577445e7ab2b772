//! What an array map holds, in pages: elements beside each other take their own bytes and no more, and a page that is all zero none.

use std::fmt;
use std::ops::{Bound, RangeBounds};

/// Elements of a page: of backends 1.5 KiB. A page for a few elements is small, and the table of pages of the largest array too.
const PAGE: usize = 64;

/// The elements of an array that are not all zero, by index.
#[derive(Clone, PartialEq, Eq)]
pub struct Array<T> {
    /// None: all zero. The last one is a page.
    pages: Vec<Option<Box<[T; PAGE]>>>,
    /// Elements that are not all zero.
    used: usize,
}

const fn place(index: u32) -> (usize, usize) {
    (index as usize / PAGE, index as usize % PAGE)
}

impl<T: Copy + Default + PartialEq> Array<T> {
    /// An element, unless it is all zero.
    pub fn get(&self, index: &u32) -> Option<&T> {
        let (page, at) = place(*index);
        let element = &self.pages.get(page)?.as_ref()?[at];
        (*element != T::default()).then_some(element)
    }

    /// Whether an element is not all zero.
    pub fn contains_key(&self, index: &u32) -> bool {
        self.get(index).is_some()
    }

    /// Sets an element.
    pub fn insert(&mut self, index: u32, value: T) {
        let zero = T::default();
        let (page, at) = place(index);
        if value == zero && self.pages.get(page).is_none_or(Option::is_none) {
            return;
        }
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let elements = self.pages[page].get_or_insert_with(|| Box::new([zero; PAGE]));
        let before = std::mem::replace(&mut elements[at], value);
        self.used += usize::from(value != zero);
        self.used -= usize::from(before != zero);
        if value == zero && elements.iter().all(|element| *element == zero) {
            self.pages[page] = None;
            while self.pages.last().is_some_and(Option::is_none) {
                self.pages.pop();
            }
        }
    }

    /// Sets an element to all zero.
    pub fn remove(&mut self, index: &u32) {
        self.insert(*index, T::default());
    }

    /// The elements whose indices lie in a range.
    pub fn range(&self, indices: impl RangeBounds<u32>) -> impl Iterator<Item = (u32, &T)> {
        let from = match indices.start_bound() {
            Bound::Included(first) => *first as usize,
            Bound::Excluded(before) => *before as usize + 1,
            Bound::Unbounded => 0,
        };
        let to = match indices.end_bound() {
            Bound::Included(last) => *last as usize + 1,
            Bound::Excluded(end) => *end as usize,
            Bound::Unbounded => usize::MAX,
        };
        let to = to.min(self.pages.len() * PAGE);
        let pages = (from / PAGE..to.div_ceil(PAGE)).filter_map(move |page| {
            let elements = self.pages.get(page)?.as_ref()?;
            let first = page * PAGE;
            let (begin, end) = (from.saturating_sub(first), (to - first).min(PAGE));
            Some((first, begin, elements.get(begin..end)?))
        });
        pages.flat_map(|(first, begin, elements)| {
            // A page's place is made of an index, which is a u32.
            let indices = (first + begin..).map(|at| u32::try_from(at).unwrap_or(u32::MAX));
            let used = |(_, element): &(u32, &T)| **element != T::default();
            indices.zip(elements).filter(used)
        })
    }

    /// The elements, by index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.range(..)
    }

    /// The indices, in order.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.iter().map(|(index, _)| index)
    }

    /// The elements alone, by index.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, element)| element)
    }
}

impl<T> Array<T> {
    /// How many elements are not all zero.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether all are all zero.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }
}

impl<T> Default for Array<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            used: 0,
        }
    }
}

impl<T: Copy + Default + PartialEq> FromIterator<(u32, T)> for Array<T> {
    fn from_iter<I: IntoIterator<Item = (u32, T)>>(elements: I) -> Self {
        let mut array = Self::default();
        for (index, element) in elements {
            array.insert(index, element);
        }
        array
    }
}

impl<T: Copy + Default + PartialEq + fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        fn it_answers_as_a_tree_does(
            steps in proptest::collection::vec((0u32..300, 0u8..3), 0..200),
            (from, to) in (0u32..320, 0u32..320),
        ) {
            let (mut array, mut tree) = (Array::default(), BTreeMap::new());
            for (index, value) in steps {
                array.insert(index, value);
                if value == 0 {
                    tree.remove(&index);
                } else {
                    tree.insert(index, value);
                }
                prop_assert_eq!(array.get(&index), tree.get(&index));
            }
            let all = |(index, value): (&u32, &u8)| (*index, *value);
            let of = |(index, value): (u32, &u8)| (index, *value);
            prop_assert!(array.iter().map(of).eq(tree.iter().map(all)));
            prop_assert_eq!(array.len(), tree.len());
            if from <= to {
                prop_assert!(array.range(from..to).map(of).eq(tree.range(from..to).map(all)));
                prop_assert!(array.range(from..=to).map(of).eq(tree.range(from..=to).map(all)));
            }
            prop_assert!(array.range(from..).map(of).eq(tree.range(from..).map(all)));
            // Equal where they hold the same, whatever came before.
            prop_assert_eq!(&array, &tree.iter().map(all).collect());
            for index in tree.keys() {
                array.remove(index);
            }
            prop_assert!(array.is_empty() && array.pages.is_empty());
        }
    }
}
