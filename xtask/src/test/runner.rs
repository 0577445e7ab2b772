//! Running `cargo test`: as root where the tests need it, within a time, reading what it prints.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcome::Outcome;
use super::tiers::Tier;
use crate::{build, setup, shell, workspace};

/// Targets of tests that start `sluice` as a process.
const START_THE_AGENT: [&str; 4] = ["lab", "load", "cluster", "soak"];

/// The one of them that upgrades it.
const LAB: &str = "lab";

/// cargo's word for optimised builds.
const RELEASE: &str = "--release";

/// Builds and runs one tier, optimised or as it is developed.
pub(crate) fn tier(tier: &Tier<'_>, only: Option<&str>, release: bool) -> Outcome {
    let started = Instant::now();
    let mut cargo = tier.cargo.to_vec();
    if release {
        cargo.push(RELEASE);
    }
    let tier = &Tier {
        cargo: &cargo,
        ..*tier
    };
    let mut outcome = match build(tier.cargo, &[]) {
        Ok(()) => tests(tier, only.as_slice(), &[]),
        Err(error) => {
            let mut outcome = Outcome::default();
            outcome.trouble(format!("{error:#}"));
            outcome
        }
    };
    let ran = outcome.passed + outcome.failed;
    if ran < tier.least {
        outcome.trouble(format!("{ran} tests ran, at least {} should", tier.least));
    }
    outcome.took = started.elapsed();
    outcome
}

/// Builds the test binaries, as this user.
///
/// # Errors
/// When they do not build.
pub(crate) fn build(cargo: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    // Documentation's examples are built when they run.
    if cargo.contains(&"--doc") {
        return Ok(());
    }
    // cargo builds the programs of the package whose tests it builds, and no other's.
    if cargo.iter().any(|word| START_THE_AGENT.contains(word)) {
        let release = cargo.contains(&RELEASE);
        if cargo.contains(&LAB) {
            next(release, environment)?;
        }
        build::build(release, environment).context("the agent does not build")?;
    }
    let mut command = workspace::cargo();
    command
        .arg("test")
        .args(cargo)
        .arg("--no-run")
        .envs(environment.iter().copied());
    shell::run(setup::with_ebpf_toolchain(&mut command)).context("the tests do not build")
}

/// Builds the agent of the next layout, as `sluice-next` beside the ordinary one, which must be built after it.
fn next(release: bool, environment: &[(&str, &str)]) -> Result<()> {
    let mut agent = workspace::cargo();
    agent
        .args(["build", "--package", "sluice", "--bin", "sluice"])
        .args(["--features", "layout-next"])
        .args(release.then_some(RELEASE))
        .envs(environment.iter().copied());
    shell::run(setup::with_ebpf_toolchain(&mut agent))
        .context("the agent of the next layout does not build")?;
    let directory = workspace::target().join(if release { "release" } else { "debug" });
    let (built, next) = (directory.join("sluice"), directory.join("sluice-next"));
    // cargo would build over the file itself: to a new one, then into its place.
    let copy = directory.join("sluice-next.new");
    std::fs::copy(&built, &copy)
        .and_then(|_| std::fs::rename(&copy, &next))
        .with_context(|| format!("cannot copy {} to {}", built.display(), next.display()))
}

/// Runs test binaries that are built, passing on what they print; `filter` is for the harness.
pub(crate) fn tests(tier: &Tier<'_>, filter: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = try_tests(tier, filter, environment, Echo::Shown, &mut outcome) {
        outcome.trouble(format!("{error:#}"));
    }
    outcome
}

/// Runs test binaries that are built and prints nothing, since what they are to do may be to fail; answers also what they printed.
pub(crate) fn silently(
    tier: &Tier<'_>,
    filter: &[&str],
    environment: &[(&str, &str)],
) -> (Outcome, Vec<String>) {
    let (mut outcome, mut printed) = (Outcome::default(), Vec::new());
    let echo = Echo::Kept(&mut printed);
    if let Err(error) = try_tests(tier, filter, environment, echo, &mut outcome) {
        outcome.trouble(format!("{error:#}"));
    }
    (outcome, printed)
}

/// What becomes of the lines that a child prints.
pub(crate) enum Echo<'a> {
    /// They are printed.
    Shown,
    /// They are kept for whoever wants them later.
    Kept(&'a mut Vec<String>),
}

