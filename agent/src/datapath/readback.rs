//! Reading the maps back piece by piece, to find what is not as the agent wrote it.
//!
//! The agent is the only one that writes these maps, and the mirror knows what they hold. A walk goes over the mirror first (what is
//! gone, or different), then over the maps (what is too many), some elements at a time. An element is spoken of as the [`Write`]
//! that would make it so.

use std::collections::BTreeMap;
use std::ops::Bound;

use agent_common::{Pod, feature};

use super::{Contents, Datapath, DatapathError, Write};
use crate::desired::set_of;

/// A map that is walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// `links`.
    Links,
    /// `pods`.
    Pods,
    /// `addresses`.
    Addresses,
    /// `prefixes`.
    Prefixes,
    /// `groups`.
    Groups,
    /// `rules`.
    Rules,
    /// `services`.
    Services,
    /// `heads`.
    Heads,
    /// `slots`.
    Slots,
    /// `backends`.
    Backends,
}

impl Table {
    /// Every table; what decides who may talk comes first.
    pub const ALL: [Self; 10] = [
        Self::Links,
        Self::Pods,
        Self::Addresses,
        Self::Prefixes,
        Self::Groups,
        Self::Rules,
        Self::Services,
        Self::Heads,
        Self::Slots,
        Self::Backends,
    ];

    /// Whether it is an array, which is walked by index.
    const fn is_array(self) -> bool {
        matches!(
            self,
            Self::Pods | Self::Groups | Self::Heads | Self::Slots | Self::Backends
        )
    }

    /// Whether flows are judged by it: what was decided while it was wrong must be decided again.
    #[must_use]
    pub const fn judges(self) -> bool {
        !matches!(
            self,
            Self::Services | Self::Heads | Self::Slots | Self::Backends
        )
    }
}

/// Elements of a table, and where to go on: behind `last`; None where that was the end.
#[derive(Clone, Default, Debug)]
pub struct Piece {
    /// The elements.
    pub elements: Vec<Write>,
    /// The last that was looked at.
    pub last: Option<Write>,
}

/// The entries of a map behind a key.
fn behind<K: Ord + Copy, V>(
    map: &BTreeMap<K, V>,
    after: Option<K>,
) -> impl Iterator<Item = (&K, &V)> {
    map.range((
        after.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    ))
}

/// The key of a write, where it is one of this kind: what a walk goes on behind.
macro_rules! key {
    ($after:expr, $kind:ident) => {
        match $after {
            Some(Write::$kind(key, ..)) => Some(*key),
            _ => None,
        }
    };
}
pub(super) use key;

impl Contents {
    /// At most `count` elements of a table behind one.
    pub fn piece(&self, table: Table, after: Option<&Write>, count: usize) -> Piece {
        macro_rules! of {
            ($map:ident, $kind:ident, $value:expr) => {
                behind(&self.$map, key!(after, $kind))
                    .take(count)
                    .map(|(key, value)| Write::$kind(*key, $value(value)))
                    .collect()
            };
        }
        macro_rules! of_array {
            ($map:ident, $kind:ident) => {
                self.$map
                    .range((
                        key!(after, $kind).map_or(Bound::Unbounded, Bound::Excluded),
                        Bound::Unbounded,
                    ))
                    .take(count)
                    .map(|(index, value)| Write::$kind(index, *value))
                    .collect()
            };
        }
        let elements: Vec<Write> = match table {
            Table::Links => of!(links, Link, |v: &_| Some(*v)),
            Table::Pods => of!(pods, Pod, |v: &_| *v),
            Table::Addresses => of!(addresses, Address, |v: &_| Some(*v)),
            Table::Prefixes => of!(prefixes, Prefix, |v: &_| Some(*v)),
            Table::Groups => of!(groups, Group, |v: &_| *v),
            Table::Rules => of!(rules, Rule, |v: &_| Some(*v)),
            Table::Services => of!(services, Service, |v: &_| Some(*v)),
            Table::Heads => of!(heads, Head, |v: &_| *v),
            Table::Slots => of_array!(slots, Slot),
            Table::Backends => of_array!(backends, Backend),
        };
        let last = elements.last().copied().filter(|_| elements.len() == count);
        Piece { elements, last }
    }

    fn entries(&self, table: Table) -> usize {
        match table {
            Table::Links => self.links.len(),
            Table::Pods => self.pods.len(),
            Table::Addresses => self.addresses.len(),
            Table::Prefixes => self.prefixes.len(),
            Table::Groups => self.groups.len(),
            Table::Rules => self.rules.len(),
            Table::Services => self.services.len(),
            Table::Heads => self.heads.len(),
            Table::Slots => self.slots.len(),
            Table::Backends => self.backends.len(),
        }
    }

