//! Nodes and namespaces.

use std::net::IpAddr;

use super::{Labels, Text};

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: Text,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Text>,
    /// The node is being deleted (taint `ToBeDeletedByClusterAutoscaler`, KEP-3836, or a deletion timestamp).
    pub leaving: bool,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Name.
    pub name: Text,
    /// Labels. The API server adds `kubernetes.io/metadata.name`; conversion adds it where a manifest lacks it.
    pub labels: Labels,
}
