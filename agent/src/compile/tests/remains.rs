//! Pods whose object went before their link, across a restart.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent_common::{pod_flag, set_flag};

use super::super::*;
use super::cluster::{Rng, World};
use super::tables::Maps;
use super::{ask, cases, everything, flows, options, scratch, settle, tables};
use crate::desired::Desired;
use crate::model::*;
use crate::oracle::policy::Flow;

/// What the maps say of flows, each direction by itself.
fn answers(options: &Options, desired: &Desired, probes: &[Flow]) -> Vec<[Option<bool>; 2]> {
    let maps = Maps::new(desired, options);
    let passes = |flow: &Flow| ask(&maps, flow).map(|verdict| verdict.map(|v| v.passes()));
    probes.iter().map(passes).collect()
}

/// Everything that the maps hold, and another compiler over them.
fn restart(options: &Options, world: &World, desired: &mut Desired) -> (Compiler, Compiled) {
    let mut compiler = Compiler::new(options.clone());
    compiler.adopt(tables::contents(desired));
    let compiled = compiler.update(
        &world.cluster,
        &world.local,
        &everything(&world.cluster),
        true,
    );
    let delta = tables::against(desired, &compiled.delta);
    desired.merge(&delta);
    (compiler, Compiled { delta, ..compiled })
}

/// A local pod, by its link.
fn slot_of(desired: &Desired, ifindex: u32) -> agent_common::Pod {
    let slot = desired.links[&ifindex].slot;
    desired.pods[&slot]
}

/// The links of known pods that no other pod has an address of.
fn alone(world: &World, compiler: &Compiler) -> Vec<PodView> {
    let views = compiler.pods();
    let alone = views.filter(|view| {
        let ips = view.link.addresses.iter();
        let owners: BTreeSet<_> = ips
            .filter_map(|ip| Some(&world.cluster.owner(ip)?.key))
            .collect();
        let claims = view.link.addresses.iter().map(|ip| {
            let pods = world.cluster.pods.values();
            pods.filter(|pod| pod.addresses.contains(ip)).count()
        });
        view.pod.is_some() && owners.len() == 1 && claims.into_iter().all(|count| count == 1)
    });
    alone.collect()
}

#[test]
fn a_restart_forgets_nothing_of_a_pod_whose_link_is_still_there() {
    let (mut pods, mut isolated, mut unwritten) = (0, 0, 0);
    for seed in cases(60) {
        let mut rng = Rng::new(seed);
        let mut world = World::random(&mut rng);
        let options = options(seed);
        let (mut compiler, mut desired) = scratch(&options, &world);
        let probes = flows(&world);
        let isolating = |view: &PodView| view.egress.len() + view.ingress.len();
        let Some(view) = alone(&world, &compiler).into_iter().max_by_key(isolating) else {
            continue;
        };
        let pod = view.pod.clone().unwrap();
        let gone = world.cluster.delete(&Object::Pod(pod).id()).unwrap();
        let compiled = compiler.update(&world.cluster, &world.local, &[gone], false);
        desired.merge(&compiled.delta);
        settle(&mut compiler, &world, &mut desired);
        let before = answers(&options, &desired, &probes);
        let was = slot_of(&desired, view.link.ifindex);

        let (mut again, compiled) = restart(&options, &world, &mut desired);
        assert_eq!(compiled.problems, [], "seed {seed}");
        let is = slot_of(&desired, view.link.ifindex);
        assert_eq!(is.flags, was.flags, "seed {seed}");
        pods += 1;
        isolated += u32::from((was.egress.flags | was.ingress.flags) & set_flag::ISOLATED != 0);
        unwritten += u32::from(tables::is_empty(&compiled.delta));
        let after = answers(&options, &desired, &probes);
        for ((flow, before), after) in probes.iter().zip(before).zip(after) {
            assert_eq!(before, after, "seed {seed}: {flow:?} after the restart");
        }
        settle(&mut again, &world, &mut desired);

        // Policies that go still go for it, and with its link everything goes.
        let policies = world.cluster.policies.values().cloned();
        let policies: Vec<_> = policies.map(|p| Object::NetworkPolicy(p).id()).collect();
        let changes: Vec<_> = policies
            .iter()
            .filter_map(|id| world.cluster.delete(id))
            .collect();
        let compiled = again.update(&world.cluster, &world.local, &changes, false);
        desired.merge(&compiled.delta);
        let open = slot_of(&desired, view.link.ifindex);
        assert_eq!((open.egress.flags, open.ingress.flags), (0, 0));
        let slot = view.slot.unwrap();
        world.local.pods.remove(&view.link.ifindex);
        let compiled = again.update(&world.cluster, &world.local, &[], true);
        desired.merge(&compiled.delta);
        settle(&mut again, &world, &mut desired);
        assert!(!desired.pods.contains_key(&slot));
        assert_eq!(again.sizes().sets, 0);
    }
    println!(
        "{pods} pods that were gone, {isolated} of them isolated, {unwritten} restarts that wrote nothing"
    );
    assert!(isolated > 10 && unwritten * 2 > pods);
}

