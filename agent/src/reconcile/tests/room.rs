//! The loop over maps without room: what fits comes into force, what does not is told of the objects that want it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_common::set_flag;

use super::*;
use crate::compile::Options;
use crate::local::PodLink;
use crate::model::{
    IpBlock, Labels, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, PodPhase, PolicyRule,
    Requirement, Selector,
};

const NAMESPACE: &str = "d";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labelled(name: &str) -> Labels {
    Labels::from_iter([(intern("app"), intern(name))])
}

fn selector(name: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: intern("app"),
            operator: Operator::In,
            values: vec![intern(name)],
        }],
    }
}

/// A pod of the node at this address.
fn pod(name: &str, address: &str) -> Object {
    Object::Pod(Arc::new(crate::model::Pod {
        key: ObjectKey::new(NAMESPACE, name),
        uid: intern(name),
        created: 1,
        node: Some(intern("here")),
        host_network: false,
        phase: PodPhase::Live,
        terminating: false,
        addresses: vec![ip(address)],
        labels: labelled(name),
        service_account: intern("default"),
        ports: Vec::new(),
        any_source: false,
    }))
}

/// A policy that lets only these into the pods of that name.
fn policy(name: &str, selected: &str, peer: Peer) -> Object {
    Object::NetworkPolicy(Arc::new(NetworkPolicy {
        key: ObjectKey::new(NAMESPACE, name),
        selector: selector(selected),
        ingress: Some(vec![PolicyRule {
            peers: Some(vec![peer]),
            ports: None,
        }]),
        egress: None,
        audit: false,
    }))
}

/// The node's state, with a link for each of these addresses, numbered as their last byte.
fn links(addresses: &[&str]) -> Arc<Local> {
    let mut local = Local::default();
    for address in addresses {
        let ifindex = address.rsplit('.').next().unwrap().parse().unwrap();
        let link = PodLink {
            ifindex,
            name: format!("veth{ifindex}"),
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: None,
            addresses: BTreeSet::from([ip(address)]),
            peer_namespace: Some(0),
        };
        local.pods.insert(ifindex, link);
    }
    Arc::new(local)
}

/// The pod at an address, as the maps lead there.
fn at(contents: &Contents, address: &str) -> Option<Pod> {
    let entry = contents.addresses.get(&ip(address).into())?;
    contents.pods.get(&entry.slot.into()).copied()
}

#[tokio::test(flavor = "current_thread")]
async fn a_block_that_finds_no_room_is_told_of_its_policy_and_keeps_back_no_other_pod() {
    const ROOM: u32 = 1;
    const KINDS: [Kind; 3] = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy];
    let capacities = Capacities {
        prefixes: ROOM,
        ..Capacities::default()
    };
    let (reconciler, mut handle) = Reconciler::new(
        Box::new(Compiler::new(Options::new(intern("here")))),
        Box::new(Memory::with(Contents::default(), capacities)),
        &KINDS,
        Box::new(Nowhere),
        intern("here"),
    );
    let (events, received) = mpsc::channel(16);
    let (local, told) = watch::channel(Some(links(&["10.0.1.1", "10.0.1.2"])));
    let running = reconciler.run(received, told);
    let test = async move {
        let namespace = Object::Namespace(Arc::new(Namespace {
            name: intern(NAMESPACE),
            labels: Labels::default(),
        }));
        for object in [namespace, pod("a", "10.0.1.1"), pod("b", "10.0.1.2")] {
            events.send(Event::Upsert(object)).await.unwrap();
        }
        for kind in KINDS {
            events.send(Event::Synced(kind)).await.unwrap();
        }
        handle.ready.wait_for(|ready| *ready).await.unwrap();
        let blocks = ["192.0.2.0", "198.51.100.0", "203.0.113.0"];
        for (n, address) in blocks.iter().enumerate() {
            let block = Peer::Block(IpBlock {
                address: ip(address),
                length: 24,
                except: Vec::new(),
            });
            let policy = policy(&format!("blocks-{n}"), "a", block);
            events.send(Event::Upsert(policy)).await.unwrap();
        }
        let crowded = handle.snapshots.wait_for(|s| !s.problems.is_empty()).await;
        for problem in &crowded.unwrap().problems {
            assert!(
                problem.object.starts_with("NetworkPolicy d/blocks-"),
                "{problem}"
            );
            assert!(problem.reason.starts_with("prefix "), "{problem}");
            assert_eq!(problem.limit.map(|limit| limit.map), Some("prefixes"));
        }
        // Another policy, and a new pod.
        let others = Peer::Pods {
            namespaces: None,
            pods: selector("a"),
        };
        events
            .send(Event::Upsert(policy("others", "b", others)))
            .await
            .unwrap();
        events
            .send(Event::Upsert(pod("c", "10.0.1.3")))
            .await
            .unwrap();
        local.send_replace(Some(links(&["10.0.1.1", "10.0.1.2", "10.0.1.3"])));
        let isolated =
            |pod: Option<Pod>| pod.is_some_and(|pod| pod.ingress.flags & set_flag::ISOLATED != 0);
        let applies = handle.snapshots.borrow().counts.applies;
        handle
            .snapshots
            .wait_for(|s| s.counts.applies > applies + 3)
            .await
            .unwrap();
        let state = handle.state().await.unwrap();
        assert!(
            isolated(at(&state.contents, "10.0.1.2")),
            "b is not isolated: {:#?}",
            state.contents
        );
        assert!(at(&state.contents, "10.0.1.3").is_some(), "c is nobody");
        drop(events);
    };
    let (ended, ()) = tokio::join!(running, test);
    ended.unwrap();
}
