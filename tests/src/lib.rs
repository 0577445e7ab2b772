//! Test tiers of Sluice that need more than one crate's own unit tests.
//!
//! [`lab`] builds Kubernetes nodes and pods out of network namespaces and sends exact traffic through them;
//! [`controlplane`] starts the real kube-apiserver, kube-controller-manager and etcd;
//! [`packet`] runs single packets through the programs;
//! [`scenario`] runs manifests through the whole agent over maps in memory.

pub mod controlplane;
pub mod lab;
pub mod packet;
pub mod scenario;
