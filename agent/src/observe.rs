//! How Sluice is seen: what the agent says of itself to people and programs.
//!
//! Inputs are [`state`] (through a [`state::Provider`]) and the events of the ring ([`flows`]); outputs are the JSON contract
//! ([`view`]), metrics, logs and readiness. Nothing here changes what is in force, and nothing here is waited for by what does.

pub mod flows;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod readiness;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;
pub mod time;
pub mod view;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
pub(crate) use tests::{fixture, golden};
