//! Label selectors (`meta/v1` LabelSelector).

use super::{Labels, Text};

/// What a requirement asks of its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operator {
    /// The key is there and its value is one of those given. `matchLabels` becomes this with one value.
    In,
    /// The key is not there, or its value is none of those given.
    NotIn,
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

/// One requirement of a selector.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Requirement {
    /// Label key.
    pub key: Text,
    /// What is asked of it.
    pub operator: Operator,
    /// Values, sorted and without duplicates; empty for `Exists` and `DoesNotExist`, never for the others.
    pub values: Vec<Text>,
}

/// A label selector: all requirements hold. Without requirements it selects everything. Requirements are sorted and
/// without duplicates, so that equal selectors compare equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Selector {
    /// Sorted, without duplicates.
    pub requirements: Vec<Requirement>,
}

impl Requirement {
    /// Whether labels meet the requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl Selector {
    /// Whether labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}
