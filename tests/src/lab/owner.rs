//! Who owns a lab: a record beside it (pid and start time), and the removal of labs whose owner is dead.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::{bpffs, cgroup, netns};

/// Where labs keep their records, one directory a lab.
const RUN_DIR: &str = "/run/sluice-lab";
/// Held while a lab is claimed or swept, so that a sweep never meets a lab without its record.
const LOCK_FILE: &str = ".lock";
/// The record in a lab's directory: `<pid> <start time in clock ticks since boot>`.
const OWNER_FILE: &str = "owner";
/// What the names of all namespaces of all labs begin with.
const NETNS_PREFIX: &str = "slc-";
/// The field of `/proc/<pid>/stat` with the start time, counted after the command's closing bracket (proc(5), field 22).
const STAT_START_TIME: usize = 19;

static NEXT_LAB: AtomicU32 = AtomicU32::new(0);

/// A lab's id, `<name>-<pid>-<number>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabId {
    name: String,
    pid: u32,
    number: u32,
}

impl LabId {
    /// A new id of this process.
    pub(crate) fn fresh(name: &str) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()),
            "a lab's name is made of ASCII letters and digits, {name:?} is not"
        );
        let number = NEXT_LAB.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            name: name.to_owned(),
            pid: std::process::id(),
            number,
        })
    }

    /// The full name of this lab's namespace `role`.
    pub(crate) fn netns(&self, role: &str) -> String {
        format!("{NETNS_PREFIX}{self}-{role}")
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.name, self.pid, self.number)
    }
}

/// Makes the lab's run directory with this process as its owner.
pub(crate) fn claim(id: &LabId) -> Result<PathBuf> {
    let _lock = lock_run_dir()?;
    let dir = Path::new(RUN_DIR).join(id.to_string());
    fs::create_dir(&dir)
        .with_context(|| format!("making the lab's directory {}", dir.display()))?;
    let pid = std::process::id();
    let start = start_time(pid).context("reading this process's own start time")?;
    fs::write(dir.join(OWNER_FILE), format!("{pid} {start}\n"))
        .context("writing the lab's owner record")?;
    Ok(dir)
}

fn lock_run_dir() -> Result<Flock<File>> {
    fs::create_dir_all(RUN_DIR).with_context(|| format!("making {RUN_DIR}"))?;
    let file =
        File::create(Path::new(RUN_DIR).join(LOCK_FILE)).context("opening the lock of all labs")?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .context("locking the labs' run directory")
}

/// Removes every lab with this name prefix whose owner is dead; answers their ids.
pub(crate) fn sweep(name: &str) -> Result<Vec<String>> {
    let _lock = lock_run_dir()?;
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(RUN_DIR).context("listing the labs")? {
        let id = entry?.file_name().to_string_lossy().into_owned();
        if id != LOCK_FILE {
            ids.insert(id);
        }
    }
    for netns in netns::names()? {
        // slc-<name>-<pid>-<number>-<role>: the id is the first three parts after the prefix.
        let Some(rest) = netns.strip_prefix(NETNS_PREFIX) else {
            continue;
        };
        let parts: Vec<&str> = rest.splitn(4, '-').collect();
        if let [name, pid, number, _] = parts[..] {
            ids.insert(format!("{name}-{pid}-{number}"));
        }
    }
    let mut removed = Vec::new();
    for id in ids.into_iter().filter(|id| id.starts_with(name)) {
        if !owner_lives(&id) {
            remove(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Removes everything that belongs to the lab `id`, the record last, so that a removal that fails is found again.
pub(crate) fn remove(id: &str) -> Result<()> {
    cgroup::remove_tree(id)?;
    let prefix = format!("{NETNS_PREFIX}{id}-");
    for name in netns::names()?.iter().filter(|n| n.starts_with(&prefix)) {
        netns::remove(name)?;
    }
    bpffs::remove_pins(id)?;
    absent_is_fine(fs::remove_dir_all(Path::new(RUN_DIR).join(id)))
        .context("removing the lab's directory")
}

/// Turns "it is not there" into success, for removals.
pub(crate) fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn owner_lives(id: &str) -> bool {
    let Ok(record) = fs::read_to_string(Path::new(RUN_DIR).join(id).join(OWNER_FILE)) else {
        return false;
    };
    let mut fields = record.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (fields.next(), fields.next()) else {
        return false;
    };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start))
}

/// When the process started, in clock ticks since boot; nothing if it does not run (a zombie does not).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(STAT_START_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_name_cannot_be_mistaken_for_a_part_of_an_id() {
        assert!(LabId::fresh("tour").is_ok());
        assert!(LabId::fresh("").is_err());
        assert!(LabId::fresh("a-b").is_err());
    }

    #[test]
    fn this_process_lives_and_pid_zero_does_not() {
        assert!(start_time(std::process::id()).is_some());
        assert!(start_time(0).is_none());
    }
}
