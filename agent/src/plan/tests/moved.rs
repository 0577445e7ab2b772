//! A service whose port changes while no agent runs keeps its backends' numbers, by which its flows know them.

use std::collections::BTreeMap;

use agent_common::{ServiceKey, backend_state};

use super::services::{alive, desired};
use crate::datapath::memory::{Capacities, Memory};
use crate::datapath::{Contents, Datapath};
use crate::desired::Desired;
use crate::plan::{Planner, apply};

fn at_port(mut desired: Desired, port: u16) -> Desired {
    let frontends = std::mem::take(&mut desired.frontends);
    let moved = frontends
        .into_iter()
        .map(|(key, frontend)| {
            let port_be = port.to_be();
            (ServiceKey { port_be, ..key }, frontend)
        })
        .collect();
    Desired {
        frontends: moved,
        ..desired
    }
}

fn endpoints(numbers: &[u8]) -> Option<BTreeMap<u8, (u8, bool)>> {
    served(numbers, true)
}

fn served(numbers: &[u8], chosen: bool) -> Option<BTreeMap<u8, (u8, bool)>> {
    let serving = (backend_state::SERVING, chosen);
    Some(numbers.iter().map(|number| (*number, serving)).collect())
}

#[test]
fn a_service_that_changes_its_port_between_two_agents_keeps_its_backends() {
    let world = vec![(endpoints(&[1, 2, 3]), false), (endpoints(&[2, 3]), false)];
    let before = desired(&world);
    let mut memory = Memory::with(Contents::default(), Capacities::default());
    let (mut planner, plan) = Planner::restore(Contents::default(), before.clone());
    apply(&mut planner, plan, &mut memory);
    let numbers = alive(&planner);

    // One endpoint left, another came: what is common stays.
    let world = vec![(endpoints(&[2, 3, 4]), false), (endpoints(&[2, 3]), false)];
    let after = at_port(desired(&world), 81);
    let (mut planner, plan) = Planner::restore(memory.contents().unwrap(), after.clone());
    apply(&mut planner, plan, &mut memory);
    let now = alive(&planner);
    let kept = numbers.iter().filter(|(key, _)| now.contains_key(*key));
    let kept: Vec<_> = kept.collect();
    assert_eq!(kept.len(), 4);
    for (key, number) in kept {
        assert_eq!(now.get(key), Some(number), "{key:?}");
    }
    let maps = memory.contents().unwrap();
    let keys: Vec<_> = maps.services.keys().collect();
    assert_eq!(keys, after.frontends.keys().collect::<Vec<_>>());
    let (_, plan) = Planner::restore(maps, after.clone());
    assert_eq!(plan.writes().count(), 0);
}

/// As where a service is for the node's own endpoints, of which there is none any more: flows that stand go on.
#[test]
fn it_keeps_those_that_no_new_flow_chooses_too() {
    let mut memory = Memory::with(Contents::default(), Capacities::default());
    let mut start = |desired: &Desired| {
        let contents = memory.contents().unwrap();
        let (mut planner, plan) = Planner::restore(contents, desired.clone());
        apply(&mut planner, plan, &mut memory);
        alive(&planner)
    };
    let numbers = start(&desired(&vec![(endpoints(&[1, 2, 3]), false)]));
    let kept = desired(&vec![(served(&[1, 2, 3], false), false)]);
    assert_eq!(start(&kept), numbers);
    assert_eq!(start(&at_port(kept, 81)), numbers);
}
