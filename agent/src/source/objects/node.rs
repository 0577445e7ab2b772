//! Nodes and namespaces.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Convert, Fault, address, meta};
use crate::model::{Kind, Namespace, Node, Object, ObjectId, intern};

/// The label that the API server puts on every namespace (KEP-2161).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint that announces a node's deletion (KEP-3836).
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

impl Convert for v1::Namespace {
    const KIND: Kind = Kind::Namespace;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, _: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        let mut labels = meta::labels(&self.metadata);
        // The server overwrites whatever was written there.
        labels.insert(intern(NAMESPACE_NAME), Arc::clone(&id.key.name));
        Ok(Some(Object::Namespace(Arc::new(Namespace {
            name: Arc::clone(&id.key.name),
            labels,
        }))))
    }
}

impl Convert for v1::Node {
    const KIND: Kind = Kind::Node;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, _: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        let mut internal_ips = Vec::new();
        let mut external_ips = Vec::new();
        let addresses = self.status.as_ref().and_then(|s| s.addresses.as_ref());
        for (i, entry) in addresses.into_iter().flatten().enumerate() {
            let ips = match entry.type_.as_str() {
                "InternalIP" => &mut internal_ips,
                "ExternalIP" => &mut external_ips,
                // Hostname, InternalDNS and ExternalDNS are names.
                _ => continue,
            };
            let ip = address::unicast(
                format_args!("status.addresses[{i}].address"),
                &entry.address,
            )?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let taints = self.spec.as_ref().and_then(|s| s.taints.as_ref());
        let tainted = taints.into_iter().flatten().any(|t| t.key == LEAVING);
        Ok(Some(Object::Node(Arc::new(Node {
            name: Arc::clone(&id.key.name),
            internal_ips,
            external_ips,
            zone: meta::label(&self.metadata, ZONE)
                .filter(|zone| !zone.is_empty())
                .map(intern),
            leaving: tainted || self.metadata.deletion_timestamp.is_some(),
        }))))
    }
}
