//! After the tour: traffic goes on, flows are shown as they happen, and edits of the samples take effect.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use inotify::{Inotify, WatchMask};
use serde_json::Value;

use super::ending;
use super::print;
use super::samples::is_manifest;
use super::stage::{Stage, at};
use crate::lab::agent::sluice_binary;
use crate::lab::process::Process;
use crate::lab::traffic::connects::{ConnectPlan, Connects};

/// New connections a second of each client: as many as a person reads.
const RATE: u32 = 1;
/// How long silence is waited for by the stranger.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long an edit may take to be told of.
const EDIT: Duration = Duration::from_secs(2);
/// Bytes for events of the samples' directory.
const BUFFER: usize = 4_096;

/// Stays until a signal ends the process (see [`ending`]).
pub(super) fn until_interrupted(stage: &Stage, samples: &Path) -> Result<()> {
    // Before anything is said, so that no edit that follows is missed.
    let mut changes = Inotify::init().context("watching the samples")?;
    let mask =
        WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    changes
        .watches()
        .add(samples, mask)
        .with_context(|| format!("watching {}", samples.display()))?;
    ending::stay();
    print::step(5, "Live flows, until Ctrl-C");
    print::aside(&format!(
        "edit {}: changes take effect (the agent works on a copy of it, {})",
        samples.display(),
        stage.copy.path().display()
    ));
    print::aside(&format!(
        "ask the agent: sudo {} --socket {} status",
        sluice_binary()?.display(),
        stage.agent.plan().socket.display()
    ));
    let mut traffic = Vec::new();
    for name in ["client", "stranger"] {
        for to in at(&stage.backend) {
            let mut plan = ConnectPlan::tcp(to, RATE);
            plan.deadline = PATIENCE;
            traffic.push(Connects::start(stage.pod(name)?.netns(), plan)?);
        }
    }
    let mut flows = Command::new(sluice_binary()?);
    flows
        .arg("--socket")
        .arg(&stage.agent.plan().socket)
        .args(["flows", "--allowed", "--follow"]);
    let _flows = Process::spawn(flows, stage.node.netns(), None)?;
    let mut buffer = [0; BUFFER];
    loop {
        let names: BTreeSet<PathBuf> = changes
            .read_events_blocking(&mut buffer)
            .context("watching the samples")?
            .filter_map(|event| event.name.map(PathBuf::from))
            .collect();
        for name in names {
            take_over(stage, samples, &name)?;
        }
    }
}

/// Takes one file of the samples over into the copy and says what became of it.
fn take_over(stage: &Stage, samples: &Path, name: &Path) -> Result<()> {
    let Some(shown) = name.to_str().filter(|name| is_manifest(name)) else {
        return Ok(());
    };
    let before = applied(&stage.agent.status()?);
    match fs::read_to_string(samples.join(name)) {
        Ok(text) => stage.copy.put_file(shown, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let _gone_already = fs::remove_file(stage.copy.path().join(name));
        }
        Err(error) => {
            print::line(&format!("{shown} cannot be read: {error}"));
            return Ok(());
        }
    }
    let end = Instant::now() + EDIT;
    loop {
        let status = stage.agent.status()?;
        let now = applied(&status);
        if now != before {
            print::good(&format!("{shown} was edited, and is taken in"));
            for rejected in status["rejected"].as_array().into_iter().flatten() {
                let text = |field: &str| rejected[field].as_str().unwrap_or_default().to_owned();
                print::line(&format!("rejected: {}: {}", text("object"), text("reason")));
            }
            return Ok(());
        }
        if Instant::now() >= end {
            print::line(&format!("{shown} was edited, and nothing is different"));
            return Ok(());
        }
    }
}

/// What is different after a change: the last apply, and what is rejected.
fn applied(status: &Value) -> (Value, Value) {
    (
        status["last_apply"]["at"].clone(),
        status["rejected"].clone(),
    )
}
