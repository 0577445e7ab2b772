//! Reading the kernel's maps back element by element.

use std::io;
use std::os::fd::AsFd;

use agent_common::{Address, AddressEntry, Prefix, RuleKey, ServiceEntry, ServiceKey, Verdict};
use aya::Pod as Plain;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, IterableMap, LpmTrie, MapData, MapError};

use super::{KernelDatapath, bits, refused, trie_key};
use crate::datapath::readback::{Piece, Table, key};
use crate::datapath::words::Words;
use crate::datapath::{Bits, DatapathError, Write, sys};

/// An index that is empty costs a load of mapped memory, an element of a hash map a system call or two: so many times more are looked at
/// in one go.
const STRETCHES: usize = 64;

fn absent_is_none<V>(
    name: &'static str,
    result: Result<V, MapError>,
) -> Result<Option<V>, DatapathError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(refused(name, 0, error)),
    }
}

fn kernel(map: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Kernel { map, source }
}

fn hash<K: Plain, V: Plain>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    key: &K,
) -> Result<Option<V>, DatapathError> {
    absent_is_none(name, map.get(key, 0))
}

/// A trie, and the first key in its order.
struct Trie<'a, K: Plain, V: Plain> {
    name: &'static str,
    map: &'a LpmTrie<MapData, K, V>,
    first: Option<Bits<K>>,
}

impl<'a, K: Plain + PartialEq, V: Plain> Trie<'a, K, V> {
    fn new(name: &'static str, map: &'a LpmTrie<MapData, K, V>) -> Result<Self, DatapathError> {
        let mut trie = Self {
            name,
            map,
            first: None,
        };
        trie.first = trie.next(None)?;
        Ok(trie)
    }

    fn next(&self, after: Option<Bits<K>>) -> Result<Option<Bits<K>>, DatapathError> {
        let after = after.map(trie_key);
        let next = sys::next_key(self.map.map().fd().as_fd(), after.as_ref());
        Ok(next
            .map_err(kernel(self.name))?
            .map(|key: Key<K>| bits(&key)))
    }

    /// A look-up answers with the longest prefix, so it does not tell that a key is gone. Asking for the key behind it does: behind
    /// one that is not there comes the first, which comes behind no other. (Before Linux 6.13 some absent keys are taken for others of the
    /// same length; those are found when their map is read whole, at the next start.)
    fn get(&self, key: Bits<K>) -> Result<Option<V>, DatapathError> {
        let next = self.next(Some(key))?;
        if self.first.is_none() || next.is_some() && next == self.first {
            return Ok(None);
        }
        absent_is_none(self.name, self.map.get(&trie_key(key), 0))
    }
}

/// The elements of a map behind a key, in the map's own order.
fn behind<K: Copy, V>(
    after: Option<K>,
    count: usize,
    next: impl Fn(Option<K>) -> Result<Option<K>, DatapathError>,
    get: impl Fn(K) -> Result<Option<V>, DatapathError>,
    write: impl Fn(K, Option<V>) -> Write,
) -> Result<Piece, DatapathError> {
    let mut piece = Piece::default();
    let mut at = after;
    for _ in 0..count {
        at = next(at)?;
        let Some(key) = at else {
            return Ok(Piece {
                last: None,
                ..piece
            });
        };
        if let Some(value) = get(key)? {
            piece.elements.push(write(key, Some(value)));
        }
        piece.last = Some(write(key, None));
    }
    Ok(piece)
}

fn hash_piece<K: Plain, V: Plain>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    after: Option<K>,
    count: usize,
    write: impl Fn(K, Option<V>) -> Write,
) -> Result<Piece, DatapathError> {
    let next =
        |key: Option<K>| sys::next_key(map.map().fd().as_fd(), key.as_ref()).map_err(kernel(name));
    behind(after, count, next, |key| hash(name, map, &key), write)
}

fn trie_piece<K: Plain + PartialEq, V: Plain>(
    name: &'static str,
    map: &LpmTrie<MapData, K, V>,
    after: Option<Bits<K>>,
    count: usize,
    write: impl Fn(Bits<K>, Option<V>) -> Write,
) -> Result<Piece, DatapathError> {
    let trie = Trie::new(name, map)?;
    // The key came from the walk, so it is there, and the longest of its own.
    let get = |key| absent_is_none(name, map.get(&trie_key(key), 0));
    behind(after, count, |key| trie.next(key), get, write)
}

