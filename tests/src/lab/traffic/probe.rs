//! Many attempts at once from many namespaces: a table of who reaches whom.
//!
//! One thread makes every socket (it enters one namespace after the other; a socket stays where it was made) and waits
//! for all of them together, so a matrix of hundreds takes little longer than its slowest answer, or one silence.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::attempt::Attempt;
use super::ready::Ready;
use super::{Outcome, Proto};
use crate::lab::netns::Netns;

/// How long silence must last before it counts as an answer.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Probes still open time out when none of them all has moved for this long. Counted from the last event of any
    /// probe, so that a busy machine stretches it.
    pub quiet: Duration,
    /// Probes still open time out this long after the last was started, whatever happens; later where the machine is emulated.
    pub at_most: Duration,
}

impl Patience {
    /// For matrices with denied probes: short, but a matrix that still gets answers waits on.
    pub const MATRIX: Self = Self {
        quiet: Duration::from_millis(120),
        at_most: Duration::from_secs(5),
    };

    /// A fixed deadline.
    pub const fn deadline(deadline: Duration) -> Self {
        Self {
            quiet: deadline,
            at_most: deadline,
        }
    }
}

/// One attempt to make.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Where the client is.
    pub from: Arc<Netns>,
    /// Whom it asks.
    pub to: SocketAddr,
    /// How.
    pub proto: Proto,
    /// The client's own address and port (0: any), where it matters.
    pub source: Option<SocketAddr>,
    /// What it says; servers record it. No blanks, at most a few dozen bytes.
    pub token: String,
}

impl Probe {
    /// A probe with a token that says where it comes from.
    pub fn new(from: &Arc<Netns>, proto: Proto, to: SocketAddr) -> Self {
        Self {
            from: Arc::clone(from),
            to,
            proto,
            source: None,
            token: format!("probe@{}", from.name()),
        }
    }

    /// The same with another token.
    #[must_use]
    pub fn saying(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// The same from this source address and port.
    #[must_use]
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.from.name(), self.proto, self.to)
    }
}

/// Makes all probes at once; the outcomes stand in the order of the probes.
///
/// # Errors
/// The lab failed: a namespace could not be entered, a thread not started. What happened to a probe is its outcome.
pub fn run(probes: &[Probe], patience: Patience) -> Result<Vec<Outcome>> {
    on_own_thread(|| {
        let mut round = Round::new(probes.len())?;
        let mut at: Option<&Arc<Netns>> = None;
        for (key, probe) in probes.iter().enumerate() {
            if !at.is_some_and(|netns| Arc::ptr_eq(netns, &probe.from)) {
                probe.from.enter()?;
                at = Some(&probe.from);
                // Answers are read while others are still being asked, so that latencies stay true.
                round.collect(Some(Instant::now()))?;
            }
            round.start(key, probe)?;
        }
        round.finish(patience)
    })
}

/// One attempt from the calling thread's own namespace, for processes that are already where they ask from.
///
/// # Errors
/// As [`run`].
pub fn run_here(proto: Proto, to: SocketAddr, token: &str, deadline: Duration) -> Result<Outcome> {
    let mut round = Round::new(1)?;
    round.open(0, Attempt::start(proto, to, None, token))?;
    round
        .finish(Patience::deadline(deadline))?
        .pop()
        .context("one probe was asked for")
}

/// One TCP attempt with a deadline.
///
/// # Errors
/// As [`run`].
pub fn connect(from: &Arc<Netns>, to: SocketAddr, deadline: Duration) -> Result<Outcome> {
    one(Probe::new(from, Proto::Tcp, to), deadline)
}

/// One UDP attempt with a deadline.
///
/// # Errors
/// As [`run`].
pub fn ask_udp(from: &Arc<Netns>, to: SocketAddr, deadline: Duration) -> Result<Outcome> {
    one(Probe::new(from, Proto::Udp, to), deadline)
}

fn one(probe: Probe, deadline: Duration) -> Result<Outcome> {
    run(&[probe], Patience::deadline(deadline))?
        .pop()
        .context("one probe was asked for")
}

/// The caller's thread keeps its namespace.
fn on_own_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        match thread::Builder::new()
            .name("probes".to_owned())
            .spawn_scoped(scope, f)?
            .join()
        {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Probes under way.
struct Round {
    ready: Ready,
    open: Vec<Option<Attempt>>,
    outcomes: Vec<Option<Outcome>>,
    left: usize,
}

impl Round {
    fn new(probes: usize) -> Result<Self> {
        let none = || std::iter::repeat_with(|| None).take(probes).collect();
        Ok(Self {
            ready: Ready::new()?,
            open: none(),
            outcomes: vec![None; probes],
            left: 0,
        })
    }

    fn start(&mut self, key: usize, probe: &Probe) -> Result<()> {
        self.open(
            key,
            Attempt::start(probe.proto, probe.to, probe.source, &probe.token),
        )
    }

    fn open(&mut self, key: usize, attempt: Result<Attempt, Outcome>) -> Result<()> {
        match attempt {
            Ok(attempt) => {
                self.ready.add(&attempt, key as u64)?;
                self.open[key] = Some(attempt);
                self.left += 1;
            }
            Err(outcome) => self.outcomes[key] = Some(outcome),
        }
        Ok(())
    }

    /// Takes what is ready, waiting for the first until `end`; answers whether anything moved.
    fn collect(&mut self, end: Option<Instant>) -> Result<bool> {
        let keys = self.ready.wait(end)?;
        let moved = !keys.is_empty();
        for key in keys {
            let key = usize::try_from(key)?;
            let Some(outcome) = self.open[key].as_mut().and_then(Attempt::advance) else {
                continue;
            };
            self.outcomes[key] = Some(outcome);
            self.open[key] = None;
            self.left -= 1;
        }
        Ok(moved)
    }

    fn finish(mut self, patience: Patience) -> Result<Vec<Outcome>> {
        let last = Instant::now() + patience.at_most * crate::lab::patience();
        let mut quiet = Instant::now() + patience.quiet;
        while self.left > 0 && self.collect(Some(quiet.min(last)))? {
            quiet = Instant::now() + patience.quiet;
        }
        // What no event has decided was met with silence.
        Ok(self
            .outcomes
            .into_iter()
            .map(|o| o.unwrap_or(Outcome::TimedOut))
            .collect())
    }
}
