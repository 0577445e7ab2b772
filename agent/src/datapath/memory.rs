//! The datapath as plain maps: for tests, and for whoever wants to ask the compiled state without a kernel.

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, Backend, GROUP_ANY, Head, Prefix, PrefixEntry, RuleKey, ServiceEntry,
    ServiceKey, Verdict, feature, limits, rule_bits,
};

use super::contents::longest;
use super::{Contents, Datapath, DatapathError, Write};

/// Capacities of the maps, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// `backends`.
    pub backends: u32,
    /// `slots`.
    pub slots: u32,
    /// `heads`.
    pub heads: u32,
    /// `services`.
    pub services: u32,
    /// `addresses`.
    pub addresses: u32,
    /// `prefixes`.
    pub prefixes: u32,
    /// `groups`.
    pub groups: u32,
    /// `rules`.
    pub rules: u32,
    /// `pods`.
    pub pods: u32,
    /// `links`.
    pub links: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            backends: limits::BACKENDS,
            slots: limits::SLOTS,
            heads: limits::HEADS,
            services: limits::SERVICES,
            addresses: limits::ADDRESSES,
            prefixes: limits::PREFIXES,
            groups: limits::IDENTITIES,
            rules: limits::RULES,
            pods: limits::PODS,
            links: limits::LINKS,
        }
    }
}

/// Maps in memory. They answer look-ups by the same function as the programs.
#[derive(Clone, Default, Debug)]
pub struct Memory {
    contents: Contents,
    capacities: Capacities,
    writes: u64,
    graces: u64,
}

impl Memory {
    /// Empty maps of the default capacities.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps of some capacities that hold something already, as after a restart.
    pub fn with(contents: Contents, capacities: Capacities) -> Self {
        Self {
            contents,
            capacities,
            ..Self::default()
        }
    }

    /// What the maps hold.
    pub fn view(&self) -> &Contents {
        &self.contents
    }

    /// Makes the maps larger or smaller; what is in them stays.
    pub fn resize(&mut self, capacities: Capacities) {
        self.capacities = capacities;
    }

    /// Writes taken so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Grace periods so far.
    pub fn graces(&self) -> u64 {
        self.graces
    }
}

fn index(map: &'static str, index: u32, capacity: u32) -> Result<(), DatapathError> {
    if index < capacity {
        Ok(())
    } else {
        Err(DatapathError::Range {
            map,
            index,
            capacity,
        })
    }
}

fn room(map: &'static str, known: bool, used: usize, capacity: u32) -> Result<(), DatapathError> {
    if known || used < capacity as usize {
        Ok(())
    } else {
        Err(DatapathError::Full { map, capacity })
    }
}

impl Datapath for Memory {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        let (map, _) = write.map();
        let (maps, most) = (&self.contents, &self.capacities);
        match write {
            Write::Backend(at, _) | Write::BackendWord(at, _) => index(map, *at, most.backends),
            Write::Slot(at, _) => index(map, *at, most.slots),
            Write::Head(at, _) => index(map, *at, most.heads),
            Write::Group(at, _) => index(map, *at, most.groups),
            Write::Pod(at, _)
            | Write::PodSet(at, ..)
            | Write::PodFacts(at, _)
            | Write::Epoch(at, _) => index(map, *at, most.pods),
            Write::Service(key, Some(_)) => {
                let known = maps.services.contains_key(key);
                room(map, known, maps.services.len(), most.services)
            }
            Write::Address(key, Some(_)) => {
                let known = maps.addresses.contains_key(key);
                room(map, known, maps.addresses.len(), most.addresses)
            }
            Write::Prefix(key, Some(_)) => {
                let known = maps.prefixes.contains_key(key);
                room(map, known, maps.prefixes.len(), most.prefixes)
            }
            Write::Rule(key, Some(_)) => {
                let known = maps.rules.contains_key(key);
                room(map, known, maps.rules.len(), most.rules)
            }
            Write::Link(key, Some(_)) => {
                let known = maps.links.contains_key(key);
                room(map, known, maps.links.len(), most.links)
            }
            Write::Service(_, None)
            | Write::Address(_, None)
            | Write::Prefix(_, None)
            | Write::Rule(_, None)
            | Write::Link(_, None)
            | Write::Config(_) => Ok(()),
        }?;
        self.contents.apply(write);
        self.writes += 1;
        Ok(())
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.graces += 1;
        Ok(())
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        Ok(self.contents.clone())
    }
}

/// Bits of a full address in `prefixes`.
const ADDRESS_BITS: u32 = 128;

impl Tables for Contents {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let entry = self.addresses.get(address).copied()?;
        (entry.check == address.check()).then_some(entry)
    }

    fn prefix(&self, address: &Address) -> Option<PrefixEntry> {
        let bytes = address.bytes;
        longest(&self.prefixes, ADDRESS_BITS, Prefix { bytes }).map(|found| found.1)
    }

    fn group(&self, identity: u32) -> u32 {
        self.groups.get(&identity).map_or(GROUP_ANY, |e| e.group)
    }

    fn rule(&self, key: &RuleKey) -> Option<Verdict> {
        longest::<RuleKey, Verdict>(&self.rules, rule_bits::PORT, *key).map(|found| found.1)
    }

    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        let entry = self.services.get(key).copied()?;
        (entry.check == key.check()).then_some(entry)
    }

    fn head(&self, pool: u32) -> Option<Head> {
        Some(self.heads.get(&pool).copied().unwrap_or_default())
    }

    fn slot(&self, index: u32) -> Option<u32> {
        Some(self.slots.get(&index).map_or(0, |slot| slot.backend))
    }

    fn backend(&self, backend: u32) -> Option<Backend> {
        Some(self.backends.get(&backend).copied().unwrap_or_default())
    }

    fn literal(&self) -> bool {
        self.config.features & feature::LITERAL != 0
    }
}
