//! `sluice agent` as a process on a node: started, awaited, killed, started again, asked through its CLI.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::netns::Netns;
use super::node::Node;
use super::notify::Notify;
use super::process::Process;
use super::{bpffs, patience, program};

/// Names the `sluice` binary, if it is not beside the running executable.
const BINARY_VARIABLE: &str = "SLUICE_BIN";
/// How long an agent may take from its start to `READY=1`.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long an agent may take from SIGTERM to its end.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(5);
/// Lines of the agent's log that an error quotes.
const LOG_TAIL: usize = 30;

/// Where an agent's objects come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// `--manifests DIR`.
    Manifests(PathBuf),
    /// `--kubeconfig FILE`.
    Kubeconfig(PathBuf),
}

/// How to start an agent. Everything but the source has the lab's own value for the node.
#[derive(Debug, Clone)]
pub struct AgentPlan {
    /// Where its objects come from.
    pub source: Source,
    /// `--node-name`.
    pub node_name: String,
    /// `--pin-root`.
    pub pin_root: PathBuf,
    /// `--socket`.
    pub socket: PathBuf,
    /// `--cgroup`.
    pub cgroup: PathBuf,
    /// More arguments, such as `--attach=clsact`.
    pub args: Vec<String>,
    /// More environment, such as `RUST_LOG`.
    pub env: Vec<(String, String)>,
    /// The binary, if not the one that is found by itself: an upgrade starts another.
    pub binary: Option<PathBuf>,
}

impl AgentPlan {
    /// The plan for a node.
    ///
    /// # Errors
    /// bpffs cannot be mounted.
    pub fn new(node: &Node, source: Source) -> Result<Self> {
        Ok(Self {
            source,
            node_name: node.name.clone(),
            pin_root: bpffs::pin_root(&node.lab_id(), &node.name)?,
            socket: node.lab_dir().join(format!("{}.sock", node.name)),
            cgroup: node.cgroup().path().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            binary: None,
        })
    }

    /// The same with one more argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    fn binary(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(sluice_binary, Ok)
    }

    fn command(&self, notify: &Path, log: File) -> Result<Command> {
        let mut command = Command::new(self.binary()?);
        command.arg("agent").args(["--node-name", &self.node_name]);
        match &self.source {
            Source::Manifests(dir) => command.arg("--manifests").arg(dir),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command
            .arg("--pin-root")
            .arg(&self.pin_root)
            .arg("--socket")
            .arg(&self.socket);
        command.arg("--cgroup").arg(&self.cgroup).args(&self.args);
        command
            // What an agent says of its end is one line; a backtrace around it would push it out of the quoted log.
            .env_remove("RUST_BACKTRACE")
            .env("NOTIFY_SOCKET", notify)
            .envs(self.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the agent's log")?)
            .stderr(log);
        Ok(command)
    }
}

/// A running agent. Dropping it kills the process (SIGKILL); what it pinned stays until the lab goes.
#[derive(Debug)]
pub struct Agent {
    plan: AgentPlan,
    netns: Arc<Netns>,
    notify: Notify,
    log: PathBuf,
    process: Process,
}

impl Agent {
    /// Starts an agent on a node and waits until it says that it is ready.
    ///
    /// # Errors
    /// There is no binary, or the agent ended or was not ready in time: the error quotes its log.
    pub fn start(node: &Node, plan: AgentPlan) -> Result<Self> {
        let mut agent = Self::launch(node, plan)?;
        agent.wait_ready(READY_DEADLINE * patience())?;
        Ok(agent)
    }

    /// Starts an agent without waiting: for agents that are to fail, or to be killed while they start.
    ///
    /// # Errors
    /// There is no binary.
    pub fn launch(node: &Node, plan: AgentPlan) -> Result<Self> {
        let file = |kind: &str| node.lab_dir().join(format!("{}.{kind}", node.name));
        let (notify, log) = (Notify::bind(&file("notify"))?, file("log"));
        let netns = Arc::clone(node.netns());
        let process = spawn(&plan, &netns, &notify, &log)?;
        Ok(Self {
            plan,
            netns,
            notify,
            log,
            process,
        })
    }

    /// Waits until the agent says that it is ready; once for each start.
    ///
    /// # Errors
    /// It ended or was not ready in time: the error quotes its log.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let ready = self.notify.wait_ready(&mut self.process, deadline);
        ready.with_context(|| self.describe())
    }

    fn describe(&self) -> String {
        format!(
            "the agent of node {}; the end of its log {}:\n{}",
            self.plan.node_name,
            self.log.display(),
            self.log_tail()
        )
    }

    /// The plan it was started with.
    pub fn plan(&self) -> &AgentPlan {
        &self.plan
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything that all agents of this node have written to standard output and error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of [`Agent::log`].
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// Kills it (SIGKILL) and waits for its end. The datapath stays.
    ///
    /// # Errors
    /// It had ended already: then it was not this that killed it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(status) = self.process.wait(Duration::ZERO)? {
            bail!(
                "the agent had ended by itself ({status}) before it was killed\n{}",
                self.describe()
            );
        }
        self.process.kill()?;
        Ok(())
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let most = TERMINATE_DEADLINE * patience();
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(most)?;
        status.with_context(|| format!("still running {most:?} after SIGTERM: {}", self.describe()))
    }

    /// Starts it again with the same plan, after [`Agent::kill`] or [`Agent::terminate`], and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_again(&mut self) -> Result<()> {
        let plan = self.plan.clone();
        self.start_again_as(plan)
    }

    /// The same with another plan, as an upgrade does.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_again_as(&mut self, plan: AgentPlan) -> Result<()> {
        // A new socket: a message that the last agent left in the old one is not this one's.
        self.notify = Notify::bind(self.notify.path())?;
        self.process = spawn(&plan, &self.netns, &self.notify, &self.log)?;
        self.plan = plan;
        self.wait_ready(READY_DEADLINE * patience())
    }

    /// Runs `sluice --socket PATH ARGS -o json` and answers what it printed.
    ///
    /// # Errors
    /// The command failed, or printed no JSON.
    pub fn cli(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.plan.binary()?);
        command
            .arg("--socket")
            .arg(&self.plan.socket)
            .args(args)
            .args(["-o", "json"]);
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("running the sluice CLI")?;
        if !output.status.success() {
            bail!(
                "sluice {}: {}\n{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("what `sluice {}` printed", args.join(" ")))
    }

    /// `sluice status -o json`.
    ///
    /// # Errors
    /// As [`Agent::cli`].
    pub fn status(&self) -> Result<Value> {
        self.cli(&["status"])
    }
}

fn spawn(plan: &AgentPlan, netns: &Netns, notify: &Notify, log: &Path) -> Result<Process> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.with_context(|| format!("opening the agent's log {}", log.display()))?;
    // Not in the node's cgroup: that one is for the processes whose connections the agent serves.
    Process::spawn(plan.command(notify.path(), file)?, netns, None)
}

/// A `sluice` whose maps have the next layout (feature `layout-next`): `SLUICE_NEXT_BIN`, or the one that `cargo xtask test lab` built.
///
/// # Errors
/// There is none.
pub fn next_binary() -> Result<PathBuf> {
    program::find("sluice-next", "SLUICE_NEXT_BIN")
        .context("build it with `cargo build --package sluice --features layout-next`")
}

/// The `sluice` binary: `SLUICE_BIN`, or the one of this build.
///
/// # Errors
/// There is none.
pub fn sluice_binary() -> Result<PathBuf> {
    program::find("sluice", BINARY_VARIABLE)
}
