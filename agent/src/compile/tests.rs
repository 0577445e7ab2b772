//! Properties over random clusters: compiled maps == oracle, incremental == from scratch, a restart changes nothing, and no write in
//! between makes a verdict that neither the state before nor the one after gives.
//!
//! `SLUICE_CASES` sets the number of clusters per property, `SLUICE_SEED` the first seed.

pub(crate) mod cluster;
mod examples;
mod remains;
mod tables;

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_common::{Address, address_kind, lookup, protocol};

use super::*;
use crate::desired::Desired;
use crate::model::{Change, Cluster, Object, Peer, PodPhase};
use crate::oracle::policy::{self as oracle, By, Flow};
use cluster::{Rng, World};
use tables::Maps;

pub(crate) fn cases(default: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str, otherwise| {
        std::env::var(name)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(otherwise)
    };
    let first = number("SLUICE_SEED", 1);
    first..first + number("SLUICE_CASES", default)
}

/// Every object as a change that appears.
pub(crate) fn everything(cluster: &Cluster) -> Vec<Change> {
    let objects = (cluster.namespaces.values().cloned().map(Object::Namespace))
        .chain(cluster.nodes.values().cloned().map(Object::Node))
        .chain(cluster.pods.values().cloned().map(Object::Pod))
        .chain(cluster.services.values().cloned().map(Object::Service))
        .chain(
            cluster
                .policies
                .values()
                .cloned()
                .map(Object::NetworkPolicy),
        );
    objects
        .map(|object| Change {
            id: object.id(),
            before: None,
            after: Some(object),
        })
        .collect()
}

/// Updates until nothing is left to remove.
fn settle(compiler: &mut Compiler, world: &World, desired: &mut Desired) {
    for _ in 0..3 {
        let compiled = compiler.update(&world.cluster, &world.local, &[], false);
        desired.merge(&compiled.delta);
        if !compiled.unfinished {
            return;
        }
    }
    panic!("does not settle");
}

fn scratch(options: &Options, world: &World) -> (Compiler, Desired) {
    let mut compiler = Compiler::new(options.clone());
    let mut desired = Desired::default();
    let compiled = compiler.update(
        &world.cluster,
        &world.local,
        &everything(&world.cluster),
        true,
    );
    assert_eq!(compiled.problems, []);
    desired.merge(&compiled.delta);
    settle(&mut compiler, world, &mut desired);
    (compiler, desired)
}

/// Every map has what the compiler believes it has, and nothing else.
fn check_sizes(compiler: &Compiler, desired: &Desired) {
    let sizes = compiler.sizes();
    assert_eq!(sizes.rules, desired.rules.len(), "rules");
    assert_eq!(sizes.addresses, desired.addresses.len(), "addresses");
    assert_eq!(sizes.prefixes, desired.prefixes.len(), "prefixes");
    let sets: BTreeSet<u32> = desired.rules.keys().map(|key| key.data.set).collect();
    assert_eq!(sizes.sets, sets.len(), "sets");
    let groups: BTreeSet<u32> = desired.groups.values().map(|entry| entry.group).collect();
    assert_eq!(sizes.groups, groups.len(), "groups");
}

/// Notices name what a plain search finds.
fn check_notices(options: &Options, world: &World, compiler: &Compiler, notices: &[Problem]) {
    let cluster = &world.cluster;
    let idle = cluster.policies.values().filter(|policy| {
        !cluster.pods.values().any(|pod| {
            pod.key.namespace == policy.key.namespace
                && !pod.host_network
                && pod.phase == PodPhase::Live
                && policy.selector.matches(&pod.labels)
        })
    });
    let idle: BTreeSet<String> = idle.map(|p| format!("NetworkPolicy {}", p.key)).collect();
    let told = notices
        .iter()
        .filter(|n| n.reason.contains("selects no pod"));
    assert_eq!(
        told.map(|n| n.object.clone()).collect::<BTreeSet<_>>(),
        idle
    );
    let mut overlaps = BTreeSet::new();
    for policy in cluster.policies.values() {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
            let Peer::Block(block) = peer else { continue };
            let inside = compiler.enforcement.addresses.iter().any(|(ip, known)| {
                known.entry.kind <= address_kind::HOST && peers::block_contains(block, ip)
            });
            if inside && options.ip_block_mode == IpBlockMode::Cilium {
                overlaps.insert((policy.key.clone(), block.clone()));
            }
        }
    }
    let found: BTreeSet<_> = compiler.overlapping_blocks().into_iter().collect();
    assert_eq!(found, overlaps);
}

