//! Compiled services against the oracle, and step by step against from scratch.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::desired::Desired;
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, Node, Placement, Protocol, ServicePort, intern,
};
use crate::oracle::services::{ServiceAnswer, backends};

fn options() -> ServiceOptions {
    ServiceOptions {
        node_name: intern("n0"),
    }
}

fn texts(prefix: &str, bits: u8) -> Option<Vec<Text>> {
    (bits != 0).then(|| {
        let all = (0..3).filter(|b| bits >> b & 1 == 1);
        all.map(|b| intern(&format!("{prefix}{b}"))).collect()
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let hints = (0u8..6, 0u8..6);
    (1u8..5, any::<(bool, bool, bool)>(), 0u8..3, hints).prop_map(|(last, c, node, hints)| {
        Endpoint {
            address: [10, 0, 0, last].into(),
            ready: c.0,
            serving: c.1,
            terminating: c.2,
            placement: Arc::new(Placement {
                node: Some(intern(&format!("n{node}"))),
                zone: None,
                hint_nodes: texts("n", hints.0),
                hint_zones: texts("z", hints.1),
            }),
        }
    })
}

/// A service of one TCP port, 80.
pub(crate) fn plain(name: &str, address: [u8; 4]) -> Service {
    Service {
        key: ObjectKey::new("d", name),
        cluster_ips: vec![address.into()],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        ports: vec![ServicePort {
            name: intern("p"),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        health_check_node_port: 0,
    }
}

fn object() -> impl Strategy<Value = Object> {
    let slice = (0u8..3, 0u8..2, proptest::collection::vec(endpoint(), 0..4)).prop_map(
        |(name, service, endpoints)| {
            Object::EndpointSlice(Arc::new(EndpointSlice {
                key: ObjectKey::new("d", &format!("e{name}")),
                service: ObjectKey::new("d", &format!("s{service}")),
                family: Family::V4,
                endpoints,
                ports: vec![EndpointPort {
                    name: intern("p"),
                    protocol: Protocol::Tcp,
                    port: 8080,
                }],
            }))
        },
    );
    let service = (0u8..2, 0u8..2, any::<bool>()).prop_map(|(name, ip, local)| {
        Object::Service(Arc::new(Service {
            internal_policy: if local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            },
            ..plain(&format!("s{name}"), [172, 16, 0, ip])
        }))
    });
    let node = proptest::option::of(0u8..3).prop_map(|zone| {
        Object::Node(Arc::new(Node {
            name: intern("n0"),
            internal_ips: vec![],
            external_ips: vec![],
            zone: zone.map(|z| intern(&format!("z{z}"))),
            leaving: false,
        }))
    });
    prop_oneof![5 => slice, 3 => service, 1 => node]
}

fn answer(desired: &Desired, ip: [u8; 4]) -> ServiceAnswer {
    let key = ServiceKey::new(Address::v4(ip), 80u16.to_be(), Protocol::Tcp.number());
    let Some(frontend) = desired.frontends.get(&key) else {
        return ServiceAnswer::NotAService;
    };
    let pool = desired.pools[&frontend.pool].backends.iter();
    let set: BTreeSet<_> = pool
        .filter(|(_, b)| b.chosen)
        .map(|(key, _)| *key)
        .collect();
    match (
        set.is_empty(),
        frontend.flags & service_flag::DROP_WHEN_EMPTY,
    ) {
        (false, _) => ServiceAnswer::Backends(set),
        (true, 0) => ServiceAnswer::NoEndpoint,
        (true, _) => ServiceAnswer::NoLocalEndpoint,
    }
}

proptest! {
    #[test]
    fn each_step_gives_what_scratch_gives_and_the_oracle_says(
        steps in proptest::collection::vec((object(), any::<bool>()), 1..40),
    ) {
        let (mut cluster, mut services, mut desired) = (Cluster::default(), Services::default(), Desired::default());
        for (object, delete) in steps {
            let change = if delete { cluster.delete(&object.id()) } else { cluster.upsert(object) };
            let (mut delta, mut problems) = (Delta::default(), Vec::new());
            let changes: Vec<Change> = change.into_iter().collect();
            services.update(&cluster, &changes, &options(), &mut delta, &mut problems);
            desired.merge(&delta);
            let (mut scratch, mut all, mut again) = (Desired::default(), Delta::default(), Vec::new());
            Services::default().update(&cluster, &[], &options(), &mut all, &mut again);
            scratch.merge(&all);
            prop_assert_eq!(&desired, &scratch);
            prop_assert_eq!(problems, again);
            for last in 0..2 {
                let ip = [172, 16, 0, last];
                let said = backends(&cluster, "n0", ip.into(), 80, Protocol::Tcp);
                prop_assert_eq!(answer(&desired, ip), said);
            }
        }
    }
}

#[test]
fn what_is_compiled_again_and_is_the_same_is_not_held_twice() {
    let slice = EndpointSlice {
        key: ObjectKey::new("d", "e"),
        service: ObjectKey::new("d", "s"),
        family: Family::V4,
        endpoints: vec![Endpoint {
            address: [10, 0, 0, 1].into(),
            ready: true,
            serving: true,
            terminating: false,
            placement: Arc::default(),
        }],
        ports: vec![EndpointPort {
            name: intern("p"),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
    };
    let node = |zone| {
        Object::Node(Arc::new(Node {
            name: intern("n0"),
            internal_ips: vec![],
            external_ips: vec![],
            zone: Some(intern(zone)),
            leaving: false,
        }))
    };
    let mut cluster = Cluster::default();
    let mut services = Services::default();
    let mut desired = Desired::default();
    let objects = [
        Object::Service(Arc::new(plain("s", [172, 16, 0, 0]))),
        Object::EndpointSlice(Arc::new(slice)),
        node("a"),
        // Another zone: every service is compiled again.
        node("b"),
    ];
    for object in objects {
        let changes: Vec<Change> = cluster.upsert(object).into_iter().collect();
        let mut delta = Delta::default();
        services.update(&cluster, &changes, &options(), &mut delta, &mut Vec::new());
        desired.merge(&delta);
    }
    let (name, held) = desired.pools.first_key_value().unwrap();
    let output = &services.outputs[&name.service];
    assert!(output.pools.get(name).unwrap().backends.is(&held.backends));
    assert_eq!((services.compiled, held.backends.len()), (4, 1));
}

#[test]
fn an_endpoint_among_ten_thousand_services_compiles_one() {
    const SERVICES: u32 = 10_000;
    let mut cluster = Cluster::default();
    let mut changes = Vec::new();
    let slice = |number: u32, last: u8| {
        Object::EndpointSlice(Arc::new(EndpointSlice {
            key: ObjectKey::new("d", &format!("e{number}")),
            service: ObjectKey::new("d", &format!("s{number}")),
            family: Family::V4,
            endpoints: vec![Endpoint {
                address: [10, 0, 0, last].into(),
                ready: true,
                serving: true,
                terminating: false,
                placement: Arc::default(),
            }],
            ports: vec![EndpointPort {
                name: intern("p"),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
        }))
    };
    for number in 0..SERVICES {
        let [_, _, high, low] = number.to_be_bytes();
        let service = plain(&format!("s{number}"), [172, 16, high, low]);
        changes.extend(cluster.upsert(Object::Service(Arc::new(service))));
        changes.extend(cluster.upsert(slice(number, 1)));
    }
    let mut services = Services::default();
    let (mut delta, mut problems) = (Delta::default(), Vec::new());
    services.update(&cluster, &changes, &options(), &mut delta, &mut problems);
    assert_eq!(
        (delta.frontends.len(), problems.len()),
        (SERVICES as usize, 0)
    );
    let compiled = services.compiled;
    let change: Vec<Change> = cluster.upsert(slice(7, 2)).into_iter().collect();
    let mut delta = Delta::default();
    services.update(&cluster, &change, &options(), &mut delta, &mut problems);
    assert_eq!(services.compiled, compiled + 1);
    assert_eq!((delta.frontends.len(), delta.pools.len()), (0, 1));
}