/// The elements of an array behind an index: of the next stretches of `count` indices, until there are `count` elements.
fn array_piece<T: Plain + Default>(
    words: &Words<T>,
    after: Option<u32>,
    count: usize,
    write: impl Fn(u32, T) -> Write,
) -> Result<Piece, DatapathError> {
    let stretch = u32::try_from(count).unwrap_or(u32::MAX);
    let mut to = after.map_or(0, |index| index.saturating_add(1));
    let mut elements = Vec::new();
    for _ in 0..STRETCHES {
        let from = to;
        to = from.saturating_add(stretch).min(words.capacity());
        let used = words.used_of(from..to)?;
        elements.extend(used.into_iter().map(|(at, value)| write(at, value)));
        if elements.len() >= count || to == words.capacity() {
            break;
        }
    }
    Ok(Piece {
        elements,
        last: (to < words.capacity()).then(|| write(to - 1, T::default())),
    })
}

impl KernelDatapath {
    pub(super) fn elements(&self, of: &[Write]) -> Result<Vec<Write>, DatapathError> {
        let prefixes = Trie::<Prefix, _>::new("prefixes", &self.prefixes)?;
        let rules = Trie::<RuleKey, Verdict>::new("rules", &self.rules)?;
        let mut all = Vec::with_capacity(of.len());
        for write in of {
            all.push(match *write {
                Write::Backend(key, _) | Write::BackendWord(key, _) => {
                    Write::Backend(key, self.backends.read(key)?)
                }
                Write::Slot(key, _) => Write::Slot(key, self.slots.read(key)?),
                Write::Head(key, _) => Write::Head(key, self.heads.read(key)?),
                Write::Group(key, _) => Write::Group(key, self.groups.read(key)?),
                Write::Pod(key, _)
                | Write::PodSet(key, ..)
                | Write::PodFacts(key, _)
                | Write::Epoch(key, _) => Write::Pod(key, self.pods.read(key)?),
                Write::Config(_) => Write::Config(self.config.read(0)?),
                Write::Service(key, _) => {
                    Write::Service(key, hash("services", &self.services, &key)?)
                }
                Write::Address(key, _) => {
                    Write::Address(key, hash("addresses", &self.addresses, &key)?)
                }
                Write::Link(key, _) => Write::Link(key, hash("links", &self.links, &key)?),
                Write::Prefix(key, _) => Write::Prefix(key, prefixes.get(key)?),
                Write::Rule(key, _) => Write::Rule(key, rules.get(key)?),
            });
        }
        Ok(all)
    }

    pub(super) fn elements_behind(
        &self,
        table: Table,
        after: Option<&Write>,
        count: usize,
    ) -> Result<Piece, DatapathError> {
        match table {
            Table::Backends => {
                array_piece(&self.backends, key!(after, Backend), count, Write::Backend)
            }
            Table::Slots => array_piece(&self.slots, key!(after, Slot), count, Write::Slot),
            Table::Heads => array_piece(&self.heads, key!(after, Head), count, Write::Head),
            Table::Groups => array_piece(&self.groups, key!(after, Group), count, Write::Group),
            Table::Pods => array_piece(&self.pods, key!(after, Pod), count, Write::Pod),
            Table::Services => hash_piece::<ServiceKey, ServiceEntry>(
                "services",
                &self.services,
                key!(after, Service),
                count,
                Write::Service,
            ),
            Table::Addresses => hash_piece::<Address, AddressEntry>(
                "addresses",
                &self.addresses,
                key!(after, Address),
                count,
                Write::Address,
            ),
            Table::Links => hash_piece("links", &self.links, key!(after, Link), count, Write::Link),
            Table::Prefixes => trie_piece(
                "prefixes",
                &self.prefixes,
                key!(after, Prefix),
                count,
                Write::Prefix,
            ),
            Table::Rules => trie_piece("rules", &self.rules, key!(after, Rule), count, Write::Rule),
        }
    }
}
