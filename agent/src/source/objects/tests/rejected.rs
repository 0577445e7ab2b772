//! Every rejection: the object is named, the field is named, and the text says what to do.

use super::*;

/// Asserts that each object is rejected with a reason that has all the words, among them the field.
fn table(cases: &[(String, &[&str])]) {
    for (yaml, words) in cases {
        let rejected = rejected(yaml);
        for word in *words {
            assert!(
                rejected.reason.contains(word),
                "{word:?} is not in {:?}, for {yaml}",
                rejected.reason
            );
        }
        assert!(
            rejected.object.contains("web"),
            "{rejected} does not name {yaml}"
        );
        assert!(rejected.id.is_some(), "{rejected} has no id, for {yaml}");
    }
}

#[test]
fn services() {
    let with_ports = |ports: &str| service(&format!("clusterIP: 10.0.0.1, ports: [{ports}]"));
    let with = |fields: &str| {
        service(&format!(
            "clusterIP: 10.0.0.1, ports: [{{port: 80}}], {fields}"
        ))
    };
    let with_ip = |ips: &str| service(&format!("{ips}, ports: [{{port: 80}}]"));
    table(&[
        (
            with_ip("clusterIP: 10.0.0.300"),
            &["spec.clusterIP", "no IP address"],
        ),
        (
            with_ip("clusterIP: 010.0.0.1"),
            &["spec.clusterIP", "leading zeros"],
        ),
        (
            with_ip("clusterIP: '::ffff:10.0.0.1'"),
            &["IPv4-mapped", "write 10.0.0.1"],
        ),
        (
            with_ip("clusterIP: 0.0.0.0"),
            &["spec.clusterIP", "unspecified"],
        ),
        (with_ip("clusterIP: 127.0.0.1"), &["loopback"]),
        (with_ip("clusterIP: 224.0.0.1"), &["multicast"]),
        (with_ip("clusterIP: 255.255.255.255"), &["broadcast"]),
        (
            with_ip("clusterIPs: [10.0.0.1, 10.0.0.2]"),
            &["spec.clusterIPs[1]", "same family as 10.0.0.1"],
        ),
        (
            with_ip("clusterIPs: ['fd00::1', 10.0.0.1, 'fd00::2']"),
            &["spec.clusterIPs[2]", "same family"],
        ),
        (
            with_ip("clusterIP: 10.0.0.2, clusterIPs: [10.0.0.1]"),
            &["spec.clusterIP", "not spec.clusterIPs[0]"],
        ),
        (
            with_ip("type: ClusterIP"),
            &["spec.clusterIP", "missing", "write an address"],
        ),
        (with_ip("clusterIP: ''"), &["spec.clusterIP", "missing"]),
        (service("clusterIP: 10.0.0.1"), &["spec.ports", "no port"]),
        (
            with_ports("{port: 0}"),
            &["spec.ports[0].port", "1 to 65535"],
        ),
        (
            with_ports("{name: a}"),
            &["spec.ports[0].port", "0 is no port"],
        ),
        (
            with_ports("{port: 65536}"),
            &["spec.ports[0].port", "65536"],
        ),
        (with_ports("{port: -1}"), &["spec.ports[0].port", "-1"]),
        (
            with_ports("{port: http}"),
            &["spec.ports[0].port", "invalid type"],
        ),
        (
            with_ports("{port: 80, nodePort: 70000}"),
            &["spec.ports[0].nodePort", "70000"],
        ),
        (
            with_ports("{port: 80, protocol: ICMP}"),
            &["spec.ports[0].protocol", "ICMP", "SCTP"],
        ),
        (
            with_ports("{name: a, port: 80}, {port: 81}"),
            &["spec.ports[1].name", "missing"],
        ),
        (
            with_ports("{name: a, port: 80}, {name: a, port: 81}"),
            &["spec.ports[1].name", "unique"],
        ),
        (
            with_ports("{name: a, port: 80}, {name: b, port: 80}"),
            &["spec.ports[1].port", "TCP 80", "twice"],
        ),
        (
            with("type: Internal"),
            &["spec.type", "Internal", "NodePort"],
        ),
        (
            with("internalTrafficPolicy: Near"),
            &["spec.internalTrafficPolicy", "Near"],
        ),
        (
            with("externalTrafficPolicy: Near"),
            &["spec.externalTrafficPolicy", "Near"],
        ),
        (
            with("sessionAffinity: Cookie"),
            &["spec.sessionAffinity", "ClientIP"],
        ),
        (
            with(
                "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            ),
            &[
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                "86401",
            ],
        ),
        (
            with("externalIPs: [192.0.2.1, 169.254.1.1]"),
            &["spec.externalIPs[1]", "link-local"],
        ),
        (
            with("loadBalancerSourceRanges: [10.0.0.0]"),
            &["spec.loadBalancerSourceRanges[0]", "no CIDR"],
        ),
        (
            with("healthCheckNodePort: 99999"),
            &["spec.healthCheckNodePort", "99999"],
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: web}}".to_owned(),
            &["spec", "missing"],
        ),
    ]);
}

