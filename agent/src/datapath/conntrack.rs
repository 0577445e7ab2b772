//! The tables of flows: collection by age, and listing.
//!
//! A flow's two entries are judged together, by the younger of their times: programs touch both, but each of them once a tick at most.
//! Both are read again right before they are deleted, and deleted by a call that returns what they held at that moment; a flow that
//! came back to life in between is put back, unless the programs have already made it anew. What remains is a packet that has found
//! its entry and not touched it yet at the very instant of the deletion, some ten nanoseconds in the life of a flow that was idle
//! for its whole timeout: it is delivered, and the flow's next packet is taken for a new one's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use agent_common::{Flow, Timeouts, Tuple, clock};
use aya::maps::MapData;

use super::sys::{self, Cursor};

/// Entries read by one call: big enough to make the call's cost small, small enough to hold in the cache.
const BATCH: usize = 1_024;

/// `conntrack` and `unreplied`, open for reading and collecting.
#[derive(Debug)]
pub struct Conntrack {
    conntrack: MapData,
    unreplied: MapData,
    timeouts: Timeouts,
}

/// One of the two tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Flows that were answered.
    Conntrack,
    /// Flows that were not.
    Unreplied,
}

/// What one collection saw and did, in entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sweep {
    /// Entries in the table.
    pub seen: u64,
    /// Entries that were left.
    pub left: u64,
    /// Entries deleted, partners included.
    pub expired: u64,
    /// Entries that were old when seen and alive when looked at again, or put back.
    pub revived: u64,
}

/// The tick ([`agent_common::clock`]) of now: the clock of [`Flow::last_seen`].
#[must_use]
pub fn now() -> u32 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| {
        let duration = std::time::Duration::from(time);
        clock::tick(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    })
}

/// The key of a flow's other entry: the reverse of what this entry's packets become.
#[must_use]
pub const fn partner(key: &Tuple, flow: &Flow) -> Tuple {
    Tuple {
        source: flow.new_destination,
        destination: flow.new_source,
        source_port_be: flow.new_destination_port_be,
        destination_port_be: flow.new_source_port_be,
        protocol: key.protocol,
        _zero: [0; 3],
    }
}

/// Whether an entry, last seen at a time that may be its partner's, has been idle for longer than it may at `now`. A time in the future (clocks of two CPUs) is not old.
const fn is_old(
    timeouts: &Timeouts,
    table: Table,
    key: &Tuple,
    flow: &Flow,
    last_seen: u32,
    now: u32,
) -> bool {
    let idle = now.wrapping_sub(last_seen);
    let answered = matches!(table, Table::Conntrack) || flow.answered();
    idle.cast_signed() > 0 && idle > *timeouts.of(key.protocol, flow.closing != 0, answered)
}

/// The later of two times of a clock that may wrap.
const fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() > 0 {
        a
    } else {
        b
    }
}

impl Conntrack {
    pub(super) const fn new(conntrack: MapData, unreplied: MapData, timeouts: Timeouts) -> Self {
        Self {
            conntrack,
            unreplied,
            timeouts,
        }
    }

