//! A cgroup2 of the lab's own. Processes in it play processes of a node, so the agent's cgroup programs, attached to
//! it, never see the rest of the machine.

use std::fs;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::owner::absent_is_fine;

/// What the names of all labs' cgroups begin with.
const PREFIX: &str = "slc-";
/// How long killed processes may take to leave their cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// A cgroup2 directory. The lab removes it with everything below.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn create(lab: &str) -> Result<Self> {
        Self::make(mount()?.join(format!("{PREFIX}{lab}")))
    }

    /// Makes a child of this cgroup.
    ///
    /// # Errors
    /// It exists already, or the kernel refused.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in it, children not counted.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let path = self.path.join("cgroup.procs");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.lines()
            .map(|pid| {
                pid.parse()
                    .with_context(|| format!("{}: {pid:?} is no pid", path.display()))
            })
            .collect()
    }
}

/// Where cgroup2 is mounted: at `/sys/fs/cgroup` in the unified layout, at a path of its own in the hybrid one.
///
/// # Errors
/// It is mounted nowhere.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    let cgroup2 = mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    cgroup2.context("cgroup2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
}

/// Kills what runs in the cgroup of the lab `id` and removes it with its children. One that is gone is no error.
pub(crate) fn remove_tree(id: &str) -> Result<()> {
    let path = mount()?.join(format!("{PREFIX}{id}"));
    if !path.exists() {
        return Ok(());
    }
    kill_all(&path)?;
    remove_dirs(&path).with_context(|| format!("removing the cgroup {}", path.display()))
}

fn kill_all(path: &Path) -> Result<()> {
    // cgroup.kill (Linux 5.14) takes all of the subtree at once, forks under way included.
    let kill = path.join("cgroup.kill");
    fs::write(&kill, "1").with_context(|| format!("writing {}", kill.display()))?;
    let events_path = path.join("cgroup.events");
    let mut events = fs::File::open(&events_path)
        .with_context(|| format!("opening {}", events_path.display()))?;
    let end = Instant::now() + KILL_DEADLINE;
    loop {
        let mut text = String::new();
        events.rewind().context("rewinding cgroup.events")?;
        events
            .read_to_string(&mut text)
            .context("reading cgroup.events")?;
        if !text.contains("populated 1") {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("the processes of {} do not end", path.display());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // POLLPRI: something in the file has changed since this descriptor last read it.
        poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)],
            timeout,
        )
        .context("waiting on cgroup.events")?;
    }
}

/// Children first; the files in a cgroup's directory are the kernel's.
fn remove_dirs(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dirs(&entry.path())?;
        }
    }
    absent_is_fine(fs::remove_dir(path))
}
