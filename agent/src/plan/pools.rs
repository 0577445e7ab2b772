//! Where pools stand in `heads`, `slots` and `backends`, and what a change of one writes.
//!
//! A pool's run holds its live backends first, as many as its head says, and behind them those that no new flow chooses
//! but whose flows live on: so that a restart finds whose they are. Behind those it is zero.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use agent_common::{Address, Backend, BackendWord, Head, Slot, backend_state};

use super::numbers::Numbers;
use super::runs::{Run, Runs};
use super::{Sizes, arrange};
use crate::datapath::{Contents, Write};
use crate::desired::{BackendSpec, Pool, PoolKey};
use crate::model::Sorted;
use crate::problem::Limit;

/// A pool's place.
#[derive(Clone, Default, Debug)]
pub(super) struct PoolState {
    /// Index of its head.
    pub(super) number: u32,
    /// Its run; none while it holds nothing.
    pub(super) run: Option<Run>,
    /// What stands in the run, up to the first zero.
    pub(super) array: Box<[u32]>,
    /// How many of them are live.
    pub(super) count: usize,
    /// Its backends, by address and port, which the mirror knows of each. A number in `array` that is not here is not (or no longer) the
    /// pool's.
    pub(super) ids: Box<[u32]>,
}

/// Backends of a pool by address and port.
pub(super) type Ids = BTreeMap<(IpAddr, u16), u32>;

/// The numbers of backends, by address and port.
pub(super) fn numbers(ids: &Ids) -> Box<[u32]> {
    ids.values().copied().collect()
}

/// Numbers and runs that nobody points to, or soon nobody will.
#[derive(Clone, Default, Debug)]
pub(super) struct Garbage {
    pub(super) backends: Vec<u32>,
    pub(super) runs: Vec<Run>,
    pub(super) heads: Vec<u32>,
}

impl Garbage {
    pub(super) fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.runs.is_empty() && self.heads.is_empty()
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.backends.extend(other.backends);
        self.runs.extend(other.runs);
        self.heads.extend(other.heads);
    }
}

/// A planned change of a pool.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Where it will stand; none where it goes.
    pub(super) after: Option<PoolState>,
    /// Writes that no reader sees.
    pub(super) prepare: Vec<Write>,
    /// Writes that make it live.
    pub(super) publish: Vec<Write>,
    /// Writes that end what whoever read the head before may still be led to: after a grace period.
    pub(super) collect: Vec<Write>,
    /// What was taken for it.
    pub(super) taken: Garbage,
    /// What nobody points to afterwards.
    pub(super) released: Garbage,
}

/// All pools.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pub(super) states: BTreeMap<PoolKey, PoolState>,
    pub(super) runs: Runs,
    pub(super) backends: Numbers,
    pub(super) heads: Numbers,
    pub(super) garbage: Garbage,
    pub(super) sizes: Sizes,
}

/// A run is given up for a smaller one when it is this many times as long as needed.
const SHRINK_FACTOR: u32 = 8;
/// Runs that are not worth giving up.
const SHRINK_ABOVE: u32 = 64;

impl Pools {
    /// Gives back what the planned change took, because it is not to be.
    fn undo(&mut self, taken: Garbage) {
        self.free(taken);
    }

    /// Makes numbers and runs free for others: after a grace period in which nobody pointed to them.
    pub(super) fn free(&mut self, garbage: Garbage) {
        garbage
            .backends
            .into_iter()
            .for_each(|n| self.backends.give(n));
        garbage.runs.into_iter().for_each(|r| self.runs.give(r));
        garbage.heads.into_iter().for_each(|n| self.heads.give(n));
    }

    /// Plans a pool's change. Nothing is taken where it does not fit.
    pub(super) fn change(
        &mut self,
        key: &PoolKey,
        pool: Option<&Pool>,
        mirror: &Contents,
    ) -> Result<Change, Limit> {
        let mut taken = Garbage::default();
        let Some(pool) = pool else {
            return Ok(self.removal(key, mirror));
        };
        match self.try_change(key, pool, mirror, &mut taken) {
            Ok(change) => Ok(Change { taken, ..change }),
            Err(limit) => {
                self.undo(taken);
                Err(limit)
            }
        }
    }

    fn removal(&self, key: &PoolKey, mirror: &Contents) -> Change {
        let mut collect = Vec::new();
        let mut released = Garbage::default();
        if let Some(state) = self.states.get(key) {
            if mirror.heads.contains_key(&state.number) {
                collect.push(Write::Head(state.number, Head::default()));
            }
            for number in &state.ids {
                collect.extend(gone(mirror, *number));
            }
            released = Garbage {
                backends: state.ids.to_vec(),
                runs: state.run.into_iter().collect(),
                heads: vec![state.number],
            };
        }
        Change {
            after: None,
            prepare: Vec::new(),
            publish: Vec::new(),
            collect,
            taken: Garbage::default(),
            released,
        }
    }

