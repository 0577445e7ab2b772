//! What processes of the host ask while the agent is replaced.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::lab::host::HostProcess;
use tests::lab::manifests::{self, Endpoint};
use tests::lab::node::Node;
use tests::lab::traffic::Proto;
use tests::lab::traffic::answer::Answer;

use super::{GUARDED, WEB};
use crate::scene::{DEADLINE, POLL, SERVICE, Scene, at, port, vip};

/// From an answer to the next question.
const PAUSE: Duration = Duration::from_millis(5);
/// Questions to see in each phase.
const PHASE: u64 = 60;
/// The service whose answers wait until they are asked for.
const LATE: u8 = 22;
/// The port of who answers then.
const LATE_PORT: u16 = 7100;
/// Longer than any request.
const BUFFER: usize = 512;

/// A process of the host that asks a service all the while: by TCP, by a connected and by an unconnected UDP socket, in both families.
pub(super) struct Asking {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Asking {
    pub(super) fn start(node: &Node) -> Result<Self> {
        let mut host = HostProcess::start(node)?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::Builder::new().name("host".to_owned());
        let thread = thread.spawn(move || keep_asking(&mut host, &stopped, &count))?;
        Ok(Self {
            stop,
            answered,
            thread: Some(thread),
        })
    }

    fn so_far(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until another phase's questions have been answered.
    pub(super) fn more(&self) -> Result<()> {
        let mut seen = self.so_far();
        let wanted = seen + PHASE;
        // For one answer: an emulated machine takes its time for sixty.
        let mut end = Instant::now() + DEADLINE;
        while seen < wanted {
            let alive = self.thread.as_ref().is_some_and(|t| !t.is_finished());
            ensure!(alive, "a question of the host failed; see its end");
            ensure!(Instant::now() < end, "the host's questions stand still");
            std::thread::sleep(POLL);
            let now = self.so_far();
            if now > seen {
                (seen, end) = (now, Instant::now() + DEADLINE);
            }
        }
        Ok(())
    }

    /// Ends it: every question was answered. Answers how many there were.
    pub(super) fn stop(mut self) -> Result<u64> {
        self.end()?;
        Ok(self.so_far())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("who asks for the host panicked")),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // Where another check failed first, what this one saw is worth a line.
        if let Err(error) = self.end() {
            tests::say(format_args!("the host's questions: {error:#}"));
        }
    }
}

fn keep_asking(host: &mut HostProcess, stop: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for to in at(vip(WEB), SERVICE) {
            for how in 0..3 {
                let outcome = match how {
                    0 => host.ask(Proto::Tcp, to, DEADLINE)?,
                    1 => host.ask(Proto::Udp, to, DEADLINE)?,
                    // The answer must come from the service's address, as recvmsg shows it.
                    _ => host.send_to(to, DEADLINE)?,
                };
                let count = answered.fetch_add(1, Ordering::Relaxed);
                ensure!(
                    outcome.is_answered(),
                    "question {count} of the host, way {how}, to {to}: {outcome}"
                );
                std::thread::sleep(PAUSE);
            }
        }
    }
    Ok(())
}

/// The service of [`Late`]: datagrams to an isolated pod, which takes its own node always.
pub(super) fn late_service(scene: &Scene) -> Result<[Value; 3]> {
    let port = [port(LATE_PORT, Proto::Udp)];
    let pod = [Endpoint::ready(&scene.actor(GUARDED)?.pod)];
    let [v4, v6] = manifests::endpoint_slices("default", "late", &port, &pod);
    let service = manifests::service("default", "late", &vip(LATE), &port);
    Ok([service, v4, v6])
}

/// Who answers when it is told to, in each family.
pub(super) struct Late([UdpSocket; 2]);

/// A question whose answer waits.
pub(super) struct Asked {
    question: usize,
    to: SocketAddr,
    peer: SocketAddr,
    token: String,
}

impl Late {
    pub(super) fn new(scene: &Scene) -> Result<Self> {
        let pod = &scene.actor(GUARDED)?.pod;
        let [v4, v6] = at(pod.addresses(), LATE_PORT).map(|own| -> Result<UdpSocket> {
            let socket = pod.netns().run(|| UdpSocket::bind(own))??;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(socket)
        });
        Ok(Self([v4?, v6?]))
    }

    /// A process of the host asks the service, in each family, from a socket that is not connected.
    pub(super) fn ask(&self, host: &mut HostProcess) -> Result<[Asked; 2]> {
        let [v4, v6] = at(vip(LATE), SERVICE);
        Ok([self.ask_at(host, 0, v4)?, self.ask_at(host, 1, v6)?])
    }

    fn ask_at(&self, host: &mut HostProcess, family: usize, to: SocketAddr) -> Result<Asked> {
        let question = host.post(to)?;
        let mut buffer = [0; BUFFER];
        let (n, peer) = self.0[family]
            .recv_from(&mut buffer)
            .with_context(|| format!("what the host asked {to}"))?;
        let token = str::from_utf8(&buffer[..n])?.trim_end().to_owned();
        Ok(Asked {
            question,
            to,
            peer,
            token,
        })
    }

    /// The answers are sent; to the sockets they come from the address that was asked.
    pub(super) fn answer(&self, host: &mut HostProcess, asked: [Asked; 2]) -> Result<()> {
        for (socket, asked) in self.0.iter().zip(asked) {
            let answer = Answer {
                by: GUARDED.to_owned(),
                peer: asked.peer,
                local: socket.local_addr()?,
                token: asked.token,
            };
            socket.send_to(answer.encode().as_bytes(), asked.peer)?;
            let outcome = host.answer(asked.question, DEADLINE)?;
            ensure!(
                outcome.is_answered(),
                "a late answer of {}: {outcome}",
                asked.to
            );
        }
        Ok(())
    }
}
