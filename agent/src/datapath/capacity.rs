//! How big the tables of flows are: from the machine's memory, unless a flag or a pinned map says otherwise.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use agent_common::limits;

use super::host;
use super::object::Sizes;
use super::pins::{PinError, Pins};
use super::sys::{self, ObjectKind};

/// Bytes that room for one flow takes: two entries in `conntrack`, and one in `unreplied`, which has half as many.
const FLOW_BYTES: u64 = 3 * limits::CONNTRACK_ENTRY_BYTES;

/// What there is to take from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Bytes of the machine.
    pub total: u64,
    /// Bytes that the agent's cgroup may use, which maps count against; None: no bound of its own.
    pub limit: Option<u64>,
}

/// A table of flows that is pinned with another capacity than the agent would give it. It stays as it is: its flows are worth more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Map name.
    pub map: &'static str,
    /// Entries of the pinned map.
    pub pinned: u32,
    /// Entries asked for.
    pub wanted: u32,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "keeps its {} entries and the flows in them, although {} are asked for; a start without pins (after a reboot, or after `sluice cleanup`) makes it anew",
            self.pinned, self.wanted
        )
    }
}

impl Memory {
    /// This machine's, and this process's bound. What cannot be read is taken for unbounded.
    #[must_use]
    pub fn read() -> Self {
        let total = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_of(&text));
        let limit = fs::read_to_string("/proc/self/cgroup")
            .ok()
            .and_then(|text| own_cgroup(&text))
            .and_then(|own| limit_of(&host::cgroup(None).ok()?, &own));
        Self {
            total: total.unwrap_or(u64::MAX),
            limit,
        }
    }

    /// Flows that the tables have room for.
    #[must_use]
    pub fn flows(&self) -> u32 {
        let flows = |bytes: u64| u32::try_from(bytes / FLOW_BYTES).unwrap_or(u32::MAX);
        let (least, most) = limits::CONNTRACK_FLOWS.into_inner();
        let mut wanted = flows(self.total / limits::CONNTRACK_MEMORY_PART).clamp(least, most);
        if crate::mutant::removed("one-size") {
            wanted = least;
        }
        let affordable = flows(self.total / limits::CONNTRACK_MEMORY_MOST);
        let allowed = self.limit.map_or(u32::MAX, |limit| {
            flows(limit / limits::CONNTRACK_CGROUP_MOST)
        });
        wanted
            .min(affordable)
            .min(allowed)
            .max(limits::CONNTRACK_FLOWS_LEAST)
    }
}

impl Sizes {
    /// Room for so many flows.
    #[must_use]
    pub const fn of_flows(flows: u32) -> Self {
        Self {
            conntrack: flows.saturating_mul(limits::ENTRIES_PER_FLOW),
            unreplied: flows,
        }
    }

    /// The same, but for tables that are pinned: those keep the capacity that they have, and are told of.
    ///
    /// # Errors
    /// A pin cannot be read.
    pub(super) fn keep_pinned(mut self, pins: &Pins) -> Result<(Self, Vec<Kept>), PinError> {
        let mut kept = Vec::new();
        for (map, wanted) in self.by_name() {
            let path = pins.map(map);
            let failed = |source| PinError::io(&path, source);
            let Some((ObjectKind::Map, fd)) = sys::open_pin(&path).map_err(failed)? else {
                continue;
            };
            let pinned = sys::map_info(fd.as_fd()).map_err(failed)?.max_entries;
            if pinned != wanted {
                kept.push(Kept {
                    map,
                    pinned,
                    wanted,
                });
                self.set(map, pinned);
            }
        }
        Ok((self, kept))
    }
}

/// Bytes of memory, from `/proc/meminfo`.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// The cgroup of cgroup v2 in `/proc/self/cgroup`, relative to the root of the mount.
fn own_cgroup(cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

/// The least `memory.max` of a cgroup and those above it, up to the root of the mount.
fn limit_of(root: &Path, own: &Path) -> Option<u64> {
    own.ancestors()
        .filter_map(|cgroup| {
            let text = fs::read_to_string(root.join(cgroup).join("memory.max")).ok()?;
            // `max`: none of its own.
            text.trim().parse().ok()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn flows(total: u64, limit: Option<u64>) -> u32 {
        Memory { total, limit }.flows()
    }

    #[test]
    fn capacity_grows_with_memory_between_its_bounds() {
        // Little: kube-proxy's minimum, as far as a sixteenth of the memory goes.
        assert_eq!(u64::from(flows(GIB, None)), GIB / 16 / FLOW_BYTES);
        assert_eq!(flows(4 * GIB, None), 131_072);
        assert_eq!(
            u64::from(flows(64 * GIB, None)),
            64 * GIB / 256 / FLOW_BYTES
        );
        assert_eq!(flows(512 * GIB, None), 1_048_576);
        assert_eq!(flows(u64::MAX, None), 1_048_576);
        assert_eq!(flows(0, None), limits::CONNTRACK_FLOWS_LEAST);
    }

    #[test]
    fn maps_take_a_quarter_of_the_agents_own_limit_at_most() {
        let limit = 256 << 20;
        assert_eq!(
            u64::from(flows(64 * GIB, Some(limit))),
            limit / 4 / FLOW_BYTES
        );
        assert_eq!(flows(4 * GIB, Some(64 * GIB)), 131_072);
    }

    #[test]
    fn both_tables_take_what_was_reckoned() {
        let sizes = Sizes::of_flows(1_000);
        let entries = u64::from(sizes.conntrack) + u64::from(sizes.unreplied);
        assert_eq!(entries * limits::CONNTRACK_ENTRY_BYTES, 1_000 * FLOW_BYTES);
    }

    #[test]
    fn memory_and_cgroup_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            total_of("MemTotal:       24683856 kB\nMemFree: 1 kB\n"),
            Some(24_683_856 * 1_024)
        );
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(
            own_cgroup("1:name=systemd:/x\n0::/kubepods/pod1/c\n"),
            Some("kubepods/pod1/c".into())
        );
        assert_eq!(own_cgroup("1:memory:/x\n"), None);
        assert!(Memory::read().total > 0);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = std::env::temp_dir().join(format!("sluice-capacity-{}", std::process::id()));
        let own = root.join("pod/agent");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("pod/memory.max"), "1048576\n").unwrap();
        fs::write(root.join("memory.max"), "2097152\n").unwrap();
        let found = limit_of(&root, Path::new("pod/agent"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, Some(1_048_576));
    }
}
