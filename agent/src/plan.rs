//! From what is different to the writes that make it so, in an order in which every reader, at every instant and after a
//! crash between any two writes, meets a whole state. No I/O: `apply` runs a plan.
//!
//! Phases: *prepare* what nobody points to; *publish* by single words; take away what pointed to the old; raise epochs;
//! wait for a grace period; *collect*. Within it each object (a pool, a frontend, a set's rules, an address, a pod) is a
//! transaction: one that fails ends alone, with those that need it, and is tried again with the next plan.

mod apply;
mod arrange;
mod epochs;
mod holders;
mod mirror;
mod numbers;
mod pools;
mod rejudge;
mod restore;
mod runs;
mod said;
mod stage;
mod steps;
#[cfg(test)]
mod tests;
mod unmoved;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use agent_common::{Address, Prefix, RuleKey, ServiceKey, limits};

use crate::datapath::{Bits, Contents, Write};
use crate::desired::{Delta, Desired, PoolKey};
use crate::problem::Problem;

pub use apply::{Applied, apply};
use mirror::Mirror;
use pools::{Change, Garbage, Pools};

/// Capacities of the arrays that the plan shares out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// `backends`.
    pub backends: u32,
    /// `slots`, a power of two.
    pub slots: u32,
    /// `heads`.
    pub heads: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            backends: limits::BACKENDS,
            slots: limits::SLOTS,
            heads: limits::HEADS,
        }
    }
}

/// What a transaction is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Item {
    /// A pool of backends.
    Pool(PoolKey),
    /// A service frontend.
    Frontend(ServiceKey),
    /// An address.
    Address(Address),
    /// A prefix.
    Prefix(Bits<Prefix>),
    /// An identity's group.
    Group(u32),
    /// The rules of a set.
    Rules(u32),
    /// A pod's slot.
    Pod(u32),
    /// A link.
    Link(u32),
    /// A pod's epoch.
    Epoch(u32),
    /// Everybody that a change of sets counts on: written, each as its own item.
    Peers,
    /// What a pool's change (none: earlier ones) left behind.
    Room(Option<PoolKey>),
}

/// Writes that belong together, in order: after one that fails, the rest is not tried.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// What it is about. Several transactions of a plan may be about the same; if one fails, later ones are skipped.
    pub item: Item,
    /// It is skipped where one of these failed in this plan; for [`Item::Peers`] only where its sets tell apart who did not move.
    pub needs: Vec<Item>,
    /// The writes: their places in the plan's list.
    pub writes: Range<usize>,
}

/// A plan.
#[derive(Clone, Default, Debug)]
pub struct Plan {
    /// Whether a grace period must come first: whoever began with a set that a pod has turned from must not meet peers that are others now.
    pub rest: bool,
    /// Before the grace period.
    pub transactions: Vec<Transaction>,
    /// Whether a grace period must follow.
    pub grace: bool,
    /// After it.
    pub collect: Vec<Transaction>,
    /// The writes of all of them. One list, which goes as it came: those of a start are large, and lists by the ten thousand would leave
    /// holes behind between all that stays.
    list: Vec<Write>,
    changes: BTreeMap<PoolKey, Change>,
    leftovers: Garbage,
    refused: BTreeMap<Item, Problem>,
    /// What the desired state says for the length of this plan.
    overlay: Option<Delta>,
    /// Whether pods turn to other sets.
    turns: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty() && self.collect.is_empty() && self.refused.is_empty()
    }

    /// Every write, in order.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        let transactions = self.transactions.iter().chain(&self.collect);
        transactions.flat_map(|t| &self.list[t.writes.clone()])
    }
}

/// Knows what the kernel accepted and what is desired, and plans from the one to the other.
#[derive(Debug)]
pub struct Planner {
    desired: Desired,
    mirror: Mirror,
    pools: Pools,
    pending: BTreeSet<Item>,
    pending_rules: BTreeSet<Bits<RuleKey>>,
    departed: epochs::Departed,
    problems: BTreeMap<Item, Problem>,
    /// The last plan led peers through a stage: another one leads them on.
    staged: bool,
    /// There was no room for its rules: the next plan goes without.
    cramped: bool,
    /// Pods have turned to other sets since the last grace period.
    turned: bool,
}

/// Keys that a plan must look at.
#[derive(Default)]
struct Dirty {
    pools: BTreeSet<PoolKey>,
    frontends: BTreeSet<ServiceKey>,
    addresses: BTreeSet<Address>,
    prefixes: BTreeSet<Bits<Prefix>>,
    groups: BTreeSet<u32>,
    rules: BTreeSet<Bits<RuleKey>>,
    pods: BTreeSet<u32>,
    links: BTreeSet<u32>,
    epochs: BTreeSet<u32>,
}

impl Dirty {
    fn of(delta: &Delta) -> Self {
        Self {
            pools: delta.pools.keys().cloned().collect(),
            frontends: delta.frontends.keys().copied().collect(),
            addresses: delta.addresses.keys().copied().collect(),
            prefixes: delta.prefixes.keys().copied().collect(),
            groups: delta.groups.keys().copied().collect(),
            rules: delta.rules.keys().copied().collect(),
            pods: delta.pods.keys().copied().collect(),
            links: delta.links.keys().copied().collect(),
            epochs: BTreeSet::new(),
        }
    }

    fn append(&mut self, mut other: Self) {
        self.addresses.append(&mut other.addresses);
        self.prefixes.append(&mut other.prefixes);
        self.groups.append(&mut other.groups);
        self.rules.append(&mut other.rules);
        self.pods.append(&mut other.pods);
    }

