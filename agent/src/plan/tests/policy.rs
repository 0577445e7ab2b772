//! Random clusters, change after change, through compile and plan into maps: what every pod is told of every peer.

use agent_common::{Config, feature};

use super::readers::{Judgement, Reader, Recorder, judge, passes};
use crate::compile::tests::cluster::{Rng, World};
use crate::compile::tests::{cases, everything, flows, options};
use crate::compile::{Compiled, Compiler, IpBlockMode, Options};
use crate::datapath::faulty::Fault;
use crate::datapath::memory::{Capacities, Memory};
use crate::datapath::{Contents, Datapath, Write};
use crate::desired::{Delta, Desired};
use crate::model::Change;
use crate::oracle::policy::Flow;
use crate::plan::{Applied, Planner, apply};

/// Histories that met a bug once: a pod's own policy spoke of peers that were nobody yet; a slow reader of a set that pods had turned from met
/// peers of the plan after.
const MET: [u64; 3] = [5_039, 5_054, 7_047];
/// Slow readers per plan and flow looked at.
const READERS: u64 = 3;

pub(super) struct History {
    pub(super) seed: u64,
    pub(super) rng: Rng,
    pub(super) world: World,
    pub(super) options: Options,
    pub(super) compiler: Compiler,
    pub(super) planner: Planner,
    pub(super) recorder: Recorder,
    /// Flows that passed an end, as conntrack keeps them, and whether the peer's address had an entry.
    known: Vec<(Flow, usize, Judgement, bool)>,
    due: bool,
}

fn memory(options: &Options) -> Memory {
    let mut memory = Memory::new();
    let mut config = Config::default();
    if options.ip_block_mode == IpBlockMode::Literal {
        config.features |= feature::LITERAL;
    }
    memory.write(&Write::Config(config)).unwrap();
    memory
}

