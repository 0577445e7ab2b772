//! Epochs, number by number.

use agent_common::{
    Address, AddressEntry, Config, GroupEntry, NEVER_JUDGED, NO_ADDRESS_SLOT, Pod, Prefix,
    PrefixEntry, RuleKey, SetWord, Verdict, action, address_kind, feature, pod_flag, protocol,
    rule_bits, set_flag,
};

use crate::datapath::memory::{Capacities, Memory};
use crate::datapath::{Bits, Contents};
use crate::desired::{Delta, Desired};
use crate::plan::{Planner, apply};

const SLOT: u32 = 3;
const SET: u32 = 9;
const BLOCK_IDENTITY: u32 = 7;
const BLOCK_GROUP: u32 = 4;

/// A pod whose egress is allowed to an ipBlock.
fn desired() -> Desired {
    let mut desired = Desired::default();
    let egress = SetWord {
        set: SET,
        flags: set_flag::ISOLATED,
    };
    let pod = Pod {
        egress,
        ifindex: 5,
        flags: pod_flag::USED,
        ..Pod::default()
    };
    desired.pods.insert(SLOT, pod);
    let bytes = Address::v4([10, 0, 2, 0]).bytes;
    let block = PrefixEntry {
        identity: BLOCK_IDENTITY,
        _zero: 0,
    };
    let key = Bits::of(120, Prefix { bytes });
    desired.prefixes.insert(key, block);
    let group = GroupEntry {
        group: BLOCK_GROUP,
        _zero: 0,
    };
    desired.groups.insert(BLOCK_IDENTITY, group);
    let allow = Verdict {
        action: action::ALLOW,
        ..Verdict::CLOSED
    };
    let rule = RuleKey::packet(SET, BLOCK_GROUP, protocol::TCP, 0);
    desired
        .rules
        .insert(Bits::of(rule_bits::PROTOCOL, rule), allow);
    desired
}

/// The agent over maps that are as desired, with one epoch of the pod.
fn at_rest(features: u64, epoch: u32) -> (Planner, Memory) {
    let desired = desired();
    let config = Config {
        features,
        ..Config::default()
    };
    let contents = Contents {
        config,
        ..Contents::default()
    };
    let mut memory = Memory::with(contents.clone(), Capacities::default());
    let (mut planner, plan) = Planner::restore(contents, desired.clone());
    assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
    let mut contents = memory.view().clone();
    if let Some(pod) = contents.pods.get_mut(&SLOT) {
        pod.epoch = epoch;
    }
    let mut memory = Memory::with(contents.clone(), Capacities::default());
    let (mut planner, plan) = Planner::restore(contents, desired.clone());
    assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
    (planner, memory)
}

/// How often the pod's epoch rises when an address in the block is given to somebody.
fn raised(features: u64, kind: u8) -> u32 {
    let (mut planner, mut memory) = at_rest(features, 40);
    let before = memory.view().pods[&SLOT].epoch;
    let address = Address::v4([10, 0, 2, 9]);
    let entry = AddressEntry {
        identity: 0,
        slot: NO_ADDRESS_SLOT,
        kind,
        check: address.check(),
    };
    let mut delta = Delta::default();
    delta.addresses.insert(address, Some(entry));
    let plan = planner.plan(&delta);
    assert!(apply(&mut planner, plan, &mut memory).problems.is_empty());
    memory.view().pods[&SLOT].epoch - before
}

#[test]
fn in_cilium_mode_an_address_that_becomes_a_pod_or_a_node_loses_what_a_block_gave_it() {
    for kind in [
        address_kind::REMOTE_POD,
        address_kind::NODE,
        address_kind::HOST,
    ] {
        assert_eq!(raised(0, kind), 1, "cilium, {kind}");
        // Literally the block still speaks of it.
        assert_eq!(raised(feature::LITERAL, kind), 0, "literal, {kind}");
    }
    // A service's external address is neither: the block speaks of it as before.
    assert_eq!(raised(0, address_kind::EXTERNAL), 0);
}

#[test]
fn an_epoch_that_wraps_leaves_out_the_one_of_no_judgement() {
    let (_, memory) = at_rest(0, u32::MAX);
    let epoch = memory.view().pods[&SLOT].epoch;
    assert_ne!(epoch, NEVER_JUDGED);
    assert_eq!(epoch, NEVER_JUDGED.wrapping_add(1));
    let (_, memory) = at_rest(0, u32::MAX - 1);
    assert_eq!(memory.view().pods[&SLOT].epoch, u32::MAX);
}
