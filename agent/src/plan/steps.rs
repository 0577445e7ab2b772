//! Puts the writes of a plan in order.

mod policy;
mod services;

use std::collections::{BTreeMap, BTreeSet};

use agent_common::set_flag;

use super::epochs::{self, Concerned};
use super::mirror::Mirror;
use super::{Dirty, Item, Plan, Planner, Transaction};
use crate::datapath::Write;

/// A plan's transactions, in the order in which they run.
#[derive(Default)]
struct Phases {
    prepare: Vec<Transaction>,
    /// Addresses that are no service's any more, and ports that are none: before the pools behind them are others.
    unserved: Vec<Transaction>,
    /// Frontends whose flags change while their pool has backends.
    frontends_first: Vec<Transaction>,
    pools: Vec<Transaction>,
    frontends: Vec<Transaction>,
    frontends_moved: Vec<Transaction>,
    /// Peers that pass through a stage: before the words of identities that they leave.
    staged: Vec<Transaction>,
    /// Who addresses are: rules that say something else, groups, prefixes, addresses, links.
    peers: Vec<Transaction>,
    /// What pods are told, once it is said who everybody is: a new set need not know a group that is gone.
    sets: Vec<Transaction>,
    /// Where addresses of pods lead whose slot is another: not before the slot has its sets, and all know who everybody is.
    entered: Vec<Transaction>,
    removed: Vec<Transaction>,
    epochs: Vec<Transaction>,
    /// Frontends of addresses that are gone.
    unrouted: Vec<Transaction>,
    collect: Vec<Transaction>,
    /// Rules that go: after the words of identities that had the group, which may fail.
    unsaid: Vec<Transaction>,
}

pub(super) struct Builder<'a> {
    planner: &'a mut Planner,
    dirty: Dirty,
    plan: Plan,
    phases: Phases,
    concerned: Concerned,
    /// Concerned by rules that are deleted after the grace period.
    concerned_late: Concerned,
    /// Groups and sets of the rules that are deleted.
    unsaid: BTreeSet<(u32, u32)>,
    /// How many identities more belong to a group afterwards.
    grown: BTreeMap<u32, i64>,
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

/// A transaction whose writes stand at the end of the plan's list.
fn many(
    list: &mut Vec<Write>,
    item: Item,
    needs: Vec<Item>,
    writes: impl IntoIterator<Item = Write>,
) -> Transaction {
    let first = list.len();
    list.extend(writes);
    Transaction {
        item,
        needs,
        writes: first..list.len(),
    }
}

fn one(list: &mut Vec<Write>, item: Item, needs: Vec<Item>, write: Write) -> Transaction {
    many(list, item, needs, [write])
}

/// Whether anybody belongs to a group when the plan is done.
fn remains(mirror: &Mirror, grown: &BTreeMap<u32, i64>, group: u32) -> bool {
    mirror.members(group) + grown.get(&group).unwrap_or(&0) > 0
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
            unsaid: BTreeSet::new(),
            grown: BTreeMap::new(),
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
        self.groups();
        self.prefixes();
        self.addresses();
        self.links();
        self.known_peers();
        self.pods();
        if !crate::mutant::removed("no-epoch-raise") {
            self.epochs();
        }
        let mut plan = self.plan;
        let mut phases = self.phases;
        if crate::mutant::removed("epoch-before-write") {
            let epochs = std::mem::take(&mut phases.epochs);
            phases.prepare.splice(..0, epochs);
        }
        let words = [
            &phases.staged,
            &phases.peers,
            &phases.entered,
            &phases.removed,
        ];
        plan.rest = self.planner.turned && words.iter().any(|phase| !phase.is_empty());
        plan.turns = !phases.sets.is_empty();
        plan.grace |= !phases.unserved.is_empty()
            || !phases.removed.is_empty()
            || !phases.unrouted.is_empty()
            || !phases.collect.is_empty()
            || !phases.unsaid.is_empty();
        plan.transactions = [
            phases.prepare,
            phases.unserved,
            phases.frontends_first,
            phases.pools,
            phases.frontends,
            phases.frontends_moved,
            phases.staged,
            phases.peers,
            phases.sets,
            phases.entered,
            phases.removed,
            phases.epochs,
        ]
        .into_iter()
        .flatten()
        .collect();
        phases.unrouted.append(&mut phases.collect);
        phases.unrouted.append(&mut phases.unsaid);
        plan.collect = phases.unrouted;
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

    fn epochs(&mut self) {
        for (group, set) in &self.unsaid {
            self.planner.departed.unsaid(*group);
            // Nobody belongs to a group that ends: what its identities lose was seen where they left it.
            let anybody = *group == agent_common::GROUP_ANY;
            if anybody || remains(&self.planner.mirror, &self.grown, *group) {
                self.concerned_late.set(*set);
            }
        }
        let mut slots = self
            .concerned
            .slots(&self.planner.mirror, &self.planner.desired);
        slots.append(&mut self.dirty.epochs);
        slots.retain(|slot| !self.fresh_pods.contains(slot));
        // Only sets that stay in use matter: nobody is judged by the others when their rules go.
        let late = self.concerned_late.slots_desired(&self.planner.desired);
        let epoch_of = |slot: &u32| {
            let pods = &self.planner.mirror.contents.pods;
            let now = pods.get(slot).map_or(0, |pod| pod.epoch);
            if self.fresh_pods.contains(slot) {
                epochs::raised(now)
            } else {
                now
            }
        };
        let list = &mut self.plan.list;
        let mut raise = |slot: u32, epoch: u32, needs: Vec<Item>| {
            one(list, Item::Epoch(slot), needs, Write::Epoch(slot, epoch))
        };
        for slot in &slots {
            if self.planner.desired.pods.contains_key(slot) {
                let epoch = epochs::raised(epoch_of(slot));
                self.phases.epochs.push(raise(*slot, epoch, Vec::new()));
            }
        }
        for slot in late {
            let mut epoch = epochs::raised(epoch_of(&slot));
            if slots.contains(&slot) {
                epoch = epochs::raised(epoch);
            }
            let needs = vec![Item::Pod(slot)];
            self.phases.collect.push(raise(slot, epoch, needs));
        }
    }
}
