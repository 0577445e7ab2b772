//! Pins the calling thread to a CPU, so that generators, servers and the agent can be kept apart.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pins the calling thread to CPU `cpu`; none leaves it where it is.
///
/// # Errors
/// There is no such CPU, or the process may not use it.
pub fn pin_thread(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    /// To `sched_setaffinity`, 0 is the calling thread.
    const THIS_THREAD: Pid = Pid::from_raw(0);
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("CPU {cpu} is beyond what the kernel can name"))?;
    sched_setaffinity(THIS_THREAD, &set).with_context(|| format!("pinning a thread to CPU {cpu}"))
}
