//! A random cluster with services, that changes in batches: what a history of the policy tests has, and services beside.

use std::net::IpAddr;
use std::sync::Arc;

use agent_common::{Address, ServiceKey};

use super::answers::Questions;
use super::policy::History;
use crate::compile::tests::cluster::{Rng, World};
use crate::datapath::Contents;
use crate::model::{
    Change, Cluster, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Object, ObjectId,
    ObjectKey, Placement, Protocol, Service, ServicePort, TrafficPolicy, intern,
};

/// Bits by which a seed is turned.
const SPREAD: u32 = 37;
const SERVICES: u64 = 4;
/// Addresses for them.
const PLACES: u64 = 5;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Name, protocol, port of the service, port of its endpoints.
const PORTS: [(&str, Protocol, u16, u16); 3] = [
    ("web", Protocol::Tcp, 80, 8080),
    ("alt", Protocol::Tcp, 81, 9090),
    ("dns", Protocol::Udp, 53, 53),
];

fn address(family: Family, number: u64) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.96.0.{number}"),
        Family::V6 => format!("fd96::{number}"),
    };
    text.parse().unwrap()
}

fn key(number: u64) -> ObjectKey {
    ObjectKey::new("a", &format!("s{number}"))
}

fn service(rng: &mut Rng, cluster: &Cluster) -> Object {
    let number = rng.below(SERVICES);
    // Sometimes at an address that another one has left.
    let taken = |place: &u64| {
        let others = cluster.services.values().filter(|s| s.key != key(number));
        let mut addresses = others.flat_map(|s| &s.cluster_ips);
        addresses.any(|ip| FAMILIES.iter().any(|f| address(*f, *place) == *ip))
    };
    let free: Vec<u64> = (0..PLACES).filter(|place| !taken(place)).collect();
    let place = match cluster.services.get(&key(number)) {
        Some(now) if rng.chance(70) => (0..PLACES)
            .find(|place| now.cluster_ips.contains(&address(FAMILIES[0], *place)))
            .unwrap_or(free[0]),
        _ => rng.pick(&free),
    };
    let mut families = vec![FAMILIES[0]];
    if rng.chance(40) {
        families.push(FAMILIES[1]);
    }
    let mut ports: Vec<ServicePort> = Vec::new();
    for (name, protocol, port, _) in PORTS {
        if rng.chance(60) {
            ports.push(ServicePort {
                name: intern(name),
                protocol,
                port,
                node_port: 0,
            });
        }
    }
    let policy = rng.pick(&[
        TrafficPolicy::Cluster,
        TrafficPolicy::Cluster,
        TrafficPolicy::Local,
    ]);
    Object::Service(Arc::new(Service {
        key: key(number),
        cluster_ips: families.iter().map(|f| address(*f, place)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports,
        internal_policy: policy,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        health_check_node_port: 0,
    }))
}

fn endpoint(rng: &mut Rng, family: Family) -> Endpoint {
    let number = rng.below(12);
    let here = number < 7;
    let net = if here { 1 } else { 2 };
    let address: IpAddr = match family {
        Family::V4 => IpAddr::from([10, 0, net, number as u8]),
        Family::V6 => format!("fd00::{net}:{number}").parse().unwrap(),
    };
    let terminating = rng.chance(20);
    Endpoint {
        address,
        ready: !terminating && rng.chance(85),
        serving: rng.chance(80),
        terminating,
        placement: Arc::new(Placement {
            node: Some(intern(if here { "here" } else { "there" })),
            ..Placement::default()
        }),
    }
}

fn slice_key(number: u64, family: Family) -> ObjectKey {
    ObjectKey::new("a", &format!("s{number}-{family:?}"))
}

fn slice(rng: &mut Rng, cluster: &Cluster) -> Object {
    let (number, family) = (rng.below(SERVICES), rng.pick(&FAMILIES));
    let key_of_slice = slice_key(number, family);
    let mut endpoints = match cluster.slices.get(&key_of_slice) {
        Some(slice) if rng.chance(70) => slice.endpoints.clone(),
        _ => (0..rng.below(5)).map(|_| endpoint(rng, family)).collect(),
    };
    if rng.chance(50) {
        endpoints.push(endpoint(rng, family));
    }
    if rng.chance(40) && !endpoints.is_empty() {
        endpoints.swap_remove(rng.below(endpoints.len() as u64) as usize);
    }
    endpoints.sort();
    endpoints.dedup_by(|a, b| a.address == b.address);
    let ports = PORTS.map(|(name, protocol, _, port)| EndpointPort {
        name: intern(name),
        protocol,
        port,
    });
    Object::EndpointSlice(Arc::new(EndpointSlice {
        key: key_of_slice,
        service: key(number),
        family,
        endpoints,
        ports: ports.to_vec(),
    }))
}

/// Changes services and their endpoints `count` times.
fn change_services(cluster: &mut Cluster, rng: &mut Rng, count: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..count {
        match rng.below(10) {
            0..=2 => {
                let service = service(rng, cluster);
                changes.extend(cluster.upsert(service));
            }
            3..=8 => {
                let slice = slice(rng, cluster);
                changes.extend(cluster.upsert(slice));
            }
            _ => {
                let id = ObjectId {
                    kind: Kind::Service,
                    key: key(rng.below(SERVICES)),
                };
                changes.extend(cluster.delete(&id));
            }
        }
    }
    changes
}

/// A history whose cluster has services.
pub(super) fn random(seed: u64) -> History {
    let mut history = History::new(seed);
    // Neighbouring seeds would give one sequence, shifted by one.
    history.rng = Rng::new(history.rng.next() ^ seed.rotate_left(SPREAD));
    let changes = change_services(&mut history.world.cluster, &mut history.rng, 12);
    let compiled = history.update(&changes, false);
    let applied = history.plan(&compiled.delta);
    assert_eq!(applied.problems, []);
    history.settle();
    history
}

/// What maps hold after a start from nothing over the same cluster.
pub(super) fn scratch(history: &History) -> Contents {
    let mut fresh = History::over(history, Contents::default());
    fresh.start();
    fresh.settle();
    fresh.recorder.now().clone()
}

/// One to `most` changes of services, endpoints, policies, labels, pods and their addresses, told at once.
pub(super) fn batch(history: &mut History, most: u64) -> (Vec<Change>, bool) {
    let rng = &mut history.rng;
    let count = 1 + rng.below(most);
    let services = (0..count).filter(|_| rng.chance(35)).count() as u64;
    let (mut changes, local) = history.world.change(rng, (count - services) as usize);
    changes.extend(change_services(&mut history.world.cluster, rng, services));
    (changes, local)
}

/// What is worth asking of a cluster.
pub(super) fn questions(worlds: &[&World]) -> Questions {
    let mut questions = Questions::default();
    for world in worlds {
        questions.ends.extend(world.ends());
    }
    for number in 0..PLACES {
        for family in FAMILIES {
            let address = address(family, number);
            questions.ends.insert(address);
            let keys = PORTS.map(|(_, protocol, port, _)| {
                ServiceKey::new(Address::from(address), port.to_be(), protocol.number())
            });
            questions.services.extend(keys);
        }
    }
    questions
}
