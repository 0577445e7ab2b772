//! Random changes of services, looked at after every single write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::lookup::{Tables, Target, backend_at, target};
use agent_common::{
    Address, AddressEntry, NO_ADDRESS_SLOT, ServiceKey, address_kind, backend_state, protocol,
    service_flag,
};
use proptest::prelude::*;

use super::super::*;
use super::readers::{Reader, Recorder};
use crate::datapath::Datapath;
use crate::datapath::faulty::{Fault, Faulty};
use crate::datapath::memory::Memory;
use crate::desired::{BackendSpec, EndpointSet, Frontend, Pool};
use crate::model::{Family, ObjectKey, Protocol, intern};

const SERVICES: u8 = 3;

/// What a client of a service meets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Direct,
    Refused,
    Dropped,
    NoPort,
    Backends(BTreeSet<(IpAddr, u16)>),
    Gone,
}

/// Endpoints of a service: number to (state, chosen). None: no service.
pub(super) type Shape = Option<BTreeMap<u8, (u8, bool)>>;
pub(super) type World = Vec<(Shape, bool)>;

fn key(service: u8) -> ServiceKey {
    let address = Address::v4([172, 16, 0, service]);
    ServiceKey::new(address, 80u16.to_be(), protocol::TCP)
}

/// A service that drops while it is empty has its local endpoints only.
fn pool_key(service: u8, local: bool) -> PoolKey {
    PoolKey {
        service: ObjectKey::new("test", &format!("s{service}")),
        port: intern("http"),
        protocol: Protocol::Tcp,
        family: Family::V4,
        set: match local {
            true => EndpointSet::Local,
            false => EndpointSet::Cluster,
        },
    }
}

fn endpoint(number: u8) -> (IpAddr, u16) {
    (IpAddr::from([10, 0, 0, number]), 8080)
}

pub(super) fn desired(world: &World) -> Desired {
    let mut all = Desired::default();
    for (service, (shape, drop)) in world.iter().enumerate() {
        let service = service as u8;
        let Some(shape) = shape else { continue };
        let backends = shape.iter().map(|(number, (state, chosen))| {
            let spec = BackendSpec {
                state: *state,
                flags: 0,
                chosen: *chosen,
            };
            (endpoint(*number), spec)
        });
        let pool = Pool {
            backends: backends.collect(),
        };
        all.pools.insert(pool_key(service, *drop), pool);
        let flags = if *drop {
            service_flag::DROP_WHEN_EMPTY
        } else {
            0
        };
        let frontend = Frontend {
            pool: pool_key(service, *drop),
            flags,
        };
        all.frontends.insert(key(service), frontend);
        let address = key(service).address;
        let entry = AddressEntry {
            identity: 0,
            slot: NO_ADDRESS_SLOT,
            kind: address_kind::CLUSTER_IP,
            check: address.check(),
        };
        all.addresses.insert(address, entry);
    }
    all
}

fn difference<K: Ord + Clone, V: Clone + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(key) != new.get(key))
        .map(|key| (key.clone(), new.get(key).cloned()))
        .collect()
}

fn delta(old: &Desired, new: &Desired) -> Delta {
    Delta {
        frontends: difference(&old.frontends, &new.frontends),
        pools: difference(&old.pools, &new.pools),
        addresses: difference(&old.addresses, &new.addresses),
        ..Delta::default()
    }
}

fn ask(maps: &Contents, service: u8) -> Answer {
    answer(maps, &key(service))
}

/// What clients of a service address meet, all of them together.
pub(super) fn answer(maps: &Contents, key: &ServiceKey) -> Answer {
    let entry = maps.addresses.get(&key.address).copied();
    match target(maps, key, entry) {
        Target::Direct => Answer::Direct,
        Target::NoEndpoint => Answer::Refused,
        Target::NoLocalEndpoint => Answer::Dropped,
        Target::NoServicePort => Answer::NoPort,
        Target::Pool { head, .. } => {
            let all = (0..head.count).map(|at| backend_at(maps, head, at));
            let all: Option<BTreeSet<_>> = all
                .map(|found| {
                    let (_, backend) = found?;
                    let port = u16::from_be(backend.word.port_be);
                    Some((IpAddr::from(backend.address), port))
                })
                .collect();
            all.map_or(Answer::Gone, Answer::Backends)
        }
    }
}

