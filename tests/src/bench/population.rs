//! A cluster of any size, from numbers alone: the same one each time, as the model has it.
//!
//! Addresses by their first two bytes, so that a dump can be read:
//!
//! | range | whose |
//! | --- | --- |
//! | 10.96 | the bench's own service |
//! | 10.97 to 10.100 | other services |
//! | 10.128 to 10.159 | endpoints of other services |
//! | 10.160 to 10.191 | pods of other nodes |
//! | 172.16 | ipBlocks of policies |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice::model::{
    Endpoint, EndpointPort, EndpointSlice, Family, IpBlock, Labels, Namespace, NetworkPolicy,
    Object, ObjectKey, Operator, Peer, Placement, Pod, PodPhase, PolicyRule, PortMatch, PortSpec,
    Protocol, Requirement, Selector, Service, ServicePort, Text, TrafficPolicy, intern,
};

/// The namespace of the bench's own pods, service and policies.
pub const OWN_NAMESPACE: &str = "default";
/// The bench's own service.
pub const OWN_SERVICE: &str = "bench";
/// The own service's ClusterIP, and that of the service whose server is on another node.
pub const OWN_CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 100));
/// See [`OWN_CLUSTER_IP`].
pub const FAR_CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 101));
/// First of the ports of the bench's servers, which are the service's ports too.
pub const FIRST_PORT: u16 = 7_000;
/// So many ports. Connections that are opened and closed go to each in turn: one port alone has as many client ports as there are,
/// and each rests for a second after its use (RFC 6191).
pub const PORTS: u16 = 8;
/// A port that no rule lets anybody reach.
pub const DENIED_PORT: u16 = 7_900;
/// The label of the bench's own pods, which own policies select.
pub const OWN_LABEL: (&str, &str) = ("role", "bench");

/// Namespaces of everything else.
const NAMESPACES: u32 = 50;
/// Values of the label `app`, and of the namespaces' label `team`.
const APPS: u32 = 200;
const TEAMS: u32 = 10;
/// One policy in so many is in the own namespace, and selects every pod there: twenty of a thousand.
const OWN_POLICIES: u32 = 50;
/// Endpoints of a slice at most, as the controller makes them.
const SLICE: u32 = 100;
/// Nodes that endpoints and pods lie on.
const NODES: u32 = 500;
/// Every other service's port, and its backends' port.
const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8_080;
const SERVICES: u32 = u32::from_be_bytes([10, 97, 0, 1]);
const ENDPOINTS: u32 = u32::from_be_bytes([10, 128, 0, 1]);
const PODS: u32 = u32::from_be_bytes([10, 160, 0, 1]);

/// How much of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Services beside the bench's own.
    pub services: u32,
    /// Endpoints of them all together.
    pub endpoints: u32,
    /// Policies.
    pub policies: u32,
    /// Pods of other nodes.
    pub pods: u32,
}

impl Size {
    /// What the issue calls small.
    pub const SMALL: Self = Self {
        services: 10,
        endpoints: 20,
        policies: 0,
        pods: 0,
    };
    /// What the bars are for.
    pub const FULL: Self = Self {
        services: 10_000,
        endpoints: 20_000,
        policies: 1_000,
        pods: 1_000,
    };
    /// Endpoints alone: the largest cold start.
    pub const LARGEST: Self = Self {
        services: 10_000,
        endpoints: 250_000,
        policies: 0,
        pods: 0,
    };
}

/// A pod of the bench's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

fn at(base: u32, number: u32) -> IpAddr {
    Ipv4Addr::from(base.wrapping_add(number)).into()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| (intern(key), intern(value)))
        .collect()
}

fn node(number: u32) -> Text {
    intern(&format!("far-{}", number % NODES))
}

fn namespace_of(number: u32) -> String {
    format!("ns-{}", number % NAMESPACES)
}