impl Echo<'_> {
    /// Starts a program so; answers where to read what it prints.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&self, mut command: Command) -> Result<(Child, PipeReader)> {
        let (reader, writer) = std::io::pipe().context("no pipe")?;
        if matches!(self, Self::Kept(_)) {
            command.stderr(writer.try_clone().context("no pipe")?);
        }
        let child = command
            .stdout(writer)
            .spawn()
            .with_context(|| format!("cannot start `{}`", shell::line(&command)))?;
        // The command goes here, and with it this side's end of the pipe: else its end would never be read.
        Ok((child, reader))
    }

    pub(crate) fn take(&mut self, line: &str) {
        match self {
            Self::Shown => println!("{line}"),
            Self::Kept(lines) => lines.push(line.to_owned()),
        }
    }
}

fn try_tests(
    tier: &Tier<'_>,
    filter: &[&str],
    environment: &[(&str, &str)],
    mut echo: Echo<'_>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--no-fail-fast"]).args(tier.cargo);
    if tier.root && !shell::is_root() {
        command.arg("--config").arg(root_runner()?);
    }
    command.arg("--");
    command.args(filter);
    if let Some(threads) = tier.threads {
        command.arg(format!("--test-threads={threads}"));
    }
    command
        .envs(environment.iter().copied())
        .env("PATH", shell::path());
    setup::with_ebpf_toolchain(&mut command);

    let (mut child, output) = echo.start(command)?;
    let in_time = read(output, tier.bound, |line| {
        echo.take(line);
        outcome.read_line(line);
    });
    if !in_time {
        kill(child.id());
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !in_time {
        bail!(
            "not done after {} minutes: stopped",
            tier.bound.as_secs() / 60
        );
    }
    if !status.success() && outcome.failed == 0 {
        bail!("cargo test ended with {status} and no failed test: a test binary died");
    }
    Ok(())
}

/// Reads a child's lines until its output ends; `false` when that takes longer than `bound`.
pub(crate) fn read(output: PipeReader, bound: Duration, mut take: impl FnMut(&str)) -> bool {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let end = Instant::now() + bound;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                // A serial line ends its lines with two characters.
                let line = line.trim_end_matches('\r');
                take(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return true,
            Err(mpsc::RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// cargo's own setting that puts words before each test binary: cargo then builds as this user, and tests run as root.
fn root_runner() -> Result<String> {
    let words: Vec<String> = shell::root_prefix()?
        .iter()
        // A Rust string literal is a TOML string where it holds no control characters.
        .map(|word| format!("{:?}", word.to_string_lossy()))
        .collect();
    Ok(format!(
        "target.'cfg(all())'.runner = [{}]",
        words.join(", ")
    ))
}

/// Kills a process and all that it started, children before parents; only those.
pub(crate) fn kill(process: u32) {
    let mut tree = vec![process];
    let parents = parents();
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(
            parents
                .iter()
                .filter(|(_, of)| **of == parent)
                .map(|(child, _)| *child),
        );
        next += 1;
    }
    let ids: Vec<String> = tree.iter().rev().map(u32::to_string).collect();
    // As root, since sudo's children are; a failure leaves a process that had already ended. The shell's own `kill`,
    // because the program is in a package of its own.
    if let Ok(mut command) = shell::as_root("sh") {
        let _ = shell::output(command.args(["-c", "kill -KILL \"$@\"", "kill"]).args(ids));
    }
}

/// The parent of each process that runs now.
fn parents() -> BTreeMap<u32, u32> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent`; the name may hold anything, so the last parenthesis counts.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            parents.insert(process, parent);
        }
    }
    parents
}

#[cfg(test)]
mod tests {
    use super::{Command, kill, parents};

    #[test]
    fn a_tree_of_processes_is_killed_whole() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 600 & wait"])
            .spawn()
            .unwrap();
        let child = loop {
            if let Some((child, _)) = parents()
                .into_iter()
                .find(|(_, parent)| *parent == shell.id())
            {
                break child;
            }
            std::thread::yield_now();
        };
        // As an ordinary user the kill would ask sudo for a password.
        if !crate::shell::is_root() {
            shell.kill().unwrap();
            let _ = Command::new("kill").arg(child.to_string()).status();
        } else {
            kill(shell.id());
        }
        shell.wait().unwrap();
        // A signal is delivered before it is obeyed: the state is read until it says so.
        let started = std::time::Instant::now();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ") {
                return;
            }
            assert!(
                started.elapsed() < std::time::Duration::from_secs(10),
                "the grandchild still runs: {stat}"
            );
            std::thread::yield_now();
        }
    }
}