fn answers(maps: &Contents) -> Vec<Answer> {
    (0..SERVICES).map(|service| ask(maps, service)).collect()
}

fn expected(world: &World) -> Vec<Answer> {
    let answer = |(shape, drop): &(Shape, bool)| {
        let Some(shape) = shape else {
            return Answer::Direct;
        };
        let chosen = shape.iter().filter(|(_, (_, chosen))| *chosen);
        let set: BTreeSet<_> = chosen.map(|(number, _)| endpoint(*number)).collect();
        match (set.is_empty(), drop) {
            (false, _) => Answer::Backends(set),
            (true, true) => Answer::Dropped,
            (true, false) => Answer::Refused,
        }
    };
    world.iter().map(answer).collect()
}

/// Panics at the first write after which a service answers neither as before nor as after.
fn watch(datapath: &mut Faulty<Memory>, old: Vec<Answer>, new: Vec<Answer>) {
    watch_faults(datapath, old, new, false);
}

fn watch_faults(datapath: &mut Faulty<Memory>, old: Vec<Answer>, new: Vec<Answer>, lenient: bool) {
    datapath.watch(Box::new(move |memory, write| {
        for (service, answer) in answers(memory.view()).iter().enumerate() {
            assert!(
                *answer == old[service]
                    || *answer == new[service]
                    // The address of a service whose frontend did not fit: refused, not routed away.
                    || (lenient && *answer == Answer::NoPort && !memory.view().services.contains_key(&key(service as u8))),
                "after {write:?} service {service} answers {answer:?}, which is neither {:?} nor {:?}",
                old[service],
                new[service],
            );
        }
    }));
}

/// Whose a pool is, whichever of the service's endpoint sets it holds: it keeps its backends when it turns to another.
fn owner(pool: &PoolKey) -> PoolKey {
    let set = EndpointSet::Cluster;
    PoolKey {
        set,
        ..pool.clone()
    }
}

/// Every backend number that is alive, by service and endpoint.
pub(super) fn alive(planner: &Planner) -> BTreeMap<(PoolKey, (IpAddr, u16)), (u32, u32)> {
    let mut all = BTreeMap::new();
    for (pool, state) in &planner.pools.states {
        for number in &state.ids {
            // None where it is gone.
            let endpoint = pools::endpoint(planner.contents(), *number).unwrap();
            let word = planner.contents().backends.get(number).unwrap().word;
            all.insert((owner(pool), endpoint), (*number, word.generation));
        }
    }
    all
}

/// Nothing is in the maps that nobody points to, and a new start has nothing to write.
fn assert_clean(planner: &Planner, memory: &Memory) {
    let maps = memory.view();
    assert!(!planner.unfinished());
    let live = maps.backends.values();
    let live = live.filter(|b| b.word.state != backend_state::GONE).count();
    assert_eq!(live, alive(planner).len(), "backends that nobody has");
    assert_eq!(live, planner.backends());
    let arrays = planner.pools.states.values().map(|s| s.array.len());
    assert_eq!(maps.slots.len(), arrays.sum::<usize>(), "stray slots");
    let (_, plan) = Planner::restore(maps.clone(), planner.desired().clone());
    let writes: Vec<_> = plan.writes().collect();
    assert!(writes.is_empty(), "a new start writes {writes:?}");
}

fn world() -> impl Strategy<Value = World> {
    let states = prop_oneof![
        4 => Just((backend_state::SERVING, true)),
        1 => Just((backend_state::TERMINATING, true)),
        2 => Just((backend_state::TERMINATING, false)),
        1 => Just((backend_state::NOT_SERVING, false)),
    ];
    let shape = proptest::collection::btree_map(1u8..9, states, 0..8);
    let service = (proptest::option::weighted(0.85, shape), any::<bool>());
    proptest::collection::vec(service, SERVICES as usize)
}

