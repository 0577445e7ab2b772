//! Flows, from tables that the old programs still write to into those that the new ones use already.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use agent_common::{Address, Flow, SocketReverse, SocketReverseKey, Tuple, flow_flag};
use aya::Pod;

use super::super::conntrack::partner;
use super::super::pins::Pins;
use super::super::sys;
use super::old::OldMap;
use super::{MigrateError, OldMaps, meaning};

/// What was copied, in entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Of flows, two each.
    pub flows: u64,
    /// Of sockets whose destination was translated.
    pub sockets: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.sockets += other.sockets;
    }
}

/// The new tables.
struct Tables {
    conntrack: OwnedFd,
    unreplied: OwnedFd,
}

/// Copies every entry that the new tables do not have. Both entries of a flow are copied together, the responder's first, so that
/// its packets find both or, but for an instant of the second copy, none. What the new programs made or changed stays.
///
/// Flows move from `unreplied` to `conntrack` and never back, so that in this order none is missed.
///
/// # Errors
/// The kernel refused; what was copied stays, and the call can be made again.
pub(in super::super) fn move_flows(old: &OldMaps, pins: &Pins) -> Result<Moved, MigrateError> {
    let mut moved = Moved::default();
    if crate::mutant::removed("upgrade-without-copy") {
        return Ok(moved);
    }
    let open = |name: &'static str| {
        sys::open_pinned(&pins.map(name))
            .map(|(_, fd)| fd)
            .map_err(|source| MigrateError::Map {
                map: name,
                layout: old.number(),
                source,
            })
    };
    let new = Tables {
        conntrack: open("conntrack")?,
        unreplied: open("unreplied")?,
    };
    let both: Vec<&OldMap> = ["unreplied", "conntrack"]
        .into_iter()
        .filter_map(|name| old.map(name))
        .collect();
    for table in &both {
        let answered = table.name() == "conntrack";
        table.for_each(Tuple::default(), Flow::NONE, |key, flow| {
            let flow = meaning::flow(table.layout(), &key, flow);
            moved.flows += new.take(&both, answered, &key, &flow)?;
            Ok(())
        })?;
    }
    let no_key = SocketReverseKey {
        cookie: 0,
        address: Address::NONE,
        port_be: 0,
        protocol: 0,
        _zero: [0; 5],
    };
    let no_service = SocketReverse {
        address: Address::NONE,
        port_be: 0,
        _zero: [0; 2],
        backend: 0,
        backend_generation: 0,
        service: 0,
    };
    if crate::mutant::removed("upgrade-without-sockets") {
        return Ok(moved);
    }
    moved.sockets = copy(old, &open, "sock_reverse", no_key, no_service)?;
    Ok(moved)
}

/// Copies a table whose entries stand each for itself (affinity will be another); `key` and `value` are defaults of their fields.
fn copy<K: Pod, V: Pod>(
    old: &OldMaps,
    open: &impl Fn(&'static str) -> Result<OwnedFd, MigrateError>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<u64, MigrateError> {
    let Some(table) = old.map(name) else {
        return Ok(0);
    };
    let new = open(name)?;
    let mut copied = 0;
    table.for_each(key, value, |key, value| {
        copied += insert(&new, &key, &value)?;
        Ok(())
    })?;
    Ok(copied)
}

/// Puts an entry in where there is none; returns how many were put in.
fn insert<K: Pod, V: Pod>(map: &OwnedFd, key: &K, value: &V) -> io::Result<u64> {
    match sys::update(map.as_fd(), key, value, sys::NO_EXIST) {
        Ok(()) => Ok(1),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(0),
        Err(error) => Err(error),
    }
}

impl Tables {
    /// Takes over the flow of an old entry; returns how many entries were put in. Where the new programs have made another flow of
    /// the same opener, theirs stays, and the old one's answers find their way back all the same.
    fn take(&self, old: &[&OldMap], answered: bool, key: &Tuple, flow: &Flow) -> io::Result<u64> {
        let same =
            |now: &Flow| now.created == flow.created && now.new_destination == flow.new_destination;
        let known = sys::lookup::<Tuple, Flow>(self.conntrack.as_fd(), key)?;
        if let Some(now) = known.filter(same) {
            self.end(key, now, flow)?;
            return Ok(0);
        }
        let other_key = partner(key, flow);
        let mut other = None;
        for table in old {
            if other.is_none() {
                other = table
                    .lookup(&other_key, Flow::NONE)?
                    .map(|flow| meaning::flow(table.layout(), &other_key, flow));
            }
        }
        if flow.flags & flow_flag::REPLY != 0 && other.is_some() {
            // It comes with its opener's entry.
            return Ok(0);
        }
        let into = if answered {
            &self.conntrack
        } else {
            &self.unreplied
        };
        let mut put = 0;
        if let Some(other) = &other {
            put += insert(into, &other_key, other)?;
        }
        let waiting = sys::lookup::<Tuple, Flow>(self.unreplied.as_fd(), key)?;
        if known.is_some() || waiting.is_some_and(|now| !answered || !same(&now)) {
            return Ok(put);
        }
        put += insert(into, key, flow)?;
        if waiting.is_some() {
            // It was answered between the two walks. Gone already is as good.
            let _ = sys::take::<Tuple, Flow>(self.unreplied.as_fd(), key);
            let _ = sys::take::<Tuple, Flow>(self.unreplied.as_fd(), &other_key);
        }
        Ok(put)
    }

    /// A flow that was copied and then ended by a packet that the old programs saw, has ended here too.
    fn end(&self, key: &Tuple, mut now: Flow, old: &Flow) -> io::Result<()> {
        if old.closing == 0 || now.closing != 0 {
            return Ok(());
        }
        now.closing = 1;
        match sys::update(self.conntrack.as_fd(), key, &now, sys::EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}
