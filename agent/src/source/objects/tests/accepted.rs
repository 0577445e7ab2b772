//! What objects become: defaults, families, what is skipped.

use std::net::IpAddr;

use super::*;
use crate::model::{
    EndpointSlice, Family, Kind, Namespace, NetworkPolicy, Node, ObjectKey, Operator, Peer, Pod,
    PodPhase, PortSpec, Protocol, Service, TrafficPolicy,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

macro_rules! typed {
    ($name:ident, $kind:ident) => {
        fn $name(yaml: &str) -> $kind {
            match object(yaml) {
                Object::$kind(object) => (*object).clone(),
                other => panic!("another kind: {other:?}"),
            }
        }
    };
}
typed!(a_service, Service);
typed!(a_slice, EndpointSlice);
typed!(a_pod, Pod);
typed!(a_policy, NetworkPolicy);
typed!(a_node, Node);
typed!(a_namespace, Namespace);

#[test]
fn a_service_without_any_default() {
    let made = a_service(&service("clusterIP: 10.0.0.1, ports: [{port: 53}]"));
    assert_eq!(made.key, ObjectKey::new("default", "web"));
    assert_eq!(made.cluster_ips, [ip("10.0.0.1")]);
    assert_eq!(
        (
            made.ports[0].protocol,
            made.ports[0].port,
            made.ports[0].node_port
        ),
        (Protocol::Tcp, 53, 0)
    );
    assert_eq!(&*made.ports[0].name, "");
    assert_eq!(made.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(made.affinity_seconds, None);
}

#[test]
fn a_service_with_everything() {
    let made = a_service(
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, labels: {service.kubernetes.io/service-proxy-name: sluice}},
          spec: {type: LoadBalancer, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], externalIPs: [192.0.2.7, 192.0.2.7],
            internalTrafficPolicy: Local, externalTrafficPolicy: Local, healthCheckNodePort: 31000,
            sessionAffinity: ClientIP, loadBalancerSourceRanges: [' 198.51.100.77/24'],
            ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}, {name: dns-tcp, port: 53}]},
          status: {loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: VIP}, {ip: 203.0.113.2, ipMode: Proxy}, {hostname: lb.example}]}}}",
    );
    assert_eq!(made.cluster_ips, [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!(made.external_ips, [ip("192.0.2.7")]);
    assert_eq!(made.load_balancer_ips, [ip("203.0.113.1")]);
    assert_eq!(made.source_ranges, [(ip("198.51.100.0"), 24)]);
    assert_eq!(
        (made.internal_policy, made.external_policy),
        (TrafficPolicy::Local, TrafficPolicy::Local)
    );
    assert_eq!(made.affinity_seconds, Some(10_800));
    assert_eq!(made.health_check_node_port, 31_000);
    assert_eq!(made.ports[0].node_port, 30_053);
    assert_eq!(
        (made.ports[1].protocol, made.ports[1].port),
        (Protocol::Tcp, 53)
    );
}

#[test]
fn an_unusable_load_balancer_address_does_not_cost_the_service() {
    let made = converted(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]},
          status: {loadBalancer: {ingress: [{ip: 127.0.0.1}]}}}",
    );
    assert!(made.object.is_some());
    assert!(
        made.notices[0].contains("status.loadBalancer.ingress[0].ip"),
        "{:?}",
        made.notices
    );
}

