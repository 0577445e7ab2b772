//! The datapath: what the reconciler writes to. Three implementations: the kernel's maps and programs through aya, plain maps in memory, and one that fails where a test says so.
//!
//! A plan is a list of [`Write`]s, each of which is atomic for a reader: one map element, or one aligned word of an
//! array. Nothing here decides an order; `plan` does.

mod array;
pub mod attach;
pub mod capacity;
pub mod cgroup;
pub mod cleanup;
pub mod collector;
pub mod conntrack;
pub mod contents;
pub mod counters;
pub mod drift;
pub mod events;
mod evictions;
pub mod faulty;
mod gate;
mod grace;
pub mod heap;
mod held;
pub mod host;
mod kernel;
pub mod load;
pub mod log;
pub mod memory;
mod migrate;
pub mod object;
pub mod pins;
pub mod programs;
pub mod readback;
mod shares;
pub mod switch;
mod sys;
mod words;

pub use array::Array;
pub use kernel::KernelDatapath;
pub use migrate::{MigrateError, Moved};

use agent_common::{
    Address, AddressEntry, Backend, BackendWord, Config, GroupEntry, Head, LinkEntry, Pod, Prefix,
    PrefixEntry, RuleKey, ServiceEntry, ServiceKey, SetWord, Slot, Verdict,
};

use crate::model::Direction;

/// A key of a longest-prefix map: how many bits count, and the data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bits<T> {
    /// Prefix length in bits.
    pub length: u32,
    /// The data; bits behind the prefix are zero.
    pub data: T,
}

/// One atomic change. `None` deletes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// `backends`: a whole backend, while nothing points to it (address first, then the word).
    Backend(u32, Backend),
    /// `backends`: the word alone.
    BackendWord(u32, BackendWord),
    /// `slots`.
    Slot(u32, Slot),
    /// `heads`.
    Head(u32, Head),
    /// `services`.
    Service(ServiceKey, Option<ServiceEntry>),
    /// `addresses`.
    Address(Address, Option<AddressEntry>),
    /// `prefixes`.
    Prefix(Bits<Prefix>, Option<PrefixEntry>),
    /// `groups`.
    Group(u32, GroupEntry),
    /// `rules`.
    Rule(Bits<RuleKey>, Option<Verdict>),
    /// `pods`: everything but the epoch, while nothing points to the slot.
    Pod(u32, Pod),
    /// `pods`: the set word of one direction.
    PodSet(u32, Direction, SetWord),
    /// `pods`: the flags and MACs of a slot that is in use.
    PodFacts(u32, Pod),
    /// `pods`: the epoch.
    Epoch(u32, u32),
    /// `links`.
    Link(u32, Option<LinkEntry>),
    /// `config`.
    Config(Config),
}

/// Everything that the agent writes, as read back from the maps. Arrays: only elements that are not all zero.
#[derive(Clone, Default, Debug)]
pub struct Contents {
    /// `backends`.
    pub backends: Array<Backend>,
    /// `slots`.
    pub slots: Array<Slot>,
    /// `heads`.
    pub heads: std::collections::BTreeMap<u32, Head>,
    /// `services`.
    pub services: std::collections::BTreeMap<ServiceKey, ServiceEntry>,
    /// `addresses`.
    pub addresses: std::collections::BTreeMap<Address, AddressEntry>,
    /// `prefixes`.
    pub prefixes: std::collections::BTreeMap<Bits<Prefix>, PrefixEntry>,
    /// `groups`.
    pub groups: std::collections::BTreeMap<u32, GroupEntry>,
    /// `rules`.
    pub rules: std::collections::BTreeMap<Bits<RuleKey>, Verdict>,
    /// `pods`.
    pub pods: std::collections::BTreeMap<u32, Pod>,
    /// `links`.
    pub links: std::collections::BTreeMap<u32, LinkEntry>,
    /// `config`.
    pub config: Config,
}

/// Why a write was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The map has no room.
    #[error("map {map} is full at {capacity} entries")]
    Full {
        /// Map name.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
    },
    /// The kernel has no memory for an element (ENOMEM): maps that take memory for what is in them count against the agent's limit.
    #[error(
        "map {map}: the kernel has no memory for another entry; raise the memory limit of the agent"
    )]
    NoMemory {
        /// Map name.
        map: &'static str,
    },
    /// An index lies beyond an array.
    #[error("index {index} lies beyond map {map} of {capacity} entries")]
    Range {
        /// Map name.
        map: &'static str,
        /// The index.
        index: u32,
        /// Its capacity.
        capacity: u32,
    },
    /// The kernel refused.
    #[error("map {map}: {source}")]
    Kernel {
        /// Map name.
        map: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// What a plan is applied to.
pub trait Datapath: Send {
    /// Takes one write, or leaves everything as it was.
    ///
    /// # Errors
    /// See [`DatapathError`].
    fn write(&mut self, write: &Write) -> Result<(), DatapathError>;

    /// Waits until no program run that began before the call is still under way (an RCU grace period).
    ///
    /// # Errors
    /// The kernel refused to wait; nothing may then be reused.
    fn grace(&mut self) -> Result<(), DatapathError>;

    /// Reads everything back.
    ///
    /// # Errors
    /// A map cannot be read.
    fn contents(&self) -> Result<Contents, DatapathError>;

    /// Reads elements back: for each write, the write that would make what is there. (Whatever the words of a write, of a map's
    /// whole element: [`Write::Pod`], not [`Write::PodSet`].)
    ///
    /// # Errors
    /// A map cannot be read.
    fn read_back(&self, elements: &[Write]) -> Result<Vec<Write>, DatapathError> {
        let contents = self.contents()?;
        Ok(elements.iter().map(|of| contents.element(of)).collect())
    }

    /// Some elements of a table behind one, in the map's own order: about `count`, of an array those that are not all zero.
    ///
    /// # Errors
    /// The map cannot be read.
    fn piece(
        &self,
        table: readback::Table,
        after: Option<&Write>,
        count: usize,
    ) -> Result<readback::Piece, DatapathError> {
        Ok(self.contents()?.piece(table, after, count))
    }
}
