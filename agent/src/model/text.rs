//! Names and labels: interned, because clusters repeat them by the ten thousand.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// An interned string: equal texts share one allocation.
pub type Text = Arc<str>;

/// Labels of an object, by key.
pub type Labels = BTreeMap<Text, Text>;

/// The pool: a text that nobody else holds is dropped when the pool next doubles.
static POOL: Mutex<Option<(HashSet<Text>, usize)>> = Mutex::new(None);

/// Texts in the pool before it is swept for the first time.
const FIRST_SWEEP: usize = 4_096;

/// The shared copy of `s`.
pub fn intern(s: &str) -> Text {
    let mut guard = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let (pool, sweep_at) = guard.get_or_insert_with(|| (HashSet::new(), FIRST_SWEEP));
    if let Some(text) = pool.get(s) {
        return Arc::clone(text);
    }
    if pool.len() >= *sweep_at {
        pool.retain(|text| Arc::strong_count(text) > 1);
        *sweep_at = (pool.len() * 2).max(FIRST_SWEEP);
    }
    let text: Text = Arc::from(s);
    pool.insert(Arc::clone(&text));
    text
}

/// Namespace and name of an object; the namespace of a cluster-wide object is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: Text,
    /// Name.
    pub name: Text,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: intern(namespace),
            name: intern(name),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
