//! Sluice, a node-level eBPF dataplane agent for Kubernetes.
//!
//! ```text
//! kube ──────┐
//! xds ───────┼─> source ─> model ─> compile ─> desired ─> diff ─> datapath ─> eBPF maps, programs, links
//! manifests ─┘                                   ^                   │
//! netlink (local veths, addresses, routes) ──────┘                   └─> observe ─> metrics, flows, CLI
//! ```

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")
)]

pub mod admin;
pub mod app;
pub mod cli;
pub mod compile;
pub mod datapath;
pub mod desired;
pub mod dump;
pub mod local;
pub mod model;
pub mod mutant;
pub mod observe;
pub mod oracle;
pub mod plan;
pub mod problem;
pub mod reconcile;
pub mod source;
