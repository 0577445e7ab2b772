//! Whom it concerns that peers could not be written.
//!
//! A pod turns to a set only where everybody of whom that set speaks is who he is to be: else it would be judged by the new rules of a
//! peer as it was. A prefix that the kernel has no room or no memory for keeps those pods back, and must not keep back pods whose sets say
//! the same of it as of what is around it: one policy's block would else hold up every policy of the node.

use std::collections::BTreeSet;

use agent_common::lookup::Tables;
use agent_common::{GROUP_ANY, PrefixEntry, SetWord, set_flag};

use super::said::{all_said, pass_the_same};
use super::{Item, Planner};
use crate::datapath::contents::longest;
use crate::desired::Delta;

/// The pods that wait for peers.
#[derive(Debug)]
pub(super) enum Unmoved {
    /// All.
    Anybody,
    /// Those with one of these sets.
    Sets(BTreeSet<u32>),
}

impl Unmoved {
    /// After peers of a plan that says this for a stage could not be written.
    pub(super) fn of(planner: &mut Planner, overlay: Option<&Delta>, failed: &[&Item]) -> Self {
        if crate::mutant::removed("one-for-all") {
            return Self::Anybody;
        }
        let Some(overlay) = overlay else {
            return find(planner, failed);
        };
        let before = planner.desired.before(overlay);
        planner.desired.merge(overlay);
        let found = find(planner, failed);
        planner.desired.merge(&before);
        found
    }

    /// Whether a pod with this word waits.
    pub(super) fn shows_to(&self, word: SetWord) -> bool {
        word.flags & set_flag::ISOLATED != 0
            && match self {
                Self::Anybody => true,
                Self::Sets(sets) => sets.contains(&word.set),
            }
    }
}

fn find(planner: &Planner, failed: &[&Item]) -> Unmoved {
    let (maps, desired) = (&planner.mirror.contents, &planner.desired);
    let mut sets = BTreeSet::new();
    let mut moves = BTreeSet::new();
    for item in failed {
        match item {
            Item::Prefix(key) => {
                let wanted = desired.prefixes.get(key);
                let wanted = wanted.map_or(GROUP_ANY, |entry| desired.group(entry.identity));
                let now = longest::<_, PrefixEntry>(&maps.prefixes, key.length, key.data);
                moves.insert((
                    now.map_or(GROUP_ANY, |(_, e)| maps.group(e.identity)),
                    wanted,
                ));
                // What answers in its place when all that goes has gone.
                let around = key.length.checked_sub(1);
                let around = around.and_then(|below| longest(&desired.prefixes, below, key.data));
                let around = around.map_or(GROUP_ANY, |(_, e)| desired.group(e.identity));
                moves.insert((around, wanted));
            }
            Item::Rules(set) => drop(sets.insert(*set)),
            _ => return Unmoved::Anybody,
        }
    }
    let words = desired
        .pods
        .values()
        .flat_map(|pod| [pod.egress, pod.ingress]);
    let in_use: BTreeSet<(u32, bool)> = words
        .filter(|word| word.flags & set_flag::ISOLATED != 0)
        .map(|word| (word.set, word.flags & set_flag::TIERED != 0))
        .collect();
    for (set, tiered) in in_use {
        let told_apart = moves.iter().any(|(before, after)| {
            let said = |group| all_said(&desired.rules, set, group);
            before != after && (tiered || !pass_the_same(&said(*before), &said(*after)))
        });
        if told_apart {
            sets.insert(set);
        }
    }
    Unmoved::Sets(sets)
}
