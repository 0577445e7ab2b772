//! Test tiers of Sluice that need more than one crate's own unit tests.
//!
//! [`lab`] builds Kubernetes nodes and pods out of network namespaces and sends exact traffic through them;
//! [`tour`] is what `cargo xtask run` shows in it;
//! [`mod@bench`] measures what packets, changes and starts cost;
//! [`soak`] holds two nodes under random changes, kills and traffic against the oracle;
//! [`controlplane`] starts the real kube-apiserver, kube-controller-manager and etcd;
//! [`fuzz`] holds the programs against a model, sequences of random packets long;
//! [`packet`] runs single packets through the programs;
//! [`scenario`] runs manifests through the whole agent over maps in memory;
//! [`dice`] are the random numbers of those that choose by themselves.

pub mod bench;
pub mod controlplane;
pub mod dice;
pub mod fuzz;
pub mod lab;
pub mod packet;
pub mod scenario;
pub mod soak;
pub mod tour;

use std::fmt::Display;
use std::io::Write;

/// Prints a figure that is worth seeing of a test that passes too: what `println!` prints then is kept from view.
pub fn say(line: impl Display) {
    // A reader that has gone is no failure of a test.
    let _gone = writeln!(std::io::stdout().lock(), "{line}");
}
