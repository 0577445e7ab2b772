//! What the loop shows of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_common::limits;
use tokio::sync::oneshot;

use super::drift::DriftState;
use super::objects::Objects;
use super::{Reconciler, news};
use crate::compile::RuleName;
use crate::datapath::Contents;
use crate::desired::Desired;
use crate::local::Local;
use crate::model::{Cluster, Kind};
use crate::plan::Planner;
use crate::problem::Problem;
use crate::source::Rejected;

/// How a kind's source is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KindState {
    /// Everything of the kind has been told at least once.
    pub synced: bool,
    /// The source is lost: since when, and why.
    pub stale: Option<(SystemTime, String)>,
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Upserts and deletes told.
    pub events: u64,
    /// Those that changed something.
    pub changes: u64,
    /// Applies.
    pub applies: u64,
    /// Map writes.
    pub writes: u64,
}

/// The last apply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastApply {
    /// When it ended.
    pub at: SystemTime,
    /// How long compile, plan and writes took.
    pub took: Duration,
    /// Map writes.
    pub writes: u64,
    /// Nothing was refused for want of room or by the kernel.
    pub whole: bool,
}

/// The small picture, published after each apply.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Snapshot {
    /// Sync and staleness by kind.
    pub kinds: BTreeMap<Kind, KindState>,
    /// Whether the node's own state is known.
    pub local_known: bool,
    /// InternalIPs of this node, as its object says.
    pub internal_ips: Vec<IpAddr>,
    /// What is not in force as asked, sorted.
    pub problems: Vec<Problem>,
    /// Objects that sources could not take.
    pub rejected: Vec<Rejected>,
    /// Worth knowing.
    pub notices: Vec<Rejected>,
    /// Entries in use and capacity, by map.
    pub usage: BTreeMap<&'static str, (usize, u32)>,
    /// Counts since the start.
    pub counts: Counts,
    /// None before the first.
    pub last_apply: Option<LastApply>,
    /// What checks found.
    pub drift: DriftState,
}

/// The whole picture, copied on request.
#[derive(Clone, Default, Debug)]
pub struct State {
    /// What the sources told.
    pub cluster: Cluster,
    /// What netlink told.
    pub local: Local,
    /// What the maps should say.
    pub desired: Desired,
    /// What they say.
    pub contents: Contents,
    /// What the numbers of verdicts stand for.
    pub rules: BTreeMap<u32, RuleName>,
}

/// Entries in use and capacity, of the maps that the agent writes.
fn usage(planner: &Planner) -> BTreeMap<&'static str, (usize, u32)> {
    let maps = planner.contents();
    BTreeMap::from([
        ("backends", (planner.backends(), limits::BACKENDS)),
        ("slots", (maps.slots.len(), limits::SLOTS)),
        ("heads", (maps.heads.len(), limits::HEADS)),
        ("services", (maps.services.len(), limits::SERVICES)),
        ("addresses", (maps.addresses.len(), limits::ADDRESSES)),
        ("prefixes", (maps.prefixes.len(), limits::PREFIXES)),
        ("groups", (maps.groups.len(), limits::IDENTITIES)),
        ("rules", (maps.rules.len(), limits::RULES)),
        ("pods", (planner.pods(), limits::PODS)),
        ("links", (maps.links.len(), limits::LINKS)),
    ])
}

impl Reconciler {
    /// Answers with the whole picture, which is copied once for all who ask before it changes.
    pub(super) fn answer(&mut self, answer: oneshot::Sender<Arc<State>>) {
        let state = self.state.get_or_insert_with(|| {
            let planner = self.planner.as_ref();
            Arc::new(State {
                cluster: self.cluster.clone(),
                local: self.local.clone(),
                desired: planner.map_or_else(Desired::default, |p| p.desired().clone()),
                contents: planner.map(|p| p.contents().clone()).unwrap_or_default(),
                rules: self.compile.rules(),
            })
        });
        // Whoever asked may have left.
        let _gone = answer.send(Arc::clone(state));
    }

    /// Publishes the small picture, where it is another than the last; the log hears what is new of problems.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.dirty_snapshot) {
            return;
        }
        let others = self.compiled.problems.iter();
        let others = others.chain(&self.unattached).chain(&self.drift.problems);
        let mut problems: BTreeSet<Problem> = others.cloned().collect();
        if let Some(planner) = self.planner.as_ref()
            && planner.failures().next().is_some()
        {
            let objects = Objects {
                cluster: &self.cluster,
                local: &self.local,
                rules: self.compile.rules(),
            };
            problems.extend(objects.problems(planner));
        }
        let compiled = self.compiled.notices.iter().map(|notice| Rejected {
            object: notice.object.clone(),
            id: None,
            reason: notice.reason.clone(),
        });
        news::tell(&self.told, &problems);
        self.told.clone_from(&problems);
        let notices = self.source_notices.values().cloned().chain(compiled);
        self.snapshots.send_replace(Arc::new(Snapshot {
            kinds: self.kinds.clone(),
            local_known: self.local_known,
            internal_ips: self
                .cluster
                .nodes
                .get(&self.node)
                .map(|node| node.internal_ips.clone())
                .unwrap_or_default(),
            problems: problems.into_iter().collect(),
            rejected: self.rejected.values().cloned().collect(),
            notices: notices.collect(),
            usage: self.planner.as_ref().map(usage).unwrap_or_default(),
            counts: self.counts,
            last_apply: self.last_apply.clone(),
            drift: self.drift.state.clone(),
        }));
    }
}