#[test]
fn services_and_slices_that_are_not_for_us() {
    let label = |kind: &str, label: &str| {
        format!(
            "{{apiVersion: {}, kind: {kind}, addressType: IPv4, metadata: {{name: web, labels: {{kubernetes.io/service-name: web, {label}}}}}, \
             endpoints: [{{addresses: [10.0.0.1]}}]}}",
            if kind == "Service" { "v1" } else { "discovery.k8s.io/v1" },
        )
        .replace("Service, addressType: IPv4", "Service, spec: {ports: [{port: 0}]}")
    };
    let cases = [
        (service("clusterIP: None"), 0),
        (service("clusterIPs: [None], ports: [{port: 80}]"), 0),
        (service("type: ExternalName, externalName: example.com"), 0),
        (label("Service", "service.kubernetes.io/headless: ''"), 0),
        (label("Service", "service.kubernetes.io/service-proxy-name: other"), 0),
        (label("EndpointSlice", "service.kubernetes.io/headless: ''"), 0),
        (label("EndpointSlice", "service.kubernetes.io/service-proxy-name: other"), 0),
        (slice("addressType: FQDN, endpoints: [{addresses: [db.example]}]"), 1),
        ("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4}".to_owned(), 1),
    ];
    for (yaml, notices) in cases {
        let converted = converted(&yaml);
        assert_eq!(converted.object, None, "{yaml}");
        assert_eq!(
            converted.notices.len(),
            notices,
            "{yaml}: {:?}",
            converted.notices
        );
    }
}

#[test]
fn kinds_that_are_not_read() {
    for yaml in [
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}",
        "{apiVersion: v1, kind: Endpoints, metadata: {name: a}}",
        "{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}",
    ] {
        assert!(matches!(read(value(yaml)), Read::OtherKind(_)), "{yaml}");
    }
}

#[test]
fn a_slice_and_its_defaults() {
    let made = a_slice(&slice(
        "addressType: IPv4, ports: [{name: a, port: 80}, {name: all}, {name: none, port: 0}, {name: u, port: 53, protocol: UDP}],
         endpoints: [{addresses: [10.1.0.1, 10.1.0.2]},
           {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}, nodeName: n, zone: z,
            hints: {forZones: [{name: z}], forNodes: []}}]",
    ));
    assert_eq!(made.service, ObjectKey::new("default", "web"));
    assert_eq!(made.family, Family::V4);
    assert_eq!(
        made.ports
            .iter()
            .map(|p| (&*p.name, p.port))
            .collect::<Vec<_>>(),
        [("a", 80), ("u", 53)]
    );
    let [first, second] = &made.endpoints[..] else {
        panic!("two endpoints")
    };
    assert_eq!(first.address, ip("10.1.0.1"));
    assert_eq!(
        (first.ready, first.serving, first.terminating),
        (true, true, false)
    );
    assert_eq!(
        (second.ready, second.serving, second.terminating),
        (false, true, true)
    );
    let placement = &second.placement;
    assert_eq!(placement.node.as_deref(), Some("n"));
    assert_eq!(placement.hint_zones.as_ref().unwrap().len(), 1);
    assert_eq!(placement.hint_nodes, None);
}

#[test]
fn the_empty_slice_of_a_service_without_pods() {
    let made = a_slice(&slice("addressType: IPv6, endpoints: null, ports: []"));
    assert!(made.endpoints.is_empty() && made.ports.is_empty());
}

#[test]
fn a_v1beta1_slice_says_where_its_endpoints_are_in_topology() {
    let made = a_slice(
        &slice(
            "addressType: IPv4, ports: [{port: 80}], endpoints: [
               {addresses: [10.1.0.1], topology: {kubernetes.io/hostname: node-1, topology.kubernetes.io/zone: z-1}},
               {addresses: [10.1.0.2], nodeName: node-2, topology: {kubernetes.io/hostname: ignored}},
               {addresses: [10.1.0.3]}]",
        )
        .replace("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"),
    );
    let places: Vec<_> = made
        .endpoints
        .iter()
        .map(|e| &e.placement)
        .map(|at| (at.node.as_deref(), at.zone.as_deref()))
        .collect();
    assert_eq!(
        places,
        [
            (Some("node-1"), Some("z-1")),
            (Some("node-2"), None),
            (None, None)
        ]
    );
}

