//! The loop: events in, writes out. It owns the cluster, and is the only one that writes to the datapath.
//!
//! Nothing is applied before every kind that the sources tell of has been told whole once, and the node's own state is
//! known: the first apply is a diff against what the maps hold, and whatever it does not know goes.

mod drift;
mod enter;
mod handle;
mod intake;
mod news;
mod objects;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use crate::compile::{Compiled, Compiler, RuleName};
use crate::datapath::drift::Repair;
use crate::datapath::{Contents, Datapath, DatapathError, heap};
use crate::desired::{Delta, Desired};
use crate::local::Local;
use crate::model::{Change, Cluster, Kind, Text};
use crate::plan::{Applied, Planner, apply};
use crate::problem::Problem;
use crate::source::{Event, Rejected};

use drift::Drift;
pub use drift::{DriftState, INTERVAL as DRIFT_INTERVAL};
pub use handle::Handle;
pub use snapshot::{Counts, KindState, LastApply, Snapshot, State};

/// From changes of the cluster and the node to changes of the desired state: pure, without I/O or clock.
pub trait Compile: Send {
    /// Takes changes in. The first call gets a cluster that is whole, and changes that name every object.
    fn update(
        &mut self,
        cluster: &Cluster,
        local: &Local,
        changes: &[Change],
        local_changed: bool,
    ) -> Compiled;

    /// Before an update: whether the plan could not do all of what it was told, see [`Compiler::hold`].
    fn hold(&mut self, hold: bool);

    /// Before the first update: what the maps hold, so that numbers mean what they meant.
    fn adopt(&mut self, contents: &Contents);

    /// What the numbers of verdicts stand for.
    fn rules(&self) -> BTreeMap<u32, RuleName>;
}

impl Compile for Compiler {
    fn update(
        &mut self,
        cluster: &Cluster,
        local: &Local,
        changes: &[Change],
        local_changed: bool,
    ) -> Compiled {
        Self::update(self, cluster, local, changes, local_changed)
    }

    fn hold(&mut self, hold: bool) {
        Self::hold(self, hold);
    }

    fn adopt(&mut self, contents: &Contents) {
        Self::adopt(self, contents.clone());
    }

    fn rules(&self) -> BTreeMap<u32, RuleName> {
        let names = self.rule_names().iter();
        names.map(|(number, name)| (number, name.clone())).collect()
    }
}

/// First wait after a write that failed.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Plans that follow one at once, at most: one goes on from a stage, or with what became free, and others for pods that wait for one another's
/// sets; what needs more is tried again after a while, like what fails.
const GO_ON: u32 = 3;
/// Longest wait.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Events taken in before an apply: a source that never pauses must not hold the datapath back.
const BATCH: usize = 4_096;
/// An apply of so many writes takes a second, and leaves memory behind that nothing uses for long: giving it back takes some milliseconds.
const LARGE: u64 = 100_000;
/// Requests that may wait for the loop.
const REQUESTS: usize = 16;

