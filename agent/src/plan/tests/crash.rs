//! Batches of changes, stopped after every single write.
//!
//! The rule that every state in between keeps, and the agent may die in any:
//! - a service address answers as before the batch or as after it;
//! - an end of a pod whose own policies change lets pass, of all peers taken together, what it did before or what it does after;
//! - an end that goes is judged by the policies that it had until it is gone;
//! - an end whose own policies stay, while peers become somebody else, does so peer by peer: of each peer, over all protocols
//!   and ports, what it did before or what it does after.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::answers::{Answers, End, Questions, set_of};
use super::policy::History;
use super::scene;
use super::services::alive;
use crate::compile::tests::cases;
use crate::datapath::Contents;

/// Changes in a batch, at most.
const BATCH: u64 = 7;
/// Of so many states one is started from: all of them would be minutes.
const STRIDE: usize = 16;

/// From one state of rest to the next.
pub(super) struct Transition {
    pub(super) old: Answers,
    pub(super) new: Answers,
    /// The sets of ends, before and after.
    sets: BTreeMap<End, [Option<u32>; 2]>,
}

impl Transition {
    pub(super) fn new(questions: &Questions, old: &Contents, new: &Contents) -> Self {
        let (before, after) = (questions.ask(old), questions.ask(new));
        let sets = before.ends.keys();
        Self {
            sets: sets
                .map(|end| (*end, [set_of(old, *end), set_of(new, *end)]))
                .collect(),
            old: before,
            new: after,
        }
    }

    /// What is torn in a state; None where nothing is.
    pub(super) fn torn(&self, now: &Answers, maps: &Contents) -> Option<String> {
        for (key, answer) in &now.services {
            let sides = [&self.old.services[key], &self.new.services[key]];
            if !sides.contains(&answer) {
                return Some(format!("{key:?} answers {answer:?}, of {sides:?}"));
            }
        }
        for (end, function) in &now.ends {
            let (old, new) = (&self.old.ends[end], &self.new.ends[end]);
            if function == old || function == new {
                continue;
            }
            let [before, after] = self.sets[end];
            if function.is_some() && new.is_none() && set_of(maps, *end) == before {
                continue;
            }
            let (Some(now), Some(old), Some(new)) = (function, old, new) else {
                return Some(format!("{end:?} says {function:?}, of {old:?} and {new:?}"));
            };
            let torn = now
                .iter()
                .find(|(peer, bits)| **bits != old[*peer] && **bits != new[*peer]);
            if let Some((peer, bits)) = torn {
                return Some(format!(
                    "{end:?} says {bits:012b} of {peer}, of {:012b} and {:012b}",
                    old[peer], new[peer]
                ));
            }
            if before != after {
                let differ = now
                    .iter()
                    .filter(|(peer, _)| old[*peer] != new[*peer])
                    .map(|(peer, bits)| (peer, *bits == new[peer]));
                let differ: Vec<_> = differ.collect();
                return Some(format!(
                    "{end:?} whose policies change ({before:?}, {after:?}) is new to some and old to others: {differ:?}"
                ));
            }
        }
        None
    }
}

/// Looks at every state from `begin` to the last.
fn look(
    history: &History,
    begin: usize,
    transition: &Transition,
    questions: &Questions,
    what: &str,
) {
    let states = &history.recorder.states;
    let mut found = questions.ask(&states[begin].1);
    assert!(found == transition.old);
    for at in begin + 1..states.len() {
        let (write, maps) = (states[at].0.unwrap(), &states[at].1);
        questions.follow(&mut found, maps, &write);
        if let Some(torn) = transition.torn(&found, maps) {
            let mut writes = String::new();
            for (step, _) in &states[begin + 1..=at] {
                writeln!(writes, "{step:?}").unwrap();
            }
            panic!(
                "seed {}, {what}: after {write:?} {torn}\n{writes}",
                history.seed
            );
        }
    }
    assert!(found == questions.ask(history.recorder.now()));
}

/// What the maps hold beside what changes with numbers: entries by map.
fn sizes(maps: &Contents) -> [usize; 6] {
    let pods = maps.pods.values();
    let used = pods.filter(|pod| pod.flags & agent_common::pod_flag::USED != 0);
    [
        maps.services.len(),
        maps.addresses.len(),
        maps.prefixes.len(),
        maps.groups.len(),
        maps.rules.len(),
        used.count(),
    ]
}

/// The agent died in a state; the next start leads from there to what a start from nothing comes to.
fn restart(history: &History, at: usize, questions: &Questions, wanted: &Contents, what: &str) {
    let mut next = History::over(history, history.recorder.states[at].1.clone());
    next.start();
    next.settle();
    let now = next.recorder.now();
    let transition = Transition::new(questions, &history.recorder.states[at].1, now);
    assert!(
        transition.new == questions.ask(wanted),
        "seed {}, {what}: a start after write {at} does not converge",
        history.seed
    );
    look(
        &next,
        0,
        &transition,
        questions,
        &format!("{what}, a start after write {at}"),
    );
    assert_eq!(
        sizes(now),
        sizes(wanted),
        "seed {}, {what}: a start after write {at} leaves something",
        history.seed
    );
    // Backends that are kept for their flows are no part of a start from nothing, so services are held against the plan's own books.
    let backends = now.backends.values();
    let live = backends.filter(|b| b.word.state != agent_common::backend_state::GONE);
    assert_eq!(
        live.count(),
        alive(&next.planner).len(),
        "{what}: stray backends"
    );
    let arrays = next
        .planner
        .pools
        .states
        .values()
        .map(|pool| pool.array.len());
    assert_eq!(
        now.slots.len(),
        arrays.sum::<usize>(),
        "{what}: stray slots"
    );
    next.check_clean();
}

#[test]
fn every_prefix_of_a_batch_is_a_whole_state_from_which_a_start_converges() {
    let (mut states, mut starts) = (0, 0);
    // The first met an address that its pod lost while the pod turned, the second one that a service lost while its pool changed, the
    // third a prefix that came before those within it, the fifth an address that left an identity whose word
    // changed, to the same group; what mends that must leave a service's address alone, which the fourth loses; the sixth an
    // address that its pod loses while it turns, through a stage; and the seventh a start after which a prefix comes from a stage of the
    // agent that died into a group that others have.
    for seed in cases(6).chain([7_002, 7_006, 8_001, 8_007, 8_013, 8_029, 8_056]) {
        let mut history = scene::random(seed);
        for step in 0..4 {
            history.recorder.forget();
            let begin = history.recorder.states.len() - 1;
            let before = history.world.clone();
            let (changes, local) = scene::batch(&mut history, BATCH);
            let compiled = history.update(&changes, local);
            let applied = history.plan(&compiled.delta);
            assert_eq!(applied.problems, []);
            history.settle();
            let questions = scene::questions(&[&before, &history.world]);
            let all = &history.recorder.states;
            let transition = Transition::new(&questions, &all[begin].1, &all[all.len() - 1].1);
            let ids: Vec<_> = changes.iter().map(|c| c.id.to_string()).collect();
            let what = format!("step {step}, {ids:?}");
            look(&history, begin, &transition, &questions, &what);
            states += all.len() - begin;
            let wanted = scene::scratch(&history);
            // Over the seeds every place in a batch.
            let first = begin + (seed as usize + step) % STRIDE;
            for at in (first..all.len()).step_by(STRIDE) {
                restart(&history, at, &questions, &wanted, &what);
                starts += 1;
            }
        }
    }
    println!("{states} states in between, {starts} starts");
}
