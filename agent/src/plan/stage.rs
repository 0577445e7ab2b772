//! Who peers are and what pods are told, both in one plan.
//!
//! Each is made live by words of its own. In between a pod would be judged by the policies that it had, of a peer as it is to be:
//! that may be neither what held before nor what holds after (a policy is widened and a pod relabelled: one that was allowed and
//! still is would be cut off). Where it would show, such peers pass through a stage: a group of the plan's own, of which sets
//! that pods turn away from say what they said of the peer before, and all others what they are to say of it.
//! Peers go there first, which shows to nobody who turns; then pods turn, each by one word; and with the next plan, after a
//! grace period, peers go where they belong, which again shows to nobody who turned.
//!
//! A set that one pod turns away from and another turns to can only say one of both: the other pod waits until the first has turned, and turns
//! with the next plan. (Two pods that exchange their sets do not wait: each would wait for the other.)
//!
//! Here is decided who passes through a stage, as changes of the desired state for the length of one plan.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::lookup::Tables;
use agent_common::{
    Address, AddressEntry, GROUP_ANY, GroupEntry, NO_ADDRESS_SLOT, Pod, Prefix, PrefixEntry,
    SetWord, address_kind, limits, pod_flag, set_flag,
};

use super::holders::Holders;
use super::said::{Said, all_said, named, pass_the_same, said};
use super::{Dirty, Planner};
use crate::datapath::Contents;
use crate::datapath::contents::{longest, rules_of};
use crate::desired::{Delta, STAGED_GROUPS, STAGED_IDENTITIES};

/// A set by which a pod is judged; none: it is not isolated.
type Set = Option<u32>;

/// Pods that turn, by slot: from a set to a set, in one direction or both.
type Turns = BTreeMap<u32, BTreeSet<(Set, Set)>>;

/// A peer that becomes somebody else.
struct Move {
    /// The group that sets speak of when they speak of it, before and after.
    groups: (u32, u32),
    /// Its own slot: a pod is not judged as its own peer.
    slot: Option<u32>,
    /// It is written after pods have turned, not before.
    late: bool,
}

struct Stage<'a> {
    planner: &'a Planner,
    dirty: &'a Dirty,
    holders: Holders,
    turns: Turns,
    /// Pods of these that wait.
    waiting: BTreeSet<u32>,
    /// Sets that some pod turns away from.
    left: BTreeSet<u32>,
    /// Sets by the groups that dirty rules speak of.
    fresh: BTreeMap<u32, BTreeSet<u32>>,
    shows: BTreeMap<(u32, u32, u32, bool), bool>,
    groups: BTreeMap<(u32, u32), u32>,
    identities: BTreeMap<u32, u32>,
    next_group: u32,
    next_identity: u32,
    out: Delta,
}

/// What the desired state must say for one plan; None where nobody passes through a stage.
pub(super) fn overlay(planner: &Planner, dirty: &Dirty) -> Option<Delta> {
    if crate::mutant::removed("no-stage") {
        return None;
    }
    let turns = turns(planner, dirty);
    let words = !dirty.groups.is_empty();
    let moves = !(dirty.addresses.is_empty() && dirty.prefixes.is_empty());
    if !(words && moves) && (turns.is_empty() || !(words || moves)) {
        return None;
    }
    let mut fresh: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for key in &dirty.rules {
        fresh
            .entry(key.data.group)
            .or_default()
            .insert(key.data.set);
    }
    let left: BTreeSet<u32> = turns
        .values()
        .flatten()
        .filter_map(|(old, _)| *old)
        .collect();
    let mut stage = Stage {
        holders: Holders::new(planner, dirty),
        waiting: waiting(&turns, &left),
        left,
        turns,
        fresh,
        shows: BTreeMap::new(),
        groups: BTreeMap::new(),
        identities: BTreeMap::new(),
        next_group: planner.mirror.staged().max(STAGED_GROUPS),
        next_identity: STAGED_IDENTITIES,
        out: Delta::default(),
        planner,
        dirty,
    };
    stage.words();
    stage.addresses();
    stage.prefixes();
    if !stage.out.groups.is_empty() {
        stage.wait();
    }
    let out = stage.out;
    let rules = planner.mirror.contents.rules.len() + dirty.rules.len() + out.rules.len();
    let none = out.groups.is_empty();
    // Without room for it, what is new comes into force all the same: peer by peer.
    (!none && rules <= limits::RULES as usize).then_some(out)
}

