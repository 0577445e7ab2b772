//! Puts the writes of a plan in order.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Head, Pod, ServiceEntry, pod_flag, set_flag};

use super::epochs::Concerned;
use super::pools::{self, Garbage};
use super::{Dirty, Item, Plan, Planner, Transaction};
use crate::datapath::Write;
use crate::model::Direction;
use crate::problem::Problem;

/// A plan's transactions, in the order in which they run.
#[derive(Default)]
struct Phases {
    prepare: Vec<Transaction>,
    /// Frontends whose flags change while their pool has backends.
    frontends_first: Vec<Transaction>,
    pools: Vec<Transaction>,
    frontends: Vec<Transaction>,
    frontends_moved: Vec<Transaction>,
    policy: Vec<Transaction>,
    addresses: Vec<Transaction>,
    removed: Vec<Transaction>,
    teardown: Vec<Transaction>,
    epochs: Vec<Transaction>,
    collect: Vec<Transaction>,
}

pub(super) struct Builder<'a> {
    planner: &'a mut Planner,
    dirty: Dirty,
    plan: Plan,
    phases: Phases,
    concerned: Concerned,
    /// Concerned by rules that are deleted after the grace period.
    concerned_late: Concerned,
    /// Dirty addresses, links and prefixes by the identity and the pod slot that they still point to.
    holders: BTreeMap<Held, Vec<Item>>,
    fresh_pods: BTreeSet<u32>,
}

/// What addresses, prefixes and links point to.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Identity(u32),
    Slot(u32),
    Group(u32),
    Set(u32),
}

fn one(item: Item, needs: Vec<Item>, write: Write) -> Transaction {
    Transaction {
        item,
        needs,
        writes: vec![write],
    }
}

impl<'a> Builder<'a> {
    pub(super) fn new(planner: &'a mut Planner, dirty: Dirty) -> Self {
        Self {
            planner,
            dirty,
            plan: Plan::default(),
            phases: Phases::default(),
            concerned: Concerned::default(),
            concerned_late: Concerned::default(),
            holders: BTreeMap::new(),
            fresh_pods: BTreeSet::new(),
        }
    }

    pub(super) fn build(mut self) -> Plan {
        self.hold();
        self.leftovers();
        self.pools();
        self.frontends();
        self.rules();
        self.pods();
        self.groups();
        self.prefixes();
        self.links();
        self.addresses();
        self.epochs();
        let mut plan = self.plan;
        let phases = self.phases;
        plan.grace |= !phases.removed.is_empty() || !phases.collect.is_empty();
        plan.transactions = [
            phases.prepare,
            phases.frontends_first,
            phases.pools,
            phases.frontends,
            phases.frontends_moved,
            phases.policy,
            phases.addresses,
            phases.removed,
            phases.teardown,
            phases.epochs,
        ]
        .into_iter()
        .flatten()
        .collect();
        plan.collect = phases.collect;
        plan
    }

    /// Notes what dirty keys point to now: nothing of that may be collected before they changed.
    fn hold(&mut self) {
        let maps = &self.planner.mirror.contents;
        let mut hold = |held: Held, item: Item| self.holders.entry(held).or_default().push(item);
        for key in &self.dirty.addresses {
            if let Some(entry) = maps.addresses.get(key) {
                hold(Held::Identity(entry.identity), Item::Address(*key));
                hold(Held::Slot(entry.slot.into()), Item::Address(*key));
            }
        }
        for key in &self.dirty.prefixes {
            if let Some(entry) = maps.prefixes.get(key) {
                hold(Held::Identity(entry.identity), Item::Prefix(*key));
            }
        }
        for key in &self.dirty.links {
            if let Some(entry) = maps.links.get(key) {
                hold(Held::Slot(entry.slot), Item::Link(*key));
            }
        }
        for identity in &self.dirty.groups {
            if let Some(entry) = maps.groups.get(identity) {
                hold(Held::Group(entry.group), Item::Group(*identity));
            }
        }
        for slot in &self.dirty.pods {
            if let Some(pod) = maps.pods.get(slot) {
                for word in [pod.egress, pod.ingress] {
                    if word.flags & set_flag::ISOLATED != 0 {
                        hold(Held::Set(word.set), Item::Pod(*slot));
                    }
                }
            }
        }
    }

    fn holders(&self, held: &Held) -> Vec<Item> {
        self.holders.get(held).cloned().unwrap_or_default()
    }

