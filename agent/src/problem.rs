//! What could not be done as asked, named so that a person can act on it.

use std::fmt;

/// A capacity that was reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Limit {
    /// Map name.
    pub map: &'static str,
    /// Its capacity in entries.
    pub capacity: u32,
}

/// Something that is not in force as the cluster asks; everything else is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// The object: `Service default/web`.
    pub object: String,
    /// What is wrong, and what to do.
    pub reason: String,
    /// The limit, where one was reached.
    pub limit: Option<Limit>,
}

impl Problem {
    /// A problem without a limit.
    pub fn new(object: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self {
            object: object.to_string(),
            reason: reason.into(),
            limit: None,
        }
    }

    /// A limit that was reached.
    pub fn full(object: impl fmt::Display, map: &'static str, capacity: u32) -> Self {
        Self {
            object: object.to_string(),
            reason: format!(
                "map {map} is full at {capacity} entries; what was in force stays in force, and this is tried again when there is room"
            ),
            limit: Some(Limit { map, capacity }),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}
