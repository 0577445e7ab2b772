//! Conntrack, before and after.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent_common::{Flow, Tuple, clock};
use nix::time::{ClockId, clock_gettime};

use super::world::{World, clear};

/// The key of packets from one end to another. `protocol` is IP's number.
pub fn tuple(protocol: u8, from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        source: from.ip().into(),
        destination: to.ip().into(),
        source_port_be: from.port().to_be(),
        destination_port_be: to.port().to_be(),
        protocol,
        _zero: [0; 3],
    }
}

/// The programs' clock now, in nanoseconds.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .unwrap_or_else(|error| panic!("reading the coarse clock: {error}"));
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
        + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// The programs' clock now, in ticks.
pub fn now() -> u32 {
    clock::tick(now_ns())
}

/// As many tries as fit into half a minute: for what must happen between two ticks of the clock, which a slow machine reaches now
/// and then only.
pub fn attempts() -> impl Iterator<Item = ()> {
    const TIME: Duration = Duration::from_secs(30);
    let end = Instant::now() + TIME;
    std::iter::repeat(()).take_while(move |()| Instant::now() < end)
}

impl World {
    /// The answered flow's entry for packets from one end to another.
    pub fn answered(&self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Option<Flow> {
        self.conntrack.get(&tuple(protocol, from, to), 0).ok()
    }

    /// The entry of a flow that was not answered yet.
    pub fn waiting(&self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Option<Flow> {
        self.unreplied.get(&tuple(protocol, from, to), 0).ok()
    }

    /// Entries in both tables: two for each flow.
    pub fn entries(&self) -> usize {
        self.conntrack.keys().count() + self.unreplied.keys().count()
    }

    /// Datagrams of which more fragments are to come, at each hook.
    pub fn datagrams(&self) -> usize {
        self.fragments.keys().count()
    }

    /// Makes what is known of datagrams under way so many seconds older.
    pub fn age_datagrams(&mut self, seconds: u32) {
        self.must(|w| {
            let keys: Vec<_> = w.fragments.keys().collect::<Result<_, _>>()?;
            for key in keys {
                let mut fragment = w.fragments.get(&key, 0)?;
                fragment.begun = fragment.begun.wrapping_sub(clock::ticks(seconds));
                w.fragments.insert(key, fragment, 0)?;
            }
            Ok(())
        });
    }

    /// Writes an answered flow's entry.
    pub fn plant(&mut self, key: Tuple, flow: Flow) {
        self.must(|w| Ok(w.conntrack.insert(key, flow, 0)?));
    }

    /// Writes the entry of a flow that was not answered.
    pub fn plant_waiting(&mut self, key: Tuple, flow: Flow) {
        self.must(|w| Ok(w.unreplied.insert(key, flow, 0)?));
    }

    /// Forgets every flow.
    pub fn clear_flows(&mut self) {
        self.must(|w| {
            clear(&mut w.conntrack)?;
            clear(&mut w.unreplied)
        });
    }

    /// Evicts one entry of an answered flow, as the kernel does when the table is full.
    pub fn evict(&mut self, key: &Tuple) {
        self.must(|w| Ok(w.conntrack.remove(key)?));
    }

    /// Evicts one entry of a flow that was not answered, as the kernel does when the table is full.
    pub fn evict_waiting(&mut self, key: &Tuple) {
        self.must(|w| Ok(w.unreplied.remove(key)?));
    }
}
