//! What the log says of problems: each once when it appears, and once when it has ended, however often it is tried again.

use std::collections::BTreeSet;

use crate::problem::Problem;

/// Tells what is different between the problems of before and those of now.
pub(super) fn tell(before: &BTreeSet<Problem>, now: &BTreeSet<Problem>) {
    for problem in now.difference(before) {
        match problem.limit {
            Some(limit) => tracing::warn!(
                object = problem.object,
                map = limit.map,
                capacity = limit.capacity,
                "{}",
                problem.reason
            ),
            None => tracing::warn!(object = problem.object, "{}", problem.reason),
        }
    }
    let objects: BTreeSet<&str> = now.iter().map(|problem| problem.object.as_str()).collect();
    for problem in before.difference(now) {
        if !objects.contains(problem.object.as_str()) {
            tracing::info!(object = problem.object, "is in force as asked again");
        }
    }
}
