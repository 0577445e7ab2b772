//! The shop, by hand: a client, a frontend, three backends (one on another node), a stranger, and a policy that lets only the
//! first two reach the backends. Both families.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_common::{
    Address, AddressEntry, Count, Event, LinkEntry, NO_BACKEND, Reason, ServiceKey, SetWord, Tuple,
    address_kind, backend_flag, backend_state, event_kind, hook, pod_flag, protocol, set_flag,
};
use futures::future::BoxFuture;

use crate::compile::{IpBlockMode, RuleName, UnknownPod};
use crate::datapath::drift::Part;
use crate::desired::{BackendSpec, Desired, EndpointSet, Frontend, Pool, PoolKey};
use crate::local::{Local, PodLink};
use crate::model::*;
use crate::observe::flows::{FlowHub, Record};
use crate::observe::state::*;
use crate::problem::Problem;
use crate::reconcile;
use crate::reconcile::DriftState;
use crate::source::Rejected;

/// 2026-11-21T14:41:05Z.
pub(crate) const NOW_SECONDS: u64 = 1_795_272_065;
/// Number of the rule `shop/backend-ingress ingress[0]`.
pub(crate) const RULE: u32 = 7;
/// Number of the default of `shop/backend-ingress`.
pub(crate) const DEFAULT: u32 = 8;

pub(crate) fn at(seconds_ago: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_SECONDS - seconds_ago)
}

/// The IPv4 and IPv6 address of a pod by its last byte.
fn addresses(last: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 244, 1, last]),
        format!("fd00:10:244:1::{last}").parse().unwrap(),
    ]
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| (intern(k), intern(v))).collect()
}

fn pod(namespace: &str, name: &str, app: &str, node: &str, last: u8) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: intern(name),
        created: 1,
        node: Some(intern(node)),
        host_network: false,
        phase: PodPhase::Live,
        terminating: false,
        addresses: addresses(last).to_vec(),
        labels: labels(&[("app", app), ("pod-template-hash", "5d4f")]),
        service_account: intern("default"),
        ports: Vec::new(),
        any_source: false,
    }
}

const PODS: [(&str, &str, &str, &str, u8); 6] = [
    ("shop", "client", "client", "node-a", 10),
    ("shop", "frontend", "frontend", "node-a", 20),
    ("shop", "backend-1", "backend", "node-a", 31),
    ("shop", "backend-2", "backend", "node-a", 32),
    ("shop", "backend-3", "backend", "node-b", 33),
    ("other", "stranger", "stranger", "node-a", 40),
];

fn app_in(values: &[&str]) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: intern("app"),
            operator: Operator::In,
            values: values.iter().map(|v| intern(v)).collect(),
        }],
    }
}

fn policy(name: &str, selects: &str, audit: bool) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey::new("shop", name),
        selector: app_in(&[selects]),
        ingress: Some(vec![PolicyRule {
            peers: Some(vec![Peer::Pods {
                namespaces: None,
                pods: app_in(&["client", "frontend"]),
            }]),
            ports: Some(vec![PortMatch {
                protocol: Protocol::Tcp,
                port: PortSpec::Named(intern("http")),
            }]),
        }]),
        egress: audit.then(Vec::new),
        audit,
    }
}

