//! `sluice status`.

use agent_common::{hook, limits};
use serde::{Deserialize, Serialize};

use super::{EndpointList, EndpointState, FlowsView};
use crate::compile::{IpBlockMode, UnknownPod};
use crate::datapath::drift::Part;
use crate::model::Kind;
use crate::observe::state::{AttachedTo, Attachment, State, Summary};
use crate::observe::time::Time;
use crate::source::Rejected;

/// How the agent is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The layout of its maps, which stands in the name of their directory of pins: agents of one layout share their maps. 0: an agent that is
    /// too old to say.
    #[serde(default)]
    pub layout: u32,
    /// The node's name.
    pub node: String,
    /// Whether everything was synced and applied, programs are attached, and no source is lost.
    pub ready: bool,
    /// What it waits for: parts of the start, and sources that are lost since then; empty while it is ready.
    pub waiting_for: Vec<String>,
    /// When it started.
    pub started: Time,
    /// `--ip-block-mode`: `literal` or `cilium`.
    pub ip_block_mode: String,
    /// `--unknown-pod`: `allow` or `deny`.
    pub unknown_pod: String,
    /// Pod links whose pod no source knows.
    pub unknown_pods: usize,
    /// By kind, in the order of sources.
    pub sources: Vec<SourceView>,
    /// Objects by kind.
    pub objects: Vec<ObjectCount>,
    /// Where programs are attached.
    pub attachments: Vec<AttachmentView>,
    /// Use of each map against its capacity.
    pub maps: Vec<MapView>,
    /// The tables of flows: shares, what was collected, what was evicted.
    pub flows: FlowsView,
    /// Packets dropped or rejected by hook and reason, since the maps were made; a pair that is not there is zero.
    pub drops: Vec<DropView>,
    /// What else is counted, by name; zeros too.
    pub counts: Vec<CountView>,
    /// Objects that were not taken; what they replaced stays in force.
    pub rejected: Vec<RejectedView>,
    /// What is not in force as the cluster asks.
    pub problems: Vec<ProblemView>,
    /// Worth knowing, no error.
    pub notices: Vec<RejectedView>,
    /// Null before the first.
    pub last_apply: Option<ApplyView>,
    /// Whether programs, pins and maps were still as the agent left them.
    pub drift: DriftView,
}

/// How a kind of objects reaches the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceView {
    /// `manifests`, `kubernetes`.
    pub name: String,
    /// The kind, as Kubernetes writes it.
    pub kind: String,
    /// Everything of the kind was told at least once.
    pub synced: bool,
    /// The source is lost since then, and its last state stays in force; null where it is not.
    pub stale_since: Option<Time>,
    /// Why it is lost; null where it is not.
    pub reason: Option<String>,
}

/// How many objects of a kind the agent knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectCount {
    /// The kind.
    pub kind: String,
    /// How many.
    pub count: usize,
}

/// What a program is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachedKind {
    /// A pod's link.
    Pod,
    /// An uplink.
    Uplink,
    /// A cgroup.
    Cgroup,
}

/// A place where a program is attached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentView {
    /// To what.
    pub of: AttachedKind,
    /// The interface's name; null for a cgroup.
    pub interface: Option<String>,
    /// The interface's index; null for a cgroup.
    pub ifindex: Option<u32>,
    /// The pod behind the interface; null where there is none or it is not known.
    pub pod: Option<String>,
    /// The cgroup's directory; null for an interface.
    pub cgroup: Option<String>,
    /// The hook, as `drops` and flows name it.
    pub hook: String,
    /// `tcx`, `clsact`, `cgroup`.
    pub mode: String,
}

/// Use of a map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapView {
    /// Its name, as `bpftool` shows it.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries it has room for.
    pub capacity: u64,
}

