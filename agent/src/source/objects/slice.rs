//! EndpointSlices (`discovery.k8s.io/v1`).

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::service::is_foreign;
use super::{Convert, Fault, address, meta, port};
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Kind, Object, ObjectId, ObjectKey, Placement,
    Text, intern,
};

/// Label that names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Convert for v1::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, notices: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        if is_foreign(&self.metadata) {
            return Ok(None);
        }
        let family = match self.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => {
                notices.push(
                    "addressType: FQDN is ignored; slices of addresses are served only".to_owned(),
                );
                return Ok(None);
            }
            other => {
                return Err(Fault::new(
                    "addressType",
                    format_args!("{other:?} is an unknown address type; write IPv4 or IPv6"),
                ));
            }
        };
        let service = meta::label(&self.metadata, SERVICE_NAME).unwrap_or_default();
        if service.is_empty() {
            notices.push(format!(
                "metadata.labels: the slice is ignored, because no label {SERVICE_NAME} names its service"
            ));
            return Ok(None);
        }
        let endpoints = endpoints(self.endpoints.as_deref().unwrap_or_default(), family)?;
        let ports = ports(self.ports.as_deref().unwrap_or_default())?;
        // A slice with neither is what the endpoints controller leaves for a service without pods.
        if ports.is_empty() && !endpoints.is_empty() {
            return Err(Fault::new(
                "ports",
                "no port has a number, so that no service port can lead to these endpoints; write port: in each entry",
            ));
        }
        Ok(Some(Object::EndpointSlice(Arc::new(EndpointSlice {
            key: id.key.clone(),
            service: ObjectKey::new(&id.key.namespace, service),
            family,
            endpoints,
            ports,
        }))))
    }
}

fn endpoints(list: &[v1::Endpoint], family: Family) -> Result<Vec<Endpoint>, Fault> {
    let mut endpoints = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let conditions = entry.conditions.as_ref();
        let hints = entry.hints.as_ref();
        let text = |text: &Option<String>| text.as_deref().filter(|t| !t.is_empty()).map(intern);
        let placement = Placement {
            node: text(&entry.node_name),
            zone: text(&entry.zone),
            hint_zones: hints
                .and_then(|h| h.for_zones.as_ref())
                .and_then(|zones| names(zones.iter().map(|z| z.name.as_str()))),
            hint_nodes: hints
                .and_then(|h| h.for_nodes.as_ref())
                .and_then(|nodes| names(nodes.iter().map(|n| n.name.as_str()))),
        };
        endpoints.push(Endpoint {
            address: first_address(i, &entry.addresses, family)?,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            placement: placement.shared(),
        });
    }
    Ok(endpoints)
}

/// None for an empty hint, which is no hint.
fn names<'a>(names: impl Iterator<Item = &'a str>) -> Option<Vec<Text>> {
    let names: Vec<Text> = names.map(intern).collect();
    (!names.is_empty()).then_some(names)
}

/// `addresses[0]`, the only one that counts.
fn first_address(i: usize, addresses: &[String], family: Family) -> Result<IpAddr, Fault> {
    let Some(text) = addresses.first() else {
        return Err(Fault::new(
            format_args!("endpoints[{i}].addresses"),
            "it is empty; write the endpoint's address, or remove the endpoint",
        ));
    };
    let field = format_args!("endpoints[{i}].addresses[0]");
    let ip = address::routed(field, text)?;
    if Family::of(&ip) != family {
        let family = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        return Err(Fault::new(
            format_args!("endpoints[{i}].addresses[0]"),
            format_args!(
                "{ip} is not of the slice's addressType, {family}; put it into a slice of its family"
            ),
        ));
    }
    Ok(ip)
}

/// The ports that have a number. One without (nil: "all ports"; or 0) leads nowhere and is skipped.
fn ports(list: &[v1::EndpointPort]) -> Result<Vec<EndpointPort>, Fault> {
    let mut ports: Vec<EndpointPort> = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        let name = entry.name.as_deref().unwrap_or_default();
        let protocol = port::protocol(
            format_args!("ports[{i}].protocol"),
            entry.protocol.as_deref(),
        )?;
        let port = port::number_or_none(format_args!("ports[{i}].port"), entry.port)?;
        if port == 0 {
            continue;
        }
        if ports.iter().any(|p| &*p.name == name) {
            return Err(Fault::new(
                format_args!("ports[{i}].name"),
                format_args!(
                    "{name:?} is the name of an earlier port; names are unique in a slice"
                ),
            ));
        }
        ports.push(EndpointPort {
            name: intern(name),
            protocol,
            port,
        });
    }
    Ok(ports)
}