/// Mostly one endpoint of one service changes; sometimes everything.
fn walk() -> impl Strategy<Value = Vec<World>> {
    let step = (0..SERVICES as usize, 1u8..9, 0u8..5, world());
    (world(), proptest::collection::vec(step, 1..8)).prop_map(|(first, steps)| {
        let mut worlds = vec![first];
        for (service, number, what, fresh) in steps {
            let mut next = worlds[worlds.len() - 1].clone();
            match (&mut next[service].0, what) {
                (Some(shape), 0) => drop(shape.remove(&number)),
                (Some(shape), 1) => {
                    shape.insert(number, (backend_state::SERVING, true));
                }
                (Some(shape), 2) => {
                    shape.insert(number, (backend_state::TERMINATING, false));
                }
                (Some(shape), 3) => {
                    shape.remove(&number);
                    shape.insert(number % 8 + 1, (backend_state::SERVING, true));
                }
                _ => next = fresh,
            }
            worlds.push(next);
        }
        worlds
    })
}

/// What a slow client meets: a backend, or why none.
fn meet(maps: &impl Tables, key: &ServiceKey, random: u32) -> Answer {
    let entry = maps.address(&key.address);
    match target(maps, key, entry) {
        Target::Direct => Answer::Direct,
        Target::NoEndpoint => Answer::Refused,
        Target::NoLocalEndpoint => Answer::Dropped,
        Target::NoServicePort => Answer::NoPort,
        Target::Pool { head, .. } => match backend_at(maps, head, random) {
            Some((_, backend)) => {
                let port = u16::from_be(backend.word.port_be);
                Answer::Backends(BTreeSet::from([(backend.address.into(), port)]))
            }
            None => Answer::Gone,
        },
    }
}

/// Whether an answer is one that a state gives.
fn given(answer: &Answer, state: &Answer) -> bool {
    match (answer, state) {
        (Answer::Backends(one), Answer::Backends(all)) => one.is_subset(all),
        // Where a frontend's flags and its pool's emptiness change at once: there is no backend either way.
        (Answer::Refused, Answer::Dropped) | (Answer::Dropped, Answer::Refused) => true,
        _ => answer == state,
    }
}