/// Packets dropped or rejected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropView {
    /// Where.
    pub hook: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// Something that is counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CountView {
    /// A name of `agent_common::Count`.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// An object and what is to be said of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RejectedView {
    /// `NetworkPolicy shop/web`, or a file where no object can be made out.
    pub object: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// A capacity that was reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitView {
    /// The map.
    pub map: String,
    /// Its capacity in entries.
    pub capacity: u64,
}

/// Something that is not in force as the cluster asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProblemView {
    /// `Service shop/web`.
    pub object: String,
    /// What is wrong, and what to do.
    pub reason: String,
    /// The limit, where one was reached.
    pub limit: Option<LimitView>,
}

/// The last apply.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ApplyView {
    /// When it ended.
    pub at: Time,
    /// How long compile, plan and writes took.
    pub duration_seconds: f64,
    /// Map writes.
    pub writes: u64,
}

/// What the checks of what is there found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriftView {
    /// When the last whole check ended; null before the first.
    pub checked: Option<Time>,
    /// What was mended since the start, by part; zeros too.
    pub repaired: Vec<RepairedView>,
    /// The last mend; null where there was none.
    pub last: Option<RepairView>,
}

/// How much of a part was mended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepairedView {
    /// `attachment`, `cgroup`, `pin`, `program`, `map`.
    pub part: String,
    /// How many.
    pub count: u64,
}

/// A mend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepairView {
    /// When.
    pub at: Time,
    /// What was found.
    pub what: String,
}

impl Status {
    /// The status.
    #[must_use]
    pub fn build(summary: &Summary, state: &State) -> Self {
        let told = |told: &Rejected| RejectedView {
            object: told.object.clone(),
            reason: told.reason.clone(),
        };
        Self {
            version: crate::observe::VERSION.to_owned(),
            layout: limits::LAYOUT,
            node: summary.node.to_string(),
            ready: summary.waiting_for.is_empty(),
            waiting_for: summary.waiting_for.clone(),
            started: summary.started.into(),
            ip_block_mode: ip_block_mode_name(summary.ip_block_mode).to_owned(),
            unknown_pod: unknown_pod_name(summary.unknown_pod).to_owned(),
            unknown_pods: unknown_pods(state),
            sources: sources(summary),
            objects: Kind::ALL.iter().map(|kind| count(state, *kind)).collect(),
            attachments: attachments(summary, state),
            maps: maps(summary),
            flows: FlowsView::build(summary, state),
            drops: drops(summary),
            counts: counts(summary),
            rejected: summary.rejected.iter().map(told).collect(),
            problems: problems(summary),
            notices: summary.notices.iter().map(told).collect(),
            last_apply: summary.applied.map(|applied| ApplyView {
                at: applied.at.into(),
                duration_seconds: applied.duration.as_secs_f64(),
                writes: applied.writes,
            }),
            drift: drift(summary),
        }
    }
}

fn drift(summary: &Summary) -> DriftView {
    let state = &summary.drift;
    let repaired = Part::ALL.into_iter().map(|part| RepairedView {
        part: part.name().to_owned(),
        count: state.repaired.get(&part).copied().unwrap_or(0),
    });
    DriftView {
        checked: state.checked.map(Time::from),
        repaired: repaired.collect(),
        last: state.last.as_ref().map(|(at, what)| RepairView {
            at: Time::from(*at),
            what: what.clone(),
        }),
    }
}

/// How `--ip-block-mode` writes it.
#[must_use]
pub(in crate::observe) const fn ip_block_mode_name(mode: IpBlockMode) -> &'static str {
    match mode {
        IpBlockMode::Literal => "literal",
        IpBlockMode::Cilium => "cilium",
    }
}

pub(in crate::observe) const fn unknown_pod_name(mode: UnknownPod) -> &'static str {
    match mode {
        UnknownPod::Allow => "allow",
        UnknownPod::Deny => "deny",
    }
}

