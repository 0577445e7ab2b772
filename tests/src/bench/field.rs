//! The lab of the bench: plain nodes with no agent, and nodes with one, all alike otherwise; and who calls whom.
//!
//! ```text
//! plain:     two clients, each to its own server; two, each to a server on another plain node (the second of each is the noise)
//! a cluster: two clients to one server, by address and by ClusterIP; two to one on another node with its agent
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice::model::Object;

use super::bars;
use super::population::{
    FAR_CLUSTER_IP, OWN_CLUSTER_IP, OWN_SERVICE, Own, OwnService, Size, others, own,
};
use super::runs::Pinned;
use super::userspace::bytes_of;
use super::work::Servers;
use super::yaml;
use crate::lab::Lab;
use crate::lab::agent::{Agent, AgentPlan, Source};
use crate::lab::manifests::{self, ManifestDir};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::pod::Pod;

/// Agents look through their maps once a minute, which is not what is measured.
const REST: &str = "--drift-interval=86400";
/// The name of the service whose server is on another node.
const FAR_SERVICE: &str = "bench-far";

/// How a client gets to its server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// By its address, with no agent. The first of both pairs.
    PlainA,
    /// The second.
    PlainB,
    /// By its address, through an agent's programs.
    Address,
    /// By a ClusterIP.
    Service,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PlainA => "plain",
            Self::PlainB => "plain, the other pair",
            Self::Address => "by address",
            Self::Service => "by ClusterIP",
        })
    }
}

/// Where a server is, from its client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Where {
    /// On its node.
    Same,
    /// On another.
    Across,
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same node",
            Self::Across => "across nodes",
        })
    }
}

/// Someone who calls someone.
#[derive(Clone, Debug)]
pub struct Side {
    /// Where.
    pub place: Where,
    /// How.
    pub way: Way,
    /// The cluster that is in force; None on plain nodes.
    pub cluster: Option<usize>,
    /// The client's namespace.
    pub client: Arc<Netns>,
    /// What it calls.
    pub to: IpAddr,
    /// Who answers.
    pub servers: Arc<Servers>,
}

/// A node with an agent, and what counts on it.
#[derive(Debug)]
pub struct Served {
    /// The node.
    pub node: Node,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its programs.
    pub from_pod: Pinned,
    /// See [`Served::from_pod`].
    pub from_uplink: Pinned,
    /// Its agent.
    pub agent: Agent,
    /// From its start to its `READY=1`.
    pub started: Duration,
}

impl Served {
    /// Resident memory of the agent, in bytes.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident(&mut self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.agent.process().id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        bytes_of(&status, "VmRSS:").with_context(|| format!("no VmRSS in {path}"))
    }
}

/// Nodes under one set of manifests.
#[derive(Debug)]
pub struct Cluster {
    /// How much is in force.
    pub size: Size,
    /// The client's node first.
    pub nodes: Vec<Served>,
}

/// Everything. What must go first stands first.
#[derive(Debug)]
pub struct Field {
    /// Who calls whom.
    pub sides: Vec<Side>,
    /// Clusters with agents.
    pub clusters: Vec<Cluster>,
    /// Pods of plain nodes, which count packets too.
    pub plain: Vec<Pod>,
    _plain_nodes: Vec<Node>,
    _lab: Lab,
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How much is in force.
    pub size: Size,
    /// With a second node.
    pub across: bool,
}

impl Field {
    /// Builds the lab and starts the agents.
    ///
    /// # Errors
    /// The lab failed, or an agent did not become ready.
    pub fn build(wanted: &[Wanted]) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let (mut sides, mut bound) = (Vec::new(), Bound::new());
        let near = lab.node("plain-1")?;
        let far = lab.node("plain-2")?;
        let mut plain = Vec::new();
        for (place, node) in [(Where::Same, &near), (Where::Across, &far)] {
            for (way, pair) in [(Way::PlainA, "a"), (Way::PlainB, "b")] {
                let client = near.pod(&format!("client-{pair}{}", plain.len()))?;
                let server = node.pod(&format!("server-{pair}{}", plain.len()))?;
                sides.push(side(
                    (place, way, None),
                    &client,
                    &server,
                    None,
                    &mut bound,
                )?);
                plain.extend([client, server]);
            }
        }
        let mut clusters = Vec::new();
        for (number, wanted) in wanted.iter().enumerate() {
            clusters.push(cluster(&lab, number, wanted, &mut sides, &mut bound)?);
        }
        Ok(Self {
            sides,
            clusters,
            plain,
            _plain_nodes: vec![near, far],
            _lab: lab,
        })
    }
}

