//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Convert, Fault, address, meta, port};
use crate::model::{Family, Kind, Object, ObjectId, Service, ServicePort, TrafficPolicy, intern};

/// Label of headless services and of their slices; its value does not matter (KEP-2438).
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that names the proxy that is to serve a service and its slices, where that is not the node's own (KEP-2447).
pub(super) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The name that means us.
const OUR_NAME: &str = "sluice";
/// `clusterIP` of a headless service.
const NONE: &str = "None";
/// Seconds of client affinity where the object has none (API reference, `ClientIPConfig`).
const AFFINITY_SECONDS: u32 = 10_800;
/// Seconds of client affinity at most: a day.
const AFFINITY_SECONDS_MAX: u32 = 86_400;

impl Convert for v1::Service {
    const KIND: Kind = Kind::Service;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, notices: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        let Some(spec) = &self.spec else {
            return Err(Fault::new(
                "spec",
                "it is missing; write clusterIP and ports at least",
            ));
        };
        if is_foreign(&self.metadata) || !is_served(spec)? {
            return Ok(None);
        }
        Ok(Some(Object::Service(Arc::new(Service {
            key: id.key.clone(),
            cluster_ips: cluster_ips(spec)?,
            external_ips: each(
                spec.external_ips.as_deref(),
                "spec.externalIPs",
                address::routed,
            )?,
            load_balancer_ips: load_balancer_ips(self.status.as_ref(), notices),
            source_ranges: each(
                spec.load_balancer_source_ranges.as_deref(),
                "spec.loadBalancerSourceRanges",
                |field, text| address::cidr(field, text.trim()),
            )?,
            ports: ports(spec)?,
            internal_policy: traffic_policy(
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
            )?,
            external_policy: traffic_policy(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
            )?,
            affinity_seconds: affinity(spec)?,
            health_check_node_port: port::number_or_none(
                "spec.healthCheckNodePort",
                spec.health_check_node_port,
            )?,
        }))))
    }
}

/// Whether labels say that a service, or its slice, is not for this proxy.
pub(super) fn is_foreign(meta: &ObjectMeta) -> bool {
    meta::label(meta, HEADLESS).is_some()
        || meta::label(meta, PROXY_NAME).is_some_and(|name| name != OUR_NAME)
}

/// Whether the service has addresses of its own: it is not headless, and no alias of a DNS name.
fn is_served(spec: &v1::ServiceSpec) -> Result<bool, Fault> {
    match spec.type_.as_deref() {
        Some("ExternalName") => return Ok(false),
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            return Err(Fault::new(
                "spec.type",
                format_args!(
                    "{other:?} is an unknown type; write ClusterIP, NodePort, LoadBalancer or ExternalName"
                ),
            ));
        }
    }
    let headless = spec.cluster_ip.as_deref() == Some(NONE)
        || spec.cluster_ips.iter().flatten().any(|ip| ip == NONE);
    Ok(!headless)
}

/// `clusterIPs`, or `clusterIP` alone.
fn cluster_ips(spec: &v1::ServiceSpec) -> Result<Vec<IpAddr>, Fault> {
    let mut found: Vec<IpAddr> = Vec::new();
    for (i, text) in spec.cluster_ips.iter().flatten().enumerate() {
        let field = format!("spec.clusterIPs[{i}]");
        let ip = address::unicast(&field, text)?;
        if let Some(other) = found.iter().find(|o| Family::of(o) == Family::of(&ip)) {
            return Err(Fault::new(
                field,
                format_args!(
                    "{ip} is of the same family as {other}; a service has one cluster address of each family"
                ),
            ));
        }
        found.push(ip);
    }
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    if !first.is_empty() {
        let first = address::unicast("spec.clusterIP", first)?;
        match found.first() {
            None => found.push(first),
            Some(listed) if *listed == first => {}
            Some(listed) => {
                return Err(Fault::new(
                    "spec.clusterIP",
                    format_args!(
                        "{first} is not spec.clusterIPs[0], which is {listed}; make them equal"
                    ),
                ));
            }
        }
    }
    if found.is_empty() {
        return Err(Fault::new(
            "spec.clusterIP",
            "it is missing, and only an API server assigns one; write an address, or None for a headless service",
        ));
    }
    Ok(found)
}