fn turns(planner: &Planner, dirty: &Dirty) -> Turns {
    let mut turns = Turns::new();
    let set = |word: SetWord| (word.flags & set_flag::ISOLATED != 0).then_some(word.set);
    for slot in &dirty.pods {
        let now = planner.mirror.contents.pods.get(slot);
        let (Some(now), Some(wanted)) = (now, planner.desired.pods.get(slot)) else {
            continue;
        };
        if now.flags & pod_flag::USED == 0 || now.ifindex != wanted.ifindex {
            continue;
        }
        for (old, new) in [(now.egress, wanted.egress), (now.ingress, wanted.ingress)] {
            if old != new {
                turns.entry(*slot).or_default().insert((set(old), set(new)));
            }
        }
    }
    turns
}

/// Pods that turn to a set that another one is still to leave. None where all would wait, for each other.
fn waiting(turns: &Turns, left: &BTreeSet<u32>) -> BTreeSet<u32> {
    if crate::mutant::removed("nobody-waits") {
        return BTreeSet::new();
    }
    let waits = |words: &BTreeSet<(Set, Set)>| {
        let mut to = words.iter().filter_map(|(_, new)| *new);
        to.any(|set| left.contains(&set))
    };
    let waiting: BTreeSet<u32> = turns
        .iter()
        .filter(|(_, words)| waits(words))
        .map(|(slot, _)| *slot)
        .collect();
    if waiting.len() == turns.len() {
        return BTreeSet::new();
    }
    waiting
}

/// Whether prefixes speak of an address with this entry, in cilium mode.
fn block(entry: Option<&AddressEntry>) -> bool {
    entry.is_none_or(|entry| entry.kind > address_kind::HOST)
}

/// An address that is to lead to another slot, as the entry that says who it is and does not lead there yet: only when it is said who
/// everybody is, the slot's own sets may speak of them.
pub(super) fn outside(now: Option<&AddressEntry>, then: &AddressEntry) -> AddressEntry {
    match now {
        Some(now) if !block(Some(now)) => AddressEntry {
            identity: then.identity,
            ..*now
        },
        _ => away(then),
    }
}

/// An address as the entry that says who it is and leads nowhere.
pub(super) fn away(entry: &AddressEntry) -> AddressEntry {
    AddressEntry {
        slot: NO_ADDRESS_SLOT,
        kind: address_kind::REMOTE_POD,
        ..*entry
    }
}

