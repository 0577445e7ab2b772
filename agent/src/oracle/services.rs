//! Where a connection to a service goes, straight from the objects.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Cluster, Endpoint, Family, Protocol, Service, TrafficPolicy};

/// What an address and port are, and where a new flow to them may end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceAnswer {
    /// No service has the address.
    NotAService,
    /// A service has the address; none has the port.
    NoSuchPort,
    /// The service has no endpoint.
    NoEndpoint,
    /// The service has endpoints, none of them on this node, and its traffic policy is Local.
    NoLocalEndpoint,
    /// One of these.
    Backends(BTreeSet<(IpAddr, u16)>),
}

/// Answers for a connection from inside the cluster, on a node.
pub fn backends(
    cluster: &Cluster,
    node: &str,
    address: IpAddr,
    port: u16,
    protocol: Protocol,
) -> ServiceAnswer {
    let mut known = false;
    for service in cluster.services.values() {
        if !service.cluster_ips.contains(&address) {
            continue;
        }
        known = true;
        for p in &service.ports {
            if p.port == port && p.protocol == protocol {
                let all = endpoints(cluster, node, service, &address, &p.name, protocol);
                return answer(cluster, node, service, all);
            }
        }
    }
    if known {
        ServiceAnswer::NoSuchPort
    } else {
        ServiceAnswer::NotAService
    }
}

fn endpoints(
    cluster: &Cluster,
    node: &str,
    service: &Service,
    address: &IpAddr,
    port: &str,
    protocol: Protocol,
) -> Vec<(u16, Endpoint)> {
    let mut all: Vec<(u16, Endpoint)> = Vec::new();
    for slice in cluster.slices.values() {
        if slice.service != service.key || slice.family != Family::of(address) {
            continue;
        }
        for p in &slice.ports {
            if &*p.name == port && p.protocol == protocol {
                all.extend(slice.endpoints.iter().map(|e| (p.port, e.clone())));
            }
        }
    }
    // The best copy of each comes first and stays.
    all.sort_by_key(|(_, e)| {
        let here = e.placement.node.as_deref() == Some(node);
        (!here, !e.ready, !e.serving, e.terminating)
    });
    let mut seen = BTreeSet::new();
    all.retain(|(port, e)| seen.insert((e.address, *port)));
    all
}

fn answer(
    cluster: &Cluster,
    node: &str,
    service: &Service,
    all: Vec<(u16, Endpoint)>,
) -> ServiceAnswer {
    let everywhere = usable(hinted(cluster, node, &all), &all);
    let here: Vec<(u16, Endpoint)> = all
        .iter()
        .filter(|(_, e)| e.placement.node.as_deref() == Some(node))
        .cloned()
        .collect();
    let ready_here = here.iter().filter(|(_, e)| e.ready).cloned().collect();
    match service.internal_policy {
        _ if everywhere.is_empty() => ServiceAnswer::NoEndpoint,
        TrafficPolicy::Cluster => ServiceAnswer::Backends(everywhere),
        TrafficPolicy::Local => {
            let local = usable(ready_here, &here);
            if local.is_empty() {
                ServiceAnswer::NoLocalEndpoint
            } else {
                ServiceAnswer::Backends(local)
            }
        }
    }
}

fn usable(ready: Vec<(u16, Endpoint)>, all: &[(u16, Endpoint)]) -> BTreeSet<(IpAddr, u16)> {
    let list = if ready.is_empty() {
        let fading = all.iter().filter(|(_, e)| e.serving && e.terminating);
        fading.cloned().collect()
    } else {
        ready
    };
    list.into_iter()
        .map(|(port, e)| (e.address, port))
        .collect()
}

fn hinted(cluster: &Cluster, node: &str, all: &[(u16, Endpoint)]) -> Vec<(u16, Endpoint)> {
    let ready: Vec<(u16, Endpoint)> = all.iter().filter(|(_, e)| e.ready).cloned().collect();
    let zone = cluster.nodes.get(node).and_then(|n| n.zone.clone());
    let node_hints = |e: &Endpoint| e.placement.hint_nodes.clone().unwrap_or_default();
    let zone_hints = |e: &Endpoint| e.placement.hint_zones.clone().unwrap_or_default();
    if ready.iter().all(|(_, e)| !node_hints(e).is_empty()) {
        let mine: Vec<_> = ready
            .iter()
            .filter(|(_, e)| node_hints(e).iter().any(|n| &**n == node))
            .cloned()
            .collect();
        if !mine.is_empty() {
            return mine;
        }
    }
    if let Some(zone) = zone
        && ready.iter().all(|(_, e)| !zone_hints(e).is_empty())
    {
        let mine: Vec<_> = ready
            .iter()
            .filter(|(_, e)| zone_hints(e).contains(&zone))
            .cloned()
            .collect();
        if !mine.is_empty() {
            return mine;
        }
    }
    ready
}