    /// What earlier plans left: ended first, free after the grace period.
    fn leftovers(&mut self) {
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

    fn empty_runs(&mut self, key: Option<&crate::desired::PoolKey>, garbage: &Garbage) {
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

    fn pools(&mut self) {
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

    fn frontends(&mut self) {
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

    fn rules(&mut self) {
        #[derive(Default)]
        struct Lists {
            new: Vec<Write>,
            changed: Vec<Write>,
            removed: Vec<Write>,
            groups: BTreeSet<u32>,
        }
        let maps = &self.planner.mirror.contents;
        let mut sets: BTreeMap<u32, Lists> = BTreeMap::new();
        for key in std::mem::take(&mut self.dirty.rules) {
            let (before, after) = (maps.rules.get(&key), self.planner.desired.rules.get(&key));
            if before == after {
                continue;
            }
            let lists = sets.entry(key.data.set).or_default();
            let write = Write::Rule(key, after.copied());
            match (before, after) {
                (None, _) => {
                    lists.new.push(write);
                    self.concerned.rule(&key, before, after);
                    self.holders
                        .entry(Held::Group(key.data.group))
                        .or_default()
                        .push(Item::Rules(key.data.set));
                }
                (Some(_), Some(_)) => {
                    lists.changed.push(write);
                    self.concerned.rule(&key, before, after);
                }
                (Some(_), None) => {
                    lists.removed.push(write);
                    lists.groups.insert(key.data.group);
                    self.concerned_late.rule(&key, before, after);
                }
            }
        }
        for (set, lists) in sets {
            let item = Item::Rules(set);
            if !lists.new.is_empty() {
                self.phases.prepare.push(Transaction {
                    item: item.clone(),
                    needs: Vec::new(),
                    writes: lists.new,
                });
            }
            if !lists.changed.is_empty() {
                self.phases.policy.push(Transaction {
                    item: item.clone(),
                    needs: Vec::new(),
                    writes: lists.changed,
                });
            }
            if !lists.removed.is_empty() {
                let mut needs = self.holders(&Held::Set(set));
                for group in lists.groups {
                    let holders = self.holders.get(&Held::Group(group)).into_iter().flatten();
                    needs.extend(holders.filter(|i| matches!(i, Item::Group(_))).cloned());
                }
                self.phases.collect.push(Transaction {
                    item,
                    needs,
                    writes: lists.removed,
                });
            }
        }
    }

    fn pods(&mut self) {
        for slot in std::mem::take(&mut self.dirty.pods) {
            let now = self.planner.mirror.contents.pods.get(&slot);
            let now = now.copied().unwrap_or_default();
            let item = Item::Pod(slot);
            let Some(wanted) = self.planner.desired.pods.get(&slot).copied() else {
                let free = Pod {
                    epoch: now.epoch,
                    ..Pod::default()
                };
                if now != free {
                    let needs = self.holders(&Held::Slot(slot));
                    let write = Write::Pod(slot, free);
                    self.phases.collect.push(one(item, needs, write));
                }
                continue;
            };
            let wanted = Pod {
                epoch: now.epoch,
                ..wanted
            };
            if now == wanted {
                continue;
            }
            let sets = [wanted.egress, wanted.ingress].into_iter();
            let sets = sets.filter(|word| word.flags & set_flag::ISOLATED != 0);
            let needs: Vec<Item> = sets.map(|word| Item::Rules(word.set)).collect();
            if now.flags & pod_flag::USED == 0 || now.ifindex != wanted.ifindex {
                let epoch = now.epoch.wrapping_add(1);
                self.fresh_pods.insert(slot);
                self.phases.prepare.push(Transaction {
                    item,
                    needs,
                    writes: vec![
                        Write::Pod(slot, Pod { epoch, ..wanted }),
                        Write::Epoch(slot, epoch),
                    ],
                });
                continue;
            }
            let mut writes = Vec::new();
            if now.egress != wanted.egress {
                writes.push(Write::PodSet(slot, Direction::Egress, wanted.egress));
            }
            if now.ingress != wanted.ingress {
                writes.push(Write::PodSet(slot, Direction::Ingress, wanted.ingress));
            }
            let facts = |pod: &Pod| (pod.flags, pod.mac, pod.host_mac);
            if facts(&now) != facts(&wanted) {
                writes.push(Write::PodFacts(slot, wanted));
            }
            if !writes.is_empty() {
                if now.egress != wanted.egress
                    || now.ingress != wanted.ingress
                    || now.flags != wanted.flags
                {
                    self.concerned.pods.insert(slot);
                }
                self.phases.policy.push(Transaction {
                    item,
                    needs,
                    writes,
                });
            }
        }
    }

    fn groups(&mut self) {
        for identity in std::mem::take(&mut self.dirty.groups) {
            let wanted = self.planner.desired.groups.get(&identity);
            let now = self.planner.mirror.contents.groups.get(&identity);
            let entry = wanted.copied().unwrap_or_default();
            if now.copied().unwrap_or_default() == entry {
                continue;
            }
            let item = Item::Group(identity);
            let write = Write::Group(identity, entry);
            self.concerned.regroup(
                now.map_or(agent_common::GROUP_ANY, |e| e.group),
                entry.group,
            );
            if wanted.is_none() {
                let needs = self.holders(&Held::Identity(identity));
                self.phases.collect.push(one(item, needs, write));
                continue;
            }
            let mut needs = self.holders(&Held::Group(entry.group));
            needs.retain(|item| matches!(item, Item::Rules(_)));
            let list = if now.is_none() {
                &mut self.phases.prepare
            } else {
                &mut self.phases.policy
            };
            list.push(one(item, needs, write));
        }
    }

    fn prefixes(&mut self) {
        for key in std::mem::take(&mut self.dirty.prefixes) {
            let wanted = self.planner.desired.prefixes.get(&key);
            if self.planner.mirror.contents.prefixes.get(&key) == wanted {
                continue;
            }
            let groups = &self.planner.desired.groups;
            let group_of = |identity: u32| groups.get(&identity).map_or(0, |e| e.group);
            self.concerned
                .prefix(&self.planner.mirror, &key, wanted, &group_of);
            let write = Write::Prefix(key, wanted.copied());
            let item = Item::Prefix(key);
            match wanted {
                Some(entry) => {
                    let needs = vec![Item::Group(entry.identity)];
                    self.phases.policy.push(one(item, needs, write));
                }
                None => self.phases.removed.push(one(item, Vec::new(), write)),
            }
        }
    }

    fn links(&mut self) {
        for key in std::mem::take(&mut self.dirty.links) {
            let wanted = self.planner.desired.links.get(&key).copied();
            if self.planner.mirror.contents.links.get(&key).copied() == wanted {
                continue;
            }
            let write = Write::Link(key, wanted);
            let (list, needs) = match wanted {
                Some(entry) => (&mut self.phases.addresses, vec![Item::Pod(entry.slot)]),
                None => (&mut self.phases.removed, Vec::new()),
            };
            list.push(one(Item::Link(key), needs, write));
        }
    }

    fn addresses(&mut self) {
        // Removed before the services behind them: what was a service address is then no address at all.
        let mut removed = Vec::new();
        for key in std::mem::take(&mut self.dirty.addresses) {
            let wanted = self.planner.desired.addresses.get(&key);
            if self.planner.mirror.contents.addresses.get(&key) == wanted {
                continue;
            }
            let group = wanted
                .and_then(|entry| self.planner.desired.groups.get(&entry.identity))
                .map_or(agent_common::GROUP_ANY, |e| e.group);
            self.concerned.address(
                &self.planner.mirror,
                &mut self.planner.departed,
                &key,
                wanted,
                group,
            );
            let write = Write::Address(key, wanted.copied());
            let item = Item::Address(key);
            match wanted {
                Some(entry) => {
                    let mut needs = vec![Item::Group(entry.identity)];
                    if entry.slot != agent_common::NO_ADDRESS_SLOT {
                        needs.push(Item::Pod(entry.slot.into()));
                    }
                    self.phases.addresses.push(one(item, needs, write));
                }
                None => removed.push(one(item, Vec::new(), write)),
            }
        }
        removed.append(&mut self.phases.removed);
        self.phases.removed = removed;
    }

    fn epochs(&mut self) {
        let mut slots = self.concerned.slots(&self.planner.mirror);
        slots.append(&mut self.dirty.epochs);
        slots.retain(|slot| !self.fresh_pods.contains(slot));
        // Only sets that stay in use matter: nobody is judged by the others when their rules go.
        let late = self.concerned_late.slots_desired(&self.planner.desired);
        let epoch_of = |slot: &u32| {
            let pods = &self.planner.mirror.contents.pods;
            let fresh = u32::from(self.fresh_pods.contains(slot));
            pods.get(slot)
                .map_or(0, |pod| pod.epoch)
                .wrapping_add(fresh)
        };
        let raise = |slot: u32, epoch: u32| {
            let needs = vec![Item::Pod(slot)];
            one(Item::Epoch(slot), needs, Write::Epoch(slot, epoch))
        };
        for slot in &slots {
            if self.planner.desired.pods.contains_key(slot) {
                let epoch = epoch_of(slot).wrapping_add(1);
                self.phases.epochs.push(Transaction {
                    needs: Vec::new(),
                    ..raise(*slot, epoch)
                });
            }
        }
        for slot in late {
            let before = u32::from(slots.contains(&slot));
            let epoch = epoch_of(&slot).wrapping_add(1 + before);
            self.phases.collect.push(raise(slot, epoch));
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
