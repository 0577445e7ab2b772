//! The state that a row begins with, written to the maps as the agent would, and the programs to run on it.

use std::borrow::Borrow;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_common::{
    Address, AddressEntry, Backend, BackendWord, Budget, Config, Counter, Flow, Fragment,
    FragmentKey, GroupEntry, Head, LinkEntry, NO_ADDRESS_SLOT, Pod, Prefix, PrefixEntry, RuleKey,
    ServiceEntry, ServiceKey, Share, Slot, Timeouts, Tuple, Verdict, address_kind, backend_state,
    gate::GateWord, limits, pod_flag,
};
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf};

use super::address::Family;
use super::{links, object};

/// Index of the uplink among the interfaces.
const UPLINK: usize = 0;

/// Identities of pods begin behind it.
const FIRST_IDENTITY: u32 = 100;

/// Worlds that no row uses at the moment.
fn idle() -> MutexGuard<'static, Vec<World>> {
    static IDLE: Mutex<Vec<World>> = Mutex::new(Vec::new());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pod of the row.
#[derive(Clone, Copy, Debug)]
pub struct LocalPod {
    /// Its slot in `pods`.
    pub slot: u32,
    /// Interface of the host's side of its link.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its identity.
    pub identity: u32,
    /// MAC of its side of the link.
    pub mac: [u8; 6],
    /// MAC of the host's side.
    pub host_mac: [u8; 6],
}

impl LocalPod {
    /// The pod's address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }
}

/// A service of the row.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where clients find it.
    pub frontend: SocketAddr,
    /// Number of its pool.
    pub pool: u32,
    /// Numbers of its backends.
    pub backends: Vec<u32>,
}

/// Programs with maps of their own, and what they were told.
pub struct World {
    /// The family of the row's addresses.
    pub family: Family,
    pub(super) ebpf: Ebpf,
    pub(super) programs: object::Arrays,
    pub(super) links: &'static [u32],
    pub(super) conntrack: HashMap<MapData, Tuple, Flow>,
    pub(super) unreplied: HashMap<MapData, Tuple, Flow>,
    pub(super) fragments: HashMap<MapData, FragmentKey, Fragment>,
    pub(super) groups: Array<MapData, GroupEntry>,
    pub(super) prefixes: LpmTrie<MapData, Prefix, PrefixEntry>,
    pub(super) rules: LpmTrie<MapData, RuleKey, Verdict>,
    pub(super) counters: PerCpuArray<MapData, Counter>,
    pub(super) events: RingBuf<MapData>,
    pub(super) budget: PerCpuArray<MapData, Budget>,
    pods: Array<MapData, Pod>,
    shares: Array<MapData, Share>,
    link_slots: HashMap<MapData, u32, LinkEntry>,
    addresses: HashMap<MapData, Address, AddressEntry>,
    services: HashMap<MapData, ServiceKey, ServiceEntry>,
    heads: Array<MapData, Head>,
    slots: Array<MapData, Slot>,
    backends: Array<MapData, Backend>,
    config: Array<MapData, Config>,
    gate_word: Array<MapData, u64>,
    /// Whether each run takes the events out of the ring.
    pub(super) reading: bool,
    /// See [`World::carry_together`].
    pub(super) gso_size: u32,
    next_pool: u32,
    next_backend: u32,
    next_identity: u32,
}

impl World {
    /// A node that knows itself and another node, and nothing else. The verifier takes half a second for all programs, so a world
    /// that another row has left is emptied and used again.
    ///
    /// # Errors
    /// Not root, no object, or the kernel refuses one of its programs or maps.
    pub fn new(family: Family) -> Result<Self> {
        let links = links::enter()?;
        let left = idle().pop();
        let world = match left {
            Some(mut world) => {
                world.empty().context("emptying the maps")?;
                world
            }
            None => Self::load(links, &Timeouts::DEFAULT)?,
        };
        world.begin(family)
    }

