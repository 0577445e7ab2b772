//! What a change costs, and what happens at the edges.

use std::sync::Arc;

use agent_common::{pod_flag, set_flag};

use super::super::*;
use super::cluster::{Rng, World};
use super::{everything, scratch, settle, tables};
use crate::desired::Desired;
use crate::model::*;

/// A world in which something is isolated by selectors.
fn world(seed: u64) -> (World, Options, Compiler, Desired) {
    let world = World::random(&mut Rng::new(seed));
    let options = Options::new(intern("here"));
    let (compiler, desired) = scratch(&options, &world);
    (world, options, compiler, desired)
}

#[test]
fn a_label_that_no_selector_mentions_changes_nothing() {
    for seed in 1..12 {
        let (mut world, _, mut compiler, _) = world(seed);
        let mut changes = Vec::new();
        for pod in world.cluster.pods.values().cloned().collect::<Vec<_>>() {
            let mut pod = (*pod).clone();
            pod.labels.insert(intern("unheard-of"), intern(&pod.uid));
            changes.extend(world.cluster.upsert(Object::Pod(Arc::new(pod))));
        }
        for namespace in world
            .cluster
            .namespaces
            .values()
            .cloned()
            .collect::<Vec<_>>()
        {
            let mut namespace = (*namespace).clone();
            namespace.labels.insert(intern("unheard-of"), intern("1"));
            changes.extend(world.cluster.upsert(Object::Namespace(Arc::new(namespace))));
        }
        assert!(!changes.is_empty());
        let compiled = compiler.update(&world.cluster, &world.local, &changes, false);
        assert!(tables::is_empty(&compiled.delta), "{:?}", compiled.delta);
    }
}

#[test]
fn a_pod_more_of_an_identity_costs_one_address() {
    let (mut world, _, mut compiler, _) = world(3);
    let like = world
        .cluster
        .pods
        .values()
        .find(|pod| {
            !pod.host_network && pod.phase == PodPhase::Live && pod.node.as_deref() == Some("there")
        })
        .cloned()
        .unwrap();
    let mut pod = (*like).clone();
    pod.key.name = intern("one-more");
    pod.addresses = vec!["10.77.0.1".parse().unwrap()];
    let added = world.cluster.upsert(Object::Pod(Arc::new(pod))).unwrap();
    let id = added.id.clone();
    let compiled = compiler.update(&world.cluster, &world.local, &[added], false);
    assert_eq!(
        (
            tables::count(&compiled.delta),
            compiled.delta.addresses.len()
        ),
        (1, 1)
    );
    let removed = world.cluster.delete(&id).unwrap();
    let compiled = compiler.update(&world.cluster, &world.local, &[removed], false);
    assert_eq!(
        (
            tables::count(&compiled.delta),
            compiled.delta.addresses.len()
        ),
        (1, 1)
    );
}

#[test]
fn a_pod_is_under_policy_until_its_link_goes() {
    for seed in 1..40 {
        let (mut world, _, mut compiler, mut desired) = world(seed);
        let isolated: Vec<_> = compiler
            .pods()
            .filter(|view| !view.ingress.is_empty())
            .collect();
        let Some(view) = isolated.first() else {
            continue;
        };
        let (slot, pod) = (view.slot.unwrap(), view.pod.clone().unwrap());
        let before = desired.pods[&slot];
        let gone = world.cluster.delete(&Object::Pod(pod).id()).unwrap();
        let others = view
            .link
            .addresses
            .iter()
            .any(|ip| world.cluster.owner(ip).is_some());
        let compiled = compiler.update(&world.cluster, &world.local, &[gone], false);
        desired.merge(&compiled.delta);
        if others {
            continue;
        }
        assert_eq!(desired.pods[&slot], before);
        world.local.pods.remove(&view.link.ifindex);
        let compiled = compiler.update(&world.cluster, &world.local, &[], true);
        desired.merge(&compiled.delta);
        assert!(!desired.pods.contains_key(&slot));
        return;
    }
    panic!("no cluster with an isolated local pod");
}

#[test]
fn an_unknown_pod_is_open_or_closed_as_asked() {
    let (world, options, _, desired) = world(1);
    let unknown = |desired: &Desired| {
        desired
            .pods
            .values()
            .find(|pod| pod.ifindex == 60)
            .copied()
            .unwrap()
    };
    let pod = unknown(&desired);
    assert_ne!(pod.flags & pod_flag::UNKNOWN, 0);
    assert_eq!((pod.egress.flags, pod.ingress.flags), (0, 0));
    let (_, desired) = scratch(
        &Options {
            unknown_pod: UnknownPod::Deny,
            ..options
        },
        &world,
    );
    let closed = set_flag::ISOLATED | set_flag::UNKNOWN;
    let pod = unknown(&desired);
    assert_eq!((pod.egress.flags, pod.ingress.flags), (closed, closed));
}

#[test]
fn what_does_not_fit_is_named_and_comes_when_there_is_room() {
    let mut found = 0;
    for seed in 1..20 {
        let (mut world, options, _, whole) = world(seed);
        if whole.rules.len() < 8 {
            continue;
        }
        found += 1;
        let mut tight = options.clone();
        tight.limits.rules = whole.rules.len() as u32 - 1;
        let mut compiler = Compiler::new(tight);
        let compiled = compiler.update(
            &world.cluster,
            &world.local,
            &everything(&world.cluster),
            true,
        );
        let problem = compiled.problems.first().expect("a problem");
        assert_eq!(problem.limit.map(|limit| limit.map), Some("rules"));
        let mut desired = Desired::default();
        desired.merge(&compiled.delta);
        assert!(desired.rules.len() < whole.rules.len());
        assert!(compiler.pods().any(|view| !view.in_force));
        // A pod that is new is closed, not open, where its set does not fit.
        for view in compiler.pods().filter(|view| !view.in_force) {
            let pod = desired.pods[&view.slot.unwrap()];
            assert!(
                [pod.egress, pod.ingress]
                    .iter()
                    .any(|w| w.set == 0 && w.flags == set_flag::ISOLATED)
            );
        }
        let view = compiler
            .pods()
            .find(|view| view.in_force && !(view.egress.is_empty() && view.ingress.is_empty()));
        // Room: every policy in force of some pod's namespace goes.
        let Some(pod) = view.and_then(|view| view.pod) else {
            continue;
        };
        let keys: Vec<_> = world
            .cluster
            .policies
            .keys()
            .filter(|k| k.namespace == pod.key.namespace)
            .cloned()
            .collect();
        let changes: Vec<_> = keys
            .into_iter()
            .filter_map(|key| {
                world.cluster.delete(&ObjectId {
                    kind: Kind::NetworkPolicy,
                    key,
                })
            })
            .collect();
        let compiled = compiler.update(&world.cluster, &world.local, &changes, false);
        desired.merge(&compiled.delta);
        settle(&mut compiler, &world, &mut desired);
        let compiled = compiler.update(&world.cluster, &world.local, &[], false);
        desired.merge(&compiled.delta);
        assert_eq!(compiled.problems, []);
        assert!(compiler.pods().all(|view| view.in_force));
    }
    assert!(found > 3);
}