fn own_of(pod: &Pod) -> Own {
    Own {
        name: pod.name.clone(),
        node: pod.node.clone(),
        addresses: pod.addresses().to_vec(),
    }
}

/// A cluster of one node, or of two.
fn cluster(
    lab: &Lab,
    number: usize,
    wanted: &Wanted,
    sides: &mut Vec<Side>,
    bound: &mut Bound,
) -> Result<Cluster> {
    let near = lab.node(&format!("node-{number}a"))?;
    let server = near.pod("server")?;
    let far = wanted
        .across
        .then(|| lab.node(&format!("node-{number}b")))
        .transpose()?;
    let far_pod = far.as_ref().map(|node| node.pod("far")).transpose()?;
    let mut clients = Vec::new();
    let mut called = vec![(Where::Same, &server, OWN_CLUSTER_IP)];
    called.extend(
        far_pod
            .as_ref()
            .map(|pod| (Where::Across, pod, FAR_CLUSTER_IP)),
    );
    for (place, server, service) in called {
        for (way, to) in [(Way::Address, None), (Way::Service, Some(service))] {
            // Each its own: what one has opened takes nothing of another's share of the table of flows.
            let client = near.pod(&format!("client-{}", clients.len()))?;
            let how = (place, way, Some(number));
            sides.push(side(how, &client, server, to, bound)?);
            clients.push(client);
        }
    }

    let dir = ManifestDir::create(lab.dir(), &format!("manifests-{number}"))?;
    for node in std::iter::once(&near).chain(&far) {
        dir.put(&manifests::node(node, &[]))?;
    }
    let mut near_pods = clients;
    near_pods.push(server);
    let mut pods: Vec<Own> = near_pods.iter().map(own_of).collect();
    let own_server = pods.len() - 1;
    pods.extend(far_pod.as_ref().map(own_of));
    let mut services = vec![OwnService {
        name: OWN_SERVICE,
        address: OWN_CLUSTER_IP,
        server: &pods[own_server],
    }];
    services.extend(pods.get(own_server + 1).map(|server| OwnService {
        name: FAR_SERVICE,
        address: FAR_CLUSTER_IP,
        server,
    }));
    let objects: Vec<Object> = others(&wanted.size)
        .chain(own(&wanted.size, &pods, &services))
        .collect();
    dir.put_file("all.yaml", &yaml::text(&objects))?;

    let mut nodes = vec![serve(near, near_pods, &dir)?];
    if let (Some(node), Some(pod)) = (far, far_pod) {
        nodes.push(serve(node, vec![pod], &dir)?);
    }
    Ok(Cluster {
        size: wanted.size,
        nodes,
    })
}

/// The servers of pods by their namespaces: sides that call one server share its sockets.
type Bound = BTreeMap<String, Arc<Servers>>;

fn side(
    (place, way, cluster): (Where, Way, Option<usize>),
    client: &Pod,
    server: &Pod,
    service: Option<IpAddr>,
    bound: &mut Bound,
) -> Result<Side> {
    let address = IpAddr::from(server.ipv4);
    let name = server.netns().name();
    let servers = match bound.get(name) {
        Some(servers) => Arc::clone(servers),
        None => {
            let servers = Arc::new(Servers::bind(server.netns(), address)?);
            bound.insert(name.to_owned(), Arc::clone(&servers));
            servers
        }
    };
    Ok(Side {
        place,
        way,
        cluster,
        client: Arc::clone(client.netns()),
        to: service.unwrap_or(address),
        servers,
    })
}

