//! The tables of flows: how big, how long, and the task that goes through them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_common::{Timeouts, clock};
use tracing::{debug, warn};

use crate::datapath::capacity::Memory;
use crate::datapath::collector::{Collector, Passed};
use crate::datapath::object::Sizes;
use crate::observe::state::{FlowShare, FlowState, FlowTable};

/// Passes begin a quarter of the shortest timeout apart: what is over stays for a quarter longer at most.
const PASSES_A_TIMEOUT: u32 = 4;
/// But not more often than this,
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// and not less often: counts of shares and evictions are as old as the last pass.
const MOST_PAUSE: Duration = Duration::from_secs(8);
/// A pass is followed by a pause of so many times the CPU time that it took: collecting never costs more than a fiftieth of one CPU.
const PAUSES_A_PASS: u32 = 49;

/// How many flows are kept, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowChoice {
    /// Flows in `conntrack`; None: from the memory that there is.
    pub max: Option<u32>,
    /// Percent of `conntrack` that the flows of one pod may take; 100: no bound.
    pub share_percent: u32,
    /// How long a flow may be idle.
    pub timeouts: Timeouts,
}

impl FlowChoice {
    /// Capacities of the tables.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes::of_flows(self.max.unwrap_or_else(|| Memory::read().flows()))
    }

    /// The time from the end of a pass to the next.
    fn pause(&self, took: Duration) -> Duration {
        let shortest = u64::from(self.timeouts.shortest()) << clock::TICK_SHIFT;
        (Duration::from_nanos(shortest) / PASSES_A_TIMEOUT)
            .clamp(LEAST_PAUSE, MOST_PAUSE)
            .max(took * PAUSES_A_PASS)
    }
}

/// What the last pass found.
#[derive(Default, Debug)]
pub(super) struct FlowUse(Mutex<Option<Arc<Passed>>>);

impl FlowUse {
    /// The last pass; None before the first.
    pub(super) fn last(&self) -> Option<Arc<Passed>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn passed(&self, passed: Passed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(passed));
    }

    /// For status and metrics. Without tables before the first pass.
    pub(super) fn state(&self, share_percent: u32) -> FlowState {
        let Some(last) = self.last() else {
            return FlowState {
                share_percent,
                ..FlowState::default()
            };
        };
        let tables = [("conntrack", last.conntrack), ("unreplied", last.unreplied)];
        FlowState {
            share_percent,
            share: last.share,
            held: last
                .held
                .iter()
                .map(|held| FlowShare {
                    slot: held.slot,
                    flows: held.flows,
                })
                .collect(),
            tables: tables
                .into_iter()
                .map(|(map, table)| FlowTable {
                    map,
                    expired: table.expired,
                    evicted: table.evicted,
                })
                .collect(),
            pass: last.cpu,
            passes: last.cpu_total,
        }
    }
}

/// Goes through the tables, for ever.
pub(super) async fn collect(collector: Collector, choice: FlowChoice, flow_use: Arc<FlowUse>) {
    let collector = Arc::new(Mutex::new(collector));
    loop {
        let job = Arc::clone(&collector);
        let pass = tokio::task::spawn_blocking(move || {
            job.lock().unwrap_or_else(PoisonError::into_inner).pass()
        });
        let mut took = Duration::ZERO;
        match pass.await {
            Ok(Ok(passed)) => {
                debug!(?passed, "went through the tables of flows");
                took = passed.cpu;
                flow_use.passed(passed);
            }
            Ok(Err(error)) => warn!("flows cannot be collected by age: {error}"),
            Err(error) => warn!("collecting flows ended: {error}"),
        }
        tokio::time::sleep(choice.pause(took)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(udp_unreplied: u32) -> FlowChoice {
        FlowChoice {
            max: None,
            share_percent: 50,
            timeouts: Timeouts {
                udp_unreplied: clock::ticks(udp_unreplied),
                ..Timeouts::DEFAULT
            },
        }
    }

    #[test]
    fn nothing_is_said_of_tables_that_were_not_counted() {
        let flow_use = FlowUse::default();
        let before = flow_use.state(50);
        assert_eq!((before.share_percent, before.tables), (50, Vec::new()));
        flow_use.passed(Passed::default());
        assert_eq!(flow_use.state(50).tables.len(), 2);
    }

    #[test]
    fn passes_are_as_frequent_as_timeouts_ask_and_cost_a_fiftieth_of_a_cpu_at_most() {
        let second = Duration::from_secs(1);
        let quarter = choice(30).pause(Duration::ZERO);
        assert!(quarter > 7 * second && quarter <= MOST_PAUSE, "{quarter:?}");
        assert_eq!(choice(1).pause(Duration::ZERO), LEAST_PAUSE);
        assert_eq!(
            choice(3_600).pause(Duration::ZERO),
            choice(30).pause(Duration::ZERO).max(quarter)
        );
        assert_eq!(choice(1).pause(second), 49 * second);
    }
}
