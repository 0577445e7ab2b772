//! One child process of the control plane: its log, its end, and the promise that it never outlives us.
//!
//! A thread of its own starts each child and waits for it. That thread must live exactly as long as the
//! child, because the kernel's parent-death signal is sent when the *thread* that forked ends, and a test's
//! thread or a runtime's worker ends earlier than the process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

/// How much of a log's end is shown with a failure, in bytes: the last forty or so lines.
const TAIL_BYTES: u64 = 8 * 1024;

/// The network namespace in which the control plane was started. Later starts of the API server happen there
/// too, whatever namespace the calling thread is in by then.
#[derive(Clone)]
pub(super) struct NetworkNamespace(Arc<File>);

impl NetworkNamespace {
    const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

    /// The namespace of the calling thread.
    pub(super) fn current() -> Result<Self> {
        let file =
            File::open(Self::OF_THIS_THREAD).context("opening this thread's network namespace")?;
        Ok(Self(Arc::new(file)))
    }

    /// Moves the calling thread there; does nothing (and needs no privilege) where it already is there.
    fn enter(&self) -> Result<()> {
        let here = std::fs::metadata(Self::OF_THIS_THREAD)?.ino();
        if self.0.metadata()?.ino() == here {
            return Ok(());
        }
        nix::sched::setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("entering the control plane's network namespace (needs root)")
    }
}

/// A running (or ended) child. Dropping it kills the child and waits until it is gone.
pub(super) struct Process {
    name: &'static str,
    log: PathBuf,
    pid: Pid,
    /// True once the child was reaped: from then on its pid may belong to someone else.
    reaped: Arc<Mutex<bool>>,
    /// How the child ended, once it did.
    ended: watch::Receiver<Option<String>>,
    waiter: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `program` with `arguments` in `netns`; what it prints is appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub(super) fn spawn(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        log: &Path,
        netns: &NetworkNamespace,
    ) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            // Nothing of the caller's environment (proxies above all) may change what the tests see.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", log.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(
                output
                    .try_clone()
                    .context("sharing the log between stdout and stderr")?,
            )
            .stderr(output)
            // Ctrl-C is for the harness, which then ends its children in its own order.
            .process_group(0);
        die_with_parent(&mut command);

        let reaped = Arc::new(Mutex::new(false));
        let (ended_tx, ended) = watch::channel(None);
        let (started_tx, started) = mpsc::sync_channel(1);
        let waiter = {
            let (netns, reaped) = (netns.clone(), reaped.clone());
            std::thread::Builder::new()
                .name(format!("wait-{name}"))
                .spawn(move || {
                    match netns.enter().and_then(|()| Ok(command.spawn()?)) {
                        Ok(child) => {
                            // A caller that is gone drops the other end; the child is then killed by its Drop.
                            let _ = started_tx.send(Ok(pid_of(&child)));
                            ended_tx.send_replace(Some(reap(child, &reaped)));
                        }
                        Err(error) => {
                            let _ = started_tx.send(Err(error));
                        }
                    }
                })
                .context("starting a thread")?
        };
        let pid = started
            .recv()
            .map_err(|_| anyhow!("the thread that starts {name} panicked"))?
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self {
            name,
            log: log.to_owned(),
            pid,
            reaped,
            ended,
            waiter: Some(waiter),
        })
    }

    /// An error with the end of the log, if the child has ended.
    pub(super) fn check_running(&self) -> Result<()> {
        match self.ended.borrow().as_deref() {
            None => Ok(()),
            Some(how) => Err(anyhow!(
                "{} ended ({how}); the end of its log:\n{}",
                self.name,
                self.log_tail()
            )),
        }
    }

    /// Where its output goes.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log.
    pub(super) fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Asks the child to end, waits for `grace`, then kills it. Returns when it is gone.
    pub(super) async fn stop(mut self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let ended = self.ended.wait_for(Option::is_some);
        if tokio::time::timeout(grace, ended).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.ended
                .wait_for(Option::is_some)
                .await
                .context("waiting for a killed process")?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if !*reaped {
            // Not reaped, so the pid is still ours; a child that has just ended needs no signal.
            let _ = kill(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(waiter) = self.waiter.take() {
            // Waits until the child is gone, so that its files can be removed. A panic there was printed.
            let _ = waiter.join();
        }
    }
}

/// The last [`TAIL_BYTES`] of a file, from the first whole line on.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if length <= TAIL_BYTES {
        return Ok(text);
    }
    Ok(text
        .split_once('\n')
        .map_or(text.clone(), |(_, rest)| rest.to_owned()))
}

/// Waits for the child's end without freeing its pid, then reaps it under the lock that signals take.
fn reap(mut child: Child, reaped: &Mutex<bool>) -> String {
    let pid = pid_of(&child);
    while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    {
    }
    let mut reaped = lock(reaped);
    let status = child.wait();
    *reaped = true;
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown: {error}"),
    }
}

fn pid_of(child: &Child) -> Pid {
    // Linux pids fit in 22 bits.
    Pid::from_raw(child.id().cast_signed())
}

fn lock(mutex: &Mutex<bool>) -> MutexGuard<'_, bool> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the kernel kill the child when the thread that starts it ends, by whatever way this process ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let hook = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above; then the signal never comes.
        if nix::unistd::getppid() == parent {
            Ok(())
        } else {
            Err(Errno::ESRCH.into())
        }
    };
    // SAFETY: between fork and exec the hook makes two system calls (prctl, getppid) and allocates nothing;
    // both are async-signal-safe.
    unsafe {
        command.pre_exec(hook);
    }
}