fn serve(node: Node, pods: Vec<Pod>, dir: &ManifestDir) -> Result<Served> {
    let plan = AgentPlan::new(&node, Source::Manifests(dir.path().to_owned()))?.arg(REST);
    let stubs = plan.pin_root.join("hooks").join("programs");
    let began = Instant::now();
    let agent = Agent::start(&node, plan)?;
    Ok(Served {
        started: began.elapsed(),
        from_pod: Pinned::open(&stubs.join("stub_from_pod"))?,
        from_uplink: Pinned::open(&stubs.join("stub_from_uplink"))?,
        node,
        pods,
        agent,
    })
}

impl Cluster {
    /// What is in force, for people.
    pub fn title(&self) -> String {
        bars::in_force(&self.size)
    }
}

/// Packets that a namespace's interface has received and sent so far.
///
/// # Errors
/// There is no such interface.
pub fn packets(netns: &Netns, device: &str) -> Result<(u64, u64)> {
    // The main thread's namespace is another.
    const PATH: &str = "/proc/thread-self/net/dev";
    let text = netns.run(|| fs::read_to_string(PATH).context(PATH))??;
    packets_in(&text, device).with_context(|| format!("no {device} in {PATH} of {}", netns.name()))
}

fn packets_in(text: &str, device: &str) -> Option<(u64, u64)> {
    /// Fields of a line: bytes, packets, and six more received, then the same sent.
    const RECEIVED: usize = 1;
    const SENT: usize = 9;
    let line = text.lines().find_map(|line| {
        let (name, rest) = line.split_once(':')?;
        (name.trim() == device).then_some(rest)
    })?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    Some((*fields.get(RECEIVED)?, *fields.get(SENT)?))
}

impl Served {
    /// How often the node's programs ran, and how often they should have: one run for each packet that a pod of the node sent, and one
    /// for each that the uplink received.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        let mut sent = 0;
        for pod in &self.pods {
            sent += packets(pod.netns(), Pod::DEVICE)?.1;
        }
        Ok(Counts {
            from_pod: self.from_pod.runs()?.count,
            sent,
            from_uplink: self.from_uplink.runs()?.count,
            received: packets(self.node.netns(), Node::UPLINK)?.0,
        })
    }
}

/// Runs of a node's programs, and packets that they should have seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Runs of `from_pod`.
    pub from_pod: u64,
    /// Packets that pods sent.
    pub sent: u64,
    /// Runs of `from_uplink`.
    pub from_uplink: u64,
    /// Packets that the uplink received.
    pub received: u64,
}

impl Counts {
    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            from_pod: self.from_pod - earlier.from_pod,
            sent: self.sent - earlier.sent,
            from_uplink: self.from_uplink - earlier.from_uplink,
            received: self.received - earlier.received,
        }
    }

    /// Whether each packet had its run, and no run was without a packet.
    pub fn match_up(&self) -> bool {
        self.from_pod == self.sent && self.from_uplink == self.received
    }
}

/// A check that a field has what its sides need.
///
/// # Errors
/// A side has no partner.
pub fn ensure_pairs(sides: &[Side]) -> Result<()> {
    for place in [Where::Same, Where::Across] {
        let plain = sides
            .iter()
            .filter(|s| s.place == place && s.cluster.is_none());
        ensure!(
            plain.count() == 2,
            "{place}: there are two plain pairs, or no noise is known"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n  \
        eth0: 1234567    891    0    0    0     0          0         0   765432     198    0    0    0     0       0          0\n";

    #[test]
    fn packets_of_an_interface_are_read() {
        assert_eq!(packets_in(DEV, "eth0"), Some((891, 198)));
        assert_eq!(packets_in(DEV, "lo"), Some((0, 0)));
        assert_eq!(packets_in(DEV, "eth1"), None);
    }

    #[test]
    fn a_packet_without_a_run_is_noticed() {
        let before = Counts::default();
        let mut after = Counts {
            from_pod: 10,
            sent: 10,
            from_uplink: 3,
            received: 3,
        };
        assert!(after.since(&before).match_up());
        after.sent += 1;
        assert!(!after.since(&before).match_up());
        after.from_pod += 1;
        after.from_uplink -= 1;
        assert!(!after.since(&before).match_up());
    }
}
