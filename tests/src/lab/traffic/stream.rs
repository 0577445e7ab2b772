//! A numbered UDP stream: a sender at a steady pace, a receiver that echoes, and the book of both directions.

mod receiver;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

pub use self::receiver::Receiver;
use super::ready::Ready;
use super::sequence::{Sequence, SequenceReport};
use super::server::RECEIVE_BUFFER;
use crate::lab::netns::Netns;
use crate::lab::{gently, lock};

/// A datagram: the stream's number and the datagram's, eight bytes each, big-endian.
const DATAGRAM: usize = 16;
/// Streams of this process so far; its numbers tell streams apart at receivers.
static NEXT_STREAM: AtomicU64 = AtomicU64::new(0);

fn encode(stream: u64, number: u64) -> [u8; DATAGRAM] {
    (u128::from(stream) << 64 | u128::from(number)).to_be_bytes()
}

fn decode(datagram: &[u8]) -> Option<(u64, u64)> {
    let (stream, number) = datagram.split_first_chunk::<8>()?;
    Some((
        u64::from_be_bytes(*stream),
        u64::from_be_bytes(number.try_into().ok()?),
    ))
}

fn quick_socket(bind: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(bind).with_context(|| format!("binding UDP {bind}"))?;
    socket.set_nonblocking(true)?;
    // A machine that stalls for a second must not look like a network that loses packets.
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("enlarging a receive buffer")?;
    Ok(socket)
}

const KEY_SOCKET: u64 = 0;
const KEY_STOP: u64 = 1;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct StreamPlan {
    /// Whom to.
    pub to: SocketAddr,
    /// Datagrams a second; fewer where the machine is emulated.
    pub rate: u32,
    /// The CPU for the sender's thread.
    pub cpu: Option<usize>,
}

/// What a sender counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// The stream's number, for [`Receiver::report`].
    pub stream: u64,
    /// Datagrams sent, numbered from 0.
    pub sent: u64,
    /// Sends that the kernel refused, ICMP errors of earlier ones included, with the first of them in words.
    pub errors: u64,
    /// The first error.
    pub first_error: Option<String>,
    /// The book of the echoes.
    pub echoes: SequenceReport,
}

/// A running sender: one socket, so one flow. Dropping it stops it without a report.
#[derive(Debug)]
pub struct Sender {
    stream: u64,
    stop: Arc<EventFd>,
    sent: Arc<AtomicU64>,
    grace: Arc<Mutex<Duration>>,
    thread: Option<JoinHandle<Result<StreamReport>>>,
}

impl Sender {
    /// Starts sending from a namespace.
    ///
    /// # Errors
    /// The socket or the thread could not be made, or there is no route.
    pub fn start(from: &Arc<Netns>, plan: StreamPlan) -> Result<Self> {
        let stream =
            NEXT_STREAM.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
        let any: SocketAddr = if plan.to.is_ipv6() {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        }
        .parse()?;
        let socket = from.run(|| -> Result<UdpSocket> {
            let socket = quick_socket(any)?;
            socket
                .connect(plan.to)
                .with_context(|| format!("connecting UDP to {}", plan.to))?;
            Ok(socket)
        })??;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd")?);
        let sent = Arc::new(AtomicU64::new(0));
        let grace = Arc::new(Mutex::new(Duration::ZERO));
        let thread = {
            let job = SendJob {
                socket,
                stream,
                plan,
                sent: Arc::clone(&sent),
                grace: Arc::clone(&grace),
            };
            let stop = Arc::clone(&stop);
            from.thread("sender", plan.cpu, move || job.run(&stop))?
        };
        Ok(Self {
            stream,
            stop,
            sent,
            grace,
            thread: Some(thread),
        })
    }

    /// The stream's number, for [`Receiver::report`].
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends no more, waits until every number was echoed, at most `grace`, and answers the counts.
    ///
    /// # Errors
    /// The sender itself failed.
    pub fn stop(mut self, grace: Duration) -> Result<StreamReport> {
        *lock(&self.grace) = grace;
        self.stop.write(1).context("telling a sender to stop")?;
        let thread = self.thread.take().context("a sender is stopped once")?;
        thread
            .join()
            .map_err(|_| anyhow!("a stream's sender panicked"))?
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Nobody wants the report.
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

struct SendJob {
    socket: UdpSocket,
    stream: u64,
    plan: StreamPlan,
    sent: Arc<AtomicU64>,
    grace: Arc<Mutex<Duration>>,
}

impl SendJob {
    fn run(self, stop: &EventFd) -> Result<StreamReport> {
        let mut ready = Ready::new()?;
        ready.add_readable(&self.socket, KEY_SOCKET)?;
        ready.add_readable(stop, KEY_STOP)?;
        let interval = Duration::from_secs(1)
            .checked_div(gently(self.plan.rate))
            .context("a rate of no datagrams a second")?;
        let mut echoes = Sequence::default();
        let mut errors = Errors::default();
        let mut due = Instant::now();
        let mut end = None;
        loop {
            let sent = self.sent.load(Ordering::Relaxed);
            if end.is_some_and(|end| echoes.is_whole(sent) || Instant::now() >= end) {
                let Errors { count, first } = errors;
                let echoes = echoes.report(sent);
                return Ok(StreamReport {
                    stream: self.stream,
                    sent,
                    errors: count,
                    first_error: first,
                    echoes,
                });
            }
            // Behind its pace it sends what is due at once, so that the count over time is exact.
            while end.is_none() && Instant::now() >= due {
                let number = self.sent.load(Ordering::Relaxed);
                match self.socket.send(&encode(self.stream, number)) {
                    Ok(_) => drop(self.sent.fetch_add(1, Ordering::Relaxed)),
                    // The number is sent again at the next turn: it never went out.
                    Err(error) => errors.note(&error),
                }
                due += interval;
            }
            if ready.wait(Some(end.unwrap_or(due)))?.contains(&KEY_STOP) && end.is_none() {
                // Once is enough: level-triggered, it would be told again and again.
                stop.read().context("reading an eventfd")?;
                end = Some(Instant::now() + *lock(&self.grace));
            }
            self.read_echoes(&mut echoes, &mut errors);
        }
    }

    fn read_echoes(&self, echoes: &mut Sequence, errors: &mut Errors) {
        let mut buffer = [0; DATAGRAM];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(n) => match decode(&buffer[..n]) {
                    Some((stream, number)) if stream == self.stream => echoes.note(number),
                    _ => errors.note(&std::io::Error::other(
                        "an echo that is none of this stream",
                    )),
                },
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => errors.note(&error),
            }
        }
    }
}

#[derive(Default)]
struct Errors {
    count: u64,
    first: Option<String>,
}

impl Errors {
    fn note(&mut self, error: &std::io::Error) {
        self.count += 1;
        self.first.get_or_insert_with(|| error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_carries_both_numbers() {
        assert_eq!(decode(&encode(7, u64::MAX)), Some((7, u64::MAX)));
        assert_eq!(decode(&[0; DATAGRAM - 1]), None);
    }
}