impl History {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let world = World::random(&mut rng);
        let options = options(seed);
        let recorder = Recorder::new(memory(&options));
        let mut history = Self {
            seed,
            rng,
            world,
            compiler: Compiler::new(options.clone()),
            options,
            planner: Planner::restore(Contents::default(), Desired::default()).0,
            recorder,
            known: Vec::new(),
            due: false,
        };
        let applied = history.start();
        assert_eq!(applied.problems, []);
        history.settle();
        history
    }

    /// Another agent over the same cluster, and over maps that hold something already. It has not begun.
    pub(super) fn over(other: &Self, contents: Contents) -> Self {
        let config = other.recorder.now().config;
        let contents = Contents { config, ..contents };
        Self {
            seed: other.seed,
            rng: Rng::new(other.seed),
            world: other.world.clone(),
            options: other.options.clone(),
            compiler: Compiler::new(other.options.clone()),
            planner: Planner::restore(Contents::default(), Desired::default()).0,
            recorder: Recorder::new(Memory::with(contents, Capacities::default())),
            known: Vec::new(),
            due: false,
        }
    }

    /// A start of the agent over what the maps hold.
    pub(super) fn start(&mut self) -> Applied {
        let contents = self.recorder.now().clone();
        self.compiler = Compiler::new(self.options.clone());
        self.compiler.adopt(contents.clone());
        let all = everything(&self.world.cluster);
        let compiled = self
            .compiler
            .update(&self.world.cluster, &self.world.local, &all, true);
        self.due = compiled.unfinished;
        let mut desired = Desired::default();
        desired.merge(&compiled.delta);
        let (planner, plan) = Planner::restore(contents, desired.clone());
        self.planner = planner;
        let applied = apply(&mut self.planner, plan, &mut self.recorder);
        self.recorder.rest();
        applied
    }

    /// Begins a step: what came before is forgotten, and one thing of the cluster changes. The state to begin from, what changed and what
    /// is to be planned.
    fn step(&mut self) -> (usize, Vec<Change>, Delta) {
        self.recorder.forget();
        let from = self.recorder.states.len() - 1;
        let (changes, local) = self.world.change(&mut self.rng, 1);
        let compiled = self.update(&changes, local);
        (from, changes, compiled.delta)
    }

    pub(super) fn plan(&mut self, delta: &Delta) -> Applied {
        let plan = self.planner.plan(delta);
        let applied = apply(&mut self.planner, plan, &mut self.recorder);
        self.recorder.rest();
        applied
    }

    pub(super) fn update(&mut self, changes: &[Change], local: bool) -> Compiled {
        self.compiler.hold(self.planner.unfinished());
        let (cluster, node) = (&self.world.cluster, &self.world.local);
        let compiled = self.compiler.update(cluster, node, changes, local);
        self.due = compiled.unfinished;
        compiled
    }

    /// As the loop does: tries again what failed, then removes what had to stay.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            if self.planner.unfinished() {
                self.plan(&Delta::default());
            } else if self.due {
                let compiled = self.update(&[], false);
                let applied = self.plan(&compiled.delta);
                assert_eq!(applied.problems, []);
            } else {
                return;
            }
        }
        panic!("seed {}: does not settle", self.seed);
    }

    fn probes(&mut self, one_in: u64) -> Vec<Flow> {
        let mut probes = flows(&self.world);
        probes.retain(|_| self.rng.below(one_in) == 0);
        probes
    }

    /// Looks at every state since the last look, and with slow readers in between; `bound` says who may be met at all.
    fn look(&mut self, probes: &[Flow], from: usize, what: &str) {
        let last = self.recorder.states.len() - 1;
        for flow in probes {
            for at in from..=last {
                let got = passes(judge(&self.recorder.states[at].1, flow));
                let rests: Vec<_> = self.recorder.rests_around(at, at).collect();
                let said: Vec<_> = rests
                    .iter()
                    .map(|maps| passes(judge(*maps, flow)))
                    .collect();
                for end in 0..2 {
                    assert!(
                        said.iter().any(|said| said[end] == got[end]),
                        "seed {}, {what}: {flow:?}: end {end} {} became {} in between by {:?}, of {:?}",
                        self.seed,
                        said[0][end],
                        got[end],
                        self.recorder.states[at].0,
                        self.recorder.states[from..=last]
                            .iter()
                            .map(|s| s.0)
                            .collect::<Vec<_>>(),
                    );
                }
            }
            for _ in 0..READERS {
                let begin = self.rng.below(last as u64 + 1) as usize;
                let mut rng = Rng::new(self.rng.next());
                let pace = rng.pick(&[10, 30, 60]);
                let reader = Reader::new(&self.recorder, begin, pace, &mut rng);
                let judged = judge(&reader, flow);
                let (begin, end_at) = reader.span();
                let got = passes(judged);
                let said: Vec<_> = self
                    .recorder
                    .rests_around(begin, end_at)
                    .map(|maps| passes(judge(maps, flow)))
                    .collect();
                for end in 0..2 {
                    assert!(
                        said.iter().any(|said| said[end] == got[end]),
                        "seed {}, {what}: {flow:?}: a reader from {begin} to {end_at} was told {} at end {end}, where {said:?} held, of {:?}, {:?}",
                        self.seed,
                        got[end],
                        self.recorder.states.iter().map(|s| s.0).collect::<Vec<_>>(),
                        self.recorder.graces,
                    );
                }
                self.know(flow, judged);
            }
            let judged = judge(self.recorder.now(), flow);
            self.know(flow, judged);
        }
    }

    fn know(&mut self, flow: &Flow, judged: [Option<Judgement>; 2]) {
        for (end, judgement) in judged.into_iter().enumerate() {
            if let Some(judgement) = judgement.filter(|j| j.verdict.passes()) {
                let peer = if end == 0 {
                    flow.destination
                } else {
                    flow.source
                };
                let known = self.recorder.now().addresses.contains_key(&peer.into());
                self.known.push((*flow, end, judgement, known));
            }
        }
    }

    /// A judgement whose epoch is the pod's still is what it would be now.
    fn check_epochs(&mut self, what: &str) {
        let maps = self.recorder.now();
        for (flow, end, old, peer_known) in &self.known {
            let Some(now) = judge(maps, flow)[*end] else {
                continue;
            };
            let peer = if *end == 0 {
                flow.destination
            } else {
                flow.source
            };
            let gone = *peer_known && !maps.addresses.contains_key(&peer.into());
            if now.slot != old.slot || gone {
                continue;
            }
            assert!(
                now.epoch.wrapping_sub(old.epoch) < u32::MAX / 2,
                "an epoch went back"
            );
            assert!(
                now.epoch != old.epoch || now.verdict.passes(),
                "seed {}, {what}: {flow:?} end {end} was {old:?} and is {now:?}: {:?}",
                self.seed,
                self.recorder.states.iter().map(|s| s.0).collect::<Vec<_>>(),
            );
        }
    }

    /// The maps hold what is desired and nothing else, and a start writes nothing but epochs.
    pub(super) fn check_clean(&mut self) {
        let (maps, desired) = (self.recorder.now(), self.planner.desired());
        assert!(!self.planner.unfinished());
        assert_eq!(maps.addresses, desired.addresses);
        assert_eq!(maps.prefixes, desired.prefixes);
        assert_eq!(maps.groups, desired.groups);
        assert_eq!(maps.rules, desired.rules);
        assert_eq!(maps.links, desired.links);
        assert_eq!(self.planner.pods(), desired.pods.len());
        for (slot, pod) in &maps.pods {
            let wanted = desired.pods.get(slot).copied().unwrap_or_default();
            let without = agent_common::Pod { epoch: 0, ..*pod };
            assert_eq!(without, wanted, "slot {slot}");
        }
        let mut compiler = Compiler::new(self.options.clone());
        compiler.adopt(maps.clone());
        let all = everything(&self.world.cluster);
        let compiled = compiler.update(&self.world.cluster, &self.world.local, &all, true);
        let mut desired = Desired::default();
        desired.merge(&compiled.delta);
        let (_, plan) = Planner::restore(maps.clone(), desired.clone());
        let more: Vec<_> = plan
            .writes()
            .filter(|w| !matches!(w, Write::Epoch(..)))
            .collect();
        assert!(
            more.is_empty(),
            "seed {}: a start writes {more:?}",
            self.seed
        );
    }
}

