//! The open-loop generator: N new connections a second, each asks once, reads the answer and closes. The pace does not
//! yield to slow answers, and nothing is tried again, so one lost SYN is one failure or one counted retransmission.

mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timer::Expiration;
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

pub use self::report::{ConnectReport, Failure};
use super::attempt::Attempt;
use super::counters::Counters;
use super::ready::Ready;
use super::{Outcome, Proto};
use crate::lab::netns::Netns;
use crate::lab::{gently, patience};

/// Failures described in a report; all are counted.
const FAILURES_TOLD: usize = 20;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct ConnectPlan {
    /// Whom to ask.
    pub to: SocketAddr,
    /// TCP: a connection each; UDP: a socket from a fresh port each.
    pub proto: Proto,
    /// New connections a second.
    pub rate: u32,
    /// How long one may take before it counts as timed out.
    pub deadline: Duration,
    /// Ends by itself after this many; none goes on until [`Connects::stop`].
    pub count: Option<u64>,
    /// The CPU for the generator's thread.
    pub cpu: Option<usize>,
}

impl ConnectPlan {
    /// TCP at this rate until stopped. A connection may take five seconds: a SYN that is lost and sent again shows as a
    /// retransmission, not as a failure. An emulated machine has fewer, and they may take longer ([`patience`]).
    pub fn tcp(to: SocketAddr, rate: u32) -> Self {
        Self {
            to,
            proto: Proto::Tcp,
            rate: gently(rate),
            deadline: Duration::from_secs(5) * patience(),
            count: None,
            cpu: None,
        }
    }

    /// The same, ending after `count`.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }
}

/// A running generator. Dropping it stops it without a report.
#[derive(Debug)]
pub struct Connects {
    stop: Arc<EventFd>,
    live: Arc<Live>,
    thread: Option<JoinHandle<Result<ConnectReport>>>,
}

#[derive(Debug, Default)]
struct Live {
    started: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Connects {
    /// Starts generating from a namespace.
    ///
    /// # Errors
    /// The thread or its timer could not be made.
    pub fn start(from: &Arc<Netns>, plan: ConnectPlan) -> Result<Self> {
        let stop = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("eventfd")?,
        );
        let live = Arc::new(Live::default());
        let thread = {
            let (stop, live) = (Arc::clone(&stop), Arc::clone(&live));
            from.thread("connects", plan.cpu, move || {
                Generator::new(plan, live)?.run(&stop)
            })?
        };
        Ok(Self {
            stop,
            live,
            thread: Some(thread),
        })
    }

    /// Connections started, answered and failed so far.
    pub fn so_far(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&self.live.started),
            read(&self.live.answered),
            read(&self.live.failed),
        )
    }

    /// Starts no more connections, waits until those under way are decided, and answers the counts.
    ///
    /// # Errors
    /// The generator itself failed.
    pub fn stop(self) -> Result<ConnectReport> {
        self.stop.write(1).context("telling a generator to stop")?;
        self.wait()
    }

    /// Waits for a generator that ends by itself.
    ///
    /// # Errors
    /// The generator itself failed.
    pub fn wait(mut self) -> Result<ConnectReport> {
        let thread = self
            .thread
            .take()
            .context("a generator is waited for once")?;
        thread
            .join()
            .map_err(|_| anyhow!("a connect generator panicked"))?
    }
}

impl Drop for Connects {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Nobody wants the report.
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

const KEY_TIMER: u64 = u64::MAX;
const KEY_STOP: u64 = u64::MAX - 1;

struct Generator {
    plan: ConnectPlan,
    live: Arc<Live>,
    ready: Ready,
    timer: TimerFd,
    open: BTreeMap<u64, Attempt>,
    began: Instant,
    report: ConnectReport,
}

impl Generator {
    fn new(plan: ConnectPlan, live: Arc<Live>) -> Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        let timer = timer.context("making a timer")?;
        let interval = Duration::from_secs(1)
            .checked_div(plan.rate)
            .context("a rate of no connections a second")?;
        let ready = Ready::new()?;
        ready.add_readable(&timer, KEY_TIMER)?;
        let pace = Expiration::Interval(TimeSpec::from_duration(interval));
        timer
            .set(pace, TimerSetTimeFlags::empty())
            .context("setting a timer")?;
        let (began, report) = (Instant::now(), ConnectReport::default());
        Ok(Self {
            plan,
            live,
            ready,
            timer,
            open: BTreeMap::new(),
            began,
            report,
        })
    }

