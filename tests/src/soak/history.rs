//! What was written when, when each node's agent was down, and so which states a packet may have met.
//!
//! A state is what one object's write or one link's change makes of the world. It may be in force from the moment at which
//! its write begins. It must be in force, and no earlier one may be, a second after its write ended ([`GRACE`]); for a node
//! whose agent was down at any moment of that time, a second after that agent said that it was ready again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::view::{Links, PolicyView, ServiceView};

/// Within this time after a change either state may answer.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// States that are kept: more than are written while a connection waits to be judged.
const KEPT: usize = 1000;

/// One state of the world.
#[derive(Debug)]
pub(super) struct State {
    /// Its number in the run.
    pub(super) number: u64,
    /// What made it.
    pub(super) what: String,
    /// What policies say.
    pub(super) policy: Arc<PolicyView>,
    /// What services say.
    pub(super) services: Arc<ServiceView>,
    /// Links that are up.
    pub(super) links: Arc<Links>,
    /// Whether the nodes' uplinks are.
    pub(super) uplinks: [bool; 2],
}

#[derive(Debug)]
struct Entry {
    state: Arc<State>,
    begun: Instant,
    ended: Option<Instant>,
}

/// A time without an agent: from, until it was ready again.
type Outage = (Instant, Option<Instant>);

/// The states and the outages of a run.
#[derive(Debug)]
pub(super) struct History {
    entries: VecDeque<Entry>,
    outages: [Vec<Outage>; 2],
    next: u64,
}

impl History {
    /// Begins with a state that is in force.
    pub(super) fn new(state: State) -> Self {
        let now = Instant::now();
        let next = state.number + 1;
        let entry = Entry {
            state: Arc::new(state),
            begun: now - GRACE,
            ended: Some(now - GRACE),
        };
        Self {
            entries: VecDeque::from([entry]),
            outages: [Vec::new(), Vec::new()],
            next,
        }
    }

    /// A state is about to be written; [`History::end`] follows.
    pub(super) fn begin(&mut self, make: impl FnOnce(u64) -> State) {
        let state = Arc::new(make(self.next));
        self.next += 1;
        self.entries.push_back(Entry {
            state,
            begun: Instant::now(),
            ended: None,
        });
        if self.entries.len() > KEPT {
            self.entries.pop_front();
        }
    }

    /// The last state is written.
    pub(super) fn end(&mut self) {
        if let Some(entry) = self.entries.back_mut() {
            entry.ended = Some(Instant::now());
        }
    }

    /// The agent of a node is about to be killed.
    pub(super) fn down(&mut self, node: usize) {
        self.outages[node].push((Instant::now(), None));
    }

    /// The agent of a node is ready again.
    pub(super) fn up(&mut self, node: usize) {
        if let Some((_, until)) = self.outages[node].last_mut() {
            *until = Some(Instant::now());
        }
    }

    /// The last state that was written, or is being.
    pub(super) fn current(&self) -> Option<Arc<State>> {
        self.entries.back().map(|entry| Arc::clone(&entry.state))
    }

    /// The states that a packet on a node may have met from one moment to another, oldest first: one at least.
    pub(super) fn between(&self, node: usize, from: Instant, to: Instant) -> Vec<Arc<State>> {
        let mut met = Vec::new();
        for entry in self.entries.iter().rev() {
            if entry.begun > to {
                continue;
            }
            met.push(Arc::clone(&entry.state));
            if self.in_force_by(entry, node).is_some_and(|by| by <= from) {
                break;
            }
        }
        met.reverse();
        met
    }

    fn in_force_by(&self, entry: &Entry, node: usize) -> Option<Instant> {
        let mut by = entry.ended? + GRACE;
        for (from, until) in &self.outages[node] {
            if until.is_some_and(|until| until <= entry.begun) {
                continue;
            }
            if *from >= by {
                break;
            }
            by = by.max((*until)? + GRACE);
        }
        Some(by)
    }