/// Why the loop ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// What the maps hold cannot be read.
    #[error(
        "cannot read the maps back, so nothing was changed: {0}; check the pins or run `sluice cleanup`"
    )]
    Contents(#[source] DatapathError),
    /// The hook of the first apply failed.
    #[error("cannot attach the programs: {0}")]
    Attach(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Puts the programs where the node's links are: after the first apply, before readiness, and after each apply that followed a change of
/// the node's own state. A link is served only when the maps know it.
pub trait Attach: Send {
    /// Attaches what is missing and removes what is too many. What could not be done comes back as problems, and is tried again.
    ///
    /// # Errors
    /// Nothing can be attached at all. The first time, the agent ends with it.
    fn attach(
        &mut self,
        local: &Local,
    ) -> Result<Vec<Problem>, Box<dyn std::error::Error + Send + Sync>>;

    /// Looks whether everything else that was made is still there (pins, slots of programs, the cgroup), and mends it. What
    /// could not be mended.
    fn check(&mut self) -> Vec<Problem> {
        Vec::new()
    }

    /// What was mended since the last call, by either.
    fn mended(&mut self) -> Vec<Repair> {
        Vec::new()
    }
}

/// The loop's parts.
pub struct Reconciler {
    compile: Box<dyn Compile>,
    datapath: Box<dyn Datapath>,
    attach: Box<dyn Attach>,
    attached: bool,
    /// What attaching could not do.
    unattached: Vec<Problem>,
    /// Problems as last published.
    told: BTreeSet<Problem>,
    node: Text,
    cluster: Cluster,
    local: Local,
    local_known: bool,
    changes: Vec<Change>,
    local_changed: bool,
    /// Compiled before the first apply, and held.
    planner: Option<Planner>,
    kinds: BTreeMap<Kind, KindState>,
    rejected: BTreeMap<String, Rejected>,
    source_notices: BTreeMap<String, Rejected>,
    compiled: Compiled,
    counts: Counts,
    last_apply: Option<LastApply>,
    dirty_snapshot: bool,
    retry: Option<Duration>,
    retry_at: Option<tokio::time::Instant>,
    drift: Drift,
    state: Option<Arc<State>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    ready: watch::Sender<bool>,
    requests: mpsc::Receiver<oneshot::Sender<Arc<State>>>,
}

impl Reconciler {
    /// A loop over a datapath, waiting for these kinds. `attach` runs after the first apply; `node` is this node's name.
    pub fn new(
        compile: Box<dyn Compile>,
        datapath: Box<dyn Datapath>,
        kinds: &[Kind],
        attach: Box<dyn Attach>,
        node: Text,
    ) -> (Self, Handle) {
        let (snapshots, snapshots_seen) = watch::channel(Arc::default());
        let (ready, ready_seen) = watch::channel(false);
        let (request, requests) = mpsc::channel(REQUESTS);
        let reconciler = Self {
            compile,
            datapath,
            attach,
            attached: false,
            unattached: Vec::new(),
            told: BTreeSet::new(),
            node,
            cluster: Cluster::default(),
            local: Local::default(),
            local_known: false,
            changes: Vec::new(),
            local_changed: false,
            planner: None,
            kinds: kinds.iter().map(|k| (*k, KindState::default())).collect(),
            rejected: BTreeMap::new(),
            source_notices: BTreeMap::new(),
            compiled: Compiled::default(),
            counts: Counts::default(),
            last_apply: None,
            dirty_snapshot: true,
            retry: None,
            retry_at: None,
            drift: Drift::new(),
            state: None,
            snapshots,
            ready,
            requests,
        };
        let handle = Handle {
            snapshots: snapshots_seen,
            ready: ready_seen,
            requests: request,
            touched: reconciler.drift.touch(),
        };
        (reconciler, handle)
    }

    /// Runs until the sources' channel is closed. Writes block: give it a thread with a current-thread runtime of its own.
    ///
    /// `local` holds None until the node's state is known.
    ///
    /// # Errors
    /// The maps cannot be read at the start, or the programs cannot be attached.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut local: watch::Receiver<Option<Arc<Local>>>,
    ) -> Result<(), ReconcileError> {
        self.take_local(&local.borrow_and_update().clone());
        let (mut local_open, mut requests_open) = (true, true);
        self.publish();
        loop {
            let retry = async {
                match self.retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let (mut retried, mut due) = (false, None);
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => return Ok(()),
                },
                changed = local.changed(), if local_open => {
                    local_open = changed.is_ok();
                    let now = local.borrow_and_update().clone();
                    self.take_local(&now);
                }
                request = self.requests.recv(), if requests_open => match request {
                    Some(answer) => self.answer(answer),
                    None => requests_open = false,
                },
                () = retry => retried = true,
                now = self.drift.due() => due = Some(now),
            }
            // What is queued already belongs to the same apply.
            for _ in 0..BATCH {
                match events.try_recv() {
                    Ok(event) => self.take(event),
                    Err(_) => break,
                }
            }
            if local.has_changed().unwrap_or(false) {
                let now = local.borrow_and_update().clone();
                self.take_local(&now);
            }
            self.reconcile(retried)?;
            if let Some(due) = due {
                self.check(due);
            }
            self.publish();
        }
    }

    fn reconcile(&mut self, retried: bool) -> Result<(), ReconcileError> {
        if !self.complete() {
            return Ok(());
        }
        let first = self.planner.is_none();
        let unfinished = self.planner.as_ref().is_some_and(Planner::unfinished);
        let due = self.compiled.unfinished && self.retry.is_none();
        let changed = !self.changes.is_empty() || self.local_changed || due;
        let unattached = !self.unattached.is_empty();
        if !(first || changed || (retried && (unfinished || unattached))) {
            return Ok(());
        }
        let started = Instant::now();
        let changes = std::mem::take(&mut self.changes);
        let local_changed = std::mem::take(&mut self.local_changed);
        let contents = if first {
            let contents = self.datapath.contents().map_err(ReconcileError::Contents)?;
            self.compile.adopt(&contents);
            Some(contents)
        } else {
            None
        };
        if first || changed {
            self.counts.changes += changes.len() as u64;
            self.compile.hold(unfinished);
            self.compiled =
                self.compile
                    .update(&self.cluster, &self.local, &changes, local_changed);
        }
        let mut delta = std::mem::take(&mut self.compiled.delta);
        let entering = self.hold_links(&mut delta, contents.as_ref());
        let datapath = self.datapath.as_mut();
        let (planner, mut applied) = match (&mut self.planner, contents) {
            (Some(planner), _) => {
                let plan = planner.plan(&delta);
                let applied = apply(planner, plan, datapath);
                (planner, applied)
            }
            (None, contents) => {
                let desired = Desired::from(delta);
                let (mut planner, plan) = Planner::restore(contents.unwrap_or_default(), desired);
                let applied = apply(&mut planner, plan, datapath);
                (self.planner.insert(planner), applied)
            }
        };
        // Where something became free, what did not fit may fit now; and where peers pass through a stage, they go on.
        for round in 0..GO_ON {
            let again = planner.staged() || (round == 0 && applied.freed);
            if !(again && planner.unfinished()) {
                break;
            }
            let plan = planner.plan(&Delta::default());
            add(&mut applied, apply(planner, plan, datapath));
        }
        if !self.attached || local_changed || (retried && unattached) {
            self.attach()?;
        }
        self.enter_links(&entering, &mut applied);
        let unfinished = self.planner.as_ref().is_some_and(Planner::unfinished);
        self.retry = if applied.problems.is_empty() && self.unattached.is_empty() && !unfinished {
            None
        } else if retried {
            self.retry.map(|wait| (wait * 2).min(RETRY_MOST))
        } else {
            Some(self.retry.unwrap_or(RETRY_FIRST))
        };
        self.retry_at = self
            .retry
            .filter(|_| !crate::mutant::removed("no-retry"))
            .map(|wait| tokio::time::Instant::now() + wait);
        self.counts.writes += applied.writes;
        self.counts.applies += 1;
        self.last_apply = Some(LastApply {
            at: SystemTime::now(),
            took: started.elapsed(),
            writes: applied.writes,
            whole: applied.problems.is_empty()
                && self.compiled.problems.iter().all(|p| p.limit.is_none()),
        });
        self.state = None;
        self.dirty_snapshot = true;
        // What did not go through is tried again first: until then something may still point to what is to be removed.
        if self.compiled.unfinished && self.retry.is_none() {
            self.reconcile(false)?;
        }
        if first || applied.writes >= LARGE {
            drop(changes);
            heap::give_back();
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<(), ReconcileError> {
        match self.attach.attach(&self.local) {
            Ok(problems) => {
                self.unattached = problems;
            }
            Err(error) if !self.attached => return Err(ReconcileError::Attach(error)),
            Err(error) => {
                let problem = Problem::new("programs", format!("cannot be attached: {error}"));
                self.unattached = vec![problem];
            }
        }
        self.attached = true;
        self.note_mended();
        self.ready.send_replace(true);
        Ok(())
    }
}

fn add(applied: &mut Applied, more: Applied) {
    applied.writes += more.writes;
    applied.problems = more.problems;
}
