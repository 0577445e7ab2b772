//! A set that one pod leaves and another one gets, while a peer becomes somebody else.

use agent_common::lookup::{self, Tables};
use agent_common::{
    Address, AddressEntry, GroupEntry, NO_ADDRESS_SLOT, Pod, RuleKey, SetWord, Verdict, action,
    address_kind, pod_flag, protocol, rule_bits, set_flag,
};

use crate::datapath::memory::Memory;
use crate::datapath::{Bits, Contents};
use crate::desired::{Delta, Desired};
use crate::plan::{Planner, apply};

const PEER: [u8; 4] = [10, 0, 0, 9];
const IDENTITY: u32 = 5;
/// The groups of the peer, before and after.
const GROUPS: [u32; 2] = [7, 8];
/// The set that allows the first of them, and one that allows nobody.
const ALLOWS: u32 = 1;
const DENIES: u32 = 2;
/// The slots of two pods.
const PODS: [u32; 2] = [1, 2];

fn pod(slot: u32, set: Option<u32>) -> Pod {
    let ingress = set.map_or_else(SetWord::default, |set| SetWord {
        set,
        flags: set_flag::ISOLATED,
    });
    Pod {
        ingress,
        ifindex: 10 + slot,
        flags: pod_flag::USED,
        ..Pod::default()
    }
}

fn group(group: u32) -> GroupEntry {
    GroupEntry { group, _zero: 0 }
}

/// Whether the peer gets into a pod.
fn gets_in(maps: &Contents, slot: u32) -> bool {
    let peer = Address::v4(PEER);
    let word = maps.pods[&slot].ingress;
    let port_be = 80u16.to_be();
    lookup::judge(
        maps,
        word,
        &peer,
        maps.address(&peer),
        protocol::TCP,
        port_be,
    )
    .passes()
}

/// Pods with these sets at first, and in the end, while the peer goes from a group to the other: who is let in on the way, in the order
/// of the pods, and with every write.
fn on_the_way(sets: [[Option<u32>; 2]; 2]) -> Vec<[bool; 2]> {
    let mut desired = Desired::default();
    for (slot, [before, _]) in PODS.into_iter().zip(sets) {
        desired.pods.insert(slot, pod(slot, before));
    }
    let entry = AddressEntry {
        identity: IDENTITY,
        slot: NO_ADDRESS_SLOT,
        kind: address_kind::REMOTE_POD,
        check: Address::v4(PEER).check(),
    };
    desired.addresses.insert(Address::v4(PEER), entry);
    desired.groups.insert(IDENTITY, group(GROUPS[0]));
    let allow = Verdict {
        action: action::ALLOW,
        ..Verdict::CLOSED
    };
    let key = RuleKey::packet(ALLOWS, GROUPS[0], protocol::TCP, 0);
    desired
        .rules
        .insert(Bits::of(rule_bits::PROTOCOL, key), allow);
    for set in [ALLOWS, DENIES] {
        let default = RuleKey::packet(set, 0, 0, 0);
        desired
            .rules
            .insert(Bits::of(rule_bits::SET, default), Verdict::CLOSED);
    }
    let (mut planner, plan) = Planner::restore(Contents::default(), desired.clone());
    let mut memory = Memory::default();
    assert_eq!(apply(&mut planner, plan, &mut memory).problems, []);

    let mut delta = Delta::default();
    for (slot, [_, after]) in PODS.into_iter().zip(sets) {
        delta.pods.insert(slot, Some(pod(slot, after)));
    }
    delta.groups.insert(IDENTITY, Some(group(GROUPS[1])));
    let mut maps = planner.contents().clone();
    let mut seen = Vec::new();
    for _ in 0..8 {
        let plan = planner.plan(&delta);
        delta = Delta::default();
        for write in plan.writes() {
            maps.apply(write);
            seen.push(PODS.map(|slot| gets_in(&maps, slot)));
        }
        assert_eq!(apply(&mut planner, plan, &mut memory).problems, []);
        if !planner.unfinished() {
            break;
        }
    }
    assert!(!planner.unfinished());
    for (slot, [_, after]) in PODS.into_iter().zip(sets) {
        assert_eq!(maps.pods[&slot].ingress, pod(slot, after).ingress);
    }
    seen
}

// Fails with mutant "nobody-waits".
#[test]
fn a_pod_that_gets_a_set_which_another_one_leaves_waits_for_that() {
    // The first is not isolated any more; the second, which let nobody in, gets the set that let the peer in as long as it was who it was.
    let seen = on_the_way([[Some(ALLOWS), None], [Some(DENIES), Some(ALLOWS)]]);
    assert!(
        seen.iter().all(|[first, second]| *first && !second),
        "{seen:?}"
    );
}

#[test]
fn pods_that_exchange_their_sets_do_not_wait_for_each_other() {
    let seen = on_the_way([[Some(ALLOWS), Some(DENIES)], [Some(DENIES), Some(ALLOWS)]]);
    assert_eq!(seen.last(), Some(&[false, false]));
}