/// What the maps say of a flow, one direction after the other; None where no local pod is concerned.
fn ask(maps: &Maps<'_>, flow: &Flow) -> [Option<agent_common::Verdict>; 2] {
    let entry = |ip: IpAddr| lookup::Tables::address(maps, &Address::from(ip));
    let slot = |ip: IpAddr| {
        entry(ip)
            .filter(|entry| entry.kind == address_kind::LOCAL_POD)
            .and_then(|entry| maps.desired.pods.get(&u32::from(entry.slot)))
    };
    let judge = |word, peer: IpAddr| {
        lookup::judge(
            maps,
            word,
            &Address::from(peer),
            entry(peer),
            flow.protocol,
            flow.port.to_be(),
        )
    };
    [
        slot(flow.source).map(|pod| judge(pod.egress, flow.destination)),
        slot(flow.destination).map(|pod| judge(pod.ingress, flow.source)),
    ]
}

pub(crate) const PROBES: [(u8, u16); 12] = [
    (protocol::TCP, 80),
    (protocol::TCP, 81),
    (protocol::TCP, 8080),
    (protocol::TCP, 9090),
    (protocol::TCP, 1),
    (protocol::TCP, 65_535),
    (protocol::UDP, 53),
    (protocol::UDP, 80),
    (protocol::UDP, 8080),
    (protocol::SCTP, 80),
    (protocol::SCTP, 9090),
    (protocol::ICMP, 0),
];

pub(crate) fn flows(world: &World) -> Vec<Flow> {
    let ends = world.ends();
    let mut out = Vec::new();
    for source in &ends {
        for destination in &ends {
            if source == destination || source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            for (protocol, port) in PROBES {
                out.push(Flow {
                    source: *source,
                    destination: *destination,
                    protocol,
                    port,
                    from_host: false,
                });
            }
        }
    }
    out
}

/// Holds every flow against the oracle; how many directions were judged, and allowed.
fn hold(options: &Options, world: &World, compiler: &Compiler, desired: &Desired) -> (u32, u32) {
    let maps = Maps::new(desired, options);
    let (mut judged, mut allowed) = (0, 0);
    for flow in flows(world) {
        let said = oracle::verdict(&world.cluster, &world.local, options, &flow);
        if matches!(said.egress.by, By::Exempt(_)) {
            continue;
        }
        for (got, want) in ask(&maps, &flow)
            .into_iter()
            .zip([said.egress, said.ingress])
        {
            let Some(got) = got else {
                assert_eq!(want.by, By::Nothing, "{flow:?}");
                continue;
            };
            assert_eq!(got.passes(), want.allowed, "{flow:?}: {got:?}, {want:?}");
            let name = compiler.rule_names().get(got.rule);
            match &want.by {
                By::Rules(rules) => {
                    let Some(RuleName::Rule {
                        policy,
                        direction,
                        index,
                    }) = name
                    else {
                        panic!("{flow:?}: {got:?} has no rule's name: {name:?}");
                    };
                    assert!(rules.iter().any(|rule| rule.policy == *policy
                        && rule.direction == *direction
                        && rule.index == *index));
                }
                By::Default(policies) => {
                    let Some(RuleName::Default { policies: by, .. }) = name else {
                        panic!("{flow:?}: {got:?} has no default's name: {name:?}");
                    };
                    assert_eq!(by, policies);
                }
                By::Nothing | By::Exempt(_) | By::UnknownPod => assert_eq!(got.rule, 0),
            }
            if !matches!(want.by, By::Nothing) {
                judged += 1;
                allowed += u32::from(want.allowed);
                assert_eq!(want.audited, got.passes() && got.action & 0x0f != 1);
            }
        }
    }
    (judged, allowed)
}

pub(crate) fn options(seed: u64) -> Options {
    let mut options = Options::new(crate::model::intern("here"));
    if seed.is_multiple_of(2) {
        options.ip_block_mode = IpBlockMode::Cilium;
    }
    if seed.is_multiple_of(3) {
        options.unknown_pod = UnknownPod::Deny;
    }
    options
}

#[test]
fn compiled_maps_say_what_the_oracle_says() {
    let (mut judged, mut allowed) = (0, 0);
    for seed in cases(40) {
        let world = World::random(&mut Rng::new(seed));
        let options = options(seed);
        let (compiler, desired) = scratch(&options, &world);
        check_sizes(&compiler, &desired);
        let (j, a) = hold(&options, &world, &compiler, &desired);
        judged += j;
        allowed += a;
    }
    println!("{judged} directions judged, {allowed} allowed");
    assert!(
        allowed * 10 > judged * 2 && allowed * 10 < judged * 8,
        "the clusters say too little: {allowed} of {judged} allowed"
    );
}