#[test]
fn where_nobody_can_tell_what_held_the_link_is_closed_until_its_pod_is_told_of() {
    let mut found = 0;
    for seed in cases(40) {
        let mut world = World::random(&mut Rng::new(seed));
        let options = Options::new(intern("here"));
        let (compiler, mut desired) = scratch(&options, &world);
        let mut alone = alone(&world, &compiler).into_iter();
        let Some(view) = alone.find(|view| !view.ingress.is_empty()) else {
            continue;
        };
        found += 1;
        // All while no agent runs: the pod's object goes, and a policy that held for it.
        let pod = view.pod.clone().unwrap();
        world.cluster.delete(&Object::Pod(Arc::clone(&pod)).id());
        world.cluster.delete(&ObjectId {
            kind: Kind::NetworkPolicy,
            key: view.ingress[0].clone(),
        });
        let (mut again, compiled) = restart(&options, &world, &mut desired);
        let is = slot_of(&desired, view.link.ifindex);
        assert_eq!((is.ingress.set, is.ingress.flags), (0, set_flag::ISOLATED));
        assert_eq!(is.flags & pod_flag::UNKNOWN, 0);
        let problem = compiled.problems.first().expect("a problem");
        assert_eq!(problem.object, format!("pod link {}", view.link.name));
        // Told of again, it is judged by what there is.
        let back = world.cluster.upsert(Object::Pod(pod)).unwrap();
        let compiled = again.update(&world.cluster, &world.local, &[back], false);
        desired.merge(&compiled.delta);
        assert_eq!(compiled.problems, []);
        let is = slot_of(&desired, view.link.ifindex);
        assert!(is.ingress.set != 0 || is.ingress.flags == 0);
    }
    assert!(found > 3);
}

/// The kernel gives indexes out again, and a node its addresses: another link, or another pod's address, takes nothing over.
#[test]
fn what_is_left_of_a_pod_is_nobody_elses() {
    let mut found = 0;
    for seed in cases(40) {
        let mut world = World::random(&mut Rng::new(seed));
        let options = Options::new(intern("here"));
        let (compiler, desired) = scratch(&options, &world);
        let mut alone = alone(&world, &compiler).into_iter();
        let Some(view) = alone.find(|view| !view.ingress.is_empty()) else {
            continue;
        };
        found += 1;
        let pod = view.pod.clone().unwrap();
        world.cluster.delete(&Object::Pod(Arc::clone(&pod)).id());
        let unknown = |world: &World| {
            let mut desired = desired.clone();
            restart(&options, world, &mut desired);
            slot_of(&desired, view.link.ifindex).flags & pod_flag::UNKNOWN != 0
        };
        assert!(!unknown(&world));
        let link = |world: &mut World, change: fn(&mut crate::local::PodLink)| {
            change(world.local.pods.get_mut(&view.link.ifindex).unwrap());
        };
        link(&mut world, |link| link.host_mac[0] ^= 4);
        assert!(unknown(&world), "another link of the same index");
        link(&mut world, |link| link.host_mac[0] ^= 4);
        let other = BTreeSet::from(["10.0.1.99".parse().unwrap()]);
        let own = std::mem::replace(
            &mut world
                .local
                .pods
                .get_mut(&view.link.ifindex)
                .unwrap()
                .addresses,
            other,
        );
        assert!(unknown(&world), "another address");
        world
            .local
            .pods
            .get_mut(&view.link.ifindex)
            .unwrap()
            .addresses = own;
        let elsewhere = Pod {
            node: Some(intern("there")),
            ..(*pod).clone()
        };
        world.cluster.upsert(Object::Pod(Arc::new(elsewhere)));
        assert!(unknown(&world), "an address that another node has now");
    }
    assert!(found > 3);
}
