//! The lab: network namespaces that play Kubernetes nodes with their pods, and traffic with exact counts.
//!
//! ```text
//!   pod eth0 ── azv… ┐                                   ┌ azv… ── eth0 pod
//!   pod eth0 ── azv… ┤ node a ── eth0 ─ br0 ─ eth0 ── node b ├ azv… ── eth0 pod
//!                    └            [ wire, the world ]        ┘
//! ```
//!
//! - A [`Lab`] owns everything it made: namespaces (`/run/netns/slc-<lab id>-…`), a cgroup, a pin root, a run
//!   directory (`/run/sluice-lab/<lab id>`). Dropping it removes all of that; what a crashed process left is removed by
//!   [`Lab::sweep`], which every [`Lab::new`] calls for labs of its own name.
//! - [`node::Node`] and [`pod::Pod`] are the cluster's machines; [`wire::Wire`] joins the nodes and plays the world.
//! - [`traffic`] has servers and generators. All of them count exactly, and wait for events, never for time to pass.
//! - [`agent::Agent`] is `sluice agent` running on a node; [`host::HostProcess`] plays a process of the node itself.
//! - [`manifests`] writes what the lab contains as ordinary Kubernetes YAML.
//!
//! Everything here needs root and says so; nothing skips.

pub mod agent;
pub mod bpffs;
pub mod cgroup;
pub mod foreign;
pub mod host;
pub mod ip;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod notify;
pub mod offload;
pub mod owner;
pub mod pinned;
pub mod pod;
pub mod process;
pub mod program;
pub mod scrape;
pub mod traffic;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use self::cgroup::Cgroup;
use self::netns::Netns;
use self::node::{Node, NodeOptions, Peer};
use self::owner::LabId;
use self::wire::Wire;

/// Names how many times longer than elsewhere things may take: in an emulated machine the verifier alone takes most of a minute.
const PATIENCE_VARIABLE: &str = "SLUICE_LAB_PATIENCE";

/// How many times longer than elsewhere things may take on this machine; 1 unless it is emulated.
pub fn patience() -> u32 {
    let times = std::env::var(PATIENCE_VARIABLE).ok();
    times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Locks a mutex, also after a panic of another holder: the lab's data are counters and lists that stay valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One lab: a wire, the nodes on it, and what belongs to them. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    dir: PathBuf,
    wire: Wire,
    nodes: Mutex<Vec<Peer>>,
    cgroup: Cgroup,
}

impl Lab {
    /// Makes an empty lab with its wire. `name` (ASCII letters and digits) says what the lab is for; several labs of one
    /// name may live side by side. Leftovers of dead processes' labs of this name are removed first.
    ///
    /// # Errors
    /// Not root, no `ip` program, no cgroup2, or the kernel refused a namespace or a link.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces and needs root: run it through sudo"
        );
        process::raise_file_limit()?;
        Self::sweep(name)?;
        let id = LabId::fresh(name)?;
        let dir = owner::claim(&id)?;
        Self::build(&id, dir).inspect_err(|_| {
            // The first error is the one to report; what could not be removed now is found by the next sweep.
            let _ = owner::remove(&id.to_string());
        })
    }

    fn build(id: &LabId, dir: PathBuf) -> Result<Self> {
        let wire = Wire::new(id)?;
        let cgroup = Cgroup::create(&id.to_string())?;
        Ok(Self {
            id: id.clone(),
            dir,
            wire,
            nodes: Mutex::new(Vec::new()),
            cgroup,
        })
    }

    /// Removes the labs whose name begins with `name` (all with an empty one) and whose owner process is dead, and
    /// answers their ids. Namespaces without any record of an owner count as left over too.
    ///
    /// # Errors
    /// Something of a dead lab could not be removed.
    pub fn sweep(name: &str) -> Result<Vec<String>> {
        owner::sweep(name)
    }

    /// Removes the lab with this id at once, whoever holds it: for the end of a process that drops nothing, as a signal's.
    ///
    /// # Errors
    /// Something of it could not be removed; the next sweep tries again.
    pub fn discard(id: &str) -> Result<()> {
        owner::remove(id)
    }

    /// This lab's id, unique on the machine: `<name>-<pid>-<number>`.
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// The run directory, for sockets, logs and manifests; removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The wire that joins the nodes and plays the world outside.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The lab's own cgroup2; every node has a child of it, see [`Node::cgroup`].
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Adds a node with default options. See [`Lab::node_with`].
    ///
    /// # Errors
    /// As [`Lab::node_with`].
    pub fn node(&self, name: &str) -> Result<Node> {
        self.node_with(name, NodeOptions::default())
    }

    /// Adds a node: its namespace, its uplink into the wire, default routes, and routes between it and the pod ranges of
    /// every other node of this lab.
    ///
    /// # Errors
    /// The name is taken or unfit, there are too many nodes, or the kernel refused a namespace, link or route.
    pub fn node_with(&self, name: &str, options: NodeOptions) -> Result<Node> {
        let mut nodes = lock(&self.nodes);
        let index = u8::try_from(nodes.len() + 1)
            .ok()
            .filter(|i| *i <= node::MAX_NODES);
        let index =
            index.with_context(|| format!("a lab has room for {} nodes", node::MAX_NODES))?;
        ensure!(
            nodes.iter().all(|n| n.name != name),
            "lab {} has a node {name} already",
            self.id
        );
        let cgroup = self.cgroup.child(name)?;
        let node = Node::new(
            &self.id, &self.dir, &self.wire, name, index, options, cgroup,
        )?;
        let peer = node.as_peer();
        for other in nodes.iter() {
            other.netns.ip(&peer.routes_to_pods())?;
            peer.netns.ip(&other.routes_to_pods())?;
        }
        nodes.push(peer);
        Ok(node)
    }

    /// A further namespace of this lab with nothing in it but its loopback, for what is neither node nor pod.
    ///
    /// # Errors
    /// The name is taken, or the kernel refused.
    pub fn netns(&self, name: &str) -> Result<Arc<Netns>> {
        Netns::create(&self.id.netns(name))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = owner::remove(&self.id.to_string()) {
            tracing::warn!(lab = %self.id, "not all of the lab could be removed, the next sweep tries again: {error:#}");
        }
    }
}