#[test]
fn a_pod_and_its_defaults() {
    let made = a_pod(&pod("status: {podIP: 10.1.0.1}"));
    assert_eq!(made.addresses, [ip("10.1.0.1")]);
    assert_eq!(&*made.service_account, "default");
    assert_eq!(
        (made.phase, made.terminating, made.host_network),
        (PodPhase::Live, false, false)
    );
    assert_eq!((made.node, made.created, made.any_source), (None, 0, false));
}

#[test]
fn a_pod_with_everything() {
    let made = a_pod(
        "{apiVersion: v1, kind: Pod,
          metadata: {name: web, namespace: shop, uid: u-1, creationTimestamp: '1970-01-01T00:01:00Z', deletionTimestamp: '2026-01-01T00:00:00Z',
            labels: {app: web}, annotations: {sluice.dev/source-check: 'false'}},
          spec: {nodeName: node-a, serviceAccountName: bot,
            initContainers: [{name: once, ports: [{name: init, containerPort: 1}]},
              {name: side, restartPolicy: Always, ports: [{name: mesh, containerPort: 15000}, {name: http, containerPort: 9}]}],
            containers: [{name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 1}, {name: http, containerPort: 53, protocol: UDP}]}]},
          status: {phase: Failed, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}}",
    );
    assert_eq!((made.created, &*made.uid), (60, "u-1"));
    assert_eq!(
        (made.phase, made.terminating, made.any_source),
        (PodPhase::Finished, true, true)
    );
    assert_eq!(made.addresses, [ip("10.1.0.1"), ip("fd00::1")]);
    let ports: Vec<_> = made
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 8080),
            ("http", Protocol::Udp, 53),
            ("mesh", Protocol::Tcp, 15_000)
        ]
    );
}

#[test]
fn a_host_network_pod_has_its_hosts_addresses() {
    let made = a_pod(&pod(
        "spec: {hostNetwork: true}, status: {hostIP: 192.0.2.1}",
    ));
    assert!(made.host_network);
    assert_eq!(made.addresses, [ip("192.0.2.1")]);
    let made = a_pod(&pod("status: {hostIP: 192.0.2.1}"));
    assert_eq!(
        made.addresses,
        [] as [IpAddr; 0],
        "a pod of its own network has none of its host's"
    );
}

#[test]
fn annotations_that_are_neither_true_nor_false() {
    let made = converted(
        "{apiVersion: v1, kind: Pod, metadata: {name: web, annotations: {sluice.dev/source-check: off}}}",
    );
    assert!(
        made.notices[0].contains("sluice.dev/source-check"),
        "{:?}",
        made.notices
    );
}

#[test]
fn policy_types_by_default() {
    let isolates = |spec: &str| {
        let made = a_policy(&policy(spec));
        (made.ingress.is_some(), made.egress.is_some())
    };
    assert_eq!(isolates(""), (true, false));
    assert_eq!(isolates("egress: [{}]"), (true, true));
    assert_eq!(
        isolates("egress: []"),
        (true, false),
        "as the API server defaults it"
    );
    assert_eq!(isolates("policyTypes: [], egress: [{}]"), (true, true));
    assert_eq!(
        isolates("policyTypes: [Egress], ingress: [{}]"),
        (false, true)
    );
    assert_eq!(isolates("policyTypes: [Egress]"), (false, true));
    assert_eq!(isolates("policyTypes: [Ingress, Egress]"), (true, true));
}

#[test]
fn rules_for_everyone_and_every_port() {
    let made = a_policy(&policy("ingress: [{}, {from: [], ports: []}]"));
    for rule in made.ingress.unwrap() {
        assert_eq!((rule.peers, rule.ports), (None, None));
    }
    assert_eq!(a_policy(&policy("ingress: []")).ingress.unwrap(), []);
}

