//! Waiting until every program run that began before is over.
//!
//! Way: update an element of a map of maps. The kernel then calls `synchronize_rcu` before the call returns
//! (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c, since Linux 4.20), precisely so that no program still uses what was there
//! before. TC and cgroup programs run under `rcu_read_lock`; none of ours is sleepable.
//!
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` would be the same grace period in one call, but not always: it is refused under
//! `nohz_full`, and does nothing at all on one CPU. There a kernel with CONFIG_PREEMPT_RCU may have preempted a cgroup program (process
//! context) or, with threaded NAPI or PREEMPT_RT, a TC program in the middle, and the agent would reuse what that one still holds.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS};

use super::sys;

/// A map of one map, whose update waits.
#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub(super) fn new() -> io::Result<Self> {
        let inner = sys::create_array(BPF_MAP_TYPE_ARRAY as u32, None)?;
        let outer = sys::create_array(BPF_MAP_TYPE_ARRAY_OF_MAPS as u32, Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    /// Returns after a grace period.
    pub(super) fn wait(&self) -> io::Result<()> {
        if crate::mutant::removed("no-grace") {
            return Ok(());
        }
        let inner = self.inner.as_fd().as_raw_fd().cast_unsigned();
        sys::update(self.outer.as_fd(), &0u32, &inner, 0)
    }
}
