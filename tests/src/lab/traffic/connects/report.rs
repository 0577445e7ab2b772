//! What a connect generator counted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lab::traffic::Outcome;

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The number of the connection, from 0.
    pub number: u64,
    /// When it was started, since the generator's start.
    pub started: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a generator counted. `started` is the sum of `outcomes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReport {
    /// Connections started.
    pub started: u64,
    /// How many ended how, by [`Outcome::word`].
    pub outcomes: BTreeMap<String, u64>,
    /// Answers by server.
    pub by: BTreeMap<String, u64>,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// TCP segments that the generator's own sockets had to send again (`TCP_INFO`).
    pub retransmits: u64,
    /// The same of the client's whole namespace over the run, see `Counters::retransmits_since`.
    pub namespace_retransmits: i64,
    /// Latencies of answered connections, in microseconds, ascending.
    pub latencies_us: Vec<u64>,
    /// How long the run took.
    pub took: Duration,
    /// The most connections that were due at once: 1 when the generator kept its pace.
    pub largest_burst: u64,
}

impl ConnectReport {
    /// Connections that were answered.
    pub fn answered(&self) -> u64 {
        self.by.values().sum()
    }

    /// Connections that were not.
    pub fn failed(&self) -> u64 {
        self.started - self.answered()
    }

    /// Latency at `quantile` (0 to 1) of the answered connections.
    pub fn latency(&self, quantile: f64) -> Option<Duration> {
        let last = self.latencies_us.len().checked_sub(1)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let at = (last as f64 * quantile.clamp(0.0, 1.0)).round() as usize;
        self.latencies_us
            .get(at)
            .map(|us| Duration::from_micros(*us))
    }
}
