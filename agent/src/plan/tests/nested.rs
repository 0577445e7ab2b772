//! Prefixes within prefixes: what is around a narrow one never speaks of what that one is there for.

use agent_common::{GroupEntry, Prefix, PrefixEntry};

use crate::datapath::memory::Memory;
use crate::datapath::{Bits, Contents, Write};
use crate::desired::{Delta, Desired};
use crate::plan::{Planner, apply};

fn prefix(length: u32) -> Bits<Prefix> {
    let address = agent_common::Address::v4([10, 0, 0, 0]);
    Bits {
        length: 96 + length,
        data: Prefix {
            bytes: address.bytes,
        },
    }
}

/// The lengths of prefixes, in the order in which a delta writes them.
fn written(planner: &mut Planner, memory: &mut Memory, delta: &Delta) -> Vec<u32> {
    let plan = planner.plan(delta);
    let order = plan.writes().filter_map(|write| match write {
        Write::Prefix(key, _) => Some(key.length - 96),
        _ => None,
    });
    let order = order.collect();
    assert_eq!(apply(planner, plan, memory).problems, []);
    order
}

#[test]
fn narrow_prefixes_come_before_what_is_around_them_and_go_after_it() {
    let (mut planner, plan) = Planner::restore(Contents::default(), Desired::default());
    let mut memory = Memory::default();
    apply(&mut planner, plan, &mut memory);
    let lengths = [16, 8, 24];
    let mut come = Delta::default();
    let mut go = Delta::default();
    for (n, length) in (1..).zip(lengths) {
        let group = GroupEntry { group: n, _zero: 0 };
        let entry = PrefixEntry {
            identity: n,
            _zero: 0,
        };
        come.groups.insert(n, Some(group));
        come.prefixes.insert(prefix(length), Some(entry));
        go.groups.insert(n, None);
        go.prefixes.insert(prefix(length), None);
    }
    assert_eq!(written(&mut planner, &mut memory, &come), [24, 16, 8]);
    assert_eq!(written(&mut planner, &mut memory, &go), [8, 16, 24]);
}

/// An address within the narrow prefix is denied before and after. The wide one's identity is allowed before.
#[test]
fn who_comes_to_an_identity_that_loses_its_group_never_meets_that() {
    let (mut planner, plan) = Planner::restore(Contents::default(), Desired::default());
    let mut memory = Memory::default();
    apply(&mut planner, plan, &mut memory);
    let mut first = Delta::default();
    for (length, identity) in [(8, 1), (24, 2)] {
        let entry = PrefixEntry { identity, _zero: 0 };
        first.prefixes.insert(prefix(length), Some(entry));
    }
    let group = GroupEntry { group: 1, _zero: 0 };
    first.groups.insert(1, Some(group));
    assert_eq!(written(&mut planner, &mut memory, &first), [24, 8]);
    let mut then = Delta::default();
    then.groups.insert(1, None);
    then.prefixes.insert(prefix(24), None);
    let plan = planner.plan(&then);
    let order: Vec<_> = plan
        .writes()
        .map(|write| match write {
            Write::Group(1, entry) => ("group", entry.group),
            Write::Prefix(key, None) => ("prefix", key.length - 96),
            _ => ("other", 0),
        })
        .collect();
    assert_eq!(order, [("group", 0), ("prefix", 24)]);
    assert_eq!(apply(&mut planner, plan, &mut memory).problems, []);
    assert!(memory.view().groups.is_empty());
}