#[test]
fn slices() {
    let port = "ports: [{port: 8080}]";
    let v4 = |endpoints: &str| {
        slice(&format!(
            "addressType: IPv4, {port}, endpoints: [{endpoints}]"
        ))
    };
    let ports = |ports: &str| {
        slice(&format!(
            "addressType: IPv4, endpoints: [{{addresses: [10.1.0.1]}}], ports: {ports}"
        ))
    };
    table(&[
        (
            v4("{addresses: [10.1.0.1]}, {addresses: [banana]}"),
            &["endpoints[1].addresses[0]", "banana"],
        ),
        (
            v4("{addresses: ['fd00::1']}"),
            &["endpoints[0].addresses[0]", "IPv4"],
        ),
        (v4("{addresses: []}"), &["endpoints[0].addresses", "empty"]),
        (v4("{}"), &["endpoints[0].addresses", "empty"]),
        (
            v4("{addresses: [127.0.0.1]}"),
            &["endpoints[0].addresses[0]", "loopback"],
        ),
        (v4("{addresses: [169.254.0.1]}"), &["link-local"]),
        (
            slice(&format!(
                "addressType: IPv6, {port}, endpoints: [{{addresses: ['fe80::1']}}]"
            )),
            &["endpoints[0].addresses[0]", "link-local"],
        ),
        (
            slice(&format!(
                "addressType: IPv6, {port}, endpoints: [{{addresses: ['::ffff:10.1.0.1']}}]"
            )),
            &["endpoints[0].addresses[0]", "IPv4-mapped"],
        ),
        (ports("[{port: 70000}]"), &["ports[0].port", "70000"]),
        (
            ports("[{port: 80, protocol: QUIC}]"),
            &["ports[0].protocol", "QUIC"],
        ),
        (
            ports("[{name: a, port: 80}, {name: a, port: 81}]"),
            &["ports[1].name", "unique"],
        ),
        (ports("[]"), &["ports", "no port has a number"]),
        (ports("null"), &["ports", "no port has a number"]),
        (
            ports("[{name: a}, {name: b, port: 0}]"),
            &["ports", "no port has a number"],
        ),
        (slice("addressType: IPv5"), &["addressType", "IPv5", "IPv6"]),
        (slice("endpoints: []"), &["addressType"]),
    ]);
}

#[test]
fn pods() {
    let container = |ports: &str| {
        pod(&format!(
            "spec: {{containers: [{{name: c, ports: [{ports}]}}]}}"
        ))
    };
    table(&[
        (
            pod("status: {podIPs: [{ip: 10.1.0.1}, {ip: nowhere}]}"),
            &["status.podIPs[1]", "nowhere"],
        ),
        (
            pod("status: {podIPs: [{ip: 10.1.0.1}, {ip: 10.1.0.2}]}"),
            &["status.podIPs[1]", "same family"],
        ),
        (
            pod("status: {podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.1}]}"),
            &["status.podIP", "status.podIPs[0]"],
        ),
        (
            pod("status: {podIP: '::ffff:1.2.3.4'}"),
            &["status.podIP", "IPv4-mapped"],
        ),
        (
            pod("status: {phase: Sleeping}"),
            &["status.phase", "Sleeping"],
        ),
        (
            container("{containerPort: 0}"),
            &["spec.containers[0].ports[0].containerPort", "0 is no port"],
        ),
        (
            container("{containerPort: 80, name: UPPER}"),
            &["spec.containers[0].ports[0].name", "UPPER"],
        ),
        (
            container("{containerPort: 80, protocol: tcp}"),
            &["spec.containers[0].ports[0].protocol", "tcp"],
        ),
        (
            pod("spec: {containers: 7}"),
            &["spec.containers", "invalid type"],
        ),
    ]);
}

