//! Takes over what the maps hold.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Address, backend_state, pod_flag};

use super::mirror::Mirror;
use super::numbers::Numbers;
use super::pools::{self, Garbage, Ids, PoolState, Pools};
use super::runs::{Run, Runs};
use super::{Dirty, Plan, Planner, Sizes};
use crate::datapath::Contents;
use crate::desired::{Desired, PoolKey};

impl Planner {
    /// As [`Planner::restore`], for arrays of other sizes.
    pub fn restore_sized(contents: Contents, desired: Desired, sizes: Sizes) -> (Self, Plan) {
        let pools = restore_pools(&contents, &desired, sizes);
        let dirty = everything(&contents, &desired);
        let mut planner = Self {
            desired,
            mirror: Mirror::new(contents),
            pools,
            pending: BTreeSet::new(),
            pending_rules: BTreeSet::new(),
            departed: super::epochs::Departed::default(),
            problems: BTreeMap::new(),
            staged: false,
            cramped: false,
            turned: false,
        };
        let plan = planner.plan_dirty(dirty);
        (planner, plan)
    }
}

fn union<'a, K: Ord + Copy + 'a>(
    a: impl Iterator<Item = &'a K>,
    b: impl Iterator<Item = &'a K>,
) -> BTreeSet<K> {
    a.chain(b).copied().collect()
}

fn everything(maps: &Contents, desired: &Desired) -> Dirty {
    let used = |slot: &&u32| {
        let pod = maps.pods.get(slot);
        pod.is_some_and(|pod| pod.flags & pod_flag::USED != 0)
    };
    Dirty {
        pools: desired.pools.keys().cloned().collect(),
        frontends: union(maps.services.keys(), desired.frontends.keys()),
        addresses: union(maps.addresses.keys(), desired.addresses.keys()),
        prefixes: union(maps.prefixes.keys(), desired.prefixes.keys()),
        groups: union(maps.groups.keys(), desired.groups.keys()),
        rules: union(maps.rules.keys(), desired.rules.keys()),
        pods: union(maps.pods.keys(), desired.pods.keys()),
        links: union(maps.links.keys(), desired.links.keys()),
        // A crash may lie between a change that took something away and its epoch.
        epochs: maps.pods.keys().filter(used).copied().collect(),
    }
}

/// Who has which pool number, by the frontends that lead there.
fn numbers(maps: &Contents, desired: &Desired, sizes: Sizes) -> BTreeMap<PoolKey, u32> {
    let mut taken = BTreeSet::new();
    let mut numbers = BTreeMap::new();
    for (key, frontend) in &desired.frontends {
        if let Some(entry) = maps.services.get(key) {
            let valid = entry.pool > 0 && entry.pool < sizes.heads;
            if valid && !numbers.contains_key(&frontend.pool) && taken.insert(entry.pool) {
                numbers.insert(frontend.pool.clone(), entry.pool);
            }
        }
    }
    if !crate::mutant::removed("port-at-restart") {
        moved(maps, desired, sizes, &mut taken, &mut numbers);
    }
    numbers
}

/// The pools of services whose port is another than when the agent ended: those behind frontends of the same address that nobody wants any
/// more, where they have most backends in common, live or kept for their flows (all are, where a service that is for the node's own endpoints has
/// none here any more). A flow that stands keeps its backend whatever its service's port is by now, and it is the backend's number that tells.
fn moved(
    maps: &Contents,
    desired: &Desired,
    sizes: Sizes,
    taken: &mut BTreeSet<u32>,
    numbers: &mut BTreeMap<PoolKey, u32>,
) {
    let mut left: BTreeMap<(Address, u8), Vec<u32>> = BTreeMap::new();
    for (key, entry) in &maps.services {
        let valid = entry.pool > 0 && entry.pool < sizes.heads;
        if valid && !desired.frontends.contains_key(key) {
            let at = left.entry((key.address, key.protocol)).or_default();
            at.push(entry.pool);
        }
    }
    if left.is_empty() {
        return;
    }
    let heads = maps.heads.values().map(|head| head.first);
    let firsts: BTreeSet<u32> = heads.filter(|first| *first != 0).collect();
    for (key, frontend) in &desired.frontends {
        let Some(pools) = left.get(&(key.address, key.protocol)) else {
            continue;
        };
        let Some(wanted) = desired.pools.get(&frontend.pool) else {
            continue;
        };
        if numbers.contains_key(&frontend.pool) {
            continue;
        }
        let shared = |number: u32| {
            let head = maps.heads.get(&number).copied().unwrap_or_default();
            let count = if crate::mutant::removed("live-at-restart") {
                head.count
            } else {
                room(sizes, &firsts, head.first)
            };
            let stand = pools::read_run(maps, head.first, count);
            let endpoints = stand.into_iter().filter_map(|at| pools::endpoint(maps, at));
            let shared = endpoints.filter(|endpoint| wanted.backends.contains_key(endpoint));
            (shared.count(), number)
        };
        let free = pools.iter().filter(|number| !taken.contains(number));
        let best = free.map(|number| shared(*number)).max();
        if let Some((1.., number)) = best {
            taken.insert(number);
            numbers.insert(frontend.pool.clone(), number);
        }
    }
}

