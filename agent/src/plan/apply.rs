//! Runs a plan.

use std::collections::BTreeSet;

use super::unmoved::Unmoved;
use super::{Item, Plan, Planner, Transaction};
use crate::datapath::contents::RULES;
use crate::datapath::{Datapath, DatapathError, Write};
use crate::desired::Delta;
use crate::problem::Problem;

/// What came of a plan.
#[derive(Clone, Default, Debug)]
pub struct Applied {
    /// Writes that the datapath took.
    pub writes: u64,
    /// Whether something was removed or became free, so that what did not fit may fit now.
    pub freed: bool,
    /// What is not in force, with its cause; what only waits for it is not listed.
    pub problems: Vec<Problem>,
}

/// Runs a plan of this planner, its last. Whatever happens, the planner knows afterwards what the datapath holds.
pub fn apply(planner: &mut Planner, plan: Plan, datapath: &mut dyn Datapath) -> Applied {
    let mut run = Run {
        failed: plan.refused.keys().cloned().collect(),
        list: plan.list,
        overlay: plan.overlay,
        unmoved: Unmoved::Anybody,
        applied: Applied::default(),
        planner,
        datapath,
    };
    run.planner.problems = plan.refused;
    run.planner
        .pending
        .extend(run.planner.problems.keys().cloned());
    let rested = !plan.rest || run.grace();
    for transaction in &plan.transactions {
        if rested {
            run.transaction(transaction);
        } else {
            run.fail(transaction);
        }
    }
    let waited = rested && (!plan.grace || run.grace());
    let turned = plan.turns || (run.planner.turned && !(plan.rest && rested));
    run.planner.turned = turned && !(plan.grace && waited);
    for transaction in &plan.collect {
        if waited {
            run.transaction(transaction);
        } else {
            run.fail(transaction);
        }
    }
    let Run {
        failed,
        mut applied,
        planner,
        ..
    } = run;
    let collected = |key| waited && !failed.contains(&Item::Room(key));
    let leftovers_free = collected(None);
    applied.freed |= leftovers_free && !plan.leftovers.is_empty();
    planner.settle(plan.leftovers, leftovers_free);
    for (key, change) in plan.changes {
        if failed.contains(&Item::Pool(key.clone())) {
            let mirror = &planner.mirror.contents;
            planner.pools.recover(&key, change, mirror);
        } else {
            let free = collected(Some(key.clone()));
            let released = planner.pools.commit(key, change);
            applied.freed |= free && !released.is_empty();
            planner.settle(released, free);
        }
    }
    // A stage takes room of its own among the rules, and nowhere else.
    let full = |problem: &Problem| problem.limit.is_some_and(|limit| limit.map == RULES);
    planner.cramped = planner.staged && planner.problems.values().any(full);
    applied.problems = planner.problems.values().cloned().collect();
    applied
}

struct Run<'a> {
    planner: &'a mut Planner,
    datapath: &'a mut dyn Datapath,
    /// The plan's writes.
    list: Vec<Write>,
    failed: BTreeSet<Item>,
    /// What the plan says for a stage.
    overlay: Option<Delta>,
    /// Whom peers that could not be written keep back.
    unmoved: Unmoved,
    applied: Applied,
}

impl Run<'_> {
    fn transaction(&mut self, transaction: &Transaction) {
        let failed = |item: &&Item| self.failed.contains(*item);
        let missing: Vec<&Item> = transaction.needs.iter().filter(failed).collect();
        if transaction.item == Item::Peers && !missing.is_empty() {
            self.unmoved = Unmoved::of(self.planner, self.overlay.as_ref(), &missing);
        }
        let peers = |item: &Item| *item == Item::Peers && !self.waits(&transaction.item);
        let waits = missing.iter().any(|item| !peers(item));
        if self.failed.contains(&transaction.item) || waits {
            self.fail(transaction);
            return;
        }
        for at in transaction.writes.clone() {
            let write = self.list[at];
            if let Err(error) = self.datapath.write(&write) {
                let object = self.planner.describe(&transaction.item);
                let problem = problem(&object, &error);
                let item = transaction.item.clone();
                self.planner.problems.insert(item, problem);
                self.fail(transaction);
                return;
            }
            self.planner.accepted(&write);
            self.applied.writes += 1;
            self.applied.freed |= write.deletes();
        }
    }

    /// Whether a pod, or an address of one, waits for peers that could not be written.
    fn waits(&self, item: &Item) -> bool {
        let desired = &self.planner.desired;
        let slot = match item {
            Item::Pod(slot) => Some(*slot),
            Item::Address(address) => desired.addresses.get(address).map(|e| e.slot.into()),
            _ => None,
        };
        let Some(pod) = slot.and_then(|slot| desired.pods.get(&slot)) else {
            return true;
        };
        let mut words = [pod.egress, pod.ingress].into_iter();
        words.any(|word| self.unmoved.shows_to(word))
    }

    /// The transaction did not happen, or not whole: it is tried again, and what needs it waits.
    fn fail(&mut self, transaction: &Transaction) {
        self.failed.insert(transaction.item.clone());
        match &transaction.item {
            Item::Rules(_) => {
                let writes = &self.list[transaction.writes.clone()];
                let keys = writes.iter().filter_map(|write| match write {
                    Write::Rule(key, _) => Some(*key),
                    _ => None,
                });
                self.planner.pending_rules.extend(keys);
            }
            // What is left of it stays garbage.
            Item::Room(_) | Item::Peers => {}
            item => drop(self.planner.pending.insert(item.clone())),
        }
    }

    fn grace(&mut self) -> bool {
        if crate::mutant::removed("no-grace") {
            return true;
        }
        match self.datapath.grace() {
            Ok(()) => true,
            Err(error) => {
                let item = Item::Room(None);
                let object = self.planner.describe(&item);
                let problem = problem(&object, &error);
                self.planner.problems.insert(item, problem);
                false
            }
        }
    }
}

fn problem(object: &str, error: &DatapathError) -> Problem {
    match error {
        DatapathError::Full { map, capacity } => Problem::full(object, map, *capacity),
        DatapathError::Range { map, capacity, .. } => Problem {
            limit: Some(crate::problem::Limit {
                map,
                capacity: *capacity,
            }),
            ..Problem::new(object, error.to_string())
        },
        DatapathError::NoMemory { .. } | DatapathError::Kernel { .. } => Problem::new(
            object,
            format!("{error}; what was in force stays in force, and this is tried again"),
        ),
    }
}
