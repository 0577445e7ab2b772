//! The datapath that is the kernel's maps.

mod readback;

use std::collections::BTreeMap;
use std::io;
use std::mem::offset_of;

use agent_common::{
    Address, AddressEntry, Backend, BackendWord, Config, GroupEntry, Head, LinkEntry, Pod, Prefix,
    PrefixEntry, RuleKey, ServiceEntry, ServiceKey, Slot, Verdict, limits, pod_flag,
};
use aya::Pod as Plain;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, IterableMap, LpmTrie, MapData, MapError};

use super::grace::Grace;
use super::readback::{Piece, Table};
use super::words::{Words, words_of};
use super::{Bits, Contents, Datapath, DatapathError, Write};
use crate::model::Direction;

/// The kernel's maps, open for writing.
#[derive(Debug)]
pub struct KernelDatapath {
    pub(super) backends: Words<Backend>,
    pub(super) slots: Words<Slot>,
    pub(super) heads: Words<Head>,
    pub(super) groups: Words<GroupEntry>,
    pub(super) pods: Words<Pod>,
    pub(super) config: Words<Config>,
    pub(super) services: HashMap<MapData, ServiceKey, ServiceEntry>,
    pub(super) addresses: HashMap<MapData, Address, AddressEntry>,
    pub(super) links: HashMap<MapData, u32, LinkEntry>,
    pub(super) prefixes: LpmTrie<MapData, Prefix, PrefixEntry>,
    pub(super) rules: LpmTrie<MapData, RuleKey, Verdict>,
    pub(super) grace: Grace,
}

/// Words of a pod's slot: flags and the pod's MAC begin in one, the host's MAC ends in the next (see [`KernelDatapath::pod_facts`]).
const POD_FLAGS: usize = offset_of!(Pod, flags);
const POD_HOST_MAC: usize = 32;
const _: () = {
    assert!(POD_FLAGS == 24 && offset_of!(Pod, mac) == 28 && offset_of!(Pod, host_mac) == 34);
    assert!(offset_of!(Pod, egress) == 0 && offset_of!(Pod, ingress) == 8);
    assert!(offset_of!(Pod, epoch) == 16 && offset_of!(Pod, ifindex) == 20);
    assert!(offset_of!(Backend, word) == 16);
};

/// A trie's key as the kernel has it.
const fn trie_key<K: Plain>(key: Bits<K>) -> Key<K> {
    Key::new(key.length, key.data)
}

/// A trie's key as the agent has it.
fn bits<K: Plain>(key: &Key<K>) -> Bits<K> {
    Bits {
        length: key.prefix_len(),
        data: key.data(),
    }
}

/// What the kernel said of a map, in the trait's words.
fn refused(map: &'static str, capacity: u32, error: MapError) -> DatapathError {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        other => io::Error::other(other),
    };
    match source.raw_os_error() {
        // E2BIG: hash; ENOSPC: trie.
        Some(libc::E2BIG | libc::ENOSPC) => DatapathError::Full { map, capacity },
        Some(libc::ENOMEM) => DatapathError::NoMemory { map },
        _ => DatapathError::Kernel { map, source },
    }
}

/// Deleting what is not there is no error: a crash may lie between a deletion and its record.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

fn write_hash<K: Plain, V: Plain>(
    name: &'static str,
    capacity: u32,
    map: &mut HashMap<MapData, K, V>,
    key: K,
    value: Option<V>,
) -> Result<(), DatapathError> {
    match value {
        Some(value) => map.insert(key, value, 0),
        None => absent_is_fine(map.remove(&key)),
    }
    .map_err(|error| refused(name, capacity, error))
}

fn write_trie<K: Plain, V: Plain>(
    name: &'static str,
    capacity: u32,
    map: &mut LpmTrie<MapData, K, V>,
    key: Bits<K>,
    value: Option<V>,
) -> Result<(), DatapathError> {
    let key = trie_key(key);
    match value {
        Some(value) => map.insert(&key, value, 0),
        None => absent_is_fine(map.remove(&key)),
    }
    .map_err(|error| refused(name, capacity, error))
}