/// `matchLabels` with one label.
fn is(key: &str, value: &str) -> Selector {
    Selector {
        requirements: vec![Requirement {
            key: intern(key),
            operator: Operator::In,
            values: vec![intern(value)],
        }],
    }
}

/// The namespaces.
pub fn namespaces() -> impl Iterator<Item = Object> {
    let names = std::iter::once((OWN_NAMESPACE.to_owned(), 0))
        .chain((0..NAMESPACES).map(|n| (namespace_of(n), n)));
    names.map(|(name, n)| namespace(&name, &format!("team-{}", n % TEAMS)))
}

/// A namespace with a value of its label `team`.
pub fn namespace(name: &str, team: &str) -> Object {
    Object::Namespace(Arc::new(Namespace {
        name: intern(name),
        labels: labels(&[("kubernetes.io/metadata.name", name), ("team", team)]),
    }))
}

/// Service `number` of those that are not the bench's.
pub fn service(number: u32) -> Object {
    let key = ObjectKey::new(&namespace_of(number), &format!("service-{number}"));
    let port = ServicePort {
        name: intern(""),
        protocol: Protocol::Tcp,
        port: SERVICE_PORT,
        node_port: 0,
    };
    cluster_ip_service(key, at(SERVICES, number), vec![port])
}

fn cluster_ip_service(key: ObjectKey, address: IpAddr, ports: Vec<ServicePort>) -> Object {
    Object::Service(Arc::new(Service {
        key,
        cluster_ips: vec![address],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        health_check_node_port: 0,
    }))
}

/// A ready endpoint.
pub fn endpoint(address: IpAddr, node: Text) -> Endpoint {
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        placement: Placement {
            node: Some(node),
            ..Placement::default()
        }
        .shared(),
    }
}

/// The slices of service `number`: its share of all endpoints.
pub fn slices(size: &Size, number: u32) -> Vec<Object> {
    let first = |number: u32| {
        let shares = u64::from(size.endpoints) * u64::from(number);
        u32::try_from(shares / u64::from(size.services.max(1))).unwrap_or(u32::MAX)
    };
    let all: Vec<u32> = (first(number)..first(number + 1)).collect();
    let namespace = namespace_of(number);
    let chunks = all.chunks(SLICE as usize).enumerate();
    chunks
        .map(|(part, chunk)| {
            let endpoints = chunk.iter().map(|n| endpoint(at(ENDPOINTS, *n), node(*n)));
            Object::EndpointSlice(Arc::new(EndpointSlice {
                key: ObjectKey::new(&namespace, &format!("service-{number}-{part}")),
                service: ObjectKey::new(&namespace, &format!("service-{number}")),
                family: Family::V4,
                endpoints: endpoints.collect(),
                ports: vec![EndpointPort {
                    name: intern(""),
                    protocol: Protocol::Tcp,
                    port: BACKEND_PORT,
                }],
            }))
        })
        .collect()
}

/// A further endpoint for a service's slice, which none has yet.
pub fn spare_endpoint(size: &Size, number: u32) -> Endpoint {
    endpoint(at(ENDPOINTS, size.endpoints + number), node(number))
}

/// Pod `number` of other nodes, in a namespace.
pub fn pod_in(namespace: &str, number: u32) -> Object {
    let app = format!("app-{}", number % APPS);
    Object::Pod(Arc::new(Pod {
        key: ObjectKey::new(namespace, &format!("pod-{number}")),
        uid: intern(&format!("uid-{number}")),
        created: 0,
        node: Some(node(number)),
        host_network: false,
        phase: PodPhase::Live,
        terminating: false,
        addresses: vec![at(PODS, number)],
        labels: labels(&[("app", &app)]),
        service_account: intern("default"),
        ports: Vec::new(),
        any_source: false,
    }))
}

fn tcp(first: u16, last: u16) -> Option<Vec<PortMatch>> {
    Some(vec![PortMatch {
        protocol: Protocol::Tcp,
        port: PortSpec::Range(first, last),
    }])
}