#[test]
fn policies() {
    let peer = |peer: &str| policy(&format!("ingress: [{{from: [{peer}]}}]"));
    let to_port = |port: &str| policy(&format!("egress: [{{ports: [{port}]}}]"));
    let expression = |e: &str| peer(&format!("{{podSelector: {{matchExpressions: [{{{e}}}]}}}}"));
    let field = "spec.ingress[0].from[0]";
    let requirement = "spec.ingress[0].from[0].podSelector.matchExpressions[0]";
    let port = "spec.egress[0].ports[0]";
    table(&[
        (peer("{}"), &[field, "nothing in it"]),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"),
            &[field, "two peers"],
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0}}"),
            &[field, ".ipBlock.cidr", "no CIDR"],
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/33}}"),
            &[".ipBlock.cidr", "10.0.0.0/33"],
        ),
        (peer("{ipBlock: {cidr: 10.0.0.0/08}}"), &[".ipBlock.cidr"]),
        (peer("{ipBlock: {cidr: 10.0.0.0/+8}}"), &[".ipBlock.cidr"]),
        (peer("{ipBlock: {cidr: 'fd00::/129'}}"), &[".ipBlock.cidr"]),
        (
            peer("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}"),
            &[".ipBlock.cidr", "IPv4-mapped"],
        ),
        (peer("{ipBlock: {}}"), &[".ipBlock.cidr"]),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}"),
            &[".except[1]", "inside 10.0.0.0/8"],
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"),
            &[".except[0]", "smaller"],
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}"),
            &[".except[0]"],
        ),
        (
            peer("{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}"),
            &[".except[0]"],
        ),
        (
            expression("key: a, operator: Like, values: [b]"),
            &[requirement, ".operator", "Like", "DoesNotExist"],
        ),
        (
            expression("key: a, operator: In"),
            &[requirement, ".values", "at least one"],
        ),
        (
            expression("key: a, operator: NotIn, values: []"),
            &[requirement, ".values", "at least one"],
        ),
        (
            expression("key: a, operator: Exists, values: [b]"),
            &[requirement, ".values", "no values"],
        ),
        (
            expression("key: 'a b', operator: Exists"),
            &[requirement, ".key", "label key"],
        ),
        (
            expression("key: a, operator: In, values: ['x y']"),
            &[requirement, ".values", "label value"],
        ),
        (to_port("{port: 0}"), &[port, ".port", "0 is no port"]),
        (to_port("{port: 65536}"), &[port, ".port", "65536"]),
        (to_port("{port: '80'}"), &[port, ".port", "without quotes"]),
        (to_port("{port: way-too-long-a-name}"), &[port, ".port"]),
        (
            to_port("{port: 80, protocol: ICMP}"),
            &[port, ".protocol", "ICMP"],
        ),
        (
            to_port("{endPort: 90}"),
            &[port, ".endPort", "numeric port"],
        ),
        (
            to_port("{port: http, endPort: 90}"),
            &[port, ".endPort", "numeric port"],
        ),
        (
            to_port("{port: 80, endPort: 79}"),
            &[port, ".endPort", "below"],
        ),
        (
            to_port("{port: 80, endPort: 65536}"),
            &[port, ".endPort", "65536"],
        ),
        (
            policy("policyTypes: [Ingres]"),
            &["spec.policyTypes[0]", "Ingres"],
        ),
        (
            policy("ingress: [{port: [{port: 80}]}]"),
            &["spec.ingress[0].port", "unknown field"],
        ),
        (policy("ingres: []"), &["spec.ingres", "unknown field"]),
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web}}"
                .to_owned(),
            &["spec", "missing"],
        ),
    ]);
}

#[test]
fn metadata() {
    table(&[
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {'-a': b}}}".to_owned(),
            &["metadata.labels", "-a"],
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {version: 1}}}".to_owned(),
            &["metadata.labels.version", "expected a string"],
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: web, labels: {a: 'ü'}}}".to_owned(),
            &["metadata.labels[a]"],
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: web}, status: {addresses: [{type: InternalIP, address: x}]}}".to_owned(),
            &["status.addresses[0].address"],
        ),
        (
            "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: web}}".to_owned(),
            &["apiVersion", "extensions/v1beta1", "networking.k8s.io/v1"],
        ),
        (
            "{apiVersion: v2, kind: Pod, metadata: {name: web}}".to_owned(),
            &["apiVersion", "v2", "write v1"],
        ),
    ]);
}

#[test]
fn objects_that_cannot_be_named() {
    let cases = [
        (
            "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, generateName: a-}}",
            "metadata.name: it is missing",
        ),
        (
            "{apiVersion: v1, kind: Pod}",
            "metadata.name: it is missing",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a/b}}",
            "metadata.name: \"a/b\"",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: A}}",
            "metadata.name: \"A\"",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ../b}}",
            "metadata.namespace",
        ),
        ("{apiVersion: v1, metadata: {name: a}}", "apiVersion, kind"),
        ("{kind: Pod, metadata: {name: a}}", "apiVersion, kind"),
        ("[1, 2]", "apiVersion, kind"),
        ("just text", "apiVersion, kind"),
    ];
    for (yaml, words) in cases {
        let rejected = rejected(yaml);
        assert!(rejected.reason.contains(words), "{rejected}, for {yaml}");
        assert_eq!(rejected.id, None, "{yaml}");
    }
}