    fn take_backend(&mut self, taken: &mut Garbage) -> Result<u32, Limit> {
        let number = self.backends.take().ok_or(Limit {
            map: "backends",
            capacity: self.sizes.backends,
        })?;
        taken.backends.push(number);
        Ok(number)
    }

    fn take_run(&mut self, slots: usize, taken: &mut Garbage) -> Result<Run, Limit> {
        // One slot is kept free, so that a backend can move within the run.
        let run = self.runs.take(Run::order_for(slots + 1)).ok_or(Limit {
            map: "slots",
            capacity: self.sizes.slots,
        })?;
        taken.runs.push(run);
        Ok(run)
    }

    fn try_change(
        &mut self,
        key: &PoolKey,
        pool: &Pool,
        mirror: &Contents,
        taken: &mut Garbage,
    ) -> Result<Change, Limit> {
        let old = match self.states.get(key) {
            Some(state) => state.clone(),
            None => {
                let number = self.heads.take().ok_or(Limit {
                    map: "heads",
                    capacity: self.sizes.heads,
                })?;
                taken.heads.push(number);
                PoolState {
                    number,
                    ..PoolState::default()
                }
            }
        };
        // A backend and its slot, of each that comes.
        let come = pool.backends.len().saturating_sub(old.ids.len());
        let mut prepare = Vec::with_capacity(2 * come);
        let (mut publish, mut collect) = (Vec::new(), Vec::new());
        let live_before: HashSet<u32> = old.array[..old.count].iter().copied().collect();
        let endpoint_of = |number: &u32| Some((endpoint(mirror, *number)?, *number));
        let known: Sorted<(IpAddr, u16), u32> = old.ids.iter().filter_map(endpoint_of).collect();
        let mut ids = Vec::with_capacity(pool.backends.len());
        let (mut chosen, mut kept) = (Vec::new(), BTreeSet::new());
        let mut words_after = Vec::new();
        for (endpoint, spec) in &pool.backends {
            let number = match known.get(endpoint) {
                Some(&number) => {
                    let now = mirror.backends.get(&number).copied().unwrap_or_default();
                    let word = word(now.word.generation, endpoint.1, spec);
                    if word != now.word {
                        let write = Write::BackendWord(number, word);
                        if spec.chosen && !live_before.contains(&number) {
                            publish.push(write);
                        } else {
                            words_after.push(write);
                        }
                    }
                    number
                }
                None if spec.chosen => {
                    let number = self.take_backend(taken)?;
                    let before = mirror.backends.get(&number).copied().unwrap_or_default();
                    // Zero stands for "no generation" nowhere, but a reader of an empty element sees it.
                    let generation = before.word.generation.wrapping_add(1).max(1);
                    let backend = Backend {
                        address: Address::from(endpoint.0),
                        word: word(generation, endpoint.1, spec),
                    };
                    prepare.push(Write::Backend(number, backend));
                    number
                }
                None => continue,
            };
            ids.push(number);
            if spec.chosen {
                chosen.push(number);
            } else {
                kept.insert(number);
            }
        }
        let mut released = Garbage::default();
        let mut ended = Vec::new();
        let stay: HashSet<u32> = ids.iter().copied().collect();
        for number in old.ids.iter().filter(|number| !stay.contains(number)) {
            released.backends.push(*number);
            ended.extend(gone(mirror, *number));
        }
        let target = arrange::target(&old, &chosen, &kept);
        let length = target.array.len();
        let moved = arrange::moved(&old, &target, &stay);
        let room = old.run.map_or(0, Run::length);
        let fits = target.in_place && old.array.len().max(length) + moved.len() <= room as usize;
        let wasteful = room > SHRINK_ABOVE
            && room / SHRINK_FACTOR >= 1 << Run::order_for(length + 1)
            && *target.array != *old.array;
        let run = if length == 0 {
            None
        } else if fits && !wasteful {
            old.run
        } else {
            Some(self.take_run(length, taken)?)
        };
        let head = Head {
            first: run.map_or(0, |run| run.first),
            count: u32::try_from(target.count).unwrap_or(u32::MAX),
        };
        let head_now = mirror.heads.get(&old.number).copied().unwrap_or_default();
        let head_write = (head != head_now).then_some(Write::Head(old.number, head));
        if run == old.run {
            if let Some(run) = run {
                let edits = arrange::edits(&old, &target, &moved);
                let slot = |&(at, backend): &(usize, u32)| slot_write(run, at, backend);
                prepare.extend(edits.before.iter().map(slot));
                publish.extend(edits.switch.iter().map(slot));
                publish.extend(head_write);
                collect.extend(edits.after.iter().map(slot));
            } else {
                publish.extend(head_write);
            }
        } else {
            if let Some(run) = run {
                let slots = target.array.iter().enumerate();
                prepare.extend(slots.map(|(at, backend)| slot_write(run, at, *backend)));
            }
            publish.extend(head_write);
            released.runs.extend(old.run);
        }
        publish.extend(words_after);
        collect.extend(ended);
        let after = PoolState {
            number: old.number,
            run,
            array: target.array.into(),
            count: target.count,
            ids: ids.into(),
        };
        Ok(Change {
            after: Some(after),
            prepare,
            publish,
            collect,
            taken: Garbage::default(),
            released,
        })
    }

