//! The lab tier: `sluice agent` as a process on a node of network namespaces, on manifests, with real sockets in pods.
//!
//! Needs root. Every test has a lab of its own.

mod addresses;
mod bad_input;
mod by_clsact;
mod cleanup;
mod clsact;
mod directory;
mod drift;
mod frames;
mod full;
mod icmp;
mod late;
mod masquerade;
mod node_parts;
mod offloads;
mod one_cgroup;
mod options;
mod policies;
mod pressure;
mod random;
mod readable;
mod redirect;
mod remains;
mod restart;
mod revocation;
mod scene;
mod services;
mod sigterm;
mod tour;
mod two_nodes;
mod unfit;
mod upgrade;
mod verdict;
