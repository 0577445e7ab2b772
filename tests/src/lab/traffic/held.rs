//! Connections that stay open and ping-pong: the first failure of each is kept, with its time.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use super::Outcome;
use super::answer::Answer;
use crate::lab::netns::Netns;
use crate::lab::{lock, patience};

/// What to hold.
#[derive(Debug, Clone, Copy)]
pub struct HoldPlan {
    /// Whom to connect to.
    pub to: SocketAddr,
    /// How many connections.
    pub connections: usize,
    /// From an answer to the next request; zero is ping-pong without a pause.
    pub pause: Duration,
    /// How long an answer may take before the connection counts as failed.
    pub deadline: Duration,
    /// The CPU for the holder's thread.
    pub cpu: Option<usize>,
    /// The client's own address, where it has several.
    pub source: Option<IpAddr>,
}

impl HoldPlan {
    /// So many connections with a request every 10 ms and a deadline of two seconds; an emulated machine has more time for both.
    pub fn new(to: SocketAddr, connections: usize) -> Self {
        let pause = Duration::from_millis(10) * patience();
        let deadline = Duration::from_secs(2) * patience();
        Self {
            to,
            connections,
            pause,
            deadline,
            cpu: None,
            source: None,
        }
    }

    /// The same from this address.
    #[must_use]
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = match self.to {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        socket.connect(self.to).await
    }
}

/// One held connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldConnection {
    /// The server that answers on it.
    pub by: String,
    /// The client's address as the server sees it.
    pub peer_seen: SocketAddr,
    /// Requests answered.
    pub rounds: u64,
    /// How it failed, and when, since the holder's start. A connection that failed sends nothing any more.
    pub failure: Option<(Duration, Outcome)>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: Mutex<Vec<HeldConnection>>,
    failed: Condvar,
}

/// A running holder. Dropping it closes its connections.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Held {
    /// Connects from a namespace; returns once every connection has had its first answer.
    ///
    /// # Errors
    /// A connection could not be made, or was not answered before the deadline.
    pub fn start(from: &Arc<Netns>, plan: HoldPlan) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = watch::channel(false);
        let (report, all_up) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            from.thread("held", plan.cpu, move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(hold_all(plan, &shared, stopped, &report))
            })?
        };
        let held = Self {
            shared,
            stop,
            thread: Some(thread),
        };
        all_up
            .recv()
            .map_err(|_| anyhow!("the holder of connections to {} died at its start", plan.to))??;
        Ok(held)
    }

    /// Every connection as it stands now.
    pub fn connections(&self) -> Vec<HeldConnection> {
        lock(&self.shared.connections).clone()
    }

    /// Requests answered so far, over all connections.
    pub fn rounds(&self) -> u64 {
        lock(&self.shared.connections)
            .iter()
            .map(|c| c.rounds)
            .sum()
    }

    /// Connections that have failed so far.
    pub fn failed(&self) -> usize {
        lock(&self.shared.connections)
            .iter()
            .filter(|c| c.failure.is_some())
            .count()
    }

    /// Waits until at least `count` connections have failed, at most `deadline`; answers how many have.
    pub fn wait_for_failures(&self, count: usize, deadline: Duration) -> usize {
        let end = Instant::now() + deadline;
        let mut connections = lock(&self.shared.connections);
        loop {
            let failed = connections.iter().filter(|c| c.failure.is_some()).count();
            let left = end.saturating_duration_since(Instant::now());
            if failed >= count || left.is_zero() {
                return failed;
            }
            let woken = self.shared.failed.wait_timeout(connections, left);
            connections = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Closes the connections after their present round and answers how each fared.
    ///
    /// # Errors
    /// The holder itself failed.
    pub fn stop(mut self) -> Result<Vec<HeldConnection>> {
        self.end()?;
        Ok(self.connections())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("a holder of connections panicked")),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{error:#}");
        }
    }
}

