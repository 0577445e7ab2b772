//! What the agent shows of itself: snapshots, counters and events, brought to the admin socket, metrics and the service manager.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use agent_common::hook;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tracing::warn;

use super::Config;
use super::attachments::Attached;
use super::flows::FlowUse;
use crate::datapath::attach::Mode;
use crate::datapath::capacity::Kept;
use crate::datapath::counters::Counters;
use crate::datapath::events::Events;
use crate::datapath::switch::Switch;
use crate::local::Local;
use crate::model::{Kind, Text, intern};
use crate::observe::flows::FlowHub;
use crate::observe::metrics::{ApplyResult, Metrics};
use crate::observe::readiness::{self, Guard, Notice, Readiness};
use crate::observe::state::{
    Applied, AttachMode, AttachedTo, Attachment, CounterState, DropCount, MapUse, Provider,
    SourceState, State, Summary,
};
use crate::observe::time::Time;
use crate::reconcile::{Handle, KindState, Snapshot};
use crate::source::Rejected;

/// Answers for the agent.
pub(super) struct Observed {
    pub(super) config: Config,
    pub(super) source: &'static str,
    pub(super) started: SystemTime,
    pub(super) readiness: Readiness,
    pub(super) handle: Handle,
    pub(super) local: watch::Receiver<Option<Arc<Local>>>,
    pub(super) attached: Arc<Mutex<Attached>>,
    pub(super) counters: Counters,
    pub(super) flow_use: Arc<FlowUse>,
    pub(super) capacities: BTreeMap<String, u32>,
    pub(super) kept: Vec<Kept>,
    pub(super) hub: FlowHub,
}

impl Observed {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.handle.snapshots.borrow())
    }

    fn node(&self) -> Text {
        intern(&self.config.node_name)
    }

    fn sources(&self, snapshot: &Snapshot) -> Vec<SourceState> {
        let kinds = snapshot.kinds.iter();
        let state = |(kind, state): (&Kind, &KindState)| SourceState {
            name: self.source.to_owned(),
            kind: *kind,
            synced: state.synced,
            stale_since: state.stale.as_ref().map(|(since, _)| *since),
            reason: state
                .stale
                .clone()
                .map(|(_, reason)| reason)
                .unwrap_or_default(),
        };
        kinds.map(state).collect()
    }

    fn attachments(&self) -> Vec<Attachment> {
        let attached = self
            .attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let local = self.local.borrow().clone().unwrap_or_default();
        let mode = match attached.mode {
            Mode::Clsact => AttachMode::Clsact,
            Mode::Auto | Mode::Tcx => AttachMode::Tcx,
        };
        let mut all = Vec::new();
        for (ifindex, ingress) in attached.places {
            let (to, hook) = match (local.pods.get(&ifindex), local.uplinks.get(&ifindex)) {
                (Some(link), _) => {
                    let interface = link.name.clone();
                    let hook = if ingress {
                        hook::FROM_POD
                    } else {
                        hook::TO_POD
                    };
                    (AttachedTo::Pod { interface, ifindex }, hook)
                }
                (None, Some(name)) => {
                    let interface = name.clone();
                    let hook = if ingress {
                        hook::FROM_UPLINK
                    } else {
                        hook::TO_UPLINK
                    };
                    (AttachedTo::Uplink { interface, ifindex }, hook)
                }
                // The link went a moment ago.
                (None, None) => continue,
            };
            all.push(Attachment { to, hook, mode });
        }
        all.extend(attached.cgroup.map(|path| Attachment {
            to: AttachedTo::Cgroup { path },
            hook: hook::SOCKET,
            mode: AttachMode::Cgroup,
        }));
        all
    }

    fn maps(&self, snapshot: &Snapshot) -> Vec<MapUse> {
        let written = snapshot
            .usage
            .iter()
            .map(|(name, (entries, capacity))| MapUse {
                name: (*name).to_owned(),
                entries: *entries as u64,
                capacity: u64::from(*capacity),
            });
        let tables = self.flow_use.last().map(|passed| {
            [
                ("conntrack", passed.conntrack.left),
                ("unreplied", passed.unreplied.left),
            ]
        });
        let flows = tables.into_iter().flatten().filter_map(|(name, entries)| {
            Some(MapUse {
                name: name.to_owned(),
                entries,
                capacity: u64::from(*self.capacities.get(name)?),
            })
        });
        written.chain(flows).collect()
    }

    fn notices(&self, snapshot: &Snapshot) -> Vec<Rejected> {
        let kept = self.kept.iter().map(|kept| Rejected {
            id: None,
            object: format!("map {}", kept.map),
            reason: kept.to_string(),
        });
        kept.chain(snapshot.notices.iter().cloned()).collect()
    }

    fn counters(&self) -> CounterState {
        match self.counters.totals() {
            Ok(totals) => CounterState {
                drops: totals
                    .drops
                    .iter()
                    .map(|drop| DropCount {
                        hook: drop.hook,
                        reason: drop.reason,
                        packets: drop.counter.packets,
                        bytes: drop.counter.bytes,
                    })
                    .collect(),
                counts: totals.counts.iter().map(|(c, n)| (*c, n.packets)).collect(),
            },
            Err(error) => {
                warn!("the counters cannot be read: {error}");
                CounterState::default()
            }
        }
    }
}

