//! Fragments: a first one is judged like any packet, and leaves its flow to those behind it once it has passed; each of these follows from exactly
//! where the last one ended, at the same hook, within a minute of the first.

use std::net::IpAddr;

use agent_common::{Reason, clock, limits};

use super::super::wire::{Kind, Part, Wire};
use super::{Arrival, Deed, Expected, Model, Verdict};

/// Where a fragment to come must begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Where the datagram comes from.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// See [`Part::id`].
    pub id: u32,
    /// See [`Part::shared`].
    pub shared: u8,
    /// Bytes of the datagram before it.
    pub at: usize,
    /// See [`agent_common::hook`].
    pub hook: u32,
}

/// What its first fragment said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Ports.
    pub ports: (u16, u16),
    /// Protocol.
    pub protocol: u8,
    /// Tick of the first fragment.
    pub tick: u32,
}

fn place(at: &Arrival<'_>, part: Part, begins: usize) -> Place {
    Place {
        from: at.wire.ends.from.ip(),
        to: at.wire.ends.to.ip(),
        id: part.id,
        shared: part.shared,
        at: begins,
        hook: at.hook,
    }
}

impl Model {
    /// What a packet says, with what is known of the datagram that it is part of.
    pub(super) fn put_together(&self, at: &Arrival<'_>) -> Wire {
        let mut wire = at.wire;
        let Some(part) = wire.part.filter(|_| wire.kind == Kind::Later) else {
            return wire;
        };
        let patience = clock::ticks(limits::REASSEMBLY_SECONDS);
        let begun = self
            .places
            .get(&place(at, part, part.at))
            .filter(|begun| at.tick.saturating_sub(begun.tick) <= patience);
        match begun {
            None => wire.kind = Kind::Never(Reason::Fragment),
            Some(begun) => {
                wire.kind = Kind::Flow;
                wire.follows = true;
                wire.ends.from.set_port(begun.ports.0);
                wire.ends.to.set_port(begun.ports.1);
                wire.ends.protocol = begun.protocol;
            }
        }
        wire
    }

    /// What a fragment that has passed leaves for the next one.
    pub(super) fn leaves(&mut self, at: &Arrival<'_>, came: &Expected) {
        let (Some(part), Kind::Flow) = (at.wire.part, at.wire.kind) else {
            return;
        };
        if came.verdict == Verdict::Drop || came.limited {
            return;
        }
        let tick = if at.wire.follows {
            let Some(begun) = self.places.remove(&place(at, part, part.at)) else {
                return;
            };
            self.did(at, Deed::FragmentFollowed);
            begun.tick
        } else {
            at.tick
        };
        if part.more {
            let ends = at.wire.ends;
            let begun = Begun {
                ports: (ends.from.port(), ends.to.port()),
                protocol: ends.protocol,
                tick,
            };
            self.places
                .insert(place(at, part, part.at + part.length), begun);
        }
    }
}
