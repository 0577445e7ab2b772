//! What the agent knows of itself, as the rest of `observe` wants it. `app` fills it in from the reconciler and the datapath.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_common::{Count, Reason};
use futures::future::BoxFuture;

use crate::compile::{IpBlockMode, UnknownPod};
use crate::model::{Kind, Text};
use crate::problem::Problem;
use crate::reconcile::{self, DriftState};
use crate::source::Rejected;

use super::flows::FlowHub;

/// How one kind of objects reaches the agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceState {
    /// The source: `manifests`, `kubernetes`.
    pub name: String,
    /// The kind.
    pub kind: Kind,
    /// Everything of the kind has been told at least once.
    pub synced: bool,
    /// The source is lost since then; its last state stays in force.
    pub stale_since: Option<SystemTime>,
    /// Why it is lost, for people; empty where it is not.
    pub reason: String,
}

/// The last apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// When it ended.
    pub at: SystemTime,
    /// How long compile, plan and writes took.
    pub duration: Duration,
    /// Map writes.
    pub writes: u64,
}

/// What a program is attached to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AttachedTo {
    /// The host's side of a pod's link.
    Pod {
        /// Interface name.
        interface: String,
        /// Interface index.
        ifindex: u32,
    },
    /// An uplink.
    Uplink {
        /// Interface name.
        interface: String,
        /// Interface index.
        ifindex: u32,
    },
    /// The cgroup of the host's processes.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
}

/// How a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AttachMode {
    /// A link of tcx.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
    /// A link to a cgroup.
    Cgroup,
}

impl AttachMode {
    /// The name that the CLI shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Cgroup => "cgroup",
        }
    }
}

/// A place where a program is attached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Attachment {
    /// To what.
    pub to: AttachedTo,
    /// See [`agent_common::hook`].
    pub hook: u32,
    /// How.
    pub mode: AttachMode,
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MapUse {
    /// Map name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries it has room for.
    pub capacity: u64,
}

/// Packets dropped at a hook for a reason, since the maps were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropCount {
    /// See [`agent_common::hook`].
    pub hook: u32,
    /// Why.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// The counters of the datapath.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CounterState {
    /// Drops and rejections; zeros may be left out.
    pub drops: Vec<DropCount>,
    /// Everything else that is counted, in packets or flows, since the maps were made.
    pub counts: Vec<(Count, u64)>,
}

/// One table of flows, in entries (two per flow).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FlowTable {
    /// Map name.
    pub map: &'static str,
    /// Removed because they were idle for too long, since the agent's start.
    pub expired: u64,
    /// Evicted by the kernel, since the agent's start: inferred, and never too many.
    pub evicted: u64,
}

/// What a pod holds of `conntrack`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowShare {
    /// The pod's slot.
    pub slot: u32,
    /// Its flows.
    pub flows: u32,
}

/// How the tables of flows were at the last pass through them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FlowState {
    /// `--conntrack-share`, percent.
    pub share_percent: u32,
    /// What that is in flows; 0: no bound, or no pass was made yet.
    pub share: u32,
    /// What each pod holds, the most first.
    pub held: Vec<FlowShare>,
    /// `conntrack` and `unreplied`.
    pub tables: Vec<FlowTable>,
    /// CPU time of the last pass.
    pub pass: Duration,
    /// CPU time of all passes since the agent's start.
    pub passes: Duration,
}

impl FlowState {
    /// Pods that hold all that they may.
    #[must_use]
    pub fn at_share(&self) -> usize {
        let full = |held: &&FlowShare| self.share > 0 && held.flows >= self.share;
        self.held.iter().filter(full).count()
    }
}

/// The small picture: cheap to make, asked for by each `sluice status` and each scrape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// `--node-name`.
    pub node: Text,
    /// What the agent waits for before it is ready, or ready again; empty while it is.
    pub waiting_for: Vec<String>,
    /// When the agent started.
    pub started: SystemTime,
    /// `--ip-block-mode`.
    pub ip_block_mode: IpBlockMode,
    /// `--unknown-pod`.
    pub unknown_pod: UnknownPod,
    /// By kind.
    pub sources: Vec<SourceState>,
    /// Objects that sources could not take; what they replaced stays in force.
    pub rejected: Vec<Rejected>,
    /// Worth knowing.
    pub notices: Vec<Rejected>,
    /// What is not in force as asked.
    pub problems: Vec<Problem>,
    /// None before the first.
    pub applied: Option<Applied>,
    /// Map writes since the start.
    pub writes: u64,
    /// Where programs are attached.
    pub attached: Vec<Attachment>,
    /// Every map whose use is known.
    pub maps: Vec<MapUse>,
    /// The datapath's counters.
    pub counters: CounterState,
    /// What the checks of what is there found.
    pub drift: DriftState,
    /// The tables of flows.
    pub flows: FlowState,
}

/// The whole picture. Big, so it is asked for by people only, and shared.
#[derive(Clone, Default, Debug)]
pub struct State {
    /// `--node-name`.
    pub node: Text,
    /// What the loop sees.
    pub seen: Arc<reconcile::State>,
}

impl std::ops::Deref for State {
    type Target = reconcile::State;

    fn deref(&self) -> &Self::Target {
        &self.seen
    }
}

/// What the admin socket and the metrics endpoint ask. Neither call may wait for an apply that is not under way already.
pub trait Provider: Send + Sync + 'static {
    /// The small picture. Blocking for some hundred system calls (counters) is fine.
    fn summary(&self) -> Summary;
    /// The whole picture; None once the agent is ending.
    fn state(&self) -> BoxFuture<'_, Option<Arc<State>>>;
    /// Raised whenever [`Provider::state`] would answer something else: what has names asks again then.
    fn revision(&self) -> u64;
    /// The events of the datapath.
    fn flows(&self) -> &FlowHub;
}