/// Policy `number`: a peer by labels and a port; one in four speaks of a CIDR, too, every other also of egress.
pub fn policy(number: u32) -> Object {
    let own = number.is_multiple_of(OWN_POLICIES);
    let (namespace, selector) = if own {
        (OWN_NAMESPACE.to_owned(), Selector::default())
    } else {
        let app = format!("app-{}", number % APPS);
        (namespace_of(number), is("app", &app))
    };
    policy_with(&namespace, &selector, number, 0)
}

/// A version of [`policy`], in a namespace and for pods of one's choice: each version lets in another port.
pub fn policy_with(namespace: &str, selector: &Selector, number: u32, version: u16) -> Object {
    let app = format!("app-{}", (number * 7 + 3) % APPS);
    let team = format!("team-{}", number % TEAMS);
    // One in a hundred lets all pods of a team in: what a team is then concerns each of them.
    let pods = if number.is_multiple_of(2 * OWN_POLICIES) {
        Selector::default()
    } else {
        is("app", &app)
    };
    let mut peers = vec![Peer::Pods {
        namespaces: Some(is("team", &team)),
        pods,
    }];
    if number.is_multiple_of(4) {
        let [_, _, high, low] = number.to_be_bytes();
        peers.push(Peer::Block(IpBlock {
            address: Ipv4Addr::new(172, 16, high, low).into(),
            length: 32,
            except: Vec::new(),
        }));
    }
    let port = 8_000 + u16::try_from(number % 100).unwrap_or(0) + version;
    let rule = PolicyRule {
        peers: Some(peers),
        ports: tcp(port, port),
    };
    Object::NetworkPolicy(Arc::new(NetworkPolicy {
        key: ObjectKey::new(namespace, &format!("policy-{number}")),
        selector: selector.clone(),
        egress: number.is_multiple_of(2).then(|| vec![rule.clone()]),
        ingress: Some(vec![rule]),
        audit: false,
    }))
}

/// A service of the bench's own.
#[derive(Clone, Copy, Debug)]
pub struct OwnService<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its ClusterIP.
    pub address: IpAddr,
    /// Its only backend.
    pub server: &'a Own,
}

/// The pods, services and policy of the bench itself; the policy only where there are others.
pub fn own(size: &Size, pods: &[Own], services: &[OwnService<'_>]) -> Vec<Object> {
    let mut objects: Vec<Object> = pods.iter().map(own_pod).collect();
    objects.extend(services.iter().flat_map(own_service));
    if size.policies > 0 {
        objects.push(own_policy());
    }
    objects
}

/// One pod that is behind [`OWN_CLUSTER_IP`], with its service and policy.
pub fn alone(size: &Size, server: &Own) -> Vec<Object> {
    let service = OwnService {
        name: OWN_SERVICE,
        address: OWN_CLUSTER_IP,
        server,
    };
    own(size, std::slice::from_ref(server), &[service])
}

fn own_service(service: &OwnService<'_>) -> [Object; 2] {
    let key = ObjectKey::new(OWN_NAMESPACE, service.name);
    let both = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];
    let numbers = FIRST_PORT..FIRST_PORT + PORTS;
    let ports: Vec<(Text, Protocol, u16)> = both
        .iter()
        .flat_map(|(protocol, name)| {
            let named = move |port| (intern(&format!("{name}-{port}")), *protocol, port);
            numbers.clone().map(named)
        })
        .collect();
    let service_port = |(name, protocol, port): &(Text, Protocol, u16)| ServicePort {
        name: Arc::clone(name),
        protocol: *protocol,
        port: *port,
        node_port: 0,
    };
    let slice_port = |(name, protocol, port): &(Text, Protocol, u16)| EndpointPort {
        name: Arc::clone(name),
        protocol: *protocol,
        port: *port,
    };
    let server = service.server;
    let ipv4 = server.addresses.iter().filter(|ip| ip.is_ipv4());
    let slice = EndpointSlice {
        key: ObjectKey::new(OWN_NAMESPACE, &format!("{}-0", service.name)),
        service: key.clone(),
        family: Family::V4,
        endpoints: ipv4.map(|ip| endpoint(*ip, intern(&server.node))).collect(),
        ports: ports.iter().map(slice_port).collect(),
    };
    let ports = ports.iter().map(service_port).collect();
    [
        cluster_ip_service(key, service.address, ports),
        Object::EndpointSlice(Arc::new(slice)),
    ]
}

