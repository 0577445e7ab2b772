//! Child processes of the lab: inside a namespace, in a cgroup, and never outliving their owner.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use super::lock;
use super::netns::Netns;

/// Lets `command` enter `netns` between fork and exec.
pub(crate) fn enter_before_exec(command: &mut Command, netns: &Netns) -> Result<()> {
    let file = netns
        .file()
        .try_clone()
        .context("duplicating a namespace's descriptor")?;
    let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call on a descriptor it owns, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Lets `command` join the cgroup at `dir` between fork and exec, so that no socket of it is made outside.
fn join_before_exec(command: &mut Command, dir: &Path) -> Result<()> {
    let path = dir.join("cgroup.procs");
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    // "0" is the writing process itself.
    let join = move || {
        nix::unistd::write(&file, b"0")
            .map(drop)
            .map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes one system call on a descriptor it owns, and allocates nothing.
    unsafe { command.pre_exec(join) };
    Ok(())
}

/// Makes the kernel kill the child when the thread that forks it ends; only [`SPAWNER`] may fork such a child.
fn die_with_owner(command: &mut Command) {
    let owner = Pid::this();
    let bind = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The owner may have died before the line above took effect.
        if getppid() == owner {
            Ok(())
        } else {
            Err(io::Error::from(nix::Error::ESRCH))
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(bind) };
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// PR_SET_PDEATHSIG speaks of the parent *thread*: a child forked by a test's thread would die with that thread. So one
/// thread that lives as long as the process forks them all.
static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = mpsc::channel::<Job>();
    let forks = move || {
        for (mut command, answer) in jobs {
            // Nobody waits for the answer only if the asking thread is gone; the child then has no owner.
            if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    };
    // Without this thread every spawn reports that it is gone.
    let _ = thread::Builder::new()
        .name("lab-spawner".to_owned())
        .spawn(forks);
    Mutex::new(sender)
});

/// A child process of the lab. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// The child, for its pipes.
    pub(crate) child: Child,
    pidfd: OwnedFd,
    what: String,
}

impl Process {
    /// Starts `command` in `netns` and, if given, in the cgroup at `cgroup`. It dies with this process.
    ///
    /// # Errors
    /// The program does not exist, or the namespace or the cgroup could not be entered.
    pub fn spawn(mut command: Command, netns: &Netns, cgroup: Option<&Path>) -> Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        die_with_owner(&mut command);
        if let Some(dir) = cgroup {
            join_before_exec(&mut command, dir)?;
        }
        enter_before_exec(&mut command, netns)?;
        let (answer, started) = mpsc::channel();
        lock(&SPAWNER)
            .send((command, answer))
            .map_err(|_| anyhow!("the lab's spawner thread is gone"))?;
        let started = started
            .recv()
            .map_err(|_| anyhow!("the lab's spawner thread is gone"))?;
        let child = started.with_context(|| format!("starting {what}"))?;
        let pidfd = pidfd_open(child.id()).with_context(|| format!("watching {what}"))?;
        Ok(Self { child, pidfd, what })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A descriptor that becomes readable when the process ends.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("sending {signal} to {} ({pid})", self.what))
    }

    /// Waits until the process ends, at most `deadline`; nothing if it still runs then.
    ///
    /// # Errors
    /// The wait itself failed.
    pub fn wait(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + deadline;
        wait_readable(&[self.ended()], end)?;
        self.child
            .try_wait()
            .with_context(|| format!("waiting for {}", self.what))
    }

    /// Kills the process with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// The wait itself failed.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .with_context(|| format!("killing {}", self.what))?;
        self.child
            .wait()
            .with_context(|| format!("waiting for {}", self.what))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error here says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until one of `fds` is readable or `end` has come; answers which are.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], end: Instant) -> Result<Vec<bool>> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, or the last fraction of a millisecond would be spent spinning.
        let millis = left.as_nanos().div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, timeout) {
            Ok(0) if !left.is_zero() => {}
            Ok(_) => return Ok(polled.iter().map(|p| p.any().unwrap_or(false)).collect()),
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
    }
}

fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    const NO_FLAGS: libc::c_uint = 0;
    // SAFETY: pidfd_open takes a process id and flags, and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, NO_FLAGS) };
    let fd = i32::try_from(nix::Error::result(fd).context("pidfd_open")?).context("pidfd_open")?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Raises the limit of open files to the hard limit: a probe matrix holds thousands of sockets at once.
pub(crate) fn raise_file_limit() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a local that outlives the call.
    nix::Error::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })
        .context("getrlimit")?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    nix::Error::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
        .context("setrlimit")?;
    Ok(())
}
