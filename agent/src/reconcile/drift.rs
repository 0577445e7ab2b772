//! Looking after what is there: whether programs, pins and the contents of maps still are what was made of them.
//!
//! A pass begins on a timer, or when netlink tells that something of ours was touched: first what is attached and pinned, then the maps, a
//! slice at a time between the loop's other work. Whatever somebody else changed is set back to what the agent last wrote.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{RETRY_FIRST, Reconciler};
use crate::datapath::Write;
use crate::datapath::drift::{Part, Repair};
use crate::datapath::readback::Walk;
use crate::desired::Delta;
use crate::plan::apply;
use crate::problem::Problem;

/// Time from the end of one pass to the beginning of the next. A minute bounds how long something that no event tells of (a link that was
/// detached, an element that was deleted) stays broken; a pass over a big node's maps costs a few tenths of a second of CPU.
pub const INTERVAL: Duration = Duration::from_mins(1);
/// Elements of a map that are looked at in one go: two system calls each at most, about a millisecond in all, which a change may have to wait.
const SLICE: usize = 1_024;
/// Between two slices, so that a pass takes a small part of one CPU.
const PAUSE: Duration = Duration::from_millis(10);

/// What the checks have found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DriftState {
    /// When the last pass ended; None before the first.
    pub checked: Option<SystemTime>,
    /// What was mended since the start, by part.
    pub repaired: BTreeMap<Part, u64>,
    /// The last mend: when, and what.
    pub last: Option<(SystemTime, String)>,
}

/// Why a check is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// The time has come, for a pass or for its next slice.
    Time,
    /// Something was touched.
    Touched,
}

/// Where the checks stand.
pub(super) struct Drift {
    interval: Duration,
    at: Instant,
    touched: Arc<Notify>,
    walk: Option<Walk>,
    pub(super) state: DriftState,
    /// What could not be mended.
    pub(super) problems: Vec<Problem>,
}

impl Drift {
    pub(super) fn new() -> Self {
        Self {
            interval: INTERVAL,
            at: Instant::now() + INTERVAL,
            touched: Arc::default(),
            walk: None,
            state: DriftState::default(),
            problems: Vec::new(),
        }
    }

    /// Wakes the loop to a check at once.
    pub(super) fn touch(&self) -> Arc<Notify> {
        Arc::clone(&self.touched)
    }

    /// Waits until a check is due. Cancel-safe.
    pub(super) async fn due(&self) -> Due {
        tokio::select! {
            () = tokio::time::sleep_until(self.at) => Due::Time,
            () = self.touched.notified() => Due::Touched,
        }
    }

    fn note(&mut self, repair: Repair) {
        tracing::warn!(part = repair.part.name(), "mended: {}", repair.what);
        *self.state.repaired.entry(repair.part).or_default() += 1;
        self.state.last = Some((SystemTime::now(), repair.what));
    }
}

impl Reconciler {
    /// The same with another time between two checks.
    #[must_use]
    pub fn with_drift_interval(mut self, interval: Duration) -> Self {
        self.drift.interval = interval;
        self.drift.at = Instant::now() + interval;
        self
    }

    /// Takes note of what attaching mended.
    pub(super) fn note_mended(&mut self) {
        for repair in self.attach.mended() {
            self.drift.note(repair);
            self.dirty_snapshot = true;
        }
    }

    /// Checks what is due.
    pub(super) fn check(&mut self, due: Due) {
        // Before the first apply there is nothing to look after.
        if !self.attached || crate::mutant::removed("no-drift-check") {
            self.drift.at = Instant::now() + self.drift.interval;
            return;
        }
        if due == Due::Touched || self.drift.walk.is_none() {
            self.drift.problems = self.attach.check();
            self.note_mended();
            // What cannot be attached is told and tried again by the loop.
            if let Err(error) = self.attach() {
                tracing::warn!("cannot attach: {error}");
            }
            self.dirty_snapshot = true;
        }
        if due == Due::Time {
            self.step();
        }
        if !self.unattached.is_empty() {
            self.try_again();
        }
    }

    /// Has the loop try again what could not be done, if it does not already.
    fn try_again(&mut self) {
        let wait = *self.retry.get_or_insert(RETRY_FIRST);
        self.retry_at.get_or_insert(Instant::now() + wait);
    }

    /// The next slice of the maps.
    fn step(&mut self) {
        let mut walk = self.drift.walk.take().unwrap_or_default();
        let wrong = match &self.planner {
            Some(planner) => walk.step(planner.contents(), self.datapath.as_ref(), SLICE),
            None => Ok(None),
        };
        match wrong {
            Ok(Some(wrong)) => {
                self.mend(&wrong);
                self.drift.walk = Some(walk);
                self.drift.at = Instant::now() + PAUSE;
            }
            Ok(None) => {
                self.drift.state.checked = Some(SystemTime::now());
                self.drift.at = Instant::now() + self.drift.interval;
                self.dirty_snapshot = true;
            }
            Err(error) => {
                let reason = format!("{error}; it is looked at again with the next check");
                self.drift
                    .problems
                    .push(Problem::new("checking the maps", reason));
                self.drift.walk = Some(walk);
                self.drift.at = Instant::now() + PAUSE;
                self.dirty_snapshot = true;
            }
        }
    }

    /// Sets elements back to what was last written there. Where flows are judged by them, every flow is judged again.
    fn mend(&mut self, wrong: &[(Write, bool)]) {
        let mut judged = false;
        for (write, judges) in wrong {
            let (map, _) = write.map();
            match self.datapath.write(write) {
                Ok(()) => {
                    judged |= judges;
                    let what = format!("map {map}: {} was not as written", key(write));
                    let part = Part::Map;
                    self.drift.note(Repair { part, what });
                }
                Err(error) => {
                    let object = format!("map {map}, {}", key(write));
                    let reason =
                        format!("it was changed by somebody else, and cannot be set back: {error}");
                    self.drift.problems.push(Problem::new(object, reason));
                }
            }
            self.dirty_snapshot = true;
            self.state = None;
        }
        if judged
            && !crate::mutant::removed("no-rejudge")
            && let Some(planner) = &mut self.planner
        {
            planner.rejudge();
            let plan = planner.plan(&Delta::default());
            let applied = apply(planner, plan, self.datapath.as_mut());
            self.counts.writes += applied.writes;
            if !applied.problems.is_empty() {
                self.try_again();
            }
        }
    }
}

/// The element of a write, for people.
fn key(write: &Write) -> String {
    match write {
        Write::Service(key, _) => {
            format!("{} port {}", key.address, u16::from_be(key.port_be))
        }
        Write::Address(address, _) => address.to_string(),
        Write::Prefix(prefix, _) => crate::dump::prefix(prefix).to_string(),
        Write::Rule(key, _) => format!(
            "a rule of set {} and group {}",
            key.data.set, key.data.group
        ),
        Write::Link(ifindex, _) => format!("interface {ifindex}"),
        Write::Config(_) => "the switches".to_owned(),
        Write::Backend(index, _)
        | Write::BackendWord(index, _)
        | Write::Slot(index, _)
        | Write::Head(index, _)
        | Write::Group(index, _)
        | Write::Pod(index, _)
        | Write::PodSet(index, ..)
        | Write::PodFacts(index, _)
        | Write::Epoch(index, _) => format!("element {index}"),
    }
}