fn restore_pools(maps: &Contents, desired: &Desired, sizes: Sizes) -> Pools {
    let numbers = numbers(maps, desired, sizes);
    let firsts: BTreeSet<u32> = numbers
        .values()
        .filter_map(|number| maps.heads.get(number))
        .map(|head| head.first)
        .collect();
    let mut runs = Runs::new(sizes.slots);
    // Slot 0 is nobody's: a head of all zeros has no run.
    runs.reserve(Run { first: 0, order: 0 });
    let mut claimed = BTreeSet::new();
    let mut found: BTreeMap<&PoolKey, (PoolState, Ids)> = BTreeMap::new();
    for (key, number) in &numbers {
        let mut state = PoolState {
            number: *number,
            ..PoolState::default()
        };
        let mut ids = Ids::new();
        read(maps, sizes, &firsts, &mut state);
        for at in state.array[..state.count].iter().copied() {
            if let Some(endpoint) = pools::endpoint(maps, at)
                && !ids.contains_key(&endpoint)
                && claimed.insert(at)
            {
                ids.insert(endpoint, at);
            }
        }
        let run = state.run.filter(|run| runs.reserve(*run));
        if run.is_none() {
            state = PoolState {
                number: *number,
                ..PoolState::default()
            };
            ids.clear();
        }
        found.insert(key, (state, ids));
    }
    // What stands behind the live ones is kept for its flows, where the pool still knows the endpoint.
    for (key, (state, ids)) in &mut found {
        let Some(pool) = desired.pools.get(key) else {
            continue;
        };
        for at in state.array[state.count..].iter().copied() {
            if let Some(endpoint) = pools::endpoint(maps, at) {
                let known = pool.backends.contains_key(&endpoint);
                if known && !ids.contains_key(&endpoint) && claimed.insert(at) {
                    ids.insert(endpoint, at);
                }
            }
        }
    }
    let state = |(key, (state, ids)): (&PoolKey, (PoolState, Ids))| {
        let ids = pools::numbers(&ids);
        (key.clone(), PoolState { ids, ..state })
    };
    let states = found.into_iter().map(state).collect();
    let alive = maps.backends.iter();
    let alive = alive.filter(|(_, backend)| backend.word.state != backend_state::GONE);
    let used_heads: BTreeSet<u32> = numbers
        .values()
        .copied()
        .chain(maps.heads.keys().copied())
        // A number that a frontend still leads to is not given to another pool before that frontend is gone.
        .chain(maps.services.values().map(|entry| entry.pool))
        .filter(|number| *number > 0 && *number < sizes.heads)
        .collect();
    let used_backends: BTreeSet<u32> = alive.map(|(number, _)| number).collect();
    let held_heads: BTreeSet<u32> = numbers.values().copied().collect();
    let mut garbage = Garbage {
        backends: used_backends.difference(&claimed).copied().collect(),
        heads: used_heads.difference(&held_heads).copied().collect(),
        runs: stray_slots(maps, &mut runs),
    };
    if crate::mutant::removed("keep-unpointed") {
        garbage = Garbage::default();
    }
    Pools {
        states,
        runs,
        backends: Numbers::new(&used_backends, sizes.backends),
        heads: Numbers::new(&used_heads, sizes.heads),
        garbage,
        sizes,
    }
}

/// How long a run that begins there may be, by where it stands: to the next one, and no longer than its place is aligned. 0: none begins there.
fn room(sizes: Sizes, firsts: &BTreeSet<u32>, first: u32) -> u32 {
    if first == 0 || first >= sizes.slots {
        return 0;
    }
    let next = firsts.range(first + 1..).next().copied();
    let aligned = 1u32 << first.trailing_zeros();
    aligned.min(next.unwrap_or(sizes.slots).min(sizes.slots) - first)
}

/// Reads a pool's run. How long it is stands nowhere: as long as it is filled, and no longer than where it stands allows.
fn read(maps: &Contents, sizes: Sizes, firsts: &BTreeSet<u32>, state: &mut PoolState) {
    let head = maps.heads.get(&state.number).copied().unwrap_or_default();
    let length = room(sizes, firsts, head.first);
    if length == 0 {
        return;
    }
    let mut array = pools::read_run(maps, head.first, length);
    // The largest power of two that is free of others, and not longer than it was filled.
    let order = Run::order_for(array.len().max(1)).min(length.ilog2());
    array.truncate(1 << order);
    state.count = (head.count as usize).min(array.len());
    state.array = array.into();
    state.run = Some(Run {
        first: head.first,
        order,
    });
}

/// Slots that are filled and in no pool's run: each is reserved by itself until it is emptied.
fn stray_slots(maps: &Contents, runs: &mut Runs) -> Vec<Run> {
    maps.slots
        .keys()
        .map(|first| Run { first, order: 0 })
        .filter(|run| runs.reserve(*run))
        .collect()
}
