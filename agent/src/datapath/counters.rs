//! Reading the per-CPU counters.

use agent_common::{Count, Counter, Reason, count_index, drop_index, hook};
use aya::maps::{Map, MapData, MapError, PerCpuArray};

use super::pins::Pins;

/// The map `counters`, open for reading.
pub struct Counters {
    map: PerCpuArray<MapData, Counter>,
}

/// Packets dropped at a hook for a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drops {
    /// See [`agent_common::hook`].
    pub hook: u32,
    /// Why.
    pub reason: Reason,
    /// How many, on all CPUs since the maps were made.
    pub counter: Counter,
}

/// All counters at about one moment.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Every hook and reason, zero or not, in the order of their numbers.
    pub drops: Vec<Drops>,
    /// Everything else, in the order of [`Count::ALL`].
    pub counts: Vec<(Count, Counter)>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    pub(super) const fn new(map: PerCpuArray<MapData, Counter>) -> Self {
        Self { map }
    }

    /// Opens the pinned map a second time; it must have been checked already.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapError> {
        let data = MapData::from_pin(pins.map("counters"))?;
        Ok(Self::new(PerCpuArray::try_from(Map::PerCpuArray(data))?))
    }

    fn sum(&self, index: u32) -> Result<Counter, MapError> {
        let values = self.map.get(&index, 0)?;
        Ok(values.iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
    }

    /// Packets dropped at one hook for one reason.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn drops(&self, hook: u32, reason: Reason) -> Result<Counter, MapError> {
        self.sum(drop_index(hook, reason))
    }

    /// One of the other counters.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn count(&self, count: Count) -> Result<Counter, MapError> {
        self.sum(count_index(count))
    }

    /// All of them.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn totals(&self) -> Result<Totals, MapError> {
        let mut totals = Totals::default();
        for hook in 0..hook::HOOKS {
            for &reason in Reason::ALL {
                totals.drops.push(Drops {
                    hook,
                    reason,
                    counter: self.drops(hook, reason)?,
                });
            }
        }
        for &count in Count::ALL {
            totals.counts.push((count, self.count(count)?));
        }
        Ok(totals)
    }
}