#[test]
fn every_write_and_every_slow_reader_is_told_the_old_or_the_new() {
    let mut states = 0;
    for seed in cases(10).chain(MET) {
        let mut history = History::new(seed);
        for step in 0..10 {
            let (from, changes, delta) = history.step();
            let applied = history.plan(&delta);
            assert_eq!(applied.problems, []);
            let probes = history.probes(40);
            let what = format!("step {step}, {changes:?}");
            history.look(&probes, from, &what);
            history.check_epochs(&what);
            if history.rng.chance(50) {
                let from = history.recorder.states.len() - 1;
                history.settle();
                history.look(&probes, from, "settling");
                history.check_clean();
            }
            states += history.recorder.states.len() - from;
        }
    }
    println!("{states} states");
}

#[test]
fn a_crash_after_any_write_leaves_a_whole_state_and_the_next_start_converges() {
    for seed in cases(16).chain(MET) {
        let mut history = History::new(seed);
        for step in 0..4 {
            let (from, changes, delta) = history.step();
            let plan = history.planner.plan(&delta);
            let probes = history.probes(60);
            let new: Vec<_> = {
                let mut whole = history.recorder.now().clone();
                plan.writes().for_each(|write| whole.apply(write));
                probes
                    .iter()
                    .map(|flow| passes(judge(&whole, flow)))
                    .collect()
            };
            let at = history.rng.below(plan.writes().count() as u64 + 1);
            history.recorder.fail(at, Fault::Crash);
            apply(&mut history.planner, plan, &mut history.recorder);
            history.recorder.rest();
            history.recorder.revive();
            let (old, found) = (&history.recorder.states[from].1, history.recorder.now());
            for (flow, new) in probes.iter().zip(&new) {
                let (old, found) = (passes(judge(old, flow)), passes(judge(found, flow)));
                for end in 0..2 {
                    assert!(
                        found[end] == old[end] || found[end] == new[end],
                        "seed {seed}, step {step}: {flow:?}"
                    );
                }
            }
            let applied = history.start();
            assert_eq!(applied.problems, []);
            history.check_epochs("after a crash");
            let now = history.recorder.now();
            for (flow, new) in probes.iter().zip(&new) {
                assert_eq!(
                    passes(judge(now, flow)),
                    *new,
                    "seed {seed}, step {step}: {flow:?}"
                );
            }
            history.settle();
            history.look(
                &probes,
                from,
                &format!("step {step}, a crash before write {at} of {changes:?}"),
            );
            history.check_clean();
        }
    }
}

