//! What an agent's maps say, read through their pins: the kernel's own word, whatever the agent says of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agent_common::{
    Count, Counter, Flow, LinkEntry, Pod, Prefix, PrefixEntry, Reason, RuleKey, ServiceEntry,
    ServiceKey, Tuple, Verdict, count_index, drop_index,
    gate::{self, GateWord},
    hook,
    limits::LAYOUT,
    pod_flag,
};
use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};

/// The maps under a pin root.
#[derive(Debug, Clone)]
pub struct Pinned {
    root: PathBuf,
}

fn open(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("opening the map {}", path.display()))
}

impl Pinned {
    /// The maps under `--pin-root`.
    pub fn new(pin_root: &Path) -> Self {
        Self {
            root: pin_root.to_owned(),
        }
    }

    /// Where a map of the layout in force is pinned, for `bpftool map dump pinned`.
    pub fn path(&self, map: &str) -> PathBuf {
        let in_force = self.in_force().map_or(0, GateWord::layout);
        let layout = if in_force == 0 { LAYOUT } else { in_force };
        self.root.join(format!("v{layout}")).join("maps").join(map)
    }

    fn open(&self, map: &str) -> Result<MapData> {
        open(&self.path(map))
    }

    /// What the gate says is in force.
    ///
    /// # Errors
    /// There is no gate.
    pub fn in_force(&self) -> Result<GateWord> {
        let word = self.root.join("hooks/maps/gate_word");
        let word: Array<_, u64> = Array::try_from(Map::Array(open(&word)?))?;
        Ok(GateWord(word.get(&0, 0)?))
    }

    /// The numbers of the programs on the gate's side that is in force, of TC and of sockets, and of those on the other.
    ///
    /// # Errors
    /// There is no gate.
    pub fn gate_programs(&self) -> Result<[Vec<u32>; 2]> {
        let word = self.in_force()?;
        let arrays = gate::MAPS.into_iter().filter(|map| *map != "gate_word");
        let mut programs = [Vec::new(), Vec::new()];
        for map in arrays {
            // To userspace an element of a program array is the program's number.
            let array = open(&self.root.join("hooks/maps").join(map))?;
            let array: Array<_, u32> = Array::try_from(Map::Array(array))?;
            let hooks = array.len() / gate::SOCKET_SLOTS;
            for (side, programs) in [word.side(), word.other()].into_iter().zip(&mut programs) {
                let slots = side * hooks..(side + 1) * hooks;
                programs.extend(slots.filter_map(|slot| array.get(&slot, 0).ok()));
            }
        }
        Ok(programs)
    }

    /// Packets dropped for a reason so far, at all hooks.
    ///
    /// # Errors
    /// The map is not there.
    pub fn drops(&self, reason: Reason) -> Result<u64> {
        (0..hook::HOOKS)
            .map(|hook| self.drops_at(hook, reason))
            .sum()
    }

    /// Packets dropped for a reason at one hook ([`agent_common::hook`]) so far.
    ///
    /// # Errors
    /// The map is not there.
    pub fn drops_at(&self, hook: u32, reason: Reason) -> Result<u64> {
        self.counter(drop_index(hook, reason))
    }

    /// What else was counted so far.
    ///
    /// # Errors
    /// The map is not there.
    pub fn counted(&self, what: Count) -> Result<u64> {
        self.counter(count_index(what))
    }

    fn counter(&self, index: u32) -> Result<u64> {
        let counters: PerCpuArray<_, Counter> =
            PerCpuArray::try_from(Map::PerCpuArray(self.open("counters")?))?;
        let values = counters.get(&index, 0)?;
        Ok(values.iter().map(|cpu| cpu.packets).sum())
    }

    /// Every reason for which packets were dropped so far, with how many: for messages.
    ///
    /// # Errors
    /// The map is not there.
    pub fn all_drops(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut drops = Vec::new();
        for reason in Reason::ALL {
            let packets = self.drops(*reason)?;
            if packets > 0 {
                drops.push((reason.name(), packets));
            }
        }
        Ok(drops)
    }

    /// Whether a service's address and port are in force.
    ///
    /// # Errors
    /// The map is not there.
    pub fn has_service(&self, key: &ServiceKey) -> Result<bool> {
        let services: HashMap<_, ServiceKey, ServiceEntry> =
            HashMap::try_from(Map::HashMap(self.open("services")?))?;
        match services.get(key, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error).context("looking a service up"),
        }
    }

    /// How many of the node's pods are delivered to by peer redirect.
    ///
    /// # Errors
    /// The map is not there.
    pub fn redirected_pods(&self) -> Result<usize> {
        let pods: Array<_, Pod> = Array::try_from(Map::Array(self.open("pods")?))?;
        let mut count = 0;
        for slot in 0..pods.len() {
            let flags = pods.get(&slot, 0)?.flags;
            count += usize::from(flags & pod_flag::USED != 0 && flags & pod_flag::REDIRECT != 0);
        }
        Ok(count)
    }

    /// The epochs of the node's pods, by the interface of their link.
    ///
    /// # Errors
    /// The map is not there.
    pub fn epochs(&self) -> Result<BTreeMap<u32, u32>> {
        let pods: Array<_, Pod> = Array::try_from(Map::Array(self.open("pods")?))?;
        let mut epochs = BTreeMap::new();
        for slot in 0..pods.len() {
            let pod = pods.get(&slot, 0)?;
            if pod.flags & pod_flag::USED != 0 {
                epochs.insert(pod.ifindex, pod.epoch);
            }
        }
        Ok(epochs)
    }

    /// All entries of the flows that were answered. Entries that come and go meanwhile may be missed or told twice.
    ///
    /// # Errors
    /// The map is not there.
    pub fn flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        self.flows_in("conntrack")
    }

    /// The same of those that were not, or that stay with them because their pod holds its share.
    ///
    /// # Errors
    /// The map is not there.
    pub fn unreplied(&self) -> Result<Vec<(Tuple, Flow)>> {
        self.flows_in("unreplied")
    }

    fn flows_in(&self, map: &str) -> Result<Vec<(Tuple, Flow)>> {
        let flows: HashMap<_, Tuple, Flow> = HashMap::try_from(Map::LruHashMap(self.open(map)?))?;
        Ok(flows.iter().filter_map(Result::ok).collect())
    }

    /// How many entries a map has, of those that hold what services and policies say, and of `links`.
    ///
    /// # Errors
    /// The map is not there, or is none of these.
    pub fn entries(&self, map: &str) -> Result<usize> {
        let data = self.open(map)?;
        Ok(match map {
            "services" => {
                let map: HashMap<_, ServiceKey, ServiceEntry> =
                    HashMap::try_from(Map::HashMap(data))?;
                map.keys().filter_map(Result::ok).count()
            }
            "rules" => {
                let map: LpmTrie<_, RuleKey, Verdict> = LpmTrie::try_from(Map::LpmTrie(data))?;
                map.keys().filter_map(Result::ok).count()
            }
            "prefixes" => {
                let map: LpmTrie<_, Prefix, PrefixEntry> = LpmTrie::try_from(Map::LpmTrie(data))?;
                map.keys().filter_map(Result::ok).count()
            }
            "links" => {
                let map: HashMap<_, u32, LinkEntry> = HashMap::try_from(Map::HashMap(data))?;
                map.keys().filter_map(Result::ok).count()
            }
            other => bail!("the entries of {other} are not counted here"),
        })
    }
}