impl Provider for Observed {
    fn summary(&self) -> Summary {
        let snapshot = self.snapshot();
        Summary {
            node: self.node(),
            waiting_for: self.readiness.missing(),
            started: self.started,
            ip_block_mode: self.config.ip_block_mode,
            unknown_pod: self.config.unknown_pod,
            sources: self.sources(&snapshot),
            rejected: snapshot.rejected.clone(),
            notices: self.notices(&snapshot),
            problems: snapshot.problems.clone(),
            applied: snapshot.last_apply.as_ref().map(|last| Applied {
                at: last.at,
                duration: last.took,
                writes: last.writes,
            }),
            writes: snapshot.counts.writes,
            attached: self.attachments(),
            maps: self.maps(&snapshot),
            counters: self.counters(),
            drift: snapshot.drift.clone(),
            flows: self.flow_use.state(self.config.flows.share_percent),
        }
    }

    fn state(&self) -> BoxFuture<'_, Option<Arc<State>>> {
        Box::pin(async {
            let seen = self.handle.state().await?;
            let node = self.node();
            Some(Arc::new(State { node, seen }))
        })
    }

    fn revision(&self) -> u64 {
        let counts = self.snapshot().counts;
        counts.changes.wrapping_add(counts.applies)
    }

    fn flows(&self) -> &FlowHub {
        &self.hub
    }
}

/// Brings events from the ring to those who watch, for ever.
pub(super) async fn pump(mut events: Events, hub: FlowHub) {
    loop {
        match events.next().await {
            Ok(event) => hub.publish(event),
            Err(error) => {
                warn!("events cannot be read any more, `sluice flows` stays silent: {error}");
                return;
            }
        }
    }
}

/// Has allowed flows reported while somebody watches them, for ever.
pub(super) async fn switch_allowed(switch: Switch, hub: FlowHub) {
    let mut watchers = hub.allowed_watchers();
    loop {
        let on = *watchers.borrow_and_update() > 0;
        if let Err(error) = switch.report_allowed(on) {
            warn!("reporting of allowed flows cannot be switched: {error}");
        }
        if watchers.changed().await.is_err() {
            return;
        }
    }
}

/// Has the loop look after what it attached when netlink tells that somebody touched it. For ever.
pub(super) async fn look_after(mut touched: watch::Receiver<u64>, handle: Handle) {
    while touched.changed().await.is_ok() {
        handle.check();
    }
}

/// What the start waits for, and what is lost after it.
pub(super) struct Awaited {
    source: String,
    kinds: BTreeMap<Kind, Guard>,
    local: Option<Guard>,
    first_apply: Option<Guard>,
}

impl Awaited {
    pub(super) fn new(readiness: &Readiness, source: &str, kinds: &[Kind]) -> Self {
        let kind = |kind: &Kind| (*kind, readiness.wait_for(format!("{kind}s of {source}")));
        Self {
            source: source.to_owned(),
            local: Some(readiness.wait_for("the node's links and addresses")),
            kinds: kinds.iter().map(kind).collect(),
            first_apply: Some(readiness.wait_for("the first apply")),
        }
    }