#[test]
fn a_slow_reader_never_meets_a_backend_of_nobody_or_of_another_service() {
    use crate::compile::tests::cluster::Rng;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut rng = Rng::new(1);
    let mut lagged = 0;
    for _ in 0..200 {
        let worlds = walk().new_tree(&mut runner).unwrap().current();
        let mut recorder = Recorder::new(Memory::new());
        let (mut planner, _) = Planner::restore(Contents::default(), Desired::default());
        let mut before = vec![(None, false); SERVICES as usize];
        for world in worlds {
            recorder.forget();
            // What one service's endpoint was, another's is next: a number used again too early would show.
            let plan = planner.plan(&delta(&desired(&before), &desired(&world)));
            let applied = apply(&mut planner, plan, &mut recorder);
            assert_eq!(applied.problems, []);
            recorder.rest();
            for _ in 0..120 {
                let begin = rng.below(recorder.states.len() as u64) as usize;
                let service = rng.below(SERVICES.into()) as u8;
                let (pace, random) = (rng.pick(&[20, 50]), rng.next() as u32);
                let mut own = Rng::new(rng.next());
                let reader = Reader::new(&recorder, begin, pace, &mut own);
                let met = meet(&reader, &key(service), random);
                let (begin, end) = reader.span();
                lagged += usize::from(begin != end);
                let around: Vec<_> = recorder
                    .rests_around(begin, end)
                    .map(|maps| ask(maps, service))
                    .collect();
                assert!(
                    around.iter().any(|state| given(&met, state)),
                    "service {service}: a reader from {begin} to {end} met {met:?} where {around:?} held: {:?}, {:?}",
                    recorder.states.iter().map(|s| s.0).collect::<Vec<_>>(),
                    recorder.graces,
                );
            }
            before = world;
        }
    }
    assert!(lagged > 1_000, "{lagged} slow readers are too few");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_write_leaves_the_old_answer_or_the_new(worlds in walk()) {
        let mut datapath = Faulty::new(Memory::new());
        let empty = vec![(None, false); SERVICES as usize];
        let (mut planner, plan) = Planner::restore(Contents::default(), Desired::default());
        prop_assert!(plan.is_empty());
        let mut before = empty.clone();
        for world in worlds.iter().chain([&empty]) {
            let (old, new) = (desired(&before), desired(world));
            let had = alive(&planner);
            watch(&mut datapath, expected(&before), expected(world));
            let plan = planner.plan(&delta(&old, &new));
            let applied = apply(&mut planner, plan, &mut datapath);
            prop_assert_eq!(&applied.problems, &[]);
            prop_assert_eq!(answers(datapath.inner.view()), expected(world));
            for (backend, number) in alive(&planner) {
                if let Some(before) = had.get(&backend) {
                    prop_assert_eq!(before, &number, "a backend that lives on changed its number");
                }
            }
            assert_clean(&planner, &datapath.inner);
            before = world.clone();
        }
    }

    #[test]
    fn a_crash_at_any_write_loses_nothing(worlds in walk(), at in any::<prop::sample::Index>()) {
        let (last, first) = worlds.split_last().unwrap();
        let from = first.last().unwrap();
        let (mut planner, plan) = Planner::restore(Contents::default(), desired(from));
        let mut memory = Memory::new();
        apply(&mut planner, plan, &mut memory);
        let had = alive(&planner);
        let plan = planner.plan(&delta(&desired(from), &desired(last)));
        let writes = plan.writes().count();
        let mut datapath = Faulty::new(memory);
        datapath.fail(at.index(writes + 1) as u64, Fault::Crash);
        watch(&mut datapath, expected(from), expected(last));
        apply(&mut planner, plan, &mut datapath);
        // The world went on, or back, while nobody was there.
        for world in [last, from] {
            let mut again = Faulty::new(datapath.inner.clone());
            let (mut planner, plan) = Planner::restore(again.contents().unwrap(), desired(world));
            let found = answers(again.inner.view());
            watch(&mut again, found, expected(world));
            let applied = apply(&mut planner, plan, &mut again);
            prop_assert_eq!(&applied.problems, &[]);
            prop_assert_eq!(answers(again.inner.view()), expected(world));
            assert_clean(&planner, &again.inner);
            let stayed = |pool: &PoolKey, endpoint: &(IpAddr, u16)| {
                let in_world = |w: &World| {
                    let has = |(key, of): (&PoolKey, &Pool)| owner(key) == *pool && of.backends.contains_key(endpoint);
                    desired(w).pools.iter().any(has)
                };
                in_world(from) && in_world(last)
            };
            let has = alive(&planner);
            for ((pool, endpoint), number) in &had {
                if stayed(pool, endpoint) {
                    let now = has.get(&(pool.clone(), *endpoint));
                    prop_assert_eq!(now, Some(number), "a backend that lived on was lost by the crash");
                }
            }
        }
    }

    #[test]
    fn a_failed_write_leaves_what_is_in_force_and_is_made_good(
        worlds in walk(),
        faults in proptest::collection::vec((0u64..40, 0u8..3), 1..4),
    ) {
        let mut datapath = Faulty::new(Memory::new());
        let (mut planner, _) = Planner::restore(Contents::default(), Desired::default());
        let mut before = vec![(None, false); SERVICES as usize];
        for world in &worlds {
            for (at, kind) in &faults {
                datapath.fail(*at, [Fault::Full, Fault::Refused, Fault::NoMemory][*kind as usize]);
            }
            let found = answers(datapath.inner.view());
            watch_faults(&mut datapath, found, expected(world), true);
            let plan = planner.plan(&delta(&desired(&before), &desired(world)));
            let failed = apply(&mut planner, plan, &mut datapath);
            prop_assert_eq!(failed.problems.is_empty(), planner.failures().next().is_none());
            let found = answers(datapath.inner.view());
            watch_faults(&mut datapath, found, expected(world), true);
            for _ in 0..50 {
                if planner.unfinished() {
                    let plan = planner.plan(&Delta::default());
                    apply(&mut planner, plan, &mut datapath);
                }
            }
            prop_assert_eq!(answers(datapath.inner.view()), expected(world));
            assert_clean(&planner, &datapath.inner);
            before = world.clone();
        }
    }
}

