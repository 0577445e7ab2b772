//! Whose epochs rise, in random clusters and number by number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::{
    Address, AddressEntry, GroupEntry, NO_ADDRESS_SLOT, Pod, RuleKey, SetWord, Verdict, action,
    address_kind, pod_flag, protocol, rule_bits, set_flag,
};

use super::policy::History;
use crate::compile::IpBlockMode;
use crate::compile::tests::cases;
use crate::compile::tests::cluster::policy;
use crate::datapath::memory::Memory;
use crate::datapath::{Bits, Contents};
use crate::desired::{Delta, Desired};
use crate::model::{NetworkPolicy, Object, ObjectKey, PortSpec};
use crate::plan::{Planner, apply};

/// Slots of pods that a policy isolates.
fn isolated(history: &History, policy: &ObjectKey) -> BTreeSet<u32> {
    let views = history.compiler.pods();
    let chosen = views.filter(|view| view.egress.contains(policy) || view.ingress.contains(policy));
    chosen.filter_map(|view| view.slot).collect()
}

/// Whether an egress rule of a policy has named ports, which in literal mode tell the pods of its ipBlocks apart: another set then says of
/// such a pod by its own group what it said by the block's, or the other way round, and the two are not compared.
fn names_ports(policy: &NetworkPolicy) -> bool {
    let mut rules = policy.egress.iter().flatten();
    rules.any(|rule| {
        let mut ports = rule.ports.iter().flatten();
        ports.any(|port| matches!(port.port, PortSpec::Named(_)))
    })
}

fn epochs(history: &History) -> BTreeMap<u32, u32> {
    let pods = history.recorder.now().pods.iter();
    pods.map(|(slot, pod)| (*slot, pod.epoch)).collect()
}

#[test]
fn a_policy_that_changes_concerns_the_pods_that_it_selects_and_nobody_else() {
    let (mut others, mut own) = (0, 0);
    for seed in cases(40) {
        let mut history = History::new(seed);
        let policies: Vec<_> = history.world.cluster.policies.values().cloned().collect();
        for before in policies {
            let after = NetworkPolicy {
                key: before.key.clone(),
                ..policy(&mut history.rng)
            };
            let literal = history.options.ip_block_mode == IpBlockMode::Literal;
            if literal && (names_ports(&before) || names_ports(&after)) {
                continue;
            }
            let mut chosen = isolated(&history, &before.key);
            let then = epochs(&history);
            let object = Object::NetworkPolicy(Arc::new(after));
            let changes: Vec<_> = history.world.cluster.upsert(object).into_iter().collect();
            let compiled = history.update(&changes, false);
            history.plan(&compiled.delta);
            history.settle();
            chosen.append(&mut isolated(&history, &before.key));
            for (slot, epoch) in epochs(&history) {
                let raised = then.get(&slot) != Some(&epoch);
                let known = history.planner.desired().pods.contains_key(&slot);
                if chosen.contains(&slot) {
                    own += u32::from(raised);
                } else if known {
                    assert!(
                        !raised,
                        "seed {seed}: {changes:?} raised the epoch of slot {slot}"
                    );
                    others += 1;
                }
            }
        }
    }
    assert!(own > 10 && others > 100, "{own} own, {others} others");
}

const SLOT: u32 = 3;
const SET: u32 = 9;
const GROUP: u32 = 4;

fn peer() -> Address {
    Address::v4([10, 0, 2, 9])
}

fn entry(identity: u32) -> AddressEntry {
    AddressEntry {
        identity,
        slot: NO_ADDRESS_SLOT,
        kind: address_kind::REMOTE_POD,
        check: peer().check(),
    }
}

fn rule(protocol: u8) -> Bits<RuleKey> {
    let key = RuleKey::packet(SET, GROUP, protocol, 0);
    Bits::of(rule_bits::PROTOCOL, key)
}

fn allow() -> Verdict {
    Verdict {
        action: action::ALLOW,
        ..Verdict::CLOSED
    }
}

/// A pod that lets a group in by TCP, to which one address belongs.
fn desired() -> Desired {
    let mut desired = Desired::default();
    let pod = Pod {
        ingress: SetWord {
            set: SET,
            flags: set_flag::ISOLATED,
        },
        ifindex: 5,
        flags: pod_flag::USED,
        ..Pod::default()
    };
    desired.pods.insert(SLOT, pod);
    desired.groups.insert(1, group());
    desired.addresses.insert(peer(), entry(1));
    desired.rules.insert(rule(protocol::TCP), allow());
    desired
}

fn group() -> GroupEntry {
    GroupEntry {
        group: GROUP,
        _zero: 0,
    }
}

#[test]
fn an_address_that_comes_back_into_another_group_of_the_same_number_is_judged_again() {
    let mut memory = Memory::new();
    let (mut planner, plan) = Planner::restore(Contents::default(), desired());
    assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
    let before = memory.view().pods[&SLOT].epoch;
    let mut run = |delta: &Delta| {
        let plan = planner.plan(delta);
        assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
        memory.view().pods[&SLOT].epoch - before
    };
    // The last of the group goes, and the group with it.
    let mut delta = Delta::default();
    delta.addresses.insert(peer(), None);
    delta.groups.insert(1, None);
    delta.rules.insert(rule(protocol::TCP), None);
    assert_eq!(run(&delta), 0, "nobody is left to be judged otherwise");
    // Its number comes back for others, who may do less.
    let mut delta = Delta::default();
    delta.rules.insert(rule(protocol::UDP), Some(allow()));
    delta.groups.insert(2, Some(group()));
    assert_eq!(run(&delta), 0);
    let mut delta = Delta::default();
    delta.addresses.insert(peer(), Some(entry(2)));
    assert!(run(&delta) > 0, "its flows of TCP were allowed");
}
