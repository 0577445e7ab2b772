//! Holds what became of a connection against what the oracle expects.

use std::time::{Duration, Instant};

use super::expect::{Expected, Window};
use super::flow::{Done, Kind};
use super::history::History;
use crate::lab::traffic::{Outcome, Proto};

/// A datagram and its answer take no longer, however busy the machine is.
const DATAGRAM: Duration = Duration::from_millis(1500);

/// What a connection's end means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// As expected; whether nothing else was expected, and whether it was silence.
    Right {
        /// Nothing else could have been right.
        decided: bool,
        /// It met silence, as it must.
        denied: bool,
    },
    /// One of its ends came or went: nothing can be said.
    Excused,
    /// A verdict that no state gives.
    Wrong(String),
    /// Allowed, and never answered.
    Lost(String),
    /// Allowed, and reset or closed.
    Reset(String),
}

/// Judges one connection. `seen` says whether a server has its token in its record.
pub(super) fn judge(history: &History, done: &Done, seen: bool) -> Judgement {
    match &done.kind {
        Kind::Request | Kind::Datagram => {
            // A datagram is sent once: what is in force later decides nothing.
            let ended = match (done.flow.proto, &done.outcome) {
                (Proto::Udp, Outcome::TimedOut) => done.ended.min(done.began + DATAGRAM),
                _ => done.ended,
            };
            let window = Window::new(history, done.began, ended);
            new_connection(&window, done, seen)
        }
        Kind::Round {
            backend, server, ..
        } => round(history, done, *backend, server),
    }
}

fn new_connection(window: &Window, done: &Done, seen: bool) -> Judgement {
    if !window.client_stays(&done.flow) {
        return Judgement::Excused;
    }
    let expected = window.expected(&done.flow, done.kind == Kind::Datagram);
    let tell = |what: &str| format!("{what}; expected: {expected:?}");
    let right = || Judgement::Right {
        decided: expected.is_decided(),
        denied: expected.is_decided() && expected.answers.is_empty(),
    };
    let failed_rightly = match &done.outcome {
        Outcome::Answered { by, peer_seen, .. } => {
            if !expected.answers.contains(by) {
                return Judgement::Wrong(tell(&format!("answered by {by}")));
            }
            let source = done.flow.source();
            // A pod that reaches itself through a service sees the service as its client.
            let hairpin = *by == *done.flow.client.name && peer_seen.ip() == done.flow.to.ip();
            if peer_seen.ip() != source && !hairpin {
                return Judgement::Wrong(tell(&format!("{by} saw {peer_seen} as its client")));
            }
            return right();
        }
        Outcome::TimedOut => expected.silence,
        Outcome::Refused | Outcome::Unreachable | Outcome::Forbidden => expected.refusal,
        Outcome::Reset | Outcome::Closed | Outcome::Broken(_) => false,
    };
    if expected.unstable {
        return Judgement::Excused;
    }
    if failed_rightly {
        if seen && expected.answers.is_empty() && !expected.cut {
            return Judgement::Wrong(tell("no answer, but a server saw it"));
        }
        return right();
    }
    match &done.outcome {
        Outcome::TimedOut | Outcome::Reset | Outcome::Closed if expected.cut => Judgement::Excused,
        Outcome::TimedOut => Judgement::Lost(tell("no answer")),
        Outcome::Reset | Outcome::Closed => Judgement::Reset(tell(done.outcome.word())),
        other => Judgement::Wrong(tell(&other.to_string())),
    }
}

/// A request in a connection that stands. What it said may have been sent again as long as it was open.
fn round(history: &History, done: &Done, backend: std::net::SocketAddr, server: &str) -> Judgement {
    let window = Window::new(history, done.began, done.ended);
    let node = window.stays(backend, server);
    if !window.client_stays(&done.flow) || (node.is_none() && server != super::expect::WORLD) {
        return Judgement::Excused;
    }
    let (pass, denied) = window.judge(&done.flow, backend, node);
    if let Outcome::Answered { by, .. } = &done.outcome {
        return match (by == server, pass) {
            (true, true) => Judgement::Right {
                decided: !denied,
                denied: false,
            },
            (true, false) => Judgement::Wrong(format!("answered by {by}, which no state allows")),
            (false, _) => Judgement::Wrong(format!("{by} answered in a connection of {server}")),
        };
    }
    // Over all that was in force from a second before to a second after.
    let ended = done.ended;
    let before = done
        .began
        .checked_sub(super::history::GRACE)
        .unwrap_or(done.began);
    let wide = Window::wide(
        history,
        done.began,
        ended,
        (before, ended + super::history::GRACE),
    );
    let (_, denied) = wide.judge(&done.flow, backend, node);
    if denied || !wide.joined(&done.flow, node) || !wide.serves(&done.flow, backend) {
        return Judgement::Excused;
    }
    match &done.outcome {
        Outcome::TimedOut => Judgement::Lost("no answer in a connection that stands".to_owned()),
        other => Judgement::Reset(format!("a connection that stands: {other}")),
    }
}

/// Whether a connection that is opened at this moment, which is now, can only be answered.
pub(super) fn must_be_answered(
    history: &History,
    flow: &super::flow::Flow,
    begun: Instant,
) -> bool {
    let expected: Expected = Window::new(history, begun, begun).expected(flow, false);
    !expected.silence && !expected.refusal
}
