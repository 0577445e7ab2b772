//! What a node must do with a packet, written from ARCHITECTURE.md (the path of a packet) and the documents behind it, in plain lists and maps.
//!
//! With the programs it shares the names of reasons and hooks, of bits in maps, and the figures of `limits`, and no line of code: neither
//! parser, sums, translation, look-ups nor tuples.
//!
//! - [`cluster`]: who is who, services and backends, as they were told.
//! - [`policy`]: what a pod may send and take.
//! - [`flows`]: the two tables of flows: which entry a packet finds, when it holds, when it is over.
//! - `open`: a new flow: its backend, its judgement, its entries.
//! - `hooks`: the path of a packet through each hook.
//! - [`parts`]: fragments, which follow the first of their datagram.
//! - `errors`: ICMP errors, which follow the flow that they are about.
//! - `unknown`: packets whose flow cannot be told: dropped where policy is in force or a ClusterIP is the target, left to the stack elsewhere.
//! - `refuse`: the answer that a refused packet is turned into.

pub mod cluster;
mod errors;
pub mod flows;
mod hooks;
mod open;
pub mod parts;
pub mod policy;
mod refuse;
mod unknown;

use std::collections::{BTreeMap, HashMap};

use agent_common::{Count, Reason};

use super::wire::{Ends, Wire};
use cluster::Cluster;
use flows::Flows;
use parts::{Begun, Place};

/// What a program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// On to the next program and the stack (`TC_ACT_UNSPEC`).
    Next,
    /// Gone (`TC_ACT_SHOT`).
    Drop,
    /// Into a pod (`TC_ACT_REDIRECT`).
    Redirect,
}

impl Verdict {
    /// The verdict of a return code.
    pub fn of(code: i32) -> Option<Self> {
        match code {
            -1 => Some(Self::Next),
            2 => Some(Self::Drop),
            7 => Some(Self::Redirect),
            _ => None,
        }
    }
}

/// What the ring says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// See [`agent_common::event_kind`].
    pub kind: u8,
    /// Why.
    pub reason: Option<Reason>,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What the program returns.
    pub verdict: Verdict,
    /// The packet out.
    pub frame: Vec<u8>,
    /// What the ring says, unless a limit keeps it from it.
    pub told: Option<Told>,
    /// The packet is answered, unless a limit lets it be dropped.
    pub limited: bool,
}

/// What becomes of a packet and neither a verdict, a reason nor a count tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// A fragment followed the first of its datagram.
    FragmentFollowed,
    /// An ICMP error passed because it is about a flow.
    ErrorFollowed,
    /// An ICMP error passed, and what it quotes was translated back.
    ErrorTranslated,
    /// The flow of a packet behind extension headers was found.
    ChainWalked,
}

impl Deed {
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::FragmentFollowed,
        Self::ErrorFollowed,
        Self::ErrorTranslated,
        Self::ChainWalked,
    ];
}

/// A packet and where it is.
#[derive(Clone, Debug)]
pub struct Arrival<'a> {
    /// See [`agent_common::hook`].
    pub hook: u32,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Interface that brought the packet; 0: made on this host.
    pub ingress: u32,
    /// The packet in.
    pub frame: &'a [u8],
    /// What it says.
    pub wire: Wire,
    /// The clock, in ticks.
    pub tick: u32,
    /// What a choice at random came to.
    pub chance: Chance,
}

/// What is known of a choice at random, from what came of it.
#[derive(Clone, Debug, Default)]
pub struct Chance {
    /// Of a flow that was made, by its opener's packets: backend and client's port.
    pub made: Option<(Ends, Option<u32>, u16)>,
    /// Of a flow that was not: the backend it would have had, as the ring tells it.
    pub told_backend: Option<u32>,
    /// The reason that the ring tells, or, where a limit kept it from that, a counter.
    pub told_reason: Option<Reason>,
    /// The ring told something.
    pub told: bool,
    /// Where it did not: halves that are gone since the packet before.
    pub vanished: Vec<Ends>,
}

/// What was counted in a sequence, as far as it is certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Drops and rejections, by hook and reason.
    pub drops: BTreeMap<(u32, Reason), u64>,
    /// The rest: at least and at most.
    pub counts: BTreeMap<Count, (u64, u64)>,
    /// What else was done, by hook.
    pub deeds: BTreeMap<(u32, Deed), u64>,
}

/// The model of one node.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// What it was told.
    pub cluster: Cluster,
    /// What it keeps of flows.
    pub flows: Flows,
    /// What it keeps of datagrams whose fragments are under way.
    pub places: HashMap<Place, Begun>,
    /// What it has counted.
    pub tally: Tally,
}

impl Model {
    /// Counts something.
    fn count(&mut self, what: Count, number: u64) {
        self.count_between(what, number, number);
    }

    /// Notes what no counter tells.
    fn did(&mut self, at: &Arrival<'_>, deed: Deed) {
        *self.tally.deeds.entry((at.hook, deed)).or_default() += 1;
    }

    fn count_between(&mut self, what: Count, least: u64, most: u64) {
        if most > 0 {
            let entry = self.tally.counts.entry(what).or_default();
            entry.0 += least;
            entry.1 += most;
        }
    }
}