    /// One line a state that [`History::between`] answers, with its times since `zero`.
    pub(super) fn tell(
        &self,
        zero: Instant,
        from: Instant,
        to: Instant,
    ) -> Vec<(Arc<State>, String)> {
        let first = [0, 1]
            .iter()
            .filter_map(|node| Some(self.between(*node, from, to).first()?.number))
            .min()
            .unwrap_or_default();
        let at = |time: Option<Instant>| match time {
            Some(time) => format!("{:.3}", time.saturating_duration_since(zero).as_secs_f64()),
            None => "not yet".to_owned(),
        };
        let line = |entry: &Entry| {
            let [a, b] = [0, 1].map(|node| at(self.in_force_by(entry, node)));
            let (number, what) = (entry.state.number, &entry.state.what);
            let (begun, ended) = (at(Some(entry.begun)), at(entry.ended));
            let text = format!(
                "state {number}, {what}: written {begun} to {ended} s, in force by {a} s on a, {b} s on b"
            );
            (Arc::clone(&entry.state), text)
        };
        self.entries
            .iter()
            .filter(|entry| entry.state.number >= first && entry.begun <= to)
            .map(line)
            .collect()
    }

    /// The outages of a node that touch this time, since `zero`.
    pub(super) fn tell_outages(&self, node: usize, zero: Instant, from: Instant) -> Vec<String> {
        let at = |time: Instant| time.saturating_duration_since(zero).as_secs_f64();
        self.outages[node]
            .iter()
            .filter(|(_, until)| until.is_none_or(|until| until + GRACE >= from))
            .map(|(down, until)| match until {
                Some(up) => format!("down {:.3} s, ready {:.3} s", at(*down), at(*up)),
                None => format!("down {:.3} s", at(*down)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice::model::Cluster;

    fn state(number: u64) -> State {
        let cluster = Arc::new(Cluster::default());
        let own = [[std::net::Ipv4Addr::LOCALHOST.into(); 2]; 2];
        State {
            number,
            what: String::new(),
            policy: Arc::new(PolicyView::new(Arc::clone(&cluster), &Links::new(), &own)),
            services: Arc::new(ServiceView::new(cluster)),
            links: Arc::default(),
            uplinks: [true; 2],
        }
    }

    /// Three states at 10 s, 20 s and 30 s, and a node that was down from 20.5 s to 25 s.
    fn history(zero: Instant) -> History {
        let at = |millis| zero + Duration::from_millis(millis);
        let entry = |number: u64| Entry {
            state: Arc::new(state(number)),
            begun: at(number * 10_000),
            ended: Some(at(number * 10_000 + 100)),
        };
        History {
            entries: [1, 2, 3].map(entry).into(),
            outages: [vec![(at(20_500), Some(at(25_000)))], Vec::new()],
            next: 4,
        }
    }

    #[test]
    fn either_state_within_a_second_and_the_new_one_after_it() {
        let zero = Instant::now();
        let history = history(zero);
        let numbers = |node, from: u64, to: u64| -> Vec<u64> {
            let at = |millis| zero + Duration::from_millis(millis);
            let states = history.between(node, at(from), at(to));
            states.iter().map(|state| state.number).collect()
        };
        assert_eq!(numbers(1, 15_000, 19_999), [1]);
        assert_eq!(numbers(1, 15_000, 20_000), [1, 2]);
        assert_eq!(numbers(1, 21_099, 22_000), [1, 2]);
        assert_eq!(numbers(1, 21_100, 22_000), [2]);
        assert_eq!(numbers(1, 15_000, 31_000), [1, 2, 3]);
        // Where the agent was down within that second, the second begins with its return.
        assert_eq!(numbers(0, 21_100, 22_000), [1, 2]);
        assert_eq!(numbers(0, 25_999, 25_999), [1, 2]);
        assert_eq!(numbers(0, 26_000, 26_000), [2]);
        // An outage after it changes nothing of what was in force.
        assert_eq!(numbers(0, 15_000, 19_000), [1]);
    }

    #[test]
    fn what_is_being_written_or_waits_for_an_agent_binds_nobody() {
        let zero = Instant::now();
        let mut history = history(zero);
        let at = |millis| zero + Duration::from_millis(millis);
        history.entries[2].ended = None;
        history.outages[1].push((at(20_200), None));
        let last = |node| {
            let states = history.between(node, at(40_000), at(40_000));
            states.iter().map(|state| state.number).collect::<Vec<_>>()
        };
        assert_eq!(last(0), [2, 3]);
        assert_eq!(last(1), [1, 2, 3]);
    }
}