impl Stage<'_> {
    fn maps(&self) -> &Contents {
        &self.planner.mirror.contents
    }

    /// What a set says while the plan runs: new rules come first, those that go go last.
    fn meanwhile(&self, set: u32, group: u32) -> Said {
        let mut said_of = all_said(&self.maps().rules, set, group);
        said_of.extend(all_said(&self.planner.desired.rules, set, group));
        said_of
    }

    /// Whether a pod that turns would see the move before it does (early), or only after (late).
    fn shows(&mut self, a: &Move) -> bool {
        let (old, new) = a.groups;
        if old == new {
            return false;
        }
        let mut sets = BTreeSet::new();
        for (slot, words) in &self.turns {
            if Some(*slot) == a.slot {
                continue;
            }
            // Who waits is not yet what it turns to, whenever the move comes.
            let late = a.late && !self.waiting.contains(slot);
            let set = |(before, after): &(Set, Set)| if late { *after } else { *before };
            sets.extend(words.iter().filter_map(set).map(|set| (set, late)));
        }
        sets.into_iter().any(|(set, late)| {
            let key = (set, old, new, late);
            if let Some(known) = self.shows.get(&key) {
                return *known;
            }
            let (before, after) = if late {
                let after = all_said(&self.planner.desired.rules, set, new);
                (self.meanwhile(set, old), after)
            } else {
                let before = all_said(&self.maps().rules, set, old);
                (before, self.meanwhile(set, new))
            };
            let shows = !pass_the_same(&before, &after);
            self.shows.insert(key, shows);
            shows
        })
    }

    /// The group of peers that move so: those sets that pods turn away from say what they said, the others what they are to.
    fn group(&mut self, old: u32, new: u32) -> u32 {
        if let Some(group) = self.groups.get(&(old, new)) {
            return *group;
        }
        let group = self.next_group;
        self.next_group += 1;
        self.groups.insert((old, new), group);
        let mut rules = Vec::new();
        for set in &self.left {
            rules.extend(
                said(&self.maps().rules, *set, old)
                    .map(|(bits, v)| (named(*bits, *set, group), *v)),
            );
        }
        let mirror = &self.planner.mirror;
        let mut sets: BTreeSet<u32> = mirror.sets_for(new).collect();
        sets.extend(self.fresh.get(&new).into_iter().flatten());
        for set in sets.difference(&self.left) {
            rules.extend(
                said(&self.planner.desired.rules, *set, new)
                    .map(|(bits, v)| (named(*bits, *set, group), *v)),
            );
        }
        for (bits, verdict) in rules {
            self.out.rules.insert(bits, Some(verdict));
        }
        group
    }

    /// An identity of such a group. None where all are taken.
    fn identity(&mut self, (old, new): (u32, u32)) -> Option<u32> {
        let group = self.group(old, new);
        if let Some(identity) = self.identities.get(&group) {
            return Some(*identity);
        }
        let mirror = &self.planner.mirror;
        let free = (self.next_identity..limits::IDENTITIES)
            .find(|n| !mirror.contents.groups.contains_key(n) && mirror.holders(*n) == 0)?;
        self.next_identity = free + 1;
        self.identities.insert(group, free);
        let entry = GroupEntry { group, _zero: 0 };
        self.out.groups.insert(free, Some(entry));
        Some(free)
    }

    /// Whether an identity's word says something else before pods turn, so that who leaves it must leave before.
    fn rewritten(&self, identity: u32) -> bool {
        self.dirty.groups.contains(&identity)
            && (self.planner.desired.groups.contains_key(&identity)
                || self.holders.remain(&self.planner.mirror, identity))
            && self.maps().group(identity) != self.planner.desired.group(identity)
    }

    fn words(&mut self) {
        for identity in &self.dirty.groups {
            if !self.holders.stay(&self.planner.mirror, *identity) {
                continue;
            }
            let groups = (
                self.maps().group(*identity),
                self.planner.desired.group(*identity),
            );
            let moves = Move {
                groups,
                slot: None,
                late: false,
            };
            if self.shows(&moves) {
                let group = self.group(groups.0, groups.1);
                let entry = GroupEntry { group, _zero: 0 };
                self.out.groups.insert(*identity, Some(entry));
            }
        }
    }

    /// The groups that sets speak of when they speak of an address, where it has an entry of its own or, in cilium mode, where prefixes
    /// give way to it. None where only prefixes speak of it.
    fn own(&self, key: &Address) -> Option<(u32, u32)> {
        let (maps, desired) = (self.maps(), &self.planner.desired);
        let (now, then) = (maps.addresses.get(key), desired.addresses.get(key));
        let mut old = now.map_or(GROUP_ANY, |e| maps.group(e.identity));
        let mut new = then.map_or(GROUP_ANY, |e| desired.group(e.identity));
        if maps.config.features & agent_common::feature::LITERAL == 0 {
            let data = Prefix { bytes: key.bytes };
            match (block(now), block(then)) {
                (true, true) => return None,
                (true, false) => {
                    let found = longest(&maps.prefixes, ADDRESS_BITS, data);
                    old = found.map_or(GROUP_ANY, |(_, e)| maps.group(e.identity));
                }
                (false, true) => {
                    let found = longest(&desired.prefixes, ADDRESS_BITS, data);
                    new = found.map_or(GROUP_ANY, |(_, e)| desired.group(e.identity));
                }
                (false, false) => {}
            }
        }
        Some((old, new))
    }

    fn addresses(&mut self) {
        for key in &self.dirty.addresses {
            let maps = &self.planner.mirror.contents;
            let desired = &self.planner.desired;
            let (now, then) = (maps.addresses.get(key), desired.addresses.get(key));
            if now == then {
                continue;
            }
            let Some(groups) = self.own(key) else {
                continue;
            };
            let slot_of = |entry: Option<&AddressEntry>| {
                entry.map(|e| e.slot).filter(|s| *s != NO_ADDRESS_SLOT)
            };
            let (from, to) = (slot_of(now), slot_of(then));
            let entered = to.is_some() && to != from;
            let moves = Move {
                groups,
                slot: from.or(to).map(u32::from),
                late: then.is_none(),
            };
            let left = match now {
                Some(entry) if !block(now) => self.rewritten(entry.identity),
                // Of what is no peer by itself prefixes go on speaking.
                _ if block(then) => false,
                _ => longest(&maps.prefixes, ADDRESS_BITS, Prefix { bytes: key.bytes })
                    .is_some_and(|(_, entry)| self.rewritten(entry.identity)),
            };
            let joined = then.is_some_and(|entry| {
                self.out.groups.contains_key(&entry.identity) && !self.fresh_word(entry.identity)
            });
            let awaited = entered && to.is_some_and(|slot| self.waiting.contains(&u32::from(slot)));
            let changes = now.map(|e| e.identity) != then.map(|e| e.identity);
            // Also where its groups are one: the word of the identity that it leaves or joins is another meanwhile.
            let must = awaited || (changes && (left || joined));
            if !(must || self.shows(&moves)) {
                continue;
            }
            let desired = &self.planner.desired;
            let base = match (now, then) {
                // Its slot's own sets are not to speak of peers before these are who they are to be.
                (now, Some(then)) if entered => outside(now, then),
                // Prefixes are not to speak of it before pods have turned.
                (Some(now), then) if !block(Some(now)) && block(then) => {
                    // What is not the pod's any more is not told what the pod is to be.
                    let slot = u32::from(now.slot);
                    let turns = self.dirty.pods.contains(&slot) && desired.pods.contains_key(&slot);
                    if turns { away(now) } else { *now }
                }
                (_, Some(then)) => *then,
                (Some(now), None) => *now,
                (None, None) => continue,
            };
            let kept = (base.slot != NO_ADDRESS_SLOT)
                .then(|| u32::from(base.slot))
                .filter(|slot| !desired.pods.contains_key(slot));
            if let Some(slot) = kept
                && let Some(pod) = maps.pods.get(&slot)
            {
                // Whoever it is stays until the address has gone.
                self.out.pods.insert(slot, Some(Pod { epoch: 0, ..*pod }));
            }
            if let Some(identity) = self.identity(groups) {
                let entry = AddressEntry { identity, ..base };
                self.out.addresses.insert(*key, Some(entry));
            }
        }
    }

    /// Who waits keeps its sets for this plan, and these what they say.
    fn wait(&mut self) {
        let (maps, desired) = (&self.planner.mirror.contents, &self.planner.desired);
        for slot in &self.waiting {
            let (Some(now), Some(wanted)) = (maps.pods.get(slot), desired.pods.get(slot)) else {
                continue;
            };
            let (egress, ingress) = (now.egress, now.ingress);
            let stays = Pod {
                egress,
                ingress,
                ..*wanted
            };
            self.out.pods.insert(*slot, Some(stays));
            for word in [egress, ingress] {
                if word.flags & set_flag::ISOLATED != 0 {
                    let said = rules_of(&maps.rules, word.set);
                    let said = said.map(|(bits, verdict)| (*bits, Some(*verdict)));
                    self.out.rules.extend(said);
                }
            }
        }
    }

    fn fresh_word(&self, identity: u32) -> bool {
        !self.maps().groups.contains_key(&identity) && self.planner.mirror.holders(identity) == 0
    }

    fn prefixes(&mut self) {
        let mut moves = Vec::new();
        let mut shows = false;
        for key in &self.dirty.prefixes {
            let (maps, desired) = (self.maps(), &self.planner.desired);
            let (now, then) = (maps.prefixes.get(key), desired.prefixes.get(key));
            if now == then {
                continue;
            }
            // Itself, or what is around it.
            let old = longest(&maps.prefixes, key.length, key.data).map(|found| found.1);
            let new = longest(&desired.prefixes, key.length, key.data).map(|found| found.1);
            let groups = (
                old.map_or(GROUP_ANY, |e| maps.group(e.identity)),
                new.map_or(GROUP_ANY, |e| desired.group(e.identity)),
            );
            let must = old.is_some_and(|e| self.rewritten(e.identity))
                || new.is_some_and(|e| {
                    self.out.groups.contains_key(&e.identity) && !self.fresh_word(e.identity)
                });
            let late = then.is_none();
            shows |= must;
            shows |= self.shows(&Move {
                groups,
                slot: None,
                late,
            });
            moves.push((*key, groups, must));
        }
        if !shows {
            return;
        }
        // One within the other: all together, so that what is around one is where it is to be.
        for (key, groups, must) in moves {
            if (must || groups.0 != groups.1)
                && let Some(identity) = self.identity(groups)
            {
                let entry = PrefixEntry { identity, _zero: 0 };
                self.out.prefixes.insert(key, Some(entry));
            }
        }
    }
}

/// Bits of a full address in `prefixes`.
const ADDRESS_BITS: u32 = 128;