fn service(name: &str, last: u8) -> Service {
    Service {
        key: ObjectKey::new("shop", name),
        cluster_ips: vec![
            IpAddr::from([10, 96, 0, last]),
            format!("fd00:10:96::{last}").parse().unwrap(),
        ],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: intern("web"),
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

fn node(name: &str, last: u8) -> Node {
    Node {
        name: intern(name),
        internal_ips: vec![
            IpAddr::from([192, 168, 50, last]),
            format!("fd00:50::{last}").parse().unwrap(),
        ],
        external_ips: Vec::new(),
        zone: None,
        leaving: false,
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let mut add = |object| drop(cluster.upsert(object));
    for name in ["shop", "other"] {
        add(Object::Namespace(Arc::new(Namespace {
            name: intern(name),
            labels: labels(&[("team", name)]),
        })));
    }
    add(Object::Node(Arc::new(node("node-a", 11))));
    add(Object::Node(Arc::new(node("node-b", 12))));
    for (namespace, name, app, node, last) in PODS {
        add(Object::Pod(Arc::new(pod(namespace, name, app, node, last))));
    }
    let waiting = Pod {
        addresses: Vec::new(),
        ..pod("other", "waiting", "stranger", "node-a", 41)
    };
    add(Object::Pod(Arc::new(waiting)));
    add(Object::Service(Arc::new(service("backend", 10))));
    add(Object::Service(Arc::new(service("empty", 30))));
    add(Object::NetworkPolicy(Arc::new(policy(
        "backend-ingress",
        "backend",
        false,
    ))));
    add(Object::NetworkPolicy(Arc::new(policy(
        "orphan", "nobody", true,
    ))));
    cluster
}

fn local() -> Local {
    let mut local = Local::default();
    let veth = |ifindex: u32, addresses: &[IpAddr]| PodLink {
        ifindex,
        name: format!("veth{ifindex}"),
        host_mac: [2, 0, 0, 0, 0, 1],
        pod_mac: None,
        addresses: addresses.iter().copied().collect(),
        peer_namespace: Some(0),
    };
    for (_, _, _, _, last) in PODS.iter().filter(|pod| pod.3 == "node-a") {
        let ifindex = u32::from(*last);
        local.pods.insert(ifindex, veth(ifindex, &addresses(*last)));
    }
    local.pods.insert(99, veth(99, &addresses(99)[..1]));
    local.uplinks.insert(2, "eth0".to_owned());
    for address in ["127.0.0.1", "192.168.50.11", "fd00:50::11"] {
        local.addresses.insert(address.parse().unwrap());
    }
    local
}

fn desired(cluster: &Cluster) -> Desired {
    let mut desired = Desired::default();
    for service in cluster.services.values() {
        for address in &service.cluster_ips {
            let pool = PoolKey {
                service: service.key.clone(),
                port: intern("web"),
                protocol: Protocol::Tcp,
                family: Family::of(address),
                set: EndpointSet::Cluster,
            };
            let key = ServiceKey::new(Address::from(*address), 80_u16.to_be(), protocol::TCP);
            let backends = if &*service.key.name == "backend" {
                backends(pool.family)
            } else {
                Sorted::default()
            };
            desired.pools.insert(pool.clone(), Pool { backends });
            desired.frontends.insert(key, Frontend { pool, flags: 0 });
        }
    }
    for (slot, (_, _, app, node, last)) in (0_u16..).zip(PODS) {
        if node != "node-a" {
            continue;
        }
        let ifindex = u32::from(last);
        let isolated = SetWord {
            set: 3,
            flags: set_flag::ISOLATED,
        };
        let spec = agent_common::Pod {
            ifindex,
            flags: pod_flag::USED | pod_flag::REDIRECT,
            ingress: if app == "backend" {
                isolated
            } else {
                SetWord::default()
            },
            ..Default::default()
        };
        desired.pods.insert(u32::from(slot), spec);
        desired.links.insert(
            ifindex,
            LinkEntry {
                slot: u32::from(slot),
                _zero: 0,
            },
        );
        for address in addresses(last).map(Address::from) {
            let entry = AddressEntry {
                identity: u32::from(last / 10),
                slot,
                kind: address_kind::LOCAL_POD,
                check: address.check(),
            };
            desired.addresses.insert(address, entry);
        }
    }
    desired
}

/// One is terminating and not chosen, so that both show.
fn backends(family: Family) -> Sorted<(IpAddr, u16), BackendSpec> {
    let backend = |last| {
        let address = addresses(last)[usize::from(family == Family::V6)];
        let spec = BackendSpec {
            state: if last == 33 {
                backend_state::TERMINATING
            } else {
                backend_state::SERVING
            },
            flags: if last == 33 { 0 } else { backend_flag::LOCAL },
            chosen: last != 33,
        };
        ((address, 8080), spec)
    };
    [31, 32, 33].into_iter().map(backend).collect()
}

/// The whole picture.
pub(crate) fn state() -> State {
    let cluster = cluster();
    let policies = ObjectKey::new("shop", "backend-ingress");
    let rules = BTreeMap::from([
        (
            RULE,
            RuleName::Rule {
                policy: policies.clone(),
                direction: Direction::Ingress,
                index: 0,
            },
        ),
        (
            DEFAULT,
            RuleName::Default {
                policies: vec![policies],
                direction: Direction::Ingress,
            },
        ),
    ]);
    let seen = reconcile::State {
        desired: desired(&cluster),
        cluster,
        local: local(),
        rules,
        ..Default::default()
    };
    State {
        node: intern("node-a"),
        seen: Arc::new(seen),
    }
}

/// The small picture, of a node that has had some trouble.
pub(crate) fn summary() -> Summary {
    let source = |kind| SourceState {
        name: "manifests".to_owned(),
        kind,
        synced: true,
        stale_since: (kind == Kind::Pod).then(|| at(150)),
        reason: if kind == Kind::Pod {
            "/etc/sluice: No such file or directory"
        } else {
            ""
        }
        .to_owned(),
    };
    let pod = |ifindex| AttachedTo::Pod {
        interface: format!("veth{ifindex}"),
        ifindex,
    };
    let attached = |to, hook, mode| Attachment { to, hook, mode };
    let uplink = AttachedTo::Uplink {
        interface: "eth0".to_owned(),
        ifindex: 2,
    };
    let cgroup = AttachedTo::Cgroup {
        path: "/sys/fs/cgroup".into(),
    };
    let told = |kind: Kind, name: &str, reason: &str| {
        let id = ObjectId {
            kind,
            key: ObjectKey::new("shop", name),
        };
        Rejected {
            object: id.to_string(),
            id: Some(id),
            reason: reason.to_owned(),
        }
    };
    Summary {
        node: intern("node-a"),
        waiting_for: vec!["manifests, lost since 2026-11-21T14:38:35.000Z (Pod)".to_owned()],
        started: at(3_700),
        ip_block_mode: IpBlockMode::Literal,
        unknown_pod: UnknownPod::Allow,
        sources: Kind::ALL.map(source).to_vec(),
        rejected: vec![told(
            Kind::Service,
            "broken",
            "spec.clusterIPs[0]: `10.96.0` is no IP address",
        )],
        notices: vec![told(
            Kind::NetworkPolicy,
            "orphan",
            "selects no pod of the cluster",
        )],
        problems: vec![Problem::full("Service shop/empty", "services", 4)],
        applied: Some(Applied {
            at: at(2),
            duration: Duration::from_micros(1_250),
            writes: 34,
        }),
        writes: 1_234,
        attached: vec![
            attached(cgroup, hook::SOCKET, AttachMode::Cgroup),
            attached(uplink, hook::FROM_UPLINK, AttachMode::Tcx),
            attached(pod(10), hook::FROM_POD, AttachMode::Tcx),
            attached(pod(10), hook::TO_POD, AttachMode::Tcx),
            attached(pod(99), hook::FROM_POD, AttachMode::Clsact),
        ],
        maps: vec![
            MapUse {
                name: "services".to_owned(),
                entries: 4,
                capacity: 131_072,
            },
            MapUse {
                name: "conntrack".to_owned(),
                entries: 131_072,
                capacity: 262_144,
            },
        ],
        drift: DriftState {
            checked: Some(at(230)),
            repaired: BTreeMap::from([(Part::Attachment, 2), (Part::Map, 1)]),
            last: Some((
                at(200),
                "interface veth32: its program at the Ingress side was gone".to_owned(),
            )),
        },
        counters: CounterState {
            drops: vec![
                DropCount {
                    hook: hook::FROM_POD,
                    reason: Reason::PolicyIngress,
                    packets: 12,
                    bytes: 888,
                },
                DropCount {
                    hook: hook::FROM_POD,
                    reason: Reason::Malformed,
                    packets: 0,
                    bytes: 0,
                },
                DropCount {
                    hook: hook::SOCKET,
                    reason: Reason::NoEndpoint,
                    packets: 1,
                    bytes: 0,
                },
            ],
            counts: Count::ALL
                .iter()
                .map(|count| (*count, *count as u64))
                .collect(),
        },
        flows: FlowState {
            share_percent: 50,
            share: 65_536,
            held: vec![
                FlowShare {
                    slot: 1,
                    flows: 65_536,
                },
                FlowShare {
                    slot: 4_095,
                    flows: 3,
                },
            ],
            tables: [("conntrack", 40, 0), ("unreplied", 12, 7)]
                .map(|(map, expired, evicted)| FlowTable {
                    map,
                    expired,
                    evicted,
                })
                .into(),
            pass: Duration::from_millis(12),
            passes: Duration::from_millis(1_500),
        },
    }
}

/// An event between two addresses of pods (IPv4 or IPv6 by `family`), through the service of the backends where `to` is one.
fn event(kind: u8, from: u8, to: u8, family: Family) -> Event {
    let pick = |pair: [IpAddr; 2]| Address::from(pair[usize::from(family == Family::V6)]);
    let backend = pick(addresses(to));
    let vip = pick([
        IpAddr::from([10, 96, 0, 10]),
        "fd00:10:96::10".parse().unwrap(),
    ]);
    Event {
        time_ns: 0,
        tuple: Tuple {
            source: pick(addresses(from)),
            destination: vip,
            source_port_be: 40_000_u16.to_be(),
            destination_port_be: 80_u16.to_be(),
            protocol: protocol::TCP,
            _zero: [0; 3],
        },
        translated: backend,
        translated_port_be: 8_080_u16.to_be(),
        kind,
        reason: 0,
        egress_rule: 0,
        ingress_rule: 0,
        ifindex: u32::from(from),
        length: 74,
        service: 1,
        backend: 1,
        hook: 0,
        tcp_flags: 2,
        _zero: [0; 2],
    }
}

/// The stranger meets the policy.
pub(crate) fn drop_event() -> Event {
    Event {
        reason: Reason::PolicyIngress as u8,
        ingress_rule: DEFAULT,
        ..event(event_kind::DROP, 40, 31, Family::V4)
    }
}

/// The client comes through.
pub(crate) fn allow_event() -> Event {
    Event {
        ingress_rule: RULE,
        ..event(event_kind::ALLOW, 10, 32, Family::V6)
    }
}

/// The client asks the service without endpoints.
pub(crate) fn reject_event() -> Event {
    let mut event = event(event_kind::REJECT, 10, 31, Family::V4);
    event.reason = Reason::NoEndpoint as u8;
    event.tuple.destination = Address::from(IpAddr::from([10, 96, 0, 30]));
    event.translated = event.tuple.destination;
    event.translated_port_be = event.tuple.destination_port_be;
    event.service = NO_BACKEND;
    event.backend = NO_BACKEND;
    event
}

/// An outsider's ping, passed only because of an audited policy that is gone since.
pub(crate) fn audit_event() -> Event {
    let mut event = event(event_kind::AUDIT, 10, 20, Family::V6);
    event.tuple.source = Address::from("2001:db8::7".parse::<IpAddr>().unwrap());
    event.tuple.destination = event.translated;
    event.tuple.protocol = protocol::ICMPV6;
    event.tuple.destination_port_be = 0;
    event.translated_port_be = 0;
    event.tcp_flags = 0;
    event.ingress_rule = 99;
    event.ifindex = 2;
    event.hook = 2;
    event
}

/// One of each, a second apart.
pub(crate) fn records() -> Vec<Record> {
    let events = [drop_event(), reject_event(), audit_event(), allow_event()];
    let times = (0..).map(|n| at(10 - n));
    times
        .zip(events)
        .map(|(at, event)| Record { at, event })
        .collect()
}

/// A provider of all this.
pub(crate) struct Shop {
    pub(crate) hub: FlowHub,
    state: Arc<State>,
}

impl Shop {
    pub(crate) fn new(hub: FlowHub) -> Arc<Self> {
        Arc::new(Self {
            hub,
            state: Arc::new(state()),
        })
    }
}

impl Provider for Shop {
    fn summary(&self) -> Summary {
        summary()
    }

    fn state(&self) -> BoxFuture<'_, Option<Arc<State>>> {
        Box::pin(std::future::ready(Some(Arc::clone(&self.state))))
    }

    fn revision(&self) -> u64 {
        0
    }

    fn flows(&self) -> &FlowHub {
        &self.hub
    }
}
