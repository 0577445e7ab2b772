//! The tour that `cargo xtask run` gives shows what it says it shows, or says that it did not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The file of the samples that holds the policy.
const POLICY: &str = "40-policy.yaml";

/// How long a tour may take to show something.
const SHOWN: Duration = Duration::from_secs(60);

/// One tour at a time: each removes what it finds of an earlier one.
static TOUR: Mutex<()> = Mutex::new(());

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples")
}

/// What the samples say, file by file.
fn contents(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    files
        .into_iter()
        .map(|file| Ok((file.clone(), fs::read_to_string(file)?)))
        .collect()
}

fn tour(samples: &Path) -> Result<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_tour"))
        .arg("--once")
        .arg("--samples")
        .arg(samples)
        .output()
        .context("starting the tour")?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(output)
}

#[test]
fn the_tour_shows_what_it_says_and_fails_without_the_policy() -> Result<()> {
    let _alone = TOUR.lock().unwrap_or_else(PoisonError::into_inner);
    let before = contents(&samples())?;
    let whole = tour(&samples())?;
    ensure!(
        whole.status.code() == Some(0),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    let text = String::from_utf8_lossy(&whole.stdout).into_owned();
    for word in [
        "backend-1",
        "backend-2",
        "backend-3",
        "policy-ingress",
        "shop/backend-ingress",
    ] {
        ensure!(text.contains(word), "the tour does not speak of {word}");
    }
    ensure!(
        contents(&samples())? == before,
        "the tour changes nothing of the repository"
    );

    let without = tempfile::tempdir()?;
    for (file, text) in &before {
        let name = file.file_name().context("a file's name")?;
        if name != POLICY {
            fs::write(without.path().join(name), text)?;
        }
    }
    ensure!(
        contents(without.path())?.len() == before.len() - 1,
        "the samples have no {POLICY} to take out"
    );
    let open = tour(without.path())?;
    ensure!(
        open.status.code() == Some(1),
        "without the policy the tour must fail, and ended with {}",
        open.status
    );
    // Nothing stays behind, of this run or an earlier one.
    let left = namespaces()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// What is left of tours.
fn namespaces() -> Result<Vec<String>> {
    Ok(fs::read_dir("/run/netns")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("slc-tour-"))
        .collect())
}

/// A tour that stays. Dropping it kills it.
struct Staying {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
}

impl Staying {
    fn start(samples: &Path) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tour"))
            .arg("--samples")
            .arg(samples)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the tour")?;
        let stdout = child.stdout.take().context("the tour's output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            seen: String::new(),
        })
    }

    /// Waits for a line that has all of `words`.
    fn shows(&mut self, words: &[&str]) -> Result<()> {
        let end = Instant::now() + SHOWN;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("the tour does not show {words:?}:\n{}", self.seen);
            };
            self.seen += &line;
            self.seen.push('\n');
            if words.iter().all(|word| line.contains(word)) {
                return Ok(());
            }
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)?;
        self.child.wait().context("waiting for the tour")
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn the_tour_stays_takes_edits_shows_flows_and_leaves_nothing_behind() -> Result<()> {
    let _alone = TOUR.lock().unwrap_or_else(PoisonError::into_inner);
    let edited = tempfile::tempdir()?;
    for (file, text) in contents(&samples())? {
        let name = file.file_name().context("a file's name")?;
        fs::write(edited.path().join(name), text)?;
    }
    let policy = edited.path().join(POLICY);
    let guarded = fs::read_to_string(&policy)?;

    let mut tour = Staying::start(edited.path())?;
    tour.shows(&["Live flows"])?;
    tour.shows(&["DROP", "policy-ingress", "stranger"])?;
    // The stranger is let in by an edit, and kept out again by another.
    fs::remove_file(&policy)?;
    tour.shows(&[POLICY, "taken in"])?;
    tour.shows(&["ALLOW", "stranger"])?;
    fs::write(&policy, &guarded)?;
    tour.shows(&[POLICY, "taken in"])?;
    tour.shows(&["DROP", "policy-ingress", "stranger"])?;
    // It crashes, and leaves everything where it was.
    tour.signal(Signal::SIGKILL)?;
    let left = namespaces()?;
    ensure!(!left.is_empty(), "a tour that was killed left nothing");

    // The next one finds and removes that, and Ctrl-C removes its own.
    let mut tour = Staying::start(edited.path())?;
    tour.shows(&["Live flows"])?;
    let now = namespaces()?;
    ensure!(
        left.iter().all(|name| !now.contains(name)),
        "{left:?} {now:?}"
    );
    let status = tour.signal(Signal::SIGINT)?;
    ensure!(status.success(), "after Ctrl-C: {status}");
    let left = namespaces()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
