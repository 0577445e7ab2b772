//! Writes of rules, groups, prefixes, addresses and pods.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Pod, address_kind, pod_flag, set_flag};

use super::super::holders::Holders;
use super::super::{Item, epochs, stage};
use super::{Builder, Held, many, one, remains};
use crate::datapath::Write;
use crate::desired::STAGED_IDENTITIES;
use crate::model::Direction;

impl Builder<'_> {
    pub(super) fn rules(&mut self) {
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
                    self.unsaid.insert((key.data.group, key.data.set));
                }
            }
        }
        for (set, lists) in sets {
            let item = Item::Rules(set);
            if !lists.new.is_empty() {
                let transaction = many(&mut self.plan.list, item.clone(), Vec::new(), lists.new);
                self.phases.prepare.push(transaction);
            }
            if !lists.changed.is_empty() {
                let transaction =
                    many(&mut self.plan.list, item.clone(), Vec::new(), lists.changed);
                self.phases.peers.push(transaction);
            }
            if !lists.removed.is_empty() {
                let mut needs = self.holders(&Held::Set(set));
                for group in lists.groups {
                    let holders = self.holders.get(&Held::Group(group)).into_iter().flatten();
                    needs.extend(holders.filter(|i| matches!(i, Item::Group(_))).cloned());
                }
                let transaction = many(&mut self.plan.list, item, needs, lists.removed);
                self.phases.unsaid.push(transaction);
            }
        }
    }

    pub(super) fn pods(&mut self) {
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
                    self.phases
                        .collect
                        .push(one(&mut self.plan.list, item, needs, write));
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
            let mut needs: Vec<Item> = sets.map(|word| Item::Rules(word.set)).collect();
            if now.flags & pod_flag::USED == 0 || now.ifindex != wanted.ifindex {
                let epoch = epochs::raised(now.epoch);
                self.fresh_pods.insert(slot);
                let writes = [
                    Write::Pod(slot, Pod { epoch, ..wanted }),
                    Write::Epoch(slot, epoch),
                ];
                let transaction = many(&mut self.plan.list, item, needs, writes);
                self.phases.prepare.push(transaction);
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
                let (mirror, grown) = (&self.planner.mirror, &self.grown);
                let remains = |group| remains(mirror, grown, group);
                for turn in [(now.egress, wanted.egress), (now.ingress, wanted.ingress)] {
                    self.concerned.turned(
                        (mirror, &self.planner.desired),
                        &mut self.planner.departed,
                        slot,
                        turn,
                        &remains,
                    );
                }
                if now.flags != wanted.flags {
                    self.concerned.pods.insert(slot);
                }
                needs.push(Item::Peers);
                let transaction = many(&mut self.plan.list, item, needs, writes);
                self.phases.sets.push(transaction);
            }
        }
    }

    /// Whether an address or a prefix is to have another identity, or none.
    fn leaves(&self, item: &Item, identity: u32) -> bool {
        let desired = &self.planner.desired;
        let after = match item {
            Item::Address(key) => desired.addresses.get(key).map(|e| e.identity),
            Item::Prefix(key) => desired.prefixes.get(key).map(|e| e.identity),
            _ => return false,
        };
        after != Some(identity)
    }

    pub(super) fn groups(&mut self) {
        if self.dirty.groups.is_empty() {
            return;
        }
        let holders = Holders::new(&*self.planner, &self.dirty);
        for identity in std::mem::take(&mut self.dirty.groups) {
            let wanted = self.planner.desired.groups.get(&identity);
            let now = self.planner.mirror.contents.groups.get(&identity);
            let entry = wanted.copied().unwrap_or_default();
            if now.copied().unwrap_or_default() == entry {
                continue;
            }
            let item = Item::Group(identity);
            let write = Write::Group(identity, entry);
            // Whoever leaves the identity is looked at by itself.
            if holders.stay(&self.planner.mirror, identity) {
                let group = now.map_or(agent_common::GROUP_ANY, |e| e.group);
                self.concerned.regroup(group, entry.group);
            }
            *self.grown.entry(entry.group).or_default() += 1;
            if let Some(now) = now {
                *self.grown.entry(now.group).or_default() -= 1;
            }
            let remain = holders.remain(&self.planner.mirror, identity)
                && !crate::mutant::removed("wordless-last");
            // One that somebody has and no set speaks of any more is no other than one that gets another group: who comes to it is not to meet
            // the group that it had.
            if wanted.is_none() && !remain {
                let needs = self.holders(&Held::Identity(identity));
                self.phases
                    .collect
                    .push(one(&mut self.plan.list, item, needs, write));
                continue;
            }
            let mut needs = self.holders(&Held::Group(entry.group));
            needs.retain(|item| matches!(item, Item::Rules(_)));
            // Whoever could not leave keeps its group: what the identity is to be is not what that one is.
            let leaving = self.holders(&Held::Identity(identity)).into_iter();
            needs.extend(leaving.filter(|item| self.leaves(item, identity)));
            let list = if now.is_none() {
                &mut self.phases.prepare
            } else {
                &mut self.phases.peers
            };
            list.push(one(&mut self.plan.list, item, needs, write));
        }
    }

    pub(super) fn prefixes(&mut self) {
        // Narrow ones before what is around them, which would speak of them meanwhile; those that go the other way round.
        let mut removed = Vec::new();
        let mut keys: Vec<_> = std::mem::take(&mut self.dirty.prefixes)
            .into_iter()
            .collect();
        if !crate::mutant::removed("wide-first") {
            keys.reverse();
        }
        for key in keys {
            let wanted = self.planner.desired.prefixes.get(&key);
            if self.planner.mirror.contents.prefixes.get(&key) == wanted {
                continue;
            }
            self.concerned
                .prefix(&self.planner.mirror, &self.planner.desired, &key);
            let write = Write::Prefix(key, wanted.copied());
            let item = Item::Prefix(key);
            match wanted {
                Some(entry) => {
                    let needs = vec![Item::Group(entry.identity)];
                    let list = if entry.identity >= STAGED_IDENTITIES {
                        &mut self.phases.staged
                    } else {
                        &mut self.phases.peers
                    };
                    list.push(one(&mut self.plan.list, item, needs, write));
                }
                None => removed.push(one(&mut self.plan.list, item, Vec::new(), write)),
            }
        }
        self.phases.removed.extend(removed.into_iter().rev());
    }

    /// A new set speaks of addresses as they are to be: where one could not be changed that it tells apart, the old set, which knows it, holds on. An
    /// address that is new and does not fit is known to neither.
    pub(super) fn known_peers(&mut self) {
        let peers = self.phases.staged.iter().chain(&self.phases.peers);
        let needs: Vec<Item> = peers
            .filter(|peer| match &peer.item {
                Item::Address(key) => self.planner.mirror.contents.addresses.contains_key(key),
                _ => true,
            })
            .map(|peer| peer.item.clone())
            .collect();
        if !needs.is_empty() {
            let peers = many(&mut self.plan.list, Item::Peers, needs, []);
            self.phases.peers.push(peers);
        }
    }

    pub(super) fn links(&mut self) {
        for key in std::mem::take(&mut self.dirty.links) {
            let wanted = self.planner.desired.links.get(&key).copied();
            if self.planner.mirror.contents.links.get(&key).copied() == wanted {
                continue;
            }
            let write = Write::Link(key, wanted);
            let (list, needs) = match wanted {
                Some(entry) => (&mut self.phases.entered, vec![Item::Pod(entry.slot)]),
                None => (&mut self.phases.removed, Vec::new()),
            };
            list.push(one(&mut self.plan.list, Item::Link(key), needs, write));
        }
    }

    /// Whether a pod that stays may turn to other sets.
    fn turns(&self, slot: u32) -> bool {
        self.dirty.pods.contains(&slot) && self.planner.desired.pods.contains_key(&slot)
    }

    pub(super) fn addresses(&mut self) {
        // Pods' addresses go before prefixes; services' before the pools behind them, so that what was one is no address at all.
        let mut removed = Vec::new();
        for key in std::mem::take(&mut self.dirty.addresses) {
            let wanted = self.planner.desired.addresses.get(&key);
            let now = self.planner.mirror.contents.addresses.get(&key);
            if now == wanted {
                continue;
            }
            let entered = wanted.is_some_and(|entry| {
                entry.slot != agent_common::NO_ADDRESS_SLOT
                    && now.is_none_or(|now| now.slot != entry.slot)
            });
            let group = wanted.map_or(agent_common::GROUP_ANY, |entry| {
                self.planner.desired.group(entry.identity)
            });
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
                    if entered && !crate::mutant::removed("nobody-enters") {
                        let known = stage::outside(now, entry);
                        if now != Some(&known) {
                            let write = Write::Address(key, Some(known));
                            let known =
                                one(&mut self.plan.list, item.clone(), needs.clone(), write);
                            self.phases.peers.push(known);
                        }
                    }
                    if entry.slot != agent_common::NO_ADDRESS_SLOT {
                        needs.push(Item::Pod(entry.slot.into()));
                    }
                    if entered {
                        // Else the pod's sets would be in force and not know of whom they speak.
                        needs.push(Item::Peers);
                    }
                    let list = if entry.identity >= STAGED_IDENTITIES {
                        &mut self.phases.staged
                    } else if entered {
                        &mut self.phases.entered
                    } else {
                        &mut self.phases.peers
                    };
                    list.push(one(&mut self.plan.list, item, needs, write));
                }
                None => {
                    if let Some(now) = now
                        && self.turns(now.slot.into())
                    {
                        // What is not the pod's any more is not told what the pod is to be.
                        let write = Write::Address(key, Some(stage::away(now)));
                        self.phases.peers.push(one(
                            &mut self.plan.list,
                            item.clone(),
                            Vec::new(),
                            write,
                        ));
                    }
                    let service = now.is_some_and(|now| {
                        matches!(now.kind, address_kind::CLUSTER_IP | address_kind::EXTERNAL)
                    });
                    if service {
                        self.phases.unserved.push(one(
                            &mut self.plan.list,
                            item,
                            Vec::new(),
                            write,
                        ));
                    } else {
                        removed.push(one(&mut self.plan.list, item, Vec::new(), write));
                    }
                }
            }
        }
        removed.append(&mut self.phases.removed);
        self.phases.removed = removed;
    }
}