    /// What this holds where a write goes to, as the write that would make it so.
    #[must_use]
    pub fn element(&self, of: &Write) -> Write {
        let pod = |slot: &u32| self.pods.get(slot).copied().unwrap_or_default();
        match of {
            Write::Backend(key, _) => {
                Write::Backend(*key, self.backends.get(key).copied().unwrap_or_default())
            }
            Write::BackendWord(key, _) => {
                let backend = self.backends.get(key).copied().unwrap_or_default();
                Write::BackendWord(*key, backend.word)
            }
            Write::Slot(key, _) => {
                Write::Slot(*key, self.slots.get(key).copied().unwrap_or_default())
            }
            Write::Head(key, _) => {
                Write::Head(*key, self.heads.get(key).copied().unwrap_or_default())
            }
            Write::Service(key, _) => Write::Service(*key, self.services.get(key).copied()),
            Write::Address(key, _) => Write::Address(*key, self.addresses.get(key).copied()),
            Write::Prefix(key, _) => Write::Prefix(*key, self.prefixes.get(key).copied()),
            Write::Group(key, _) => {
                Write::Group(*key, self.groups.get(key).copied().unwrap_or_default())
            }
            Write::Rule(key, _) => Write::Rule(*key, self.rules.get(key).copied()),
            Write::Pod(slot, _) => Write::Pod(*slot, pod(slot)),
            Write::PodSet(slot, direction, _) => {
                Write::PodSet(*slot, *direction, set_of(&pod(slot), *direction))
            }
            Write::PodFacts(slot, _) => Write::PodFacts(*slot, pod(slot)),
            Write::Epoch(slot, _) => Write::Epoch(*slot, pod(slot).epoch),
            Write::Link(key, _) => Write::Link(*key, self.links.get(key).copied()),
            Write::Config(_) => Write::Config(self.config),
        }
    }
}

/// The writes that lead from what an element is to what it should be. Empty where it is as it should be.
fn mend(should: &Write, is: &Write) -> Vec<Write> {
    match (should, is) {
        (Write::Pod(slot, should), Write::Pod(_, is)) => {
            let facts = |pod: &Pod| Pod { epoch: 0, ..*pod };
            let mut writes = Vec::new();
            if facts(should) != facts(is) {
                writes.push(Write::Pod(*slot, *should));
            }
            if should.epoch != is.epoch {
                writes.push(Write::Epoch(*slot, should.epoch));
            }
            writes
        }
        // Whether allowed flows are reported is switched beside the mirror.
        (Write::Config(should), Write::Config(is)) => {
            let mut wanted = *should;
            wanted.features &= !feature::EVENTS_ALLOWED;
            wanted.features |= is.features & feature::EVENTS_ALLOWED;
            if wanted == *is {
                Vec::new()
            } else {
                vec![Write::Config(wanted)]
            }
        }
        (should, is) if should == is => Vec::new(),
        (should, _) => vec![*should],
    }
}

/// Which way a table is walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// What the mirror holds.
    Mirror,
    /// What the map holds.
    Map,
}

/// A walk over all tables.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The switches were looked at: they are no table, and come first.
    begun: bool,
    table: usize,
    way: Way,
    after: Option<Write>,
    /// Elements of the map that were looked at.
    seen: usize,
}

