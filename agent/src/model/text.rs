//! Names and labels: interned, because clusters repeat them by the ten thousand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::shared::Shared;

/// An interned string: equal texts share one allocation.
pub type Text = Arc<str>;

/// Labels of an object, by key.
pub type Labels = BTreeMap<Text, Text>;

static TEXTS: LazyLock<Mutex<Shared<str>>> = LazyLock::new(Mutex::default);

/// The shared copy of `s`.
pub fn intern(s: &str) -> Text {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.get(s, |s| Arc::from(s))
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
