//! A named network namespace, and how threads and processes get into it.
//!
//! Threads enter by `setns`; `ip netns exec` is never used, because it mounts a fresh `/sys` and so hides bpffs.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use super::owner::absent_is_fine;
use super::{ip, traffic::affinity};

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Settings of every namespace of a lab: IPv6 addresses work at once (no duplicate address detection, no router
/// advertisements), and no rate limit hides an ICMP error from a probe. A setting that this kernel does not have per
/// namespace is left out.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv6/icmp/ratelimit", "0"),
];

/// A named network namespace that this process made. Dropping the last handle removes the name; the kernel ends the
/// namespace when nothing runs in it any more.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes one namespace with its loopback up.
    pub(crate) fn create(name: &str) -> Result<Arc<Self>> {
        let made = Self::create_all(&[name.to_owned()])?;
        made.into_iter()
            .next()
            .context("one namespace was asked for")
    }

    /// Makes many namespaces with one call of `ip`, each with its loopback up.
    pub(crate) fn create_all(names: &[String]) -> Result<Vec<Arc<Self>>> {
        let script: String = names.iter().map(|n| format!("netns add {n}\n")).collect();
        ip::batch(None, &script)?;
        let open = |name: &String| -> Result<Arc<Self>> {
            let path = Path::new(NETNS_DIR).join(name);
            let file = File::open(&path)
                .with_context(|| format!("opening the namespace {}", path.display()))?;
            let netns = Arc::new(Self {
                name: name.clone(),
                file,
            });
            netns.run(|| -> Result<()> {
                for (key, value) in COMMON_SYSCTLS {
                    absent_is_fine(write_sysctl(key, value))
                        .with_context(|| format!("setting {key} in {name}"))?;
                }
                Ok(())
            })??;
            netns.ip("link set lo up")?;
            Ok(netns)
        };
        names.iter().map(open).collect()
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace, for `setns` in a child process.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Moves the calling thread into this namespace for good. For threads made for it; see [`Netns::run`] otherwise.
    ///
    /// # Errors
    /// No CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering the namespace {}", self.name))
    }

    /// Runs `f` inside this namespace on a thread of its own and waits for its answer. A panic in `f` goes on here.
    ///
    /// # Errors
    /// The thread could not be started or could not enter.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name(self.thread_name("run"))
                .spawn_scoped(scope, || -> Result<T> {
                    self.enter()?;
                    Ok(f())
                });
            match inside.context("starting a thread for a namespace")?.join() {
                Ok(answer) => answer,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread that stays inside this namespace, pinned to CPU `cpu` if one is given, and runs `f` there.
    ///
    /// # Errors
    /// The thread could not be started. If it cannot enter or be pinned, its own result says so.
    pub fn thread<T: Send + 'static>(
        self: &Arc<Self>,
        role: &str,
        cpu: Option<usize>,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let netns = Arc::clone(self);
        thread::Builder::new()
            .name(self.thread_name(role))
            .spawn(move || {
                netns.enter()?;
                affinity::pin_thread(cpu)?;
                f()
            })
            .context("starting a thread for a namespace")
    }

    /// Runs lines of `ip` commands (without the leading `ip`) inside this namespace, in one go.
    ///
    /// # Errors
    /// The first line that `ip` refused, with its words.
    pub fn ip(&self, script: &str) -> Result<()> {
        ip::batch(Some(self), script)
    }

    /// Sets kernel parameters of this namespace: paths below `/proc/sys`, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// A parameter does not exist or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                write_sysctl(key, value)
                    .with_context(|| format!("setting {key} = {value} in {}", self.name))?;
            }
            Ok(())
        })?
    }

    /// Linux cuts thread names to 15 bytes; the last part of the namespace's name says most.
    fn thread_name(&self, role: &str) -> String {
        let last = self.name.rsplit('-').next().unwrap_or_default();
        format!("{role}@{last}")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            tracing::warn!("a namespace stays behind, the next sweep tries again: {error:#}");
        }
    }
}

/// `/proc/sys/net` shows the namespace of the thread that opens it.
fn write_sysctl(key: &str, value: &str) -> std::io::Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value)
}

/// The names of all named namespaces on this machine.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("listing {NETNS_DIR}")),
    };
    entries
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Removes a namespace's name. One that is gone already is no error.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    // EINVAL: not a mount, what an `ip netns add` that was killed half way leaves.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("unmounting the namespace {}", path.display()));
        }
    }
    absent_is_fine(fs::remove_file(&path))
        .with_context(|| format!("removing the namespace {}", path.display()))
}
