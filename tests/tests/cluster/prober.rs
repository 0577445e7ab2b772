//! New UDP flows at a pace well below a millisecond, and what became of each: which packet was the first that met a new state.
//!
//! Every probe is a flow of its own (a source port of its own), so that an endpoint change is judged like a new client's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tests::lab::pod::Pod;

/// The pause after each probe. Probes are to be at most a millisecond apart, and the machine has other work.
const PACE: Duration = Duration::from_micros(400);
/// A probe that was not answered for so long is not listened to any more.
const FORGET: Duration = Duration::from_secs(2);
/// The longest answer.
const MAX_ANSWER: usize = 512;
/// Answers taken from the kernel at once.
const BATCH: usize = 256;

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing (yet).
    Silence,
    /// This server answered.
    By(String),
    /// An ICMP port unreachable came.
    Refused,
}

/// One probe.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    /// Just before it was sent.
    pub(crate) sent: Instant,
    /// What became of it.
    pub(crate) fate: Fate,
}

#[derive(Debug, Default)]
struct Record {
    /// The number of the first of `shots`.
    first: u64,
    shots: Vec<Shot>,
    /// Full rounds of the loop: a probe sent, all that had come read.
    rounds: u64,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    record: Mutex<Record>,
    moved: Condvar,
    stop: AtomicBool,
}

/// A running prober.
#[derive(Debug)]
pub(crate) struct Prober {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Prober {
    /// Probes `to` from a pod, from these source ports in turn.
    pub(crate) fn start(from: &Pod, to: SocketAddr, ports: std::ops::Range<u16>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let source = if to.is_ipv4() {
            IpAddr::V4(from.ipv4)
        } else {
            IpAddr::V6(from.ipv6)
        };
        let thread = {
            let shared = Arc::clone(&shared);
            from.netns().thread("prober", None, move || {
                let result = probe(&shared, source, to, &ports);
                if let Err(error) = &result {
                    lock(&shared.record).failed = Some(format!("{error:#}"));
                    shared.moved.notify_all();
                }
                result
            })?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Forgets what was probed so far.
    pub(crate) fn begin(&self) {
        let mut record = lock(&self.shared.record);
        record.first += record.shots.len() as u64;
        record.shots.clear();
    }

    /// Waits until the probes are as `wanted` says; gives nothing when `deadline` passes first.
    pub(crate) fn wait<T>(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&[Shot]) -> Option<T>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + deadline;
        let mut record = lock(&self.shared.record);
        loop {
            if let Some(failed) = &record.failed {
                bail!("the prober failed: {failed}");
            }
            if let Some(answer) = wanted(&record.shots) {
                return Ok(Some(answer));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let woken = self.shared.moved.wait_timeout(record, left);
            record = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until whatever had come for the prober before this call is read.
    pub(crate) fn settle(&self) {
        let mut record = lock(&self.shared.record);
        // The round under way may have read already.
        let wanted = record.rounds + 2;
        while record.rounds < wanted && record.failed.is_none() {
            record = self
                .shared
                .moved
                .wait(record)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its error was told to whoever waited.
            let _ = thread.join();
        }
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

fn probe(
    shared: &Shared,
    source: IpAddr,
    to: SocketAddr,
    ports: &std::ops::Range<u16>,
) -> Result<()> {
    hurry()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut open: BTreeMap<u64, (Instant, UdpSocket)> = BTreeMap::new();
    let mut free = ports.clone().cycle();
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        let port = free.next().context("no source ports")?;
        let socket = match UdpSocket::bind(SocketAddr::new(source, port)) {
            Ok(socket) => socket,
            // The ports went round, and this one still listens for an answer.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("binding {source} {port}"));
            }
        };
        socket.set_nonblocking(true)?;
        socket
            .connect(to)
            .with_context(|| format!("connecting to {to}"))?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR, number);
        epoll.add(&socket, event)?;
        let sent = Instant::now();
        let fate = match socket.send(number.to_string().as_bytes()) {
            Ok(_) => Fate::Silence,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Fate::Refused,
            Err(error) => return Err(error).with_context(|| format!("sending to {to}")),
        };
        lock(&shared.record).shots.push(Shot { sent, fate });
        open.insert(number, (sent, socket));
        number += 1;
        std::thread::sleep(PACE);
        read(shared, &epoll, &mut open)?;
        while let Some(oldest) = open.first_entry() {
            if oldest.get().0.elapsed() < FORGET {
                break;
            }
            oldest.remove();
        }
        lock(&shared.record).rounds += 1;
        shared.moved.notify_all();
    }
    Ok(())
}

/// Lets the calling thread run before all ordinary ones: it sleeps most of its time, and its probes must not wait until a
/// busy machine has time for them. A kernel that gives no real time to this process is asked for its best instead.
fn hurry() -> Result<()> {
    /// The least of real-time priorities.
    const PRIORITY: libc::c_int = 1;
    /// The most that an ordinary thread can be favoured.
    const NICEST: libc::c_int = -20;
    const THIS_THREAD: libc::c_int = 0;
    let parameter = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: the pointer is to a local that outlives the call, which only reads it.
    let real_time =
        unsafe { libc::sched_setscheduler(THIS_THREAD, libc::SCHED_RR, &raw const parameter) };
    if Errno::result(real_time).is_err() {
        // SAFETY: the call touches no memory of ours.
        let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
        Errno::result(nice).context("favouring the prober's thread")?;
    }
    Ok(())
}

/// Reads what has come.
fn read(
    shared: &Shared,
    epoll: &Epoll,
    open: &mut BTreeMap<u64, (Instant, UdpSocket)>,
) -> Result<()> {
    let mut events = [EpollEvent::empty(); BATCH];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::ZERO)?;
        for event in &events[..ready] {
            let Some((_, socket)) = open.remove(&event.data()) else {
                continue;
            };
            let mut answer = [0; MAX_ANSWER];
            let fate = match socket.recv(&mut answer) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&answer[..length]);
                    let by = text.split(' ').next().unwrap_or_default();
                    Fate::By(by.to_owned())
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    Fate::Refused
                }
                Err(error) => return Err(error).context("reading an answer"),
            };
            let mut record = lock(&shared.record);
            let place = event.data().checked_sub(record.first);
            if let Some(shot) = place
                .and_then(|place| usize::try_from(place).ok())
                .and_then(|place| record.shots.get_mut(place))
            {
                shot.fate = fate;
            }
        }
        if ready < BATCH {
            return Ok(());
        }
    }
}
