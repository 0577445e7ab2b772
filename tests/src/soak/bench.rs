//! The judges' bench: connections wait here until all that may excuse them is known, are judged, and what is wrong is told
//! so that the cause can be found from the output alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cast::Shared;
use super::evidence::entries;
use super::explain::explain;
use super::flow::{Done, Kind};
use super::history::{GRACE, History};
use super::judge::{Judgement, judge};
use super::tally::Tally;
use crate::lab::agent::sluice_binary;
use crate::lab::lock;
use crate::lab::pinned::Pinned;
use crate::lab::traffic::Outcome;

/// From a connection's end to its judgement: the second after it, and some more for what is noted by other threads.
const DELAY: Duration = GRACE.saturating_add(Duration::from_millis(500));
/// Between two rounds.
const ROUND: Duration = Duration::from_millis(100);
/// How long a server's record of a token is kept.
const REMEMBERED: Duration = Duration::from_secs(20);
/// Failures that are told in full, one of a client and its target; with one more the run is given up.
const TOLD: usize = 12;
/// States that a failure tells of.
const STATES_TOLD: usize = 25;
/// So far back a failure tells of its ends.
const PAST: Duration = Duration::from_secs(20);
/// Events that are looked through, and those that are told.
const EVENTS: (&str, usize) = ("400", 8);

/// Clients and targets whose failure was told.
type Told = HashSet<(String, SocketAddr)>;

/// A node's agent, as it is asked when something is wrong.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The node's name.
    pub(super) name: String,
    /// The agent's socket.
    pub(super) socket: PathBuf,
    /// Its maps.
    pub(super) pinned: Pinned,
}

/// The bench.
#[derive(Debug)]
pub(super) struct Bench {
    /// What was in force when.
    pub(super) history: Arc<Mutex<History>>,
    /// Servers whose records are read.
    pub(super) cast: Shared,
    /// Both agents.
    pub(super) agents: [Asked; 2],
    /// The run's begin.
    pub(super) zero: Instant,
    /// Set when the run is given up.
    pub(super) stop: Arc<AtomicBool>,
}

