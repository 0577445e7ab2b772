//! A process of the node itself, in the node's network namespace and in its cgroup: what the kubelet and host-network
//! pods are. It must be a process of its own, because a socket belongs to the cgroup of the process that made it.
//!
//! The process is the program `lab-hand`, spoken to in lines of JSON: a [`Request`] each, a [`Reply`] each.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::node::Node;
use super::process::Process;
use super::program;
use super::traffic::{Outcome, Proto};

/// Names the `lab-hand` binary, if it is not beside the running executable.
const BINARY_VARIABLE: &str = "SLUICE_LAB_HAND";

/// What a host process is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Make one attempt.
    Ask {
        /// How.
        proto: Proto,
        /// Whom.
        to: SocketAddr,
        /// Saying what.
        token: String,
        /// How long it may take.
        deadline: Duration,
    },
    /// Send one datagram from a socket that is not connected.
    SendTo {
        /// Whom to.
        to: SocketAddr,
        /// Saying what.
        token: String,
        /// How long the answer may take.
        deadline: Duration,
    },
    /// Send one datagram from a socket that is not connected, which is kept for its answer.
    Post {
        /// Whom to.
        to: SocketAddr,
        /// Saying what.
        token: String,
    },
    /// Wait for the answer to an earlier [`Request::Post`], by its number.
    Answer {
        /// Which.
        question: usize,
        /// How long it may take.
        deadline: Duration,
    },
    /// Start a server; it runs as long as the process.
    Serve {
        /// Its name.
        name: String,
        /// Where it listens.
        binds: Vec<(Proto, SocketAddr)>,
    },
    /// How many connections and requests all servers of the process have had.
    Counts,
}

/// What a host process answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Ask`], [`Request::SendTo`] and [`Request::Answer`]; and to a [`Request::Post`] that could not be sent.
    Outcome(Outcome),
    /// To [`Request::Post`]: its number.
    Posted(usize),
    /// To [`Request::Serve`]: where it listens, with real ports.
    Serving(Vec<(Proto, SocketAddr)>),
    /// To [`Request::Counts`].
    Counts {
        /// TCP connections accepted.
        accepted: u64,
        /// Requests read.
        requests: u64,
    },
    /// The request could not be done.
    Failed(String),
}

/// A process that plays one of the node's own. Dropping it kills it.
#[derive(Debug)]
pub struct HostProcess {
    process: Process,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl HostProcess {
    /// Starts one on a node, in the node's cgroup.
    ///
    /// # Errors
    /// There is no `lab-hand` binary, or it could not enter.
    pub fn start(node: &Node) -> Result<Self> {
        let mut command = Command::new(hand_binary()?);
        command
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::spawn(command, node.netns(), Some(node.cgroup().path()))?;
        let requests = process.child.stdin.take().context("lab-hand's input")?;
        let replies = process.child.stdout.take().context("lab-hand's output")?;
        Ok(Self {
            process,
            requests,
            replies: BufReader::new(replies),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Makes one attempt from the node.
    ///
    /// # Errors
    /// The process is gone.
    pub fn ask(&mut self, proto: Proto, to: SocketAddr, deadline: Duration) -> Result<Outcome> {
        let token = format!("host-{}", self.id());
        match self.call(&Request::Ask {
            proto,
            to,
            token,
            deadline,
        })? {
            Reply::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends one datagram from the node by `sendto`, and waits for its answer.
    ///
    /// # Errors
    /// The process is gone.
    pub fn send_to(&mut self, to: SocketAddr, deadline: Duration) -> Result<Outcome> {
        let token = format!("host-{}", self.id());
        match self.call(&Request::SendTo {
            to,
            token,
            deadline,
        })? {
            Reply::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends one datagram from the node by `sendto`, and answers its number for [`HostProcess::answer`].
    ///
    /// # Errors
    /// The process is gone, or it could not send.
    pub fn post(&mut self, to: SocketAddr) -> Result<usize> {
        let token = format!("host-{}", self.id());
        match self.call(&Request::Post { to, token })? {
            Reply::Posted(question) => Ok(question),
            Reply::Outcome(outcome) => bail!("sending to {to}: {outcome}"),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the answer to what was posted.
    ///
    /// # Errors
    /// The process is gone, or there is no such question.
    pub fn answer(&mut self, question: usize, deadline: Duration) -> Result<Outcome> {
        match self.call(&Request::Answer { question, deadline })? {
            Reply::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a server in the process and answers where it listens.
    ///
    /// # Errors
    /// An address is not there or a port is taken.
    pub fn serve(
        &mut self,
        name: &str,
        binds: &[(Proto, SocketAddr)],
    ) -> Result<Vec<(Proto, SocketAddr)>> {
        match self.call(&Request::Serve {
            name: name.to_owned(),
            binds: binds.to_vec(),
        })? {
            Reply::Serving(addresses) => Ok(addresses),
            other => Err(unexpected(&other)),
        }
    }

    /// TCP connections accepted and requests read by all servers of the process.
    ///
    /// # Errors
    /// The process is gone.
    pub fn counts(&mut self) -> Result<(u64, u64)> {
        match self.call(&Request::Counts)? {
            Reply::Counts { accepted, requests } => Ok((accepted, requests)),
            other => Err(unexpected(&other)),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.requests
            .write_all(line.as_bytes())
            .context("writing to a host process")?;
        let mut reply = String::new();
        if self
            .replies
            .read_line(&mut reply)
            .context("reading from a host process")?
            == 0
        {
            bail!("the host process {} has ended", self.id());
        }
        match serde_json::from_str(&reply)
            .with_context(|| format!("what a host process said: {reply:?}"))?
        {
            Reply::Failed(what) => Err(anyhow!(what).context("a host process")),
            reply => Ok(reply),
        }
    }
}

fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow!("a host process gave the answer to another request: {reply:?}")
}

/// The `lab-hand` binary of this build.
///
/// # Errors
/// It was not built.
pub fn hand_binary() -> Result<PathBuf> {
    program::find("lab-hand", BINARY_VARIABLE)
}