    /// Entries that a table has room for.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn capacity(&self, table: Table) -> io::Result<u32> {
        Ok(sys::map_info(self.map(table))?.max_entries)
    }

    fn map(&self, table: Table) -> BorrowedFd<'_> {
        match table {
            Table::Conntrack => self.conntrack.fd().as_fd(),
            Table::Unreplied => self.unreplied.fd().as_fd(),
        }
    }

    /// Visits every entry of a table. Entries that come or go meanwhile may be missed, and none is visited twice by a
    /// walk that nothing else resizes (hash maps are walked by bucket).
    ///
    /// # Errors
    /// The kernel refused, or the visitor did.
    pub fn for_each(
        &self,
        table: Table,
        mut visit: impl FnMut(&Tuple, &Flow) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut cursor = Cursor::default();
        let mut entries = Vec::with_capacity(BATCH);
        loop {
            let more = sys::batch(self.map(table), &mut cursor, BATCH, &mut entries)?;
            for (key, flow) in &entries {
                visit(key, flow)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Deletes what has been idle for too long, and shows the rest to `note`. Blocks for as long as a walk through the table takes.
    ///
    /// # Errors
    /// The kernel refused; what was deleted before stays deleted.
    pub fn collect(&self, table: Table, mut note: impl FnMut(&Flow)) -> io::Result<Sweep> {
        let mut sweep = Sweep::default();
        let mut cursor = Cursor::default();
        let mut entries: Vec<(Tuple, Flow)> = Vec::with_capacity(BATCH);
        loop {
            let more = sys::batch(self.map(table), &mut cursor, BATCH, &mut entries)?;
            let now = now();
            for (key, flow) in &entries {
                sweep.seen += 1;
                let stays = !is_old(&self.timeouts, table, key, flow, flow.last_seen, now)
                    || self.retire(table, key, &mut sweep)?;
                if stays {
                    sweep.left += 1;
                    note(flow);
                }
            }
            if !more {
                return Ok(sweep);
            }
        }
    }

    /// Looks again at an entry that seemed old, and at its partner, and deletes both if both are old now. Answers whether the
    /// flow lives.
    fn retire(&self, table: Table, key: &Tuple, sweep: &mut Sweep) -> io::Result<bool> {
        let map = self.map(table);
        let Some(flow) = sys::lookup::<Tuple, Flow>(map, key)? else {
            // It went with its partner, or a program removed it.
            return Ok(false);
        };
        let other_key = partner(key, &flow);
        let other = sys::lookup::<Tuple, Flow>(map, &other_key)?;
        let last_seen = other.map_or(flow.last_seen, |other| {
            later(flow.last_seen, other.last_seen)
        });
        let trusted = crate::mutant::removed("gc-without-recheck");
        if !(trusted || is_old(&self.timeouts, table, key, &flow, last_seen, now())) {
            sweep.revived += 1;
            return Ok(true);
        }
        let mut taken = Vec::with_capacity(2);
        for half in [*key, other_key] {
            if let Some(flow) = sys::take::<Tuple, Flow>(map, &half)? {
                taken.push((half, flow));
            }
        }
        let now = now();
        let dead = |(half, flow): &(Tuple, Flow)| {
            is_old(&self.timeouts, table, half, flow, flow.last_seen, now)
        };
        if trusted || taken.iter().all(dead) {
            sweep.expired += taken.len() as u64;
            return Ok(false);
        }
        sweep.revived += 1;
        for (half, flow) in &taken {
            match sys::update(map, half, flow, sys::NO_EXIST) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use agent_common::{Address, flow_flag, limits, protocol};

    use super::*;

    const TCP: Tuple = Tuple {
        source: Address::v4([10, 0, 0, 1]),
        destination: Address::v4([10, 96, 0, 1]),
        source_port_be: 40_000_u16.to_be(),
        destination_port_be: 80_u16.to_be(),
        protocol: protocol::TCP,
        _zero: [0; 3],
    };

    #[test]
    fn partners_find_each_other_through_translation() {
        let forward = Flow {
            new_source: TCP.source,
            new_destination: Address::v4([10, 0, 0, 9]),
            new_source_port_be: TCP.source_port_be,
            new_destination_port_be: 8080_u16.to_be(),
            ..Flow::NONE
        };
        let reply_key = partner(&TCP, &forward);
        assert_eq!(reply_key.source, Address::v4([10, 0, 0, 9]));
        assert_eq!(reply_key.destination, TCP.source);
        let reply = Flow {
            new_source: TCP.destination,
            new_destination: TCP.source,
            new_source_port_be: TCP.destination_port_be,
            new_destination_port_be: TCP.source_port_be,
            flags: flow_flag::REPLY,
            ..Flow::NONE
        };
        assert!(partner(&reply_key, &reply) == TCP);
    }

    #[test]
    fn age_is_by_table_protocol_and_state() {
        let at = |table, closing, idle| {
            let flow = Flow {
                closing,
                last_seen: 1_000_000,
                ..Flow::NONE
            };
            is_old(
                &Timeouts::DEFAULT,
                table,
                &TCP,
                &flow,
                flow.last_seen,
                1_000_000 + idle,
            )
        };
        let established = clock::ticks(limits::TCP_ESTABLISHED_SECONDS);
        assert!(!at(Table::Conntrack, 0, established));
        assert!(at(Table::Conntrack, 0, established + 1));
        assert!(at(
            Table::Conntrack,
            1,
            clock::ticks(limits::TCP_CLOSING_SECONDS) + 1
        ));
        assert!(at(
            Table::Unreplied,
            0,
            clock::ticks(limits::TCP_UNREPLIED_SECONDS) + 1
        ));
        assert!(!at(Table::Unreplied, 0, 0));
        // Answered, and only waiting for room: it lives as long as any other.
        let held = Flow {
            flags: flow_flag::ANSWERED,
            ..Flow::NONE
        };
        let after = clock::ticks(limits::TCP_ESTABLISHED_SECONDS);
        let old = |now| is_old(&Timeouts::DEFAULT, Table::Unreplied, &TCP, &held, 0, now);
        assert!(!old(after) && old(after + 1));
    }

    #[test]
    fn a_time_ahead_of_the_clock_is_not_old() {
        let flow = Flow {
            last_seen: 101,
            ..Flow::NONE
        };
        assert!(!is_old(
            &Timeouts::DEFAULT,
            Table::Conntrack,
            &TCP,
            &flow,
            flow.last_seen,
            100
        ));
        assert_eq!(later(u32::MAX, 3), 3);
        assert_eq!(later(5, 3), 5);
    }
}
