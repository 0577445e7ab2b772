//! Writes of pools and frontends.

use std::collections::BTreeMap;

use agent_common::{Head, ServiceEntry};

use super::super::pools::{self, Garbage};
use super::super::{Item, Planner, Transaction};
use super::{Builder, one};
use crate::datapath::Write;
use crate::problem::Problem;

impl Builder<'_> {
    /// What earlier plans left: ended first, free after the grace period.
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
        self.phases.teardown.push(Transaction {
            item: Item::Room(None),
            needs: Vec::new(),
            writes: heads.chain(ended).collect(),
        });
        self.empty_runs(None, &garbage);
        self.plan.leftovers = garbage;
        self.plan.grace = true;
    }

    pub(super) fn empty_runs(&mut self, key: Option<&crate::desired::PoolKey>, garbage: &Garbage) {
        let maps = &self.planner.mirror.contents;
        let runs = garbage.runs.iter();
        let writes: Vec<Write> = runs.flat_map(|run| pools::empty_run(maps, *run)).collect();
        if !writes.is_empty() {
            self.phases.collect.push(Transaction {
                item: Item::Room(key.cloned()),
                needs: key.cloned().map(Item::Pool).into_iter().collect(),
                writes,
            });
        }
    }

    pub(super) fn pools(&mut self) {
        for key in std::mem::take(&mut self.dirty.pools) {
            let planner = &mut *self.planner;
            let wanted = planner.desired.pools.get(&key);
            let change = match planner.pools.change(&key, wanted, &planner.mirror.contents) {
                Ok(change) => change,
                Err(limit) => {
                    let item = Item::Pool(key);
                    let object = self.planner.describe(&item);
                    let problem = Problem::full(object, limit.map, limit.capacity);
                    self.plan.refused.insert(item, problem);
                    continue;
                }
            };
            if change.prepare.is_empty() && change.publish.is_empty() && change.released.is_empty()
            {
                self.planner.pools.commit(key, change);
                continue;
            }
            let item = Item::Pool(key.clone());
            if !change.prepare.is_empty() {
                self.phases.prepare.push(Transaction {
                    item: item.clone(),
                    needs: Vec::new(),
                    writes: change.prepare.clone(),
                });
            }
            let (list, needs) = match &change.after {
                Some(_) => (&mut self.phases.pools, Vec::new()),
                None => (
                    &mut self.phases.teardown,
                    self.planner.users(&change.released),
                ),
            };
            list.push(Transaction {
                item,
                needs,
                writes: change.publish.clone(),
            });
            self.plan.grace |= !change.released.is_empty();
            self.empty_runs(Some(&key), &change.released);
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
                    self.phases.removed.push(one(item, Vec::new(), write));
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
                self.phases.frontends.push(Transaction {
                    item,
                    needs,
                    writes: Vec::new(),
                });
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
            list.push(one(item, needs, Write::Service(key, Some(entry))));
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
