//! Pods.

use std::net::IpAddr;

use super::{Labels, ObjectKey, Protocol, Text};

/// A container port with a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamedPort {
    /// Port name.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
    /// Container port, never 0.
    pub port: u16,
}

/// Where a pod is in its life, as far as its address is concerned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PodPhase {
    /// Pending, Running or Unknown: the pod owns its addresses.
    Live,
    /// Succeeded or Failed: its addresses are another pod's by now.
    Finished,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; may be empty in manifests.
    pub uid: Text,
    /// `metadata.creationTimestamp` in seconds since 1970, 0 where absent. Among live pods that claim one address, the newest owns it.
    pub created: i64,
    /// `spec.nodeName`.
    pub node: Option<Text>,
    /// `spec.hostNetwork`: the pod is its node; no policy selects or matches it.
    pub host_network: bool,
    /// See [`PodPhase`].
    pub phase: PodPhase,
    /// A deletion is under way; policy holds until the interface goes.
    pub terminating: bool,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Labels, all of them.
    pub labels: Labels,
    /// `spec.serviceAccountName`.
    pub service_account: Text,
    /// Named ports of containers and of init containers that restart always (sidecars); sorted, without duplicates.
    pub ports: Vec<NamedPort>,
    /// Annotation `sluice.dev/source-check: "false"`: the pod may send from any address but those of this node: its host's, other pods' on it, ClusterIPs.
    pub any_source: bool,
}