async fn hold_all(
    plan: HoldPlan,
    shared: &Arc<Shared>,
    stopped: watch::Receiver<bool>,
    report: &mpsc::Sender<Result<()>>,
) -> Result<()> {
    let began = Instant::now();
    let mut lines = Vec::new();
    for index in 0..plan.connections {
        match Line::open(plan, index).await {
            Ok((line, connection)) => {
                lock(&shared.connections).push(connection);
                lines.push(line);
            }
            Err(error) => {
                // The starter waits for just this, and reports it.
                let _ = report.send(Err(
                    error.context(format!("connection {index} to {}", plan.to))
                ));
                return Ok(());
            }
        }
    }
    let _ = report.send(Ok(()));
    let mut tasks = tokio::task::JoinSet::new();
    for (index, line) in lines.into_iter().enumerate() {
        tasks.spawn(line.hold(plan, index, began, Arc::clone(shared), stopped.clone()));
    }
    while let Some(task) = tasks.join_next().await {
        task.context("a held connection's task")?;
    }
    Ok(())
}

/// One connection's two halves.
struct Line {
    answers: Lines<BufReader<OwnedReadHalf>>,
    requests: OwnedWriteHalf,
}

impl Line {
    async fn open(plan: HoldPlan, index: usize) -> Result<(Self, HeldConnection)> {
        let stream = tokio::time::timeout(plan.deadline, plan.connect())
            .await
            .context("connecting")??;
        stream.set_nodelay(true)?;
        let (read, requests) = stream.into_split();
        let mut line = Self {
            answers: BufReader::new(read).lines(),
            requests,
        };
        match line.round(plan.deadline, index, 0).await {
            Ok(answer) => {
                let connection = HeldConnection {
                    by: answer.by,
                    peer_seen: answer.peer,
                    rounds: 1,
                    failure: None,
                };
                Ok((line, connection))
            }
            Err(outcome) => bail!("its first request: {outcome}"),
        }
    }

    async fn round(
        &mut self,
        deadline: Duration,
        index: usize,
        round: u64,
    ) -> Result<Answer, Outcome> {
        let token = format!("{index}.{round}");
        let ask = async {
            self.requests
                .write_all(format!("{token}\n").as_bytes())
                .await?;
            self.answers.next_line().await
        };
        let line = match tokio::time::timeout(deadline, ask).await {
            Err(_) => return Err(Outcome::TimedOut),
            Ok(Ok(None)) => return Err(Outcome::Closed),
            Ok(Ok(Some(line))) => line,
            Ok(Err(error)) => return Err(of_io(&error)),
        };
        let answer =
            Answer::parse(line.as_bytes()).map_err(|e| Outcome::Broken(format!("{e:#}")))?;
        if answer.token == token {
            Ok(answer)
        } else {
            Err(Outcome::Broken(format!("asked {token}, answered {line}")))
        }
    }

    async fn hold(
        mut self,
        plan: HoldPlan,
        index: usize,
        began: Instant,
        shared: Arc<Shared>,
        mut stopped: watch::Receiver<bool>,
    ) {
        for round in 1.. {
            tokio::select! {
                // Told to stop, or the holder is gone.
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(plan.pause) => {}
            }
            let outcome = self.round(plan.deadline, index, round).await;
            let mut connections = lock(&shared.connections);
            let Some(connection) = connections.get_mut(index) else {
                return;
            };
            match outcome {
                Ok(answer) if answer.by == connection.by => connection.rounds += 1,
                Ok(answer) => {
                    let what = format!(
                        "{} answered in the connection of {}",
                        answer.by, connection.by
                    );
                    connection.failure = Some((began.elapsed(), Outcome::Broken(what)));
                }
                Err(outcome) => connection.failure = Some((began.elapsed(), outcome)),
            }
            if connection.failure.is_some() {
                shared.failed.notify_all();
                return;
            }
        }
    }
}

fn of_io(error: &std::io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(code) => Outcome::from_errno(nix::Error::from_raw(code), "a held connection"),
        None => Outcome::Broken(error.to_string()),
    }
}
