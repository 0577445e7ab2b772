//! How a control plane is started.

use std::net::{IpAddr, Ipv4Addr};

/// How a control plane is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that the API server listens on; the calling thread's network namespace must own it. An agent
    /// in another namespace needs one that routes there. etcd always listens on that namespace's loopback.
    pub listen: IpAddr,
    /// The Service CIDRs, one or one for each family; the first must be of the family of `listen`.
    pub service_cidrs: Vec<String>,
    /// More flags for kube-apiserver, which win over the harness's own.
    pub apiserver_arguments: Vec<String>,
}

impl Default for Options {
    /// Loopback and dual stack.
    fn default() -> Self {
        Self {
            listen: Ipv4Addr::LOCALHOST.into(),
            service_cidrs: vec!["10.96.0.0/16".into(), "fd00:10:96::/112".into()],
            apiserver_arguments: Vec::new(),
        }
    }
}