    fn add(&mut self, item: Item) {
        match item {
            Item::Pool(key) => drop(self.pools.insert(key)),
            Item::Frontend(key) => drop(self.frontends.insert(key)),
            Item::Address(key) => drop(self.addresses.insert(key)),
            Item::Prefix(key) => drop(self.prefixes.insert(key)),
            Item::Group(key) => drop(self.groups.insert(key)),
            Item::Pod(key) => drop(self.pods.insert(key)),
            Item::Link(key) => drop(self.links.insert(key)),
            Item::Epoch(key) => drop(self.epochs.insert(key)),
            // Kept by key, and as garbage.
            Item::Rules(_) | Item::Room(_) | Item::Peers => {}
        }
    }
}

impl Planner {
    /// Takes over what the maps hold, by content: pools keep their numbers and backends theirs, with their generations. The
    /// plan leads from there to `desired`, removes what nobody points to, and raises every pod's epoch.
    ///
    /// `desired` must be complete: whatever is not in it goes.
    pub fn restore(contents: Contents, desired: Desired) -> (Self, Plan) {
        Self::restore_sized(contents, desired, Sizes::default())
    }

    /// The desired state, as far as it was told.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What the kernel accepted.
    pub fn contents(&self) -> &Contents {
        &self.mirror.contents
    }

    /// Backends that are not gone.
    pub fn backends(&self) -> usize {
        self.mirror.alive
    }

    /// Slots of pods in use.
    pub fn pods(&self) -> usize {
        self.mirror.plugged
    }

    /// What is not in force as desired, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&Item, &Problem)> {
        self.problems.iter()
    }

    /// Whether another plan, without any delta, has something to do.
    pub fn unfinished(&self) -> bool {
        !self.pending.is_empty() || !self.pending_rules.is_empty() || !self.pools.garbage.is_empty()
    }

    /// Whether the next plan is due at once: it goes on with what this one began. Where policy met a problem that would come to the same.
    pub fn staged(&self) -> bool {
        let services =
            |item: &Item| matches!(item, Item::Pool(_) | Item::Frontend(_) | Item::Room(_));
        self.staged && self.problems.keys().all(services)
    }

    /// Plans a delta, and whatever earlier plans could not finish. The plan must go to [`apply`] before the next is made.
    pub fn plan(&mut self, delta: &Delta) -> Plan {
        self.desired.merge(delta);
        self.plan_dirty(Dirty::of(delta))
    }

    fn plan_dirty(&mut self, mut dirty: Dirty) -> Plan {
        for item in std::mem::take(&mut self.pending) {
            dirty.add(item);
        }
        dirty.rules.append(&mut self.pending_rules);
        let overlay = if std::mem::take(&mut self.cramped) {
            None
        } else {
            stage::overlay(self, &dirty)
        };
        self.staged = overlay.is_some();
        let Some(overlay) = overlay else {
            return steps::Builder::new(self, dirty).build();
        };
        let before = self.desired.before(&overlay);
        self.desired.merge(&overlay);
        dirty.append(Dirty::of(&overlay));
        let mut plan = steps::Builder::new(self, dirty).build();
        // Whoever began with the set of before has ended before peers go on.
        plan.grace = true;
        self.desired.merge(&before);
        let groups = before.groups.into_keys().map(Item::Group);
        let addresses = before.addresses.into_keys().map(Item::Address);
        let prefixes = before.prefixes.into_keys().map(Item::Prefix);
        let pods = before.pods.into_keys().map(Item::Pod);
        self.pending
            .extend(groups.chain(addresses).chain(prefixes).chain(pods));
        self.pending_rules.extend(before.rules.into_keys());
        plan.overlay = Some(overlay);
        plan
    }

    /// Takes note of a write that the kernel accepted.
    fn accepted(&mut self, write: &Write) {
        self.mirror.apply(write);
    }

    /// Names an item for people.
    pub fn describe(&self, item: &Item) -> String {
        Describe {
            planner: self,
            item,
        }
        .to_string()
    }

    /// Takes garbage in that a grace period has passed over, or keeps it for the next plan.
    fn settle(&mut self, garbage: Garbage, free: bool) {
        if free {
            self.pools.free(garbage);
        } else {
            self.pools.garbage.extend(garbage);
        }
    }
}

struct Describe<'a> {
    planner: &'a Planner,
    item: &'a Item,
}

impl fmt::Display for Describe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Item::Pool(key) | Item::Room(Some(key)) => write!(f, "Service {}", key.service),
            Item::Frontend(key) => match self.planner.desired.frontends.get(key) {
                Some(frontend) => write!(f, "Service {}", frontend.pool.service),
                None => write!(
                    f,
                    "service address {} port {}",
                    key.address,
                    u16::from_be(key.port_be)
                ),
            },
            Item::Address(address) => write!(f, "address {address}"),
            Item::Prefix(prefix) => write!(f, "prefix {}", crate::dump::prefix(prefix)),
            Item::Group(identity) => write!(f, "identity {identity}"),
            Item::Rules(set) => write!(f, "rules of policy set {set}"),
            Item::Pod(slot) | Item::Epoch(slot) => write!(f, "pod slot {slot}"),
            Item::Link(ifindex) => write!(f, "interface {ifindex}"),
            Item::Peers => f.write_str("who addresses are"),
            Item::Room(None) => f.write_str("entries that nothing uses"),
        }
    }
}