    /// The same with programs that are told other timeouts, which no other row is to get.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn told(family: Family, timeouts: &Timeouts) -> Result<Self> {
        Self::load(links::enter()?, timeouts)?.begin(family)
    }

    fn begin(mut self, family: Family) -> Result<Self> {
        self.family = family;
        self.features(0)?;
        self.address(family.host(), address_kind::HOST, None, 1)?;
        self.address(family.node(), address_kind::NODE, None, 2)?;
        Ok(self)
    }

    /// Leaves the programs and maps to another row. After a panic they are better dropped.
    pub fn leave(self) {
        idle().push(self);
    }

    fn load(links: &'static [u32], timeouts: &Timeouts) -> Result<Self> {
        let mut ebpf = object::open_told(false, timeouts)?;
        let programs = object::load_classifiers(&mut ebpf)?;
        Ok(Self {
            family: Family::V4,
            links,
            programs,
            conntrack: HashMap::try_from(take(&mut ebpf, "conntrack")?)?,
            unreplied: HashMap::try_from(take(&mut ebpf, "unreplied")?)?,
            fragments: HashMap::try_from(take(&mut ebpf, "fragments")?)?,
            groups: Array::try_from(take(&mut ebpf, "groups")?)?,
            prefixes: LpmTrie::try_from(take(&mut ebpf, "prefixes")?)?,
            rules: LpmTrie::try_from(take(&mut ebpf, "rules")?)?,
            counters: PerCpuArray::try_from(take(&mut ebpf, "counters")?)?,
            events: RingBuf::try_from(take(&mut ebpf, "events")?)?,
            budget: PerCpuArray::try_from(take(&mut ebpf, "budget")?)?,
            pods: Array::try_from(take(&mut ebpf, "pods")?)?,
            shares: Array::try_from(take(&mut ebpf, "shares")?)?,
            link_slots: HashMap::try_from(take(&mut ebpf, "links")?)?,
            addresses: HashMap::try_from(take(&mut ebpf, "addresses")?)?,
            services: HashMap::try_from(take(&mut ebpf, "services")?)?,
            heads: Array::try_from(take(&mut ebpf, "heads")?)?,
            slots: Array::try_from(take(&mut ebpf, "slots")?)?,
            backends: Array::try_from(take(&mut ebpf, "backends")?)?,
            config: Array::try_from(take(&mut ebpf, "config")?)?,
            gate_word: Array::try_from(take(&mut ebpf, "gate_word")?)?,
            ebpf,
            reading: true,
            gso_size: 0,
            next_pool: 0,
            next_backend: 0,
            next_identity: FIRST_IDENTITY,
        })
    }

    /// Makes every map what it was after loading, but for the counters, of which rows read what was added.
    fn empty(&mut self) -> Result<()> {
        clear(&mut self.conntrack)?;
        clear(&mut self.unreplied)?;
        clear(&mut self.fragments)?;
        clear(&mut self.link_slots)?;
        clear(&mut self.addresses)?;
        clear(&mut self.services)?;
        let keys: Vec<_> = self.prefixes.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.prefixes.remove(&key)?;
        }
        let keys: Vec<_> = self.rules.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.rules.remove(&key)?;
        }
        zero(&mut self.groups)?;
        zero(&mut self.pods)?;
        zero(&mut self.shares)?;
        zero(&mut self.heads)?;
        zero(&mut self.slots)?;
        zero(&mut self.backends)?;
        zero(&mut self.config)?;
        zero(&mut self.gate_word)?;
        self.refill(Budget::default())?;
        object::fill(&self.ebpf, &mut self.programs)?;
        self.tell()?;
        self.reading = true;
        self.gso_size = 0;
        self.next_pool = 0;
        self.next_backend = 0;
        self.next_identity = FIRST_IDENTITY;
        Ok(())
    }

    /// Sets [`agent_common::feature`] bits.
    ///
    /// # Errors
    /// The kernel refuses the write; likewise for every other setter.
    pub fn features(&mut self, features: u64) -> Result<()> {
        let config = Config {
            features,
            netns_cookie: 0,
            layout: limits::LAYOUT.into(),
        };
        Ok(self.config.set(0, config, 0)?)
    }

    /// Local pod `n` (1 to 6), which takes redirects and has no policy.
    pub fn pod(&mut self, n: u8) -> LocalPod {
        let pod = LocalPod {
            slot: n.into(),
            ifindex: self.links[usize::from(n)],
            address: self.family.pod(n),
            identity: self.identity(),
            mac: [2, 0, 0, 0, 1, n],
            host_mac: [2, 0, 0, 0, 2, n],
        };
        let content = Pod {
            epoch: 1,
            ifindex: pod.ifindex,
            flags: pod_flag::USED | pod_flag::REDIRECT,
            mac: pod.mac,
            host_mac: pod.host_mac,
            ..Pod::default()
        };
        self.must(|w| {
            w.pods.set(pod.slot, content, 0)?;
            w.link_slots.insert(
                pod.ifindex,
                LinkEntry {
                    slot: pod.slot,
                    _zero: 0,
                },
                0,
            )?;
            w.address(
                pod.address,
                address_kind::LOCAL_POD,
                Some(pod.slot),
                pod.identity,
            )
        });
        pod
    }

    /// Changes a pod's slot.
    pub fn edit(&mut self, pod: &LocalPod, change: impl FnOnce(&mut Pod)) {
        self.must(|w| {
            let mut content = w.pods.get(&pod.slot, 0)?;
            change(&mut content);
            Ok(w.pods.set(pod.slot, content, 0)?)
        });
    }

    /// Takes the slot from a pod's interface.
    pub fn detach(&mut self, pod: &LocalPod) {
        self.must(|w| Ok(w.link_slots.remove(&pod.ifindex)?));
    }

    /// Raises a pod's epoch, as the agent does when it has taken something away from the pod.
    pub fn raise_epoch(&mut self, pod: &LocalPod) {
        self.edit(pod, |p| p.epoch += 1);
    }

    /// Sets how many flows a pod may hold in `conntrack`, beside those that it holds already.
    pub fn limit_share(&mut self, pod: &LocalPod, more: u32) {
        self.must(|w| {
            let share = w.shares.get(&pod.slot, 0)?;
            let share = Share {
                limit: share.held() + more,
                ..share
            };
            Ok(w.shares.set(pod.slot, share, 0)?)
        });
    }

    /// Flows that a pod holds in `conntrack`, as programs count them.
    pub fn held_share(&mut self, pod: &LocalPod) -> u32 {
        self.must(|w| Ok(w.shares.get(&pod.slot, 0)?.held()))
    }

    /// Pod `n` of another node. Answers its address and identity.
    pub fn remote_pod(&mut self, n: u8) -> (IpAddr, u32) {
        let (address, identity) = (self.family.remote_pod(n), self.identity());
        self.must(|w| w.address(address, address_kind::REMOTE_POD, None, identity));
        (address, identity)
    }

    /// Gives a pod's address to another slot.
    pub fn move_address(&mut self, address: IpAddr, to: &LocalPod) {
        self.must(|w| w.address(address, address_kind::LOCAL_POD, Some(to.slot), to.identity));
    }

    /// Makes an address nobody's.
    pub fn forget_address(&mut self, address: IpAddr) {
        self.must(|w| Ok(w.addresses.remove(&address.into())?));
    }

    /// A service with backends at these addresses. `protocol` is IP's number.
    pub fn service(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        backends: &[SocketAddr],
    ) -> Service {
        self.service_with_flags(frontend, protocol, backends, 0)
    }

    /// [`World::service`] with [`agent_common::service_flag`] bits.
    pub fn service_with_flags(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        backends: &[SocketAddr],
        flags: u16,
    ) -> Service {
        let pool = self.next_pool;
        self.next_pool += 1;
        let mut service = Service {
            frontend,
            pool,
            backends: Vec::new(),
        };
        self.must(|w| {
            let first = w.next_backend;
            for address in backends {
                let number = w.next_backend;
                w.next_backend += 1;
                let backend = Backend {
                    address: address.ip().into(),
                    word: BackendWord {
                        generation: 1,
                        port_be: address.port().to_be(),
                        state: backend_state::SERVING,
                        flags: 0,
                    },
                };
                w.backends.set(number, backend, 0)?;
                w.slots.set(number, Slot { backend: number }, 0)?;
                service.backends.push(number);
            }
            let count = u32::try_from(backends.len())?;
            w.heads.set(pool, Head { first, count }, 0)?;
            let key = ServiceKey::new(frontend.ip().into(), frontend.port().to_be(), protocol);
            w.services.insert(
                key,
                ServiceEntry {
                    pool,
                    flags,
                    check: key.check(),
                },
                0,
            )?;
            w.cluster_ip(frontend.ip())
        });
        service
    }

    /// Makes an address a ClusterIP.
    ///
    /// # Errors
    /// The kernel refuses the write.
    pub fn cluster_ip(&mut self, address: IpAddr) -> Result<()> {
        self.address(address, address_kind::CLUSTER_IP, None, 0)
    }

    /// Changes a backend's word, as the agent does when the endpoint's state changes.
    pub fn backend(&mut self, number: u32, change: impl FnOnce(&mut BackendWord)) {
        self.must(|w| {
            let mut backend = w.backends.get(&number, 0)?;
            change(&mut backend.word);
            Ok(w.backends.set(number, backend, 0)?)
        });
    }

    /// Sets which of the service's slots, from its first, new flows choose from.
    pub fn resize(&mut self, service: &Service, count: u32) {
        self.must(|w| {
            let head = w.heads.get(&service.pool, 0)?;
            Ok(w.heads.set(service.pool, Head { count, ..head }, 0)?)
        });
    }

    /// Puts a backend into one of a service's slots.
    pub fn slot(&mut self, service: &Service, index: u32, backend: u32) {
        self.must(|w| {
            let head = w.heads.get(&service.pool, 0)?;
            Ok(w.slots.set(head.first + index, Slot { backend }, 0)?)
        });
    }

    /// Flows move to the maps of `layout` from another's.
    pub fn moving(&mut self, layout: u32) {
        let word = GateWord::default().flipped(limits::LAYOUT - 1);
        self.must(|w| Ok(w.gate_word.set(0, word.flipped(layout).0, 0)?));
    }

    /// Empties a slot of the program array.
    pub fn unload(&mut self, slot: u32) {
        self.must(|w| w.programs.clear(slot));
    }

    pub(super) fn uplink(&self) -> u32 {
        self.links[UPLINK]
    }

    fn identity(&mut self) -> u32 {
        self.next_identity += 1;
        self.next_identity
    }

    pub(super) fn address(
        &mut self,
        address: IpAddr,
        kind: u8,
        slot: Option<u32>,
        identity: u32,
    ) -> Result<()> {
        let address = Address::from(address);
        let slot = match slot {
            Some(slot) => u16::try_from(slot)?,
            None => NO_ADDRESS_SLOT,
        };
        let entry = AddressEntry {
            identity,
            slot,
            kind,
            check: address.check(),
        };
        Ok(self.addresses.insert(address, entry, 0)?)
    }

    /// Rows cannot go on without the state they ask for.
    pub(super) fn must<T>(&mut self, write: impl FnOnce(&mut Self) -> Result<T>) -> T {
        write(self).unwrap_or_else(|error| panic!("setting up the row: {error:#}"))
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("no map `{name}` in the object"))
}

pub(super) fn clear<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn zero<V: aya::Pod + Default + Borrow<V>>(map: &mut Array<MapData, V>) -> Result<()> {
    for index in 0..map.len() {
        map.set(index, V::default(), 0)?;
    }
    Ok(())
}