impl Walk {
    /// From the beginning.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            begun: false,
            table: 0,
            way: Way::Mirror,
            after: None,
            seen: 0,
        }
    }

    /// Goes on over at most `count` elements. The writes that mend what is wrong there, each with whether flows are judged by it; None
    /// when all has been seen.
    ///
    /// # Errors
    /// A map cannot be read; the walk goes on behind it.
    pub fn step(
        &mut self,
        mirror: &Contents,
        datapath: &dyn Datapath,
        count: usize,
    ) -> Result<Option<Vec<(Write, bool)>>, DatapathError> {
        let judged = |judges| move |write| (write, judges);
        if !std::mem::replace(&mut self.begun, true) {
            let config = Write::Config(mirror.config);
            let there = datapath.read_back(&[config])?;
            let writes = there.iter().flat_map(|is| mend(&config, is));
            return Ok(Some(writes.map(judged(true)).collect()));
        }
        let Some(table) = Table::ALL.get(self.table).copied() else {
            return Ok(None);
        };
        let found = self.look(table, mirror, datapath, count);
        let (writes, last) = match found {
            Ok(found) => found,
            Err(error) => {
                self.turn(true);
                return Err(error);
            }
        };
        // A key that went meanwhile sends the walk of a hash map back to its beginning: not for ever.
        let most = 2 * (mirror.entries(table) + count);
        match last {
            Some(last) if table.is_array() || self.seen <= most => self.after = Some(last),
            _ => self.turn(false),
        }
        let wrong = writes.into_iter().map(judged(table.judges()));
        Ok(Some(wrong.collect()))
    }

    fn look(
        &mut self,
        table: Table,
        mirror: &Contents,
        datapath: &dyn Datapath,
        count: usize,
    ) -> Result<(Vec<Write>, Option<Write>), DatapathError> {
        Ok(match self.way {
            Way::Mirror => {
                let piece = mirror.piece(table, self.after.as_ref(), count);
                let there = datapath.read_back(&piece.elements)?;
                let pairs = piece.elements.iter().zip(&there);
                let writes = pairs.flat_map(|(should, is)| mend(should, is)).collect();
                (writes, piece.last)
            }
            Way::Map => {
                let piece = datapath.piece(table, self.after.as_ref(), count)?;
                self.seen += piece.elements.len();
                let nothing = Contents::default();
                let extra = |is: &Write| {
                    // What the mirror knows was compared on the way there.
                    let known = mirror.element(is) != nothing.element(is);
                    if known {
                        Vec::new()
                    } else {
                        mend(&nothing.element(is), is)
                    }
                };
                (piece.elements.iter().flat_map(extra).collect(), piece.last)
            }
        })
    }

    /// To the next way, or the next table.
    fn turn(&mut self, leave: bool) {
        self.after = None;
        self.seen = 0;
        self.way = match self.way {
            Way::Mirror if !leave => Way::Map,
            _ => {
                self.table += 1;
                Way::Mirror
            }
        };
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::memory::{Capacities, Memory};
    use agent_common::{Address, AddressEntry, Head, LinkEntry, Slot};

    fn walk(mirror: &Contents, datapath: &mut dyn Datapath, count: usize) -> Vec<Write> {
        let mut walk = Walk::new();
        let mut all = Vec::new();
        while let Some(wrong) = walk.step(mirror, datapath, count).unwrap() {
            for (write, _) in wrong {
                datapath.write(&write).unwrap();
                all.push(write);
            }
        }
        all
    }

    /// Maps that cannot be read.
    struct Unreadable;

    impl Datapath for Unreadable {
        fn write(&mut self, _write: &Write) -> Result<(), DatapathError> {
            Ok(())
        }

        fn grace(&mut self) -> Result<(), DatapathError> {
            Ok(())
        }

        fn contents(&self) -> Result<Contents, DatapathError> {
            Err(DatapathError::NoMemory { map: "prefixes" })
        }
    }

    #[test]
    fn a_walk_over_maps_that_cannot_be_read_ends() {
        let mut walk = Walk::new();
        let mirror = Contents::default();
        for _ in 0..=Table::ALL.len() {
            assert!(walk.step(&mirror, &Unreadable, 10).is_err());
        }
        assert_eq!(walk.step(&mirror, &Unreadable, 10).unwrap(), None);
    }

    #[test]
    fn what_is_gone_changed_or_too_many_is_found_in_pieces_of_any_size() {
        let mut mirror = Contents::default();
        for number in 1..20 {
            mirror.links.insert(
                number,
                LinkEntry {
                    slot: number,
                    _zero: 0,
                },
            );
            mirror.slots.insert(number, Slot { backend: number });
            let pod = Pod {
                epoch: number,
                ifindex: number,
                ..Pod::default()
            };
            mirror.pods.insert(number, pod);
        }
        mirror.heads.insert(3, Head { first: 8, count: 2 });
        for count in [1, 3, 1_000] {
            let mut there = mirror.clone();
            there.links.remove(&19);
            there.slots.remove(&1);
            if let Some(pod) = there.pods.get_mut(&7) {
                pod.epoch = 99;
            }
            there.heads.insert(3, Head { first: 8, count: 1 });
            there.heads.insert(4, Head { first: 9, count: 1 });
            there.slots.insert(2_000, Slot { backend: 4 });
            there.addresses.insert(
                Address::v4([1, 2, 3, 4]),
                AddressEntry {
                    identity: 1,
                    slot: 0,
                    kind: 0,
                    check: 0,
                },
            );
            there.config.features = feature::EVENTS_ALLOWED | feature::LITERAL;
            let mut datapath = Memory::with(there, Capacities::default());
            assert_eq!(walk(&mirror, &mut datapath, count).len(), 8);
            let now = datapath.contents().unwrap();
            let wanted = Contents {
                config: agent_common::Config {
                    features: feature::EVENTS_ALLOWED,
                    ..mirror.config
                },
                ..mirror.clone()
            };
            assert_eq!(format!("{now:?}"), format!("{wanted:?}"));
            assert_eq!(walk(&mirror, &mut datapath, count), []);
        }
    }
}