#[test]
fn peers_and_ports() {
    let made = a_policy(&policy(
        "ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {b: '2', a: '1'}}},
            {namespaceSelector: {}, podSelector: {matchExpressions: [{key: k, operator: NotIn, values: [y, x, y]}]}},
            {ipBlock: {cidr: 10.9.8.7/8, except: [10.2.3.4/16, 10.1.0.0/16]}}],
          ports: [{}, {protocol: UDP}, {port: 80}, {port: 80, endPort: 90}, {port: http}, {protocol: SCTP, port: 7}]}]",
    ));
    let rule = &made.ingress.unwrap()[0];
    let peers = rule.peers.as_ref().unwrap();
    assert!(
        matches!(&peers[0], Peer::Pods { namespaces: None, pods } if pods.requirements.is_empty())
    );
    let Peer::Pods {
        namespaces: Some(namespaces),
        pods,
    } = &peers[1]
    else {
        panic!("pods")
    };
    assert_eq!(
        namespaces
            .requirements
            .iter()
            .map(|r| &*r.key)
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(pods.requirements.is_empty());
    let Peer::Pods {
        namespaces: Some(namespaces),
        pods,
    } = &peers[2]
    else {
        panic!("pods")
    };
    assert!(namespaces.requirements.is_empty());
    assert_eq!(pods.requirements[0].operator, Operator::NotIn);
    assert_eq!(
        pods.requirements[0]
            .values
            .iter()
            .map(|v| &**v)
            .collect::<Vec<_>>(),
        ["x", "y"]
    );
    let Peer::Block(block) = &peers[3] else {
        panic!("block")
    };
    assert_eq!((block.address, block.length), (ip("10.0.0.0"), 8));
    assert_eq!(block.except, [(ip("10.1.0.0"), 16), (ip("10.2.0.0"), 16)]);
    let ports: Vec<_> = rule
        .ports
        .as_ref()
        .unwrap()
        .iter()
        .map(|p| (p.protocol, p.port.clone()))
        .collect();
    assert_eq!(
        ports,
        [
            (Protocol::Tcp, PortSpec::All),
            (Protocol::Udp, PortSpec::All),
            (Protocol::Tcp, PortSpec::Range(80, 80)),
            (Protocol::Tcp, PortSpec::Range(80, 90)),
            (Protocol::Tcp, PortSpec::Named("http".into())),
            (Protocol::Sctp, PortSpec::Range(7, 7)),
        ]
    );
}

#[test]
fn an_audited_policy() {
    let yaml = policy("").replace(
        "name: web",
        "name: web, annotations: {sluice.dev/audit: 'true'}",
    );
    assert!(a_policy(&yaml).audit);
    assert!(!a_policy(&policy("")).audit);
}

#[test]
fn the_whole_address_space_is_a_block() {
    let made = a_policy(&policy(
        "egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]",
    ));
    let lengths: Vec<_> = made.egress.unwrap()[0]
        .peers
        .iter()
        .flatten()
        .map(|p| matches!(p, Peer::Block(b) if b.length == 0))
        .collect();
    assert_eq!(lengths, [true, true]);
}

#[test]
fn a_namespace_has_the_label_of_its_name() {
    let made = a_namespace(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a, kubernetes.io/metadata.name: wrong}}}",
    );
    assert_eq!(
        made.labels.get("kubernetes.io/metadata.name").map(|v| &**v),
        Some("shop")
    );
    assert_eq!(made.labels.len(), 2);
}

#[test]
fn node_addresses_and_its_leaving() {
    let made = converted(
        "{apiVersion: v1, kind: Node, metadata: {name: node-a, namespace: ignored, labels: {topology.kubernetes.io/zone: z}},
          spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]},
          status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 'fd00::1'},
            {type: Hostname, address: node-a}, {type: ExternalIP, address: 198.51.100.1}]}}",
    );
    assert_eq!(
        (made.id.kind, made.id.key),
        (Kind::Node, ObjectKey::new("", "node-a"))
    );
    let made = a_node(
        "{apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}",
    );
    assert_eq!(
        (made.internal_ips, made.leaving, made.zone),
        (vec![ip("192.0.2.1")], false, None)
    );
}
