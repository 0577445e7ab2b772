//! Faults that last: while the kernel refuses calls on a map, has no memory for it, or the map is full, changes go on. What fits stays
//! whole, what does not is named, and it is applied when it can be, without being asked.

use super::answers::{Answers, Questions};
use super::policy::History;
use super::scene;
use super::services::Answer;
use crate::compile::tests::cases;
use crate::datapath::Contents;
use crate::datapath::faulty::Fault;
use crate::datapath::memory::Capacities;
use crate::desired::Delta;

/// Maps whose writes are calls, and can fail.
const MAPS: [&str; 5] = ["services", "addresses", "prefixes", "rules", "links"];

/// What is wrong in a state: an answer that no cluster so far gives; None where nothing is.
///
/// `stages`: whether peers can pass through a stage while pods turn. It takes rules, and without room for them what is new comes into
/// force without it.
fn wrong(now: &Answers, maps: &Contents, clusters: &[Answers], stages: bool) -> Option<String> {
    for (key, answer) in &now.services {
        let given = clusters.iter().any(|c| c.services[key] == *answer);
        // The address of a service whose frontend did not fit is refused, not routed away.
        let unfit = *answer == Answer::NoPort && !maps.services.contains_key(key);
        // One whose address could not be removed follows its service until it can.
        let last = &clusters[clusters.len() - 1].services[key];
        let stuck = *last == Answer::Direct && maps.services.contains_key(key);
        if !given && !unfit && !stuck {
            return Some(format!("{key:?} answers {answer:?}"));
        }
    }
    for (end, function) in now.ends.iter().filter(|_| stages) {
        let last = clusters[clusters.len() - 1].ends[end].is_some();
        let Some(function) = function.as_ref().filter(|_| last) else {
            continue;
        };
        for (peer, bits) in function {
            // One that did not fit is known to no policy.
            if !maps.addresses.contains_key(&(*peer).into()) {
                continue;
            }
            let mut said = clusters.iter().filter_map(|c| c.ends[end].as_ref());
            if !said.any(|said| said[peer] == *bits) {
                let said = clusters
                    .iter()
                    .map(|c| c.ends[end].as_ref().map(|f| f[peer]));
                return Some(format!(
                    "{end:?} says {bits:012b} of {peer}, of {:?}",
                    said.collect::<Vec<_>>()
                ));
            }
        }
    }
    None
}

/// Looks at every state from `begin` on.
fn look(
    history: &History,
    begin: usize,
    clusters: &[Answers],
    questions: &Questions,
    (what, stages): (&str, bool),
) {
    let states = &history.recorder.states;
    let mut found = questions.ask(&states[begin].1);
    for at in begin + 1..states.len() {
        let (write, maps) = (states[at].0.unwrap(), &states[at].1);
        questions.follow(&mut found, maps, &write);
        if let Some(wrong) = wrong(&found, maps, clusters, stages) {
            panic!(
                "seed {}, {what}: after {write:?} {wrong}\n{:#?}",
                history.seed,
                states[begin + 1..].iter().map(|s| s.0).collect::<Vec<_>>()
            );
        }
    }
}

/// No room for anything new in one map.
fn full(map: &str, maps: &Contents) -> Capacities {
    let mut capacities = Capacities::default();
    let (capacity, used) = match map {
        "services" => (&mut capacities.services, maps.services.len()),
        "addresses" => (&mut capacities.addresses, maps.addresses.len()),
        "prefixes" => (&mut capacities.prefixes, maps.prefixes.len()),
        "rules" => (&mut capacities.rules, maps.rules.len()),
        _ => (&mut capacities.links, maps.links.len()),
    };
    *capacity = used as u32;
    capacities
}

/// As the loop does in a while.
fn go_on(history: &mut History, most: usize) {
    for _ in 0..most {
        if !history.planner.unfinished() {
            return;
        }
        history.plan(&Delta::default());
    }
}

#[test]
fn changes_under_a_fault_that_lasts_are_never_torn_and_made_good_when_it_ends() {
    let (mut failed, mut limits) = (0, 0);
    for seed in cases(10).chain([7_002]) {
        let mut history = scene::random(seed);
        for round in 0..2 {
            let mut worlds = vec![history.world.clone()];
            let (map, kind) = (history.rng.pick(&MAPS), history.rng.below(3));
            match kind {
                0 => {
                    let capacities = full(map, history.recorder.now());
                    history.recorder.inner.inner.resize(capacities);
                }
                1 => history.recorder.inner.refuse(map, Fault::Refused),
                _ => history.recorder.inner.refuse(map, Fault::NoMemory),
            }
            history.recorder.forget();
            let mut marks = vec![history.recorder.states.len() - 1];
            let mut agents = Vec::new();
            for _ in 0..4 {
                agents.push(History::over(&history, Contents::default()));
                let (changes, local) = scene::batch(&mut history, 5);
                let compiled = history.update(&changes, local);
                let applied = history.plan(&compiled.delta);
                for problem in &applied.problems {
                    assert!(!problem.object.is_empty());
                    assert!(
                        problem.reason.contains(&format!("map {map}")),
                        "seed {seed}: {problem}, where {map} is at fault"
                    );
                    assert_eq!(problem.limit.is_some(), kind == 0, "{problem}");
                    let limit = problem.limit.map_or(map, |limit| limit.map);
                    assert_eq!(limit, map);
                    limits += usize::from(problem.limit.is_some());
                }
                assert!(applied.problems.is_empty() || history.planner.unfinished());
                failed += applied.problems.len();
                go_on(&mut history, 2);
                worlds.push(history.world.clone());
                marks.push(history.recorder.states.len() - 1);
            }
            history.recorder.inner.refuse_nothing();
            history.recorder.inner.inner.resize(Capacities::default());
            go_on(&mut history, 8);
            history.settle();
            marks.push(history.recorder.states.len() - 1);

            let all: Vec<_> = worlds.iter().collect();
            let questions = scene::questions(&all);
            let mut clusters: Vec<Answers> = agents
                .iter()
                .map(|agent| questions.ask(&scene::scratch(agent)))
                .collect();
            clusters.push(questions.ask(&scene::scratch(&history)));
            let what = format!("round {round}, {map} with fault {kind}");
            let stages = kind != 0 || map != "rules";
            for step in 0..4 {
                // The last piece has what came of the end of the fault, too.
                let end = if step == 3 { marks[5] } else { marks[step + 1] };
                let before = history.recorder.states.split_off(end + 1);
                look(
                    &history,
                    marks[step],
                    &clusters[..=step + 1],
                    &questions,
                    (&what, stages),
                );
                history.recorder.states.extend(before);
            }
            let now = questions.ask(history.recorder.now());
            assert!(now == clusters[4], "seed {seed}, {what}: was not made good");
            history.check_clean();
        }
    }
    println!("{failed} problems, {limits} of them limits");
    assert!(
        failed > 40 && limits > 10,
        "{failed} problems, {limits} limits"
    );
}