fn own_pod(own: &Own) -> Object {
    let (key, value) = OWN_LABEL;
    Object::Pod(Arc::new(Pod {
        key: ObjectKey::new(OWN_NAMESPACE, &own.name),
        uid: intern(&format!("uid-{}", own.name)),
        created: 0,
        node: Some(intern(&own.node)),
        host_network: false,
        phase: PodPhase::Live,
        terminating: false,
        addresses: own.addresses.clone(),
        labels: labels(&[(key, value)]),
        service_account: intern("default"),
        ports: Vec::new(),
        any_source: false,
    }))
}

/// Lets the bench's pods reach each other, both ways and at their ports only.
fn own_policy() -> Object {
    let (key, value) = OWN_LABEL;
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| PortMatch {
        protocol,
        port: PortSpec::Range(FIRST_PORT, FIRST_PORT + PORTS - 1),
    });
    let rule = PolicyRule {
        peers: Some(vec![Peer::Pods {
            namespaces: None,
            pods: is(key, value),
        }]),
        ports: Some(ports.to_vec()),
    };
    Object::NetworkPolicy(Arc::new(NetworkPolicy {
        key: ObjectKey::new(OWN_NAMESPACE, "bench"),
        selector: is(key, value),
        ingress: Some(vec![rule.clone()]),
        egress: Some(vec![rule]),
        audit: false,
    }))
}

/// Everything but what is the bench's own: namespaces, services with their slices, pods of other nodes, policies.
pub fn others(size: &Size) -> impl Iterator<Item = Object> + use<> {
    let size = *size;
    let services =
        (0..size.services).flat_map(move |n| std::iter::once(service(n)).chain(slices(&size, n)));
    let pods = (0..size.pods).map(|n| pod_in(&namespace_of(n), n));
    let policies = (0..size.policies).map(policy);
    namespaces().chain(services).chain(pods).chain(policies)
}

/// How many objects of each kind: for a line that tells what is in force.
pub fn counted<'a>(objects: impl IntoIterator<Item = &'a Object>) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for object in objects {
        *counts.entry(object.id().kind.name()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_endpoints_add_up_and_no_address_is_there_twice() {
        let size = Size {
            services: 7,
            endpoints: 1_500,
            policies: 3,
            pods: 2,
        };
        let mut addresses = std::collections::BTreeSet::new();
        for object in others(&size) {
            match object {
                Object::EndpointSlice(slice) => {
                    assert!(slice.endpoints.len() <= SLICE as usize);
                    for endpoint in &slice.endpoints {
                        assert!(addresses.insert(endpoint.address), "{}", endpoint.address);
                    }
                }
                Object::Service(service) => {
                    assert!(addresses.insert(service.cluster_ips[0]));
                }
                Object::Pod(pod) => assert!(addresses.insert(pod.addresses[0])),
                _ => {}
            }
        }
        assert_eq!(addresses.len(), 1_500 + 7 + 2);
        assert!(!addresses.contains(&spare_endpoint(&size, 0).address));
    }

    #[test]
    fn counts_are_what_was_asked_for() {
        let objects: Vec<Object> = others(&Size::SMALL).collect();
        let counts = counted(&objects);
        assert_eq!(counts.get("Service"), Some(&10));
        assert_eq!(counts.get("NetworkPolicy"), None);
        assert_eq!(counts.get("Namespace"), Some(&51));
    }
}
