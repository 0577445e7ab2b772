//! `sluice service list`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_common::{ServiceKey, backend_flag, backend_state, service_flag};
use serde::{Deserialize, Serialize};

use super::protocol_name;
use crate::desired::{BackendSpec, Frontend, Pool};
use crate::model::{ObjectKey, Service, Text};
use crate::observe::state::State;

/// Every service that this node balances.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceList {
    /// Sorted by namespace and name.
    pub services: Vec<ServiceView>,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its addresses and ports; empty where none could be put in force (`status` names the problem).
    pub frontends: Vec<FrontendView>,
}

/// What kind of address a service is reached by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// `clusterIPs`.
    ClusterIp,
    /// `externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// A port of the node.
    NodePort,
}

/// What a new connection meets while there is no backend to choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenEmpty {
    /// It is refused at once (TCP RST, ICMP port unreachable): the service has no endpoint.
    Reject,
    /// It is dropped: there are endpoints, but the traffic policy leaves none here.
    Drop,
}

/// An address and port of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FrontendView {
    /// What kind of address.
    pub kind: FrontendKind,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// The port's name; empty for the only, unnamed one.
    pub port_name: String,
    /// Null while a new connection finds a backend; else what it meets.
    pub empty: Option<WhenEmpty>,
    /// Sorted by address and port.
    pub backends: Vec<BackendView>,
}

/// How a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// Serving: new connections and old ones.
    Serving,
    /// Terminating, still serving: it keeps its connections.
    Terminating,
    /// Not serving: TCP connections stay, datagrams leave.
    NotServing,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendView {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `namespace/name` of the pod; null where the address is no pod's.
    pub pod: Option<String>,
    /// The node it is on; null where nobody said.
    pub node: Option<String>,
    /// On this node.
    pub local: bool,
    /// How it is.
    pub state: BackendState,
    /// Whether new connections may choose it.
    pub chosen: bool,
}

impl ServiceList {
    /// The services of a namespace, or all.
    #[must_use]
    pub fn build(state: &State, namespace: Option<&str>) -> Self {
        let wanted = |key: &ObjectKey| namespace.is_none_or(|n| *key.namespace == *n);
        let mut frontends: BTreeMap<&ObjectKey, Vec<(&ServiceKey, &Frontend)>> = BTreeMap::new();
        for key in state.cluster.services.keys().filter(|key| wanted(key)) {
            frontends.entry(key).or_default();
        }
        for (key, frontend) in &state.desired.frontends {
            if wanted(&frontend.pool.service) {
                let of = frontends.entry(&frontend.pool.service).or_default();
                of.push((key, frontend));
            }
        }
        let services = frontends
            .into_iter()
            .map(|(key, frontends)| service(state, key, &frontends))
            .collect();
        Self { services }
    }
}

fn service(state: &State, key: &ObjectKey, of: &[(&ServiceKey, &Frontend)]) -> ServiceView {
    let object = state.cluster.services.get(key).map(AsRef::as_ref);
    let nodes = nodes(state, key);
    let mut frontends: Vec<_> = of
        .iter()
        .map(|(key, frontend)| view(state, object, &nodes, key, frontend))
        .collect();
    // IPv4 before IPv6, then as people read them.
    frontends.sort_by(|a, b| {
        let order = |f: &FrontendView| (f.address, f.port, f.protocol.clone());
        order(a).cmp(&order(b))
    });
    ServiceView {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        frontends,
    }
}

/// The node of each endpoint, as the service's slices say.
fn nodes(state: &State, service: &ObjectKey) -> BTreeMap<IpAddr, Text> {
    let slices = state.cluster.slices_of.get(service).into_iter().flatten();
    slices
        .filter_map(|key| state.cluster.slices.get(key))
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| Some((endpoint.address, endpoint.placement.node.clone()?)))
        .collect()
}

fn view(
    state: &State,
    service: Option<&Service>,
    nodes: &BTreeMap<IpAddr, Text>,
    key: &ServiceKey,
    frontend: &Frontend,
) -> FrontendView {
    let address = IpAddr::from(key.address);
    let pool = state.desired.pools.get(&frontend.pool);
    let chosen = pool.is_some_and(|pool| pool.backends.values().any(|b| b.chosen));
    FrontendView {
        kind: kind(service, &address, frontend),
        address,
        port: u16::from_be(key.port_be),
        protocol: protocol_name(key.protocol),
        port_name: frontend.pool.port.to_string(),
        empty: match (chosen, frontend.flags & service_flag::DROP_WHEN_EMPTY) {
            (true, _) => None,
            (false, 0) => Some(WhenEmpty::Reject),
            (false, _) => Some(WhenEmpty::Drop),
        },
        backends: pool.map_or_else(Vec::new, |pool| backends(state, nodes, pool)),
    }
}

fn kind(service: Option<&Service>, address: &IpAddr, frontend: &Frontend) -> FrontendKind {
    match service {
        Some(s) if s.cluster_ips.contains(address) => FrontendKind::ClusterIp,
        Some(s) if s.external_ips.contains(address) => FrontendKind::ExternalIp,
        Some(s) if s.load_balancer_ips.contains(address) => FrontendKind::LoadBalancer,
        _ if frontend.flags & service_flag::EXTERNAL == 0 => FrontendKind::ClusterIp,
        _ => FrontendKind::NodePort,
    }
}

fn backends(state: &State, nodes: &BTreeMap<IpAddr, Text>, pool: &Pool) -> Vec<BackendView> {
    let view = |(&(address, port), spec): (&(IpAddr, u16), &BackendSpec)| {
        let pod = state.cluster.owner(&address);
        let on = pod.and_then(|pod| pod.node.as_ref());
        let on = on.or_else(|| nodes.get(&address));
        let at = state.cluster.nodes_at.get(&address);
        BackendView {
            address,
            port,
            pod: pod.map(|pod| pod.key.to_string()),
            node: on.or_else(|| at?.first()).map(ToString::to_string),
            local: spec.flags & backend_flag::LOCAL != 0,
            state: match spec.state {
                backend_state::SERVING => BackendState::Serving,
                backend_state::TERMINATING => BackendState::Terminating,
                _ => BackendState::NotServing,
            },
            chosen: spec.chosen,
        }
    };
    pool.backends.iter().map(view).collect()
}
