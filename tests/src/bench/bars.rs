//! What figures are held against: the issue "Every packet, and what it costs". They are told, and fail nothing: a machine that is slow
//! today is no fault of the agent.

use super::population::Size;
use super::report::Bar;

/// An established packet, nanoseconds.
pub const ESTABLISHED: Option<Bar> = Some(Bar::most(150.0, 100.0));
/// The first packet of a flow with 1,000 policies, nanoseconds.
pub const NEW_FLOW: Option<Bar> = Some(Bar::most(2_000.0, 1_200.0));
/// From an event to live in the kernel at 250,000 endpoints, the slowest of a hundred, milliseconds.
pub const LIVE: Option<Bar> = Some(Bar::most(5.0, 5.0));
/// CPU time of a change, milliseconds.
pub const CPU: Option<Bar> = Some(Bar::most(1.0, 1.0));
/// A start with 10,000 services and 20,000 endpoints, seconds.
pub const START: Option<Bar> = Some(Bar::most(1.0, 1.0));
/// A start with 250,000 endpoints, seconds.
pub const LARGEST_START: Option<Bar> = Some(Bar::most(5.0, 2.0));
/// Resident memory after it, MiB.
pub const LARGEST_MEMORY: Option<Bar> = Some(Bar::most(180.0, 120.0));
/// Requests and answers, of the plain path.
pub const ROUND_TRIPS: Option<Bar> = Some(Bar::least(1.0, 1.03));
/// Connections opened, used once and closed.
pub const CONNECTS: Option<Bar> = Some(Bar::least(0.97, 1.03));
/// A stream.
pub const STREAM: Option<Bar> = Some(Bar::least(1.0, 1.05));
/// Any of them across nodes.
pub const ACROSS: Option<Bar> = Some(Bar::least(0.95, 1.0));
/// How much a ratio may change between 10 and 10,000 services, beyond the spread of the plain pair.
pub const SCALE: f64 = 0.03;

/// What is in force, for people.
pub fn in_force(size: &Size) -> String {
    let thousands = |number: u32| {
        if number >= 1_000 && number.is_multiple_of(1_000) {
            format!("{},000", number / 1_000)
        } else {
            number.to_string()
        }
    };
    format!(
        "{} services, {} policies",
        thousands(size.services),
        thousands(size.policies)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_reads_as_the_issue_says_it() {
        assert_eq!(in_force(&Size::FULL), "10,000 services, 1,000 policies");
        assert_eq!(in_force(&Size::SMALL), "10 services, 0 policies");
    }
}