/// Parses each entry of a list, once.
fn each<T: PartialEq>(
    list: Option<&[String]>,
    field: &str,
    parse: impl Fn(String, &str) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut parsed = Vec::new();
    for (i, text) in list.unwrap_or_default().iter().enumerate() {
        let entry = parse(format!("{field}[{i}]"), text)?;
        if !parsed.contains(&entry) {
            parsed.push(entry);
        }
    }
    Ok(parsed)
}

/// The load balancer's addresses that nodes serve themselves (KEP-1860: not those of `ipMode: Proxy`). They are a cloud
/// controller's word, not the service owner's: one that is unusable is left out with a notice, and the service goes on.
fn load_balancer_ips(status: Option<&v1::ServiceStatus>, notices: &mut Vec<String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let ingress = status
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_ref());
    for (i, entry) in ingress.into_iter().flatten().enumerate() {
        let text = entry.ip.as_deref().unwrap_or_default();
        if text.is_empty() || entry.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        let field = format_args!("status.loadBalancer.ingress[{i}].ip").to_string();
        match address::unicast(field, text) {
            Ok(ip) if found.contains(&ip) => {}
            Ok(ip) => found.push(ip),
            Err(fault) => notices.push(format!("{fault}; the address is not served")),
        }
    }
    found
}

fn ports(spec: &v1::ServiceSpec) -> Result<Vec<ServicePort>, Fault> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let list = spec.ports.as_deref().unwrap_or_default();
    for (i, entry) in list.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let name = entry.name.as_deref().unwrap_or_default();
        if name.is_empty() && list.len() > 1 {
            return Err(Fault::new(
                format_args!("{field}.name"),
                "it is missing; a service of several ports names each, because slices refer to them by name",
            ));
        }
        let port = ServicePort {
            name: intern(name),
            protocol: port::protocol(format_args!("{field}.protocol"), entry.protocol.as_deref())?,
            port: port::number(format_args!("{field}.port"), entry.port)?,
            node_port: port::number_or_none(format_args!("{field}.nodePort"), entry.node_port)?,
        };
        if ports.iter().any(|p| p.name == port.name) {
            return Err(Fault::new(
                format_args!("{field}.name"),
                format_args!(
                    "{name:?} is the name of an earlier port; names are unique in a service"
                ),
            ));
        }
        if ports
            .iter()
            .any(|p| p.protocol == port.protocol && p.port == port.port)
        {
            return Err(Fault::new(
                format_args!("{field}.port"),
                format_args!(
                    "{} {} stands there twice; remove one",
                    port.protocol.name(),
                    port.port
                ),
            ));
        }
        ports.push(port);
    }
    if ports.is_empty() {
        return Err(Fault::new(
            "spec.ports",
            "the service has no port; write at least one, or make it headless (clusterIP: None)",
        ));
    }
    Ok(ports)
}

fn traffic_policy(field: &str, text: Option<&str>) -> Result<TrafficPolicy, Fault> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Fault::new(
            field,
            format_args!("{other:?} is an unknown traffic policy; write Cluster or Local"),
        )),
    }
}

fn affinity(spec: &v1::ServiceSpec) -> Result<Option<u32>, Fault> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(Fault::new(
                "spec.sessionAffinity",
                format_args!("{other:?} is an unknown affinity; write None or ClientIP"),
            ));
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let Some(seconds) = config
        .and_then(|c| c.client_ip.as_ref())
        .and_then(|c| c.timeout_seconds)
    else {
        return Ok(Some(AFFINITY_SECONDS));
    };
    match u32::try_from(seconds) {
        Ok(seconds) if (1..=AFFINITY_SECONDS_MAX).contains(&seconds) => Ok(Some(seconds)),
        _ => Err(Fault::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format_args!("{seconds} is out of range; write 1 to {AFFINITY_SECONDS_MAX}"),
        )),
    }
}