fn big(endpoints: impl Iterator<Item = u32>) -> Pool {
    let spec = BackendSpec {
        state: backend_state::SERVING,
        flags: 0,
        chosen: true,
    };
    let backends = endpoints.map(|n| ((IpAddr::from(n.to_be_bytes()), 80), spec));
    Pool {
        backends: backends.collect(),
    }
}

#[test]
fn one_endpoint_of_five_thousand_costs_no_more_than_one_of_five() {
    for size in [5u32, 5_000] {
        let mut all = desired(&vec![(Some(BTreeMap::new()), false)]);
        let base = 0x0a00_0000;
        all.pools.insert(pool_key(0, false), big(base..base + size));
        let mut memory = Memory::new();
        let (mut planner, plan) = Planner::restore(Contents::default(), all.clone());
        apply(&mut planner, plan, &mut memory);
        let mut cost = |pool: Pool| {
            let mut delta = Delta::default();
            delta.pools.insert(pool_key(0, false), Some(pool));
            let plan = planner.plan(&delta);
            let applied = apply(&mut planner, plan, &mut memory);
            assert!(applied.problems.is_empty());
            applied.writes
        };
        // Backend, slot, head.
        assert_eq!(cost(big(base..base + size + 1)), 3, "append to {size}");
        // Hole, head, the old last slot, the word.
        let without = (base..base + size + 1).filter(|n| *n != base + 1);
        assert_eq!(cost(big(without)), 4, "remove from {size}");
        // Backend, slot, the old one's word.
        let replaced = (base..base + size + 2).filter(|n| *n != base + 1 && *n != base + 2);
        assert_eq!(cost(big(replaced)), 3, "replace in {size}");
        let fading = big((base..base + size + 2).filter(|n| *n != base + 1 && *n != base + 2));
        let fading = fading.backends.iter().map(|(endpoint, spec)| {
            let mut spec = *spec;
            if *endpoint == (IpAddr::from((base + 3).to_be_bytes()), 80) {
                spec.chosen = false;
                spec.state = backend_state::TERMINATING;
            }
            (*endpoint, spec)
        });
        let fading = Pool {
            backends: fading.collect(),
        };
        assert!(cost(fading) <= 6, "one of {size} begins to terminate");
    }
}

#[test]
fn seventy_thousand_endpoints_are_served_whole_and_what_does_not_fit_names_its_limit() {
    let mut all = desired(&vec![
        (Some(BTreeMap::new()), false),
        (Some(BTreeMap::new()), false),
    ]);
    let base = 0x0a00_0000;
    all.pools
        .insert(pool_key(0, false), big(base..base + 70_000));
    let mut memory = Memory::new();
    let (mut planner, plan) = Planner::restore(Contents::default(), all.clone());
    assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
    assert!(matches!(ask(memory.view(), 0), Answer::Backends(set) if set.len() == 70_000));
    let mut delta = Delta::default();
    delta
        .pools
        .insert(pool_key(1, false), Some(big(base..base + 600_000)));
    delta
        .pools
        .insert(pool_key(0, false), Some(big(base..base + 2)));
    let plan = planner.plan(&delta);
    let applied = apply(&mut planner, plan, &mut memory);
    assert_eq!(applied.problems.len(), 1);
    assert_eq!(applied.problems[0].object, "Service test/s1");
    let limit = applied.problems[0].limit.unwrap();
    assert_eq!((limit.map, limit.capacity), ("backends", limits::BACKENDS));
    assert!(matches!(ask(memory.view(), 0), Answer::Backends(set) if set.len() == 2));
    assert_eq!(ask(memory.view(), 1), Answer::Refused);
}
