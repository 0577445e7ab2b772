//! Writes of pools and frontends.

use std::collections::BTreeMap;

use agent_common::{Address, Head, ServiceEntry};

use super::super::pools::{self, Garbage};
use super::super::{Item, Planner};
use super::{Builder, many, one};
use crate::datapath::Write;
use crate::desired::{EndpointSet, PoolKey};
use crate::problem::Problem;

impl Builder<'_> {
    /// What earlier plans left: ended and free after the grace period.
    pub(super) fn leftovers(&mut self) {
        let garbage = std::mem::take(&mut self.planner.pools.garbage);
        if garbage.is_empty() {
            return;
        }
        let maps = &self.planner.mirror.contents;
        let ended = garbage
            .backends
            .iter()
            .filter_map(|n| pools::gone(maps, *n));
        let heads = garbage.heads.iter().filter(|n| maps.heads.contains_key(n));
        let heads = heads.map(|n| Write::Head(*n, Head::default()));
        let runs = garbage.runs.iter();
        let runs = runs.flat_map(|run| pools::empty_run(maps, *run));
        let transaction = many(
            &mut self.plan.list,
            Item::Room(None),
            self.planner.users(&garbage),
            heads.chain(ended).chain(runs),
        );
        self.phases.collect.push(transaction);
        self.plan.leftovers = garbage;
        self.plan.grace = true;
    }

    fn empty_runs(&mut self, key: &PoolKey, garbage: &Garbage) {
        let maps = &self.planner.mirror.contents;
        let runs = garbage.runs.iter();
        let writes = runs.flat_map(|run| pools::empty_run(maps, *run));
        let item = Item::Room(Some(key.clone()));
        let needs = vec![Item::Pool(key.clone())];
        let transaction = many(&mut self.plan.list, item, needs, writes);
        if !transaction.writes.is_empty() {
            self.phases.collect.push(transaction);
        }
    }

    /// A service that turns to another set of its endpoints keeps its pool, and with it the flows of every backend that is in
    /// both sets: one head then leads from the old set to the new.
    fn keep_turning_pools(&mut self) {
        let planner = &mut *self.planner;
        for key in &self.dirty.pools {
            if planner.desired.pools.contains_key(key) {
                continue;
            }
            let heir = EndpointSet::ALL
                .map(|set| PoolKey { set, ..key.clone() })
                .into_iter()
                .find(|other| {
                    planner.desired.pools.contains_key(other)
                        && !planner.pools.states.contains_key(other)
                });
            if let Some(heir) = heir.filter(|heir| self.dirty.pools.contains(heir))
                && let Some(state) = planner.pools.states.remove(key)
            {
                planner.pools.states.insert(heir, state);
            }
        }
    }

    pub(super) fn pools(&mut self) {
        if !crate::mutant::removed("turning-pool") {
            self.keep_turning_pools();
        }
        for key in std::mem::take(&mut self.dirty.pools) {
            let planner = &mut *self.planner;
            let wanted = planner.desired.pools.get(&key);
            let mut change = match planner.pools.change(&key, wanted, &planner.mirror.contents) {
                Ok(change) => change,
                Err(limit) => {
                    let item = Item::Pool(key);
                    let object = self.planner.describe(&item);
                    let problem = Problem::full(object, limit.map, limit.capacity);
                    self.plan.refused.insert(item, problem);
                    continue;
                }
            };
            if change.prepare.is_empty()
                && change.publish.is_empty()
                && change.collect.is_empty()
                && change.released.is_empty()
            {
                self.planner.pools.commit(key, change);
                continue;
            }
            let item = Item::Pool(key.clone());
            let list = &mut self.plan.list;
            if !change.prepare.is_empty() {
                let writes = std::mem::take(&mut change.prepare);
                let transaction = many(list, item.clone(), Vec::new(), writes);
                self.phases.prepare.push(transaction);
            }
            if !change.publish.is_empty() {
                let writes = std::mem::take(&mut change.publish);
                let transaction = many(list, item.clone(), Vec::new(), writes);
                self.phases.pools.push(transaction);
            }
            let needs = match &change.after {
                Some(_) => Vec::new(),
                None => self.planner.users(&change.released),
            };
            if !(change.collect.is_empty() && needs.is_empty()) {
                let writes = std::mem::take(&mut change.collect);
                let transaction = many(list, item, needs, writes);
                self.phases.collect.push(transaction);
            }
            self.plan.grace |= !change.released.is_empty();
            self.empty_runs(&key, &change.released);
            self.plan.changes.insert(key, change);
        }
    }

    pub(super) fn frontends(&mut self) {
        for key in std::mem::take(&mut self.dirty.frontends) {
            let now = self.planner.mirror.contents.services.get(&key);
            let item = Item::Frontend(key);
            let Some(frontend) = self.planner.desired.frontends.get(&key) else {
                if now.is_some() {
                    let write = Write::Service(key, None);
                    // Where the whole address goes, whoever found it still finds the service, until a grace period has passed.
                    if self.planner.leaves(&key.address) {
                        let needs = vec![Item::Address(key.address)];
                        self.phases
                            .unrouted
                            .push(one(&mut self.plan.list, item, needs, write));
                    } else {
                        self.phases.unserved.push(one(
                            &mut self.plan.list,
                            item,
                            Vec::new(),
                            write,
                        ));
                    }
                }
                continue;
            };
            let planned = self.plan.changes.get(&frontend.pool);
            let state = planned
                .and_then(|change| change.after.as_ref())
                .or_else(|| self.planner.pools.states.get(&frontend.pool));
            let needs = vec![Item::Pool(frontend.pool.clone())];
            let Some(state) = state else {
                // Its pool was refused: this waits for it.
                let waits = many(&mut self.plan.list, item, needs, []);
                self.phases.frontends.push(waits);
                continue;
            };
            let entry = ServiceEntry {
                pool: state.number,
                flags: frontend.flags,
                check: key.check(),
            };
            let list = match now {
                Some(now) if *now == entry => continue,
                // What an empty pool answers is said while it is not empty: nobody sees it change.
                Some(now) if now.pool == entry.pool && self.planner.filled(now.pool) => {
                    &mut self.phases.frontends_first
                }
                Some(_) => &mut self.phases.frontends_moved,
                None => &mut self.phases.frontends,
            };
            let write = Write::Service(key, Some(entry));
            list.push(one(&mut self.plan.list, item, needs, write));
        }
        // And their pools wait for them, lest an empty pool answers with the flags of before.
        let mut first: BTreeMap<&Item, Vec<Item>> = BTreeMap::new();
        for frontend in &self.phases.frontends_first {
            for pool in &frontend.needs {
                first.entry(pool).or_default().push(frontend.item.clone());
            }
        }
        for pool in &mut self.phases.pools {
            if let Some(frontends) = first.remove(&pool.item) {
                pool.needs.extend(frontends);
            }
        }
    }
}

impl Planner {
    /// Whether an address is to be no address any more.
    fn leaves(&self, address: &Address) -> bool {
        self.mirror.contents.addresses.contains_key(address)
            && !self.desired.addresses.contains_key(address)
    }

    /// Whether a pool has backends now.
    fn filled(&self, pool: u32) -> bool {
        let head = self.mirror.contents.heads.get(&pool);
        head.is_some_and(|head| head.count > 0)
    }

    /// The frontends that lead to pools which are to go.
    fn users(&self, released: &Garbage) -> Vec<Item> {
        let heads = released.heads.iter();
        heads
            .flat_map(|number| self.mirror.frontends_of(*number))
            .map(|key| Item::Frontend(*key))
            .collect()
    }
}
