//! New pod links come last: their programs do nothing before `links` leads to a slot, and then both directions begin with one word.
//!
//! The kernel takes some ten milliseconds to attach a program, so one direction's runs that much earlier than the other's. Were the link in
//! force by then, an answer whose question nobody saw would be taken for an opening: and a UDP flow that goes on keeps that orientation
//! for as long as it lives, and is held against the policies of the wrong ends.

use super::{Reconciler, add};
use crate::datapath::Contents;
use crate::desired::Delta;
use crate::plan::{Applied, Planner, apply};

impl Reconciler {
    /// Takes the links out of a delta that lead to no slot yet, or to another: the programs are attached before they are written.
    /// `contents` is what the maps hold, at a start.
    pub(super) fn hold_links(&self, delta: &mut Delta, contents: Option<&Contents>) -> Delta {
        let mut entering = Delta::default();
        let contents = contents.or(self.planner.as_ref().map(Planner::contents));
        let Some(contents) = contents.filter(|_| !crate::mutant::removed("links-first")) else {
            return entering;
        };
        delta.links.retain(|ifindex, entry| {
            let now = contents.links.get(ifindex);
            if entry.is_none() || now == entry.as_ref() {
                return true;
            }
            entering.links.insert(*ifindex, entry.take());
            // The index was another link's: that one goes first.
            now.is_some()
        });
        entering
    }

    /// Writes them.
    pub(super) fn enter_links(&mut self, entering: &Delta, applied: &mut Applied) {
        if let Some(planner) = &mut self.planner
            && !entering.links.is_empty()
        {
            let plan = planner.plan(entering);
            add(applied, apply(planner, plan, self.datapath.as_mut()));
        }
    }
}
