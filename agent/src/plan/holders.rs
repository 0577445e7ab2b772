//! Who has an identity when a plan begins, and when it is done.

use std::collections::BTreeMap;

use super::mirror::Mirror;
use super::{Dirty, Planner};

/// How many addresses and prefixes leave an identity, and how many come to it.
#[derive(Default)]
pub(super) struct Holders {
    moves: BTreeMap<u32, [usize; 2]>,
}

impl Holders {
    /// What is dirty, as the mirror has it and as it is to be.
    pub(super) fn new(planner: &Planner, dirty: &Dirty) -> Self {
        let (maps, desired) = (&planner.mirror.contents, &planner.desired);
        let mut holders = Self::default();
        for key in &dirty.addresses {
            let of = |entry: &agent_common::AddressEntry| entry.identity;
            holders.note(
                maps.addresses.get(key).map(of),
                desired.addresses.get(key).map(of),
            );
        }
        for key in &dirty.prefixes {
            let of = |entry: &agent_common::PrefixEntry| entry.identity;
            holders.note(
                maps.prefixes.get(key).map(of),
                desired.prefixes.get(key).map(of),
            );
        }
        holders
    }

    fn note(&mut self, now: Option<u32>, then: Option<u32>) {
        if now == then {
            return;
        }
        for (way, identity) in [now, then].into_iter().enumerate() {
            if let Some(identity) = identity {
                self.moves.entry(identity).or_default()[way] += 1;
            }
        }
    }

    /// Whether anybody has the identity all the while.
    pub(super) fn stay(&self, mirror: &Mirror, identity: u32) -> bool {
        let [leave, _] = self.moves.get(&identity).copied().unwrap_or_default();
        mirror.holders(identity) > leave
    }

    /// Whether anybody has it when the plan is done.
    pub(super) fn remain(&self, mirror: &Mirror, identity: u32) -> bool {
        let [_, come] = self.moves.get(&identity).copied().unwrap_or_default();
        come > 0 || self.stay(mirror, identity)
    }
}