#[test]
fn incremental_is_from_scratch() {
    for seed in cases(8) {
        let mut rng = Rng::new(seed);
        let mut world = World::random(&mut rng);
        let options = options(seed);
        let (mut compiler, mut desired) = scratch(&options, &world);
        for step in 0..12 {
            let (changes, local_changed) = world.change(&mut rng, 1 + step % 4);
            let compiled = compiler.update(&world.cluster, &world.local, &changes, local_changed);
            assert_eq!(compiled.problems, []);
            desired.merge(&compiled.delta);
            hold(&options, &world, &compiler, &desired);
            check_notices(&options, &world, &compiler, &compiled.notices);
        }
        settle(&mut compiler, &world, &mut desired);
        check_sizes(&compiler, &desired);
        let (fresh, _) = scratch(&options, &world);
        assert_eq!(compiler.sizes(), fresh.sizes(), "seed {seed}");
        // Back to empty.
        let mut all = Vec::new();
        for change in everything(&world.cluster) {
            all.extend(world.cluster.delete(&change.id));
        }
        world.local = Local::default();
        let compiled = compiler.update(&world.cluster, &world.local, &all, true);
        desired.merge(&compiled.delta);
        settle(&mut compiler, &world, &mut desired);
        assert_eq!(desired.prefixes.len(), 1);
        desired.prefixes.clear();
        assert_eq!(desired, Desired::default());
    }
}

#[test]
fn a_restart_of_an_unchanged_cluster_changes_nothing() {
    for seed in cases(8) {
        let mut rng = Rng::new(seed);
        let mut world = World::random(&mut rng);
        let options = options(seed);
        let (mut compiler, mut desired) = scratch(&options, &world);
        // A history, so that numbers are not those of a first start.
        for _ in 0..6 {
            let (changes, local) = world.change(&mut rng, 3);
            let compiled = compiler.update(&world.cluster, &world.local, &changes, local);
            desired.merge(&compiled.delta);
        }
        settle(&mut compiler, &world, &mut desired);
        let mut again = Compiler::new(options.clone());
        again.adopt(tables::contents(&desired));
        let compiled = again.update(
            &world.cluster,
            &world.local,
            &everything(&world.cluster),
            true,
        );
        let delta = tables::against(&desired, &compiled.delta);
        assert!(tables::is_empty(&delta), "{seed}: {delta:?}");
        // And one that missed a few changes converges.
        let contents = tables::contents(&desired);
        world.change(&mut rng, 4);
        let mut again = Compiler::new(options.clone());
        again.adopt(contents);
        let compiled = again.update(
            &world.cluster,
            &world.local,
            &everything(&world.cluster),
            true,
        );
        desired = Desired::default();
        desired.merge(&compiled.delta);
        hold(&options, &world, &again, &desired);
        for _ in 0..6 {
            let (changes, local) = world.change(&mut rng, 3);
            let compiled = again.update(&world.cluster, &world.local, &changes, local);
            desired.merge(&compiled.delta);
            hold(&options, &world, &again, &desired);
        }
        settle(&mut again, &world, &mut desired);
        check_sizes(&again, &desired);
    }
}

/// One change at a time, written as the plan writes it, one write after the other.
#[test]
fn no_write_in_between_says_what_neither_side_does() {
    let mut writes = 0;
    for seed in cases(12) {
        let mut rng = Rng::new(seed);
        let mut world = World::random(&mut rng);
        let options = options(seed);
        let (mut compiler, mut desired) = scratch(&options, &world);
        for _ in 0..8 {
            let before = desired.clone();
            let (mut changes, mut local) = world.change(&mut rng, 1);
            let restart = rng.chance(30);
            if restart {
                // The change came while the agent was down.
                compiler = Compiler::new(options.clone());
                compiler.adopt(tables::contents(&desired));
                (changes, local) = (everything(&world.cluster), true);
            }
            let mut compiled = compiler.update(&world.cluster, &world.local, &changes, local);
            if restart {
                compiled.delta = tables::against(&desired, &compiled.delta);
            }
            desired.merge(&compiled.delta);
            let mut probes = flows(&world);
            probes.retain(|_| rng.below(16) == 0);
            let passes = |desired: &Desired, flow: &Flow| {
                let maps = Maps::new(desired, &options);
                ask(&maps, flow).map(|verdict| verdict.is_none_or(|v| v.passes()))
            };
            let wanted: Vec<_> = probes
                .iter()
                .map(|flow| (passes(&before, flow), passes(&desired, flow)))
                .collect();
            let mut between = before;
            for write in tables::writes(&compiled.delta) {
                writes += 1;
                between.merge(&write);
                for (flow, (old, new)) in probes.iter().zip(&wanted) {
                    let now = passes(&between, flow);
                    for side in 0..2 {
                        assert!(
                            now[side] == old[side] || now[side] == new[side],
                            "seed {seed}, {flow:?}: {} became {} by {write:?} of {changes:?}",
                            old[side],
                            now[side]
                        );
                    }
                }
            }
        }
    }
    println!("{writes} writes");
}