fn read_all<K: Plain, V: Plain, Out: Ord>(
    name: &'static str,
    map: &impl IterableMap<K, V>,
    keys: impl Iterator<Item = Result<K, MapError>>,
    convert: impl Fn(K) -> Out,
) -> Result<BTreeMap<Out, V>, DatapathError> {
    let mut all = BTreeMap::new();
    for key in keys {
        let key = key.map_err(|error| refused(name, 0, error))?;
        match map.get(&key) {
            Ok(value) => {
                all.insert(convert(key), value);
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(refused(name, 0, error)),
        }
    }
    Ok(all)
}

impl KernelDatapath {
    fn backend(&self, index: u32, backend: &Backend) -> Result<(), DatapathError> {
        let [high, low] = words_of::<Address, 2>(&backend.address);
        self.backends.store(index, 0, high)?;
        self.backends.store(index, 8, low)?;
        self.backend_word(index, &backend.word)
    }

    fn backend_word(&self, index: u32, word: &BackendWord) -> Result<(), DatapathError> {
        let [word] = words_of::<BackendWord, 1>(word);
        self.backends.store(index, offset_of!(Backend, word), word)
    }

    /// Everything but the epoch, which is never set back: the whole slot is unused, so that words need no order.
    fn pod(&self, slot: u32, pod: &Pod) -> Result<(), DatapathError> {
        let words = words_of::<Pod, 6>(pod);
        self.pods
            .store_half(slot, offset_of!(Pod, ifindex), pod.ifindex)?;
        for index in [0, 1, 4, 5, 3] {
            self.pods.store(slot, index * 8, words[index])?;
        }
        Ok(())
    }

    /// Flags and MACs of a slot in use. MACs reach over two words: where they change under the redirect flag, the flag goes
    /// first, and what runs with it is waited for, so that no frame bears a mixture.
    fn pod_facts(&self, slot: u32, pod: &Pod) -> Result<(), DatapathError> {
        let old = self.pods.read(slot)?;
        let words = words_of::<Pod, 6>(pod);
        let macs_change = old.mac != pod.mac || old.host_mac != pod.host_mac;
        if macs_change && old.flags & pod_flag::REDIRECT != 0 {
            let flags = old.flags & !pod_flag::REDIRECT;
            self.pods.store_half(slot, POD_FLAGS, flags)?;
            self.wait()?;
        }
        self.pods.store(slot, POD_HOST_MAC, words[4])?;
        self.pods.store(slot, POD_FLAGS, words[3])
    }

    fn wait(&self) -> Result<(), DatapathError> {
        self.grace.wait().map_err(|source| DatapathError::Kernel {
            map: "grace",
            source,
        })
    }
}

impl Datapath for KernelDatapath {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        match *write {
            Write::Backend(index, ref backend) => self.backend(index, backend),
            Write::BackendWord(index, ref word) => self.backend_word(index, word),
            Write::Slot(index, slot) => self.slots.store_half(index, 0, slot.backend),
            Write::Head(index, ref head) => {
                let [word] = words_of::<Head, 1>(head);
                self.heads.store(index, 0, word)
            }
            Write::Service(key, entry) => {
                write_hash("services", limits::SERVICES, &mut self.services, key, entry)
            }
            Write::Address(key, entry) => write_hash(
                "addresses",
                limits::ADDRESSES,
                &mut self.addresses,
                key,
                entry,
            ),
            Write::Prefix(key, entry) => {
                write_trie("prefixes", limits::PREFIXES, &mut self.prefixes, key, entry)
            }
            Write::Group(identity, ref entry) => {
                let [word] = words_of::<GroupEntry, 1>(entry);
                self.groups.store(identity, 0, word)
            }
            Write::Rule(key, verdict) => {
                write_trie("rules", limits::RULES, &mut self.rules, key, verdict)
            }
            Write::Pod(slot, ref pod) => self.pod(slot, pod),
            Write::PodSet(slot, direction, ref set) => {
                let [word] = words_of::<_, 1>(set);
                let offset = match direction {
                    Direction::Egress => offset_of!(Pod, egress),
                    Direction::Ingress => offset_of!(Pod, ingress),
                };
                self.pods.store(slot, offset, word)
            }
            Write::PodFacts(slot, ref pod) => self.pod_facts(slot, pod),
            Write::Epoch(slot, epoch) => self.pods.store_half(slot, offset_of!(Pod, epoch), epoch),
            Write::Link(ifindex, entry) => {
                write_hash("links", limits::LINKS, &mut self.links, ifindex, entry)
            }
            Write::Config(config) => {
                // Each field is atomic by itself; none refers to another.
                self.config
                    .store(0, offset_of!(Config, netns_cookie), config.netns_cookie)?;
                self.config
                    .store(0, offset_of!(Config, features), config.features)?;
                self.config
                    .store(0, offset_of!(Config, layout), config.layout)
            }
        }
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.wait()
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        Ok(Contents {
            backends: self.backends.used()?.into_iter().collect(),
            slots: self.slots.used()?.into_iter().collect(),
            heads: self.heads.used()?.into_iter().collect(),
            services: read_all("services", &self.services, self.services.keys(), |key| key)?,
            addresses: read_all("addresses", &self.addresses, self.addresses.keys(), |key| {
                key
            })?,
            prefixes: read_all("prefixes", &self.prefixes, self.prefixes.keys(), |key| {
                bits(&key)
            })?,
            groups: self.groups.used()?.into_iter().collect(),
            rules: read_all("rules", &self.rules, self.rules.keys(), |key| bits(&key))?,
            pods: self.pods.used()?.into_iter().collect(),
            links: read_all("links", &self.links, self.links.keys(), |key| key)?,
            config: self.config.read(0)?,
        })
    }

    fn read_back(&self, elements: &[Write]) -> Result<Vec<Write>, DatapathError> {
        self.elements(elements)
    }

    fn piece(
        &self,
        table: Table,
        after: Option<&Write>,
        count: usize,
    ) -> Result<Piece, DatapathError> {
        self.elements_behind(table, after, count)
    }
}
