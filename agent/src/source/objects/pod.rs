//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::slim::{self, PodSpec, PodStatus};
use super::{Convert, Fault, address, meta, port};
use crate::model::{Family, Kind, NamedPort, Object, ObjectId, Pod, PodPhase, intern};

/// Annotation: `"false"` lets the pod send from any address.
const SOURCE_CHECK: &str = "sluice.dev/source-check";
/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";
/// `restartPolicy` of an init container that runs beside the others (KEP-753).
const ALWAYS: &str = "Always";

impl Convert for slim::Pod {
    const KIND: Kind = Kind::Pod;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, notices: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
        let phase = match status.and_then(|s| s.phase.as_deref()) {
            Some("Succeeded" | "Failed") => PodPhase::Finished,
            None | Some("" | "Pending" | "Running" | "Unknown") => PodPhase::Live,
            Some(other) => {
                return Err(Fault::new(
                    "status.phase",
                    format_args!(
                        "{other:?} is an unknown phase; write Pending, Running, Succeeded, Failed or Unknown"
                    ),
                ));
            }
        };
        let non_empty = |text: &Option<String>, or: Option<&str>| {
            text.as_deref().filter(|t| !t.is_empty()).or(or).map(intern)
        };
        Ok(Some(Object::Pod(Arc::new(Pod {
            key: id.key.clone(),
            uid: intern(self.metadata.uid.as_deref().unwrap_or_default()),
            created: self
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            node: spec.and_then(|s| non_empty(&s.node_name, None)),
            host_network,
            phase,
            terminating: self.metadata.deletion_timestamp.is_some(),
            addresses: status.map_or(Ok(Vec::new()), |s| addresses(s, host_network))?,
            labels: meta::labels(&self.metadata),
            service_account: spec
                .and_then(|s| non_empty(&s.service_account_name, None))
                .unwrap_or_else(|| intern(DEFAULT_ACCOUNT)),
            ports: spec.map_or(Ok(Vec::new()), named_ports)?,
            any_source: meta::switch(&self.metadata, SOURCE_CHECK, notices) == Some(false),
        }))))
    }
}

/// `podIPs`, or `podIP` alone. A host-network pod that has neither yet has its host's addresses.
fn addresses(status: &PodStatus, host_network: bool) -> Result<Vec<IpAddr>, Fault> {
    let first = status.pod_ip.as_deref().unwrap_or_default();
    let listed = status
        .pod_ips
        .iter()
        .flatten()
        .map(|entry| entry.ip.as_str());
    let mut found = collect("status.podIPs", listed)?;
    if !first.is_empty() {
        let first = address::unicast("status.podIP", first)?;
        match found.first() {
            None => found.push(first),
            Some(listed) if *listed == first => {}
            Some(listed) => {
                return Err(Fault::new(
                    "status.podIP",
                    format_args!(
                        "{first} is not status.podIPs[0], which is {listed}; make them equal"
                    ),
                ));
            }
        }
    }
    if found.is_empty() && host_network {
        let listed = status
            .host_ips
            .iter()
            .flatten()
            .map(|entry| entry.ip.as_str());
        found = collect("status.hostIPs", listed)?;
        if found.is_empty() {
            found = collect("status.hostIP", status.host_ip.as_deref())?;
        }
    }
    Ok(found)
}

/// Addresses, at most one of each family.
fn collect<'a>(
    field: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<IpAddr>, Fault> {
    let mut found: Vec<IpAddr> = Vec::new();
    for (i, text) in texts.into_iter().filter(|t| !t.is_empty()).enumerate() {
        let ip = address::unicast(format_args!("{field}[{i}]"), text)?;
        if let Some(other) = found.iter().find(|o| Family::of(o) == Family::of(&ip)) {
            return Err(Fault::new(
                format_args!("{field}[{i}]"),
                format_args!(
                    "{ip} is of the same family as {other}; a pod has one address of each family"
                ),
            ));
        }
        found.push(ip);
    }
    Ok(found)
}

/// Named ports of the containers, then of the sidecars. Of two with one name and protocol the first counts, as for the
/// endpoints controller (`podutil.FindPort`).
fn named_ports(spec: &PodSpec) -> Result<Vec<NamedPort>, Fault> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, c)| c.restart_policy.as_deref() == Some(ALWAYS))
        .map(|(i, c)| ("initContainers", i, c));
    let containers = spec
        .containers
        .iter()
        .flatten()
        .enumerate()
        .map(|(i, c)| ("containers", i, c));
    let mut ports: Vec<NamedPort> = Vec::new();
    for (list, i, container) in containers.chain(sidecars) {
        for (j, entry) in container.ports.iter().flatten().enumerate() {
            let field = format_args!("spec.{list}[{i}].ports[{j}]").to_string();
            let number = port::number(format_args!("{field}.containerPort"), entry.container_port)?;
            let protocol =
                port::protocol(format_args!("{field}.protocol"), entry.protocol.as_deref())?;
            let name = match entry.name.as_deref() {
                None | Some("") => continue,
                Some(name) => port::name(format_args!("{field}.name"), name)?,
            };
            if !ports
                .iter()
                .any(|p| p.name == name && p.protocol == protocol)
            {
                ports.push(NamedPort {
                    name,
                    protocol,
                    port: number,
                });
            }
        }
    }
    ports.sort();
    Ok(ports)
}