impl Bench {
    /// Judges until nobody tells of connections any more.
    pub(super) fn sit(&self, done: &Receiver<Done>) -> Tally {
        let mut tally = Tally::default();
        let mut waiting: VecDeque<Done> = VecDeque::new();
        let mut seen: HashMap<String, Instant> = HashMap::new();
        let mut told = Told::new();
        let mut open = true;
        while open || !waiting.is_empty() {
            let round = Instant::now() + ROUND;
            loop {
                match done.recv_timeout(round.saturating_duration_since(Instant::now())) {
                    Ok(done) => waiting.push_back(done),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        open = false;
                        std::thread::sleep(round.saturating_duration_since(Instant::now()));
                        break;
                    }
                }
            }
            self.read_records(&mut seen);
            while waiting
                .front()
                .is_some_and(|done| done.ended.elapsed() >= DELAY)
            {
                let Some(done) = waiting.pop_front() else {
                    break;
                };
                let judgement = {
                    let history = lock(&self.history);
                    judge(&history, &done, seen.contains_key(&done.token))
                };
                tally.note(&judgement);
                match &judgement {
                    Judgement::Right { .. } | Judgement::Excused => {}
                    Judgement::Wrong(why) => self.tell("WRONG", &done, why, &mut told),
                    Judgement::Lost(why) => self.tell("LOST", &done, why, &mut told),
                    Judgement::Reset(why) => self.tell("RESET", &done, why, &mut told),
                }
            }
        }
        tally.dropped = self
            .drops()
            .iter()
            .flatten()
            .map(|(_, packets)| packets)
            .sum();
        tally
    }

    fn read_records(&self, seen: &mut HashMap<String, Instant>) {
        let servers: Vec<_> = lock(&self.cast)
            .iter()
            .map(|(_, server)| Arc::clone(server))
            .collect();
        let now = Instant::now();
        for entry in servers.iter().flat_map(|server| server.take_seen()) {
            if let Some(token) = entry.token {
                seen.insert(token, now);
            }
        }
        seen.retain(|_, at| now.duration_since(*at) < REMEMBERED);
    }

    fn drops(&self) -> [Vec<(&'static str, u64)>; 2] {
        [0, 1].map(|node| self.agents[node].pinned.all_drops().unwrap_or_default())
    }

    fn tell(&self, what: &str, done: &Done, why: &str, told: &mut Told) {
        let pair = (done.flow.client.name.to_string(), done.flow.to);
        if !told.insert(pair) {
            return;
        }
        if told.len() > TOLD {
            if !self.stop.swap(true, Ordering::Relaxed) {
                println!("more than {TOLD} different failures: the run is given up");
            }
            return;
        }
        let at = |time: Instant| time.saturating_duration_since(self.zero).as_secs_f64();
        let mut lines = vec![format!(
            "{what} {:.3} s to {:.3} s, {} ({}): {}; {why}",
            at(done.began),
            at(done.ended),
            done.flow,
            done.token,
            done.outcome
        )];
        let mut since = done.began.checked_sub(PAST).unwrap_or(done.began);
        let mut ends = vec![done.flow.client.name.to_string()];
        if let Kind::Round {
            backend,
            server,
            opened,
        } = &done.kind
        {
            let at = at(*opened);
            lines.push(format!(
                "in a connection with {server} ({backend}), opened {at:.3} s"
            ));
            since = opened.checked_sub(GRACE).unwrap_or(*opened);
            ends.push(server.clone());
        } else if let Outcome::Answered { by, .. } = &done.outcome {
            ends.push(by.clone());
        }
        let behind = lock(&self.history).current().and_then(|state| {
            let plugged = state.links.get(&done.flow.to.ip())?;
            Some(plugged.server.to_string())
        });
        ends.extend(behind);
        let from = done.began.checked_sub(GRACE).unwrap_or(done.began);
        {
            let history = lock(&self.history);
            lines.push(format!(
                "what became of {} since {:.3} s:",
                ends.join(" and "),
                at(since)
            ));
            for (state, text) in history.tell(self.zero, since, done.ended) {
                if ends.iter().any(|end| speaks_of(&state.what, end)) {
                    lines.push(format!("  {text}"));
                }
            }
            for (node, asked) in self.agents.iter().enumerate() {
                let outages = history.tell_outages(node, self.zero, since);
                lines.push(format!("  agent {}: {outages:?}", asked.name));
            }
            let states = history.tell(self.zero, from, done.ended + GRACE);
            let first = states.len().saturating_sub(STATES_TOLD);
            let mut before = Vec::new();
            for (state, text) in &states[first..] {
                lines.push(text.clone());
                let says = explain(state, done);
                // What a state says is told where it differs from the one before.
                if says != before {
                    lines.extend(says.iter().cloned());
                    before = says;
                }
            }
        }
        for (asked, drops) in self.agents.iter().zip(self.drops()) {
            lines.push(format!("drops on {}: {drops:?}", asked.name));
            lines.extend(self.events(asked, done));
            lines.extend(entries(asked, done));
        }
        println!("{}", lines.join("\n    "));
    }

    /// The last events of an agent that speak of the client.
    fn events(&self, asked: &Asked, done: &Done) -> Vec<String> {
        let Ok(binary) = sluice_binary() else {
            return Vec::new();
        };
        let output = Command::new(binary)
            .arg("--socket")
            .arg(&asked.socket)
            .args(["flows", "--last", EVENTS.0, "-o", "json"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let source = done.flow.source().to_string();
        let list = output
            .ok()
            .and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok())
            .unwrap_or_default();
        let all = list["flows"].as_array().cloned().unwrap_or_default();
        let ours = |flow: &&Value| {
            flow["source"]["address"] == *source || flow["destination"]["address"] == *source
        };
        let mut last: Vec<String> = all
            .iter()
            .filter(ours)
            .rev()
            .take(EVENTS.1)
            .map(|flow| format!("  event on {}: {}", asked.name, brief(flow)))
            .collect();
        last.reverse();
        last
    }
}

/// Whether a change is one of the pod that a server or client is in (`p3.7`: made the seventh time, as `p3-N`).
fn speaks_of(change: &str, end: &str) -> bool {
    let pod = end.split('.').next().unwrap_or(end);
    [format!("{pod}."), format!("{pod}-")]
        .iter()
        .any(|name| change.contains(&format!("/{name}")) || change.contains(&format!(" {name}")))
}

/// An event in one line that people read.
fn brief(flow: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let end = |end: &Value| {
        format!(
            "{} ({}) {}",
            text(&end["address"]),
            text(&end["name"]),
            end["port"]
        )
    };
    format!(
        "{} {} {} {}: {} -> {}, backend {}, on {}; egress {}, ingress {}",
        text(&flow["time"]),
        text(&flow["hook"]),
        text(&flow["kind"]),
        text(&flow["reason"]),
        end(&flow["source"]),
        end(&flow["destination"]),
        end(&flow["backend"]),
        text(&flow["interface"]),
        flow["egress"]["policies"],
        flow["ingress"]["policies"],
    )
}