#[test]
fn a_write_that_fails_keeps_what_is_in_force_and_is_made_good() {
    let mut failed = 0;
    for seed in cases(16).chain(MET) {
        let mut history = History::new(seed);
        for step in 0..6 {
            let (from, changes, delta) = history.step();
            let plan = history.planner.plan(&delta);
            // Only calls fail; a store into a mapped array does not.
            let calls: Vec<u64> = (0u64..)
                .zip(plan.writes())
                .filter(|(_, write)| !write.is_store())
                .map(|(at, _)| at)
                .collect();
            if !calls.is_empty() {
                let at = history.rng.pick(&calls);
                let fault = history
                    .rng
                    .pick(&[Fault::Full, Fault::Refused, Fault::NoMemory]);
                history.recorder.fail(at, fault);
                let applied = apply(&mut history.planner, plan, &mut history.recorder);
                assert_ne!(applied.problems, []);
                assert!(
                    applied
                        .problems
                        .iter()
                        .all(|p| !p.object.is_empty() && p.reason.contains("map "))
                );
                assert_eq!(
                    applied.problems.iter().any(|p| p.limit.is_some()),
                    fault == Fault::Full
                );
                assert!(history.planner.unfinished());
                failed += 1;
            } else {
                apply(&mut history.planner, plan, &mut history.recorder);
            }
            // No state of rest: what holds is the old or the new, until it is made good without being asked.
            while history.planner.unfinished() {
                let plan = history.planner.plan(&Delta::default());
                let applied = apply(&mut history.planner, plan, &mut history.recorder);
                assert_eq!(applied.problems, []);
            }
            history.recorder.rest();
            let probes = history.probes(60);
            history.look(
                &probes,
                from,
                &format!("step {step}, a fault in {changes:?}"),
            );
            history.check_epochs("after a fault");
            history.settle();
            history.check_clean();
        }
    }
    assert!(failed > 20, "only {failed} writes failed");
}

/// How many epochs a plan raises, where the history is at rest.
fn raised(history: &mut History, changes: &[Change], local: bool) -> usize {
    let compiled = history.update(changes, local);
    let plan = history.planner.plan(&compiled.delta);
    let raised = plan
        .writes()
        .filter(|w| matches!(w, Write::Epoch(..)))
        .count();
    apply(&mut history.planner, plan, &mut history.recorder);
    history.recorder.rest();
    raised
}

#[test]
fn what_takes_nothing_away_raises_no_epoch() {
    use crate::model::{Kind, Object, ObjectId};
    let (mut added, mut ended) = (0, 0);
    for seed in cases(12) {
        let mut history = History::new(seed);
        // A policy that selects pods already isolated allows more.
        let policies: Vec<_> = history.world.cluster.policies.values().cloned().collect();
        for policy in policies {
            let mut more = (*policy).clone();
            more.key = crate::model::ObjectKey::new(
                &policy.key.namespace,
                &format!("{}-again", policy.key.name),
            );
            let object = Object::NetworkPolicy(std::sync::Arc::new(more));
            let changes: Vec<_> = history.world.cluster.upsert(object).into_iter().collect();
            assert_eq!(
                raised(&mut history, &changes, false),
                0,
                "seed {seed}: {changes:?}"
            );
            history.settle();
            added += 1;
        }
        // Pods elsewhere end.
        let there: Vec<ObjectId> = history
            .world
            .cluster
            .pods
            .values()
            .filter(|pod| pod.node.as_deref() == Some("there"))
            .map(|pod| ObjectId {
                kind: Kind::Pod,
                key: pod.key.clone(),
            })
            .collect();
        for id in there {
            let addresses = history.planner.desired().addresses.clone();
            let changes: Vec<_> = history.world.cluster.delete(&id).into_iter().collect();
            let compiled = history.update(&changes, false);
            // Unless another pod claims the address.
            let end = compiled.delta.addresses.values().all(Option::is_none);
            let plan = history.planner.plan(&compiled.delta);
            let raised = plan
                .writes()
                .filter(|w| matches!(w, Write::Epoch(..)))
                .count();
            apply(&mut history.planner, plan, &mut history.recorder);
            history.recorder.rest();
            if end && addresses != history.planner.desired().addresses {
                assert_eq!(raised, 0, "seed {seed}: the end of {id} raised epochs");
                ended += 1;
            }
            history.settle();
        }
    }
    assert!(
        added > 10 && ended > 10,
        "{added} policies added, {ended} pods ended"
    );
}