    /// Lets go of what has come, says what is lost, counts applies, and tells the service manager. For ever.
    pub(super) async fn follow(
        mut self,
        mut handle: Handle,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) {
        let ready = async {
            readiness.ready().await;
            tracing::info!("ready");
            if let Err(error) = readiness::notify(&Notice::Ready) {
                warn!("the service manager cannot be told: {error}");
            }
            std::future::pending::<()>().await;
        };
        let follow = async {
            let mut applied = None;
            loop {
                let snapshot = Arc::clone(&handle.snapshots.borrow_and_update());
                self.kinds
                    .retain(|kind, _| !snapshot.kinds.get(kind).is_some_and(|k| k.synced));
                let lost = lost(&self.source, &snapshot.kinds)
                    .filter(|_| !crate::mutant::removed("lost-but-ready"));
                if readiness.lost(lost.clone()) {
                    let line = lost.map_or_else(
                        || "every source is followed".to_owned(),
                        |lost| format!("{lost}; the last state stays in force"),
                    );
                    // One that does not read misses a line that it would only show.
                    if let Err(error) = readiness::notify(&Notice::Status(line)) {
                        tracing::debug!("the service manager cannot be told: {error}");
                    }
                }
                if snapshot.local_known {
                    self.local = None;
                }
                if *handle.ready.borrow_and_update() {
                    self.first_apply = None;
                }
                let last = snapshot.last_apply.as_ref();
                if let Some(last) = last.filter(|last| Some(last.at) != applied) {
                    applied = Some(last.at);
                    metrics.applied(
                        last.took,
                        if last.whole {
                            ApplyResult::Ok
                        } else {
                            ApplyResult::Partial
                        },
                    );
                }
                let changed = tokio::select! {
                    changed = handle.snapshots.changed() => changed,
                    changed = handle.ready.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
            }
        };
        tokio::join!(ready, follow);
    }
}

/// What is lost of a source, and since when.
fn lost(source: &str, kinds: &BTreeMap<Kind, KindState>) -> Option<String> {
    let lost = kinds
        .iter()
        .filter_map(|(kind, state)| Some((kind.name(), state.stale.as_ref()?.0)));
    let (names, since): (Vec<&str>, Vec<SystemTime>) = lost.unzip();
    let since = Time::from(since.into_iter().min()?);
    let which = if names.len() == kinds.len() {
        String::new()
    } else {
        format!(" ({})", names.join(", "))
    };
    Some(format!("{source}, lost since {since}{which}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn readiness_says_what_is_lost_and_since_when() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let stale = |since: Option<u64>| KindState {
            synced: true,
            stale: since.map(|since| (at(since), "why".to_owned())),
        };
        let mut kinds = BTreeMap::from([(Kind::Pod, stale(None)), (Kind::Service, stale(None))]);
        assert_eq!(lost("kubernetes", &kinds), None);
        kinds.insert(Kind::Service, stale(Some(60)));
        assert_eq!(
            lost("kubernetes", &kinds).unwrap(),
            "kubernetes, lost since 1970-01-01T00:01:00.000Z (Service)"
        );
        kinds.insert(Kind::Pod, stale(Some(59)));
        assert_eq!(
            lost("kubernetes", &kinds).unwrap(),
            "kubernetes, lost since 1970-01-01T00:00:59.000Z"
        );
    }

    /// Waits until readiness waits for this alone. What follows snapshots runs whenever this one gives way.
    async fn until_missing(readiness: &Readiness, what: &[&str]) {
        for _ in 0..1_000 {
            if readiness.missing() == what {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{:?}, not {what:?}", readiness.missing());
    }

    #[tokio::test]
    async fn a_source_that_is_lost_ends_readiness_until_it_is_back() {
        let snapshot = |stale: Option<u64>| {
            let since = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let state = KindState {
                synced: true,
                stale: stale.map(|seconds| (since(seconds), "why".to_owned())),
            };
            Arc::new(Snapshot {
                kinds: BTreeMap::from([
                    (Kind::Pod, state),
                    (
                        Kind::Node,
                        KindState {
                            synced: true,
                            stale: None,
                        },
                    ),
                ]),
                local_known: true,
                ..Snapshot::default()
            })
        };
        let (snapshots, seen) = watch::channel(snapshot(None));
        let (_applied, applied_seen) = watch::channel(true);
        let readiness = Readiness::default();
        let awaited = Awaited::new(&readiness, "kubernetes", &[Kind::Pod, Kind::Node]);
        let handle = Handle::showing(seen, applied_seen);
        let follow = awaited.follow(handle, readiness.clone(), Arc::default());
        let task = tokio::spawn(follow);
        until_missing(&readiness, &[]).await;
        snapshots.send_replace(snapshot(Some(60)));
        until_missing(
            &readiness,
            &["kubernetes, lost since 1970-01-01T00:01:00.000Z (Pod)"],
        )
        .await;
        snapshots.send_replace(snapshot(None));
        until_missing(&readiness, &[]).await;
        task.abort();
    }
}