fn unknown_pods(state: &State) -> usize {
    let endpoints = EndpointList::build(state, None).endpoints;
    let unknown = endpoints
        .iter()
        .filter(|e| e.state == EndpointState::UnknownPod);
    unknown.count()
}

fn sources(summary: &Summary) -> Vec<SourceView> {
    let view = |source: &crate::observe::state::SourceState| SourceView {
        name: source.name.clone(),
        kind: source.kind.name().to_owned(),
        synced: source.synced,
        stale_since: source.stale_since.map(Time::from),
        reason: (!source.reason.is_empty()).then(|| source.reason.clone()),
    };
    summary.sources.iter().map(view).collect()
}

fn count(state: &State, kind: Kind) -> ObjectCount {
    let cluster = &state.cluster;
    ObjectCount {
        kind: kind.name().to_owned(),
        count: match kind {
            Kind::Namespace => cluster.namespaces.len(),
            Kind::Node => cluster.nodes.len(),
            Kind::Pod => cluster.pods.len(),
            Kind::Service => cluster.services.len(),
            Kind::EndpointSlice => cluster.slices.len(),
            Kind::NetworkPolicy => cluster.policies.len(),
        },
    }
}

fn attachments(summary: &Summary, state: &State) -> Vec<AttachmentView> {
    let mut attached = summary.attached.clone();
    attached.sort();
    let view = |attachment: &Attachment| {
        let (of, interface, ifindex, cgroup) = match &attachment.to {
            AttachedTo::Pod { interface, ifindex } => (
                AttachedKind::Pod,
                Some(interface.clone()),
                Some(*ifindex),
                None,
            ),
            AttachedTo::Uplink { interface, ifindex } => (
                AttachedKind::Uplink,
                Some(interface.clone()),
                Some(*ifindex),
                None,
            ),
            AttachedTo::Cgroup { path } => (
                AttachedKind::Cgroup,
                None,
                None,
                Some(path.display().to_string()),
            ),
        };
        AttachmentView {
            of,
            interface,
            ifindex,
            pod: ifindex.and_then(|ifindex| pod_behind(state, ifindex)),
            cgroup,
            hook: hook::name(attachment.hook).to_owned(),
            mode: attachment.mode.name().to_owned(),
        }
    };
    attached.iter().map(view).collect()
}

fn pod_behind(state: &State, ifindex: u32) -> Option<String> {
    let link = state.local.pods.get(&ifindex)?;
    let mut owners = link
        .addresses
        .iter()
        .filter_map(|ip| state.cluster.owner(ip));
    owners.next().map(|pod| pod.key.to_string())
}

fn maps(summary: &Summary) -> Vec<MapView> {
    let mut maps = summary.maps.clone();
    maps.sort();
    let view = |map: crate::observe::state::MapUse| MapView {
        name: map.name,
        entries: map.entries,
        capacity: map.capacity,
    };
    maps.into_iter().map(view).collect()
}

fn drops(summary: &Summary) -> Vec<DropView> {
    let drops = summary.counters.drops.iter().filter(|d| d.packets > 0);
    let view = |d: &crate::observe::state::DropCount| DropView {
        hook: hook::name(d.hook).to_owned(),
        reason: d.reason.name().to_owned(),
        packets: d.packets,
        bytes: d.bytes,
    };
    drops.map(view).collect()
}

fn counts(summary: &Summary) -> Vec<CountView> {
    let counts = summary.counters.counts.iter();
    let view = |(name, count): &(agent_common::Count, u64)| CountView {
        name: name.name().to_owned(),
        count: *count,
    };
    counts.map(view).collect()
}

fn problems(summary: &Summary) -> Vec<ProblemView> {
    let view = |problem: &crate::problem::Problem| ProblemView {
        object: problem.object.clone(),
        reason: problem.reason.clone(),
        limit: problem.limit.map(|limit| LimitView {
            map: limit.map.to_owned(),
            capacity: u64::from(limit.capacity),
        }),
    };
    summary.problems.iter().map(view).collect()
}