    fn run(mut self, stop: &EventFd) -> Result<ConnectReport> {
        let before = Counters::read_here()?;
        self.ready.add_readable(stop, KEY_STOP)?;
        let mut stopping = false;
        loop {
            if !stopping
                && self
                    .plan
                    .count
                    .is_some_and(|count| self.report.started >= count)
            {
                stopping = true;
            }
            if stopping && self.open.is_empty() {
                break;
            }
            let oldest = self
                .open
                .first_key_value()
                .map(|(_, attempt)| attempt.started() + self.plan.deadline);
            for key in self.ready.wait(oldest)? {
                match key {
                    KEY_TIMER if stopping => self.drain_timer().map(drop)?,
                    KEY_TIMER => self.start_due()?,
                    KEY_STOP => {
                        stopping = true;
                        // Once is enough: level-triggered, it would be told again and again.
                        let _ = stop.read();
                    }
                    number => self.advance(number),
                }
            }
            self.expire();
        }
        self.report.latencies_us.sort_unstable();
        self.report.took = self.began.elapsed();
        self.report.namespace_retransmits = Counters::read_here()?.retransmits_since(&before);
        Ok(self.report)
    }

    /// How often the timer has fired since it was last asked.
    fn drain_timer(&self) -> Result<u64> {
        let mut fired = [0; size_of::<u64>()];
        match nix::unistd::read(&self.timer, &mut fired) {
            Ok(_) => Ok(u64::from_ne_bytes(fired)),
            Err(nix::Error::EAGAIN) => Ok(0),
            Err(e) => Err(e).context("reading a timer"),
        }
    }

    fn start_due(&mut self) -> Result<()> {
        let due = self.drain_timer()?;
        self.report.largest_burst = self.report.largest_burst.max(due);
        let left = self
            .plan
            .count
            .map_or(u64::MAX, |count| count - self.report.started);
        for _ in 0..due.min(left) {
            let number = self.report.started;
            self.report.started += 1;
            self.live.started.fetch_add(1, Ordering::Relaxed);
            match Attempt::start(self.plan.proto, self.plan.to, None, &number.to_string()) {
                Ok(attempt) => {
                    self.ready.add(&attempt, number)?;
                    self.open.insert(number, attempt);
                }
                Err(outcome) => self.note(number, self.began.elapsed(), outcome),
            }
        }
        Ok(())
    }

    fn advance(&mut self, number: u64) {
        if let Some(outcome) = self.open.get_mut(&number).and_then(Attempt::advance) {
            self.end(number, outcome);
        }
    }

    fn expire(&mut self) {
        let expired = |attempt: &Attempt| attempt.started().elapsed() >= self.plan.deadline;
        // Numbers ascend with time, so the oldest stands first.
        let late: Vec<u64> = self
            .open
            .iter()
            .take_while(|(_, a)| expired(a))
            .map(|(number, _)| *number)
            .collect();
        late.into_iter()
            .for_each(|number| self.end(number, Outcome::TimedOut));
    }

    fn end(&mut self, number: u64, outcome: Outcome) {
        if let Some(attempt) = self.open.remove(&number) {
            self.report.retransmits += u64::from(attempt.retransmits());
            self.note(
                number,
                attempt.started().duration_since(self.began),
                outcome,
            );
        }
    }

    fn note(&mut self, number: u64, started: Duration, outcome: Outcome) {
        *self
            .report
            .outcomes
            .entry(outcome.word().to_owned())
            .or_default() += 1;
        if let Outcome::Answered { by, latency, .. } = outcome {
            self.live.answered.fetch_add(1, Ordering::Relaxed);
            self.report
                .latencies_us
                .push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            *self.report.by.entry(by).or_default() += 1;
        } else {
            self.live.failed.fetch_add(1, Ordering::Relaxed);
            if self.report.failures.len() < FAILURES_TOLD {
                self.report.failures.push(Failure {
                    number,
                    started,
                    outcome,
                });
            }
        }
    }
}