    /// Reads back where a pool stands after its change failed half-way; what it does not hold becomes garbage.
    pub(super) fn recover(&mut self, key: &PoolKey, change: Change, mirror: &Contents) {
        let old = self.states.get(key).cloned();
        let Some(number) =
            old.as_ref()
                .map(|state| state.number)
                .or(change.taken.heads.first().copied())
        else {
            return;
        };
        let mut old = old.unwrap_or_default();
        let mut runs: BTreeSet<Run> = change.taken.runs.iter().copied().collect();
        runs.extend(old.run);
        let mut numbers: BTreeSet<u32> = change.taken.backends.iter().copied().collect();
        numbers.extend(&old.ids);
        let head = mirror.heads.get(&number).copied().unwrap_or_default();
        let run = runs
            .iter()
            .find(|run| head.first != 0 && run.first == head.first)
            .copied();
        if let Some(run) = run {
            runs.remove(&run);
        }
        old.number = number;
        old.run = run;
        old.count = 0;
        old.array = Box::default();
        let mut ids = Ids::new();
        if let Some(run) = run {
            old.array = read_run(mirror, run.first, run.length()).into();
            old.count = (head.count as usize).min(old.array.len());
            for at in &old.array {
                if let Some(endpoint) = endpoint(mirror, *at).filter(|_| numbers.remove(at)) {
                    ids.insert(endpoint, *at);
                }
            }
        }
        old.ids = self::numbers(&ids);
        self.states.insert(key.clone(), old);
        self.garbage.extend(Garbage {
            backends: numbers.into_iter().collect(),
            runs: runs.into_iter().collect(),
            heads: Vec::new(),
        });
    }

    /// Takes a change as done. What it released is returned.
    pub(super) fn commit(&mut self, key: PoolKey, change: Change) -> Garbage {
        match change.after {
            Some(state) => drop(self.states.insert(key, state)),
            None => drop(self.states.remove(&key)),
        }
        change.released
    }
}

fn word(generation: u32, port: u16, spec: &BackendSpec) -> BackendWord {
    BackendWord {
        generation,
        port_be: port.to_be(),
        state: spec.state,
        flags: spec.flags,
    }
}

fn slot_write(run: Run, at: usize, backend: u32) -> Write {
    // `at` is within the run, whose length is a u32.
    let offset = u32::try_from(at).unwrap_or(u32::MAX);
    Write::Slot(run.first.saturating_add(offset), Slot { backend })
}

/// The write that ends a backend, unless it has ended. The generation stays: flows may still name the number.
pub(super) fn gone(mirror: &Contents, number: u32) -> Option<Write> {
    let backend = mirror.backends.get(&number)?;
    (backend.word.state != backend_state::GONE).then_some(Write::BackendWord(
        number,
        BackendWord {
            generation: backend.word.generation,
            ..BackendWord::default()
        },
    ))
}

/// The address and port of a backend that is not gone.
pub(super) fn endpoint(mirror: &Contents, number: u32) -> Option<(IpAddr, u16)> {
    let backend = mirror.backends.get(&number)?;
    (backend.word.state != backend_state::GONE).then(|| {
        (
            IpAddr::from(backend.address),
            u16::from_be(backend.word.port_be),
        )
    })
}

/// What stands in a run up to the first zero.
pub(super) fn read_run(mirror: &Contents, first: u32, length: u32) -> Vec<u32> {
    (first..first.saturating_add(length))
        .map_while(|at| mirror.slots.get(&at).map(|slot| slot.backend))
        .collect()
}

/// The writes that empty a run.
pub(super) fn empty_run(mirror: &Contents, run: Run) -> impl Iterator<Item = Write> + '_ {
    mirror
        .slots
        .range(run.first..run.first + run.length())
        .map(|(at, _)| Write::Slot(at, Slot::default()))
}
