//! The tables of flows in `sluice status`.

use serde::{Deserialize, Serialize};

use super::EndpointList;
use crate::observe::state::{State, Summary};

/// Pods that are named: those that hold the most.
const NAMED: usize = 5;

/// The tables of flows, as of the last pass through them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FlowsView {
    /// `--conntrack-share`: percent of the map `conntrack` that one pod's flows may take.
    pub share_percent: u32,
    /// What that is in flows; null without a bound.
    pub share: Option<u32>,
    /// Pods that hold all that they may: what they open beyond works on a slower path.
    pub pods_at_share: usize,
    /// The pods that hold the most, at most five.
    pub biggest: Vec<ShareView>,
    /// `conntrack` and `unreplied`.
    pub tables: Vec<FlowTableView>,
    /// CPU time of the last pass.
    pub pass_cpu_seconds: f64,
}

/// What a pod holds of `conntrack`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareView {
    /// The pod, or the number of its slot where no name is known.
    pub pod: String,
    /// Its flows: those it opened, and those from outside that it accepted.
    pub flows: u32,
}

/// One table, in entries (two per flow), since the agent's start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowTableView {
    /// The map.
    pub map: String,
    /// Removed because they were idle for too long.
    pub expired: u64,
    /// Evicted by the kernel because the map was full: inferred, and never too many.
    pub evicted: u64,
}

impl FlowsView {
    pub(super) fn build(summary: &Summary, state: &State) -> Self {
        let flows = &summary.flows;
        let endpoints = EndpointList::build(state, None).endpoints;
        let name = |slot: u32| {
            let endpoint = endpoints.iter().find(|e| e.slot == Some(slot));
            let pod = endpoint.and_then(|e| Some((e.namespace.as_ref()?, e.name.as_ref()?)));
            pod.map_or_else(
                || format!("slot {slot}"),
                |(namespace, name)| format!("{namespace}/{name}"),
            )
        };
        Self {
            share_percent: flows.share_percent,
            share: (flows.share > 0).then_some(flows.share),
            pods_at_share: flows.at_share(),
            biggest: flows
                .held
                .iter()
                .take(NAMED)
                .map(|held| ShareView {
                    pod: name(held.slot),
                    flows: held.flows,
                })
                .collect(),
            tables: flows
                .tables
                .iter()
                .map(|table| FlowTableView {
                    map: table.map.to_owned(),
                    expired: table.expired,
                    evicted: table.evicted,
                })
                .collect(),
            pass_cpu_seconds: flows.pass.as_secs_f64(),
        }
    }
}
