//! What the oracle says of one state of the world. States that differ in what has no say share a view, with what was
//! already asked: the oracle is slow by design, and the same flows are judged again and again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use sluice::compile::Options;
use sluice::local::{Local, PodLink};
use sluice::model::{Cluster, Family, Protocol, intern};
use sluice::oracle::policy::{Flow as Connection, Verdicts, verdict};
use sluice::oracle::services::{ServiceAnswer, backends};

use crate::lab::lock;
use crate::lab::traffic::Proto;

/// Names of the two nodes, by number.
pub(super) const NODES: [&str; 2] = ["a", "b"];

/// A pod's link that is up, and who answers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugged {
    /// Name of the server: unique for each time that a pod is made.
    pub(super) server: Arc<str>,
    /// Number of its node.
    pub(super) node: usize,
    /// The link's name on the node.
    pub(super) device: String,
}

/// Addresses of links that are up.
pub(super) type Links = BTreeMap<IpAddr, Plugged>;

/// The protocol as the model names it.
pub(super) fn protocol(proto: Proto) -> Protocol {
    match proto {
        Proto::Tcp => Protocol::Tcp,
        Proto::Udp => Protocol::Udp,
    }
}

/// Policies, labels, addresses and links of one state or several.
#[derive(Debug)]
pub(super) struct PolicyView {
    cluster: Arc<Cluster>,
    locals: [Local; 2],
    options: [Options; 2],
    asked: Mutex<HashMap<(usize, Key), (bool, bool)>>,
}

/// A connection: source, destination, protocol, port, from this host.
type Key = (IpAddr, IpAddr, u8, u16, bool);

impl PolicyView {
    /// Of a cluster and the links on both nodes, which own these addresses.
    pub(super) fn new(cluster: Arc<Cluster>, links: &Links, own: &[[IpAddr; 2]; 2]) -> Self {
        let local = |node: usize| {
            let mut local = Local {
                addresses: own[node].into(),
                ..Local::default()
            };
            let mut by_device: BTreeMap<&str, PodLink> = BTreeMap::new();
            for (ip, plugged) in links.iter().filter(|(_, plugged)| plugged.node == node) {
                let ifindex = u32::try_from(by_device.len() + 1).unwrap_or(u32::MAX);
                let link = by_device.entry(&plugged.device).or_insert_with(|| PodLink {
                    ifindex,
                    name: plugged.device.clone(),
                    host_mac: [0; 6],
                    pod_mac: None,
                    addresses: [].into(),
                    peer_namespace: Some(0),
                });
                link.addresses.insert(*ip);
            }
            local.pods = by_device
                .into_values()
                .map(|link| (link.ifindex, link))
                .collect();
            local
        };
        Self {
            cluster,
            locals: [local(0), local(1)],
            options: NODES.map(|name| Options::new(intern(name))),
            asked: Mutex::default(),
        }
    }

    /// Whether egress and ingress pass, as this node sees it; an end that is not on this node passes.
    pub(super) fn passes(&self, node: usize, connection: &Connection) -> (bool, bool) {
        let c = connection;
        let key = (
            node,
            (c.source, c.destination, c.protocol, c.port, c.from_host),
        );
        if let Some(known) = lock(&self.asked).get(&key) {
            return *known;
        }
        let verdicts = self.verdicts(node, connection);
        let passes = (verdicts.egress.allowed, verdicts.ingress.allowed);
        lock(&self.asked).insert(key, passes);
        passes
    }

    /// The same with its reasons.
    pub(super) fn verdicts(&self, node: usize, connection: &Connection) -> Verdicts {
        let (local, options) = (&self.locals[node], &self.options[node]);
        verdict(&self.cluster, local, options, connection)
    }
}

/// Services and slices of one state or several.
#[derive(Debug)]
pub(super) struct ServiceView {
    cluster: Arc<Cluster>,
    asked: Mutex<HashMap<(usize, SocketAddr, Proto), ServiceAnswer>>,
}

impl ServiceView {
    /// Of a cluster.
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            asked: Mutex::default(),
        }
    }

    /// Where a connection from a node to this address may end.
    pub(super) fn answer(&self, node: usize, to: SocketAddr, proto: Proto) -> ServiceAnswer {
        let mut asked = lock(&self.asked);
        let answer = asked.entry((node, to, proto)).or_insert_with(|| {
            let name = NODES[node];
            backends(&self.cluster, name, to.ip(), to.port(), protocol(proto))
        });
        answer.clone()
    }

    /// Where a flow may go on that stands: to every endpoint that serves, whether or not new flows would be led to it, and
    /// whatever the service's own port is by now. None where the address is no service's any more.
    pub(super) fn serving(&self, ip: IpAddr, proto: Proto) -> Option<BTreeSet<(IpAddr, u16)>> {
        let mut services = self.cluster.services.values();
        let service = services.find(|service| service.cluster_ips.contains(&ip))?;
        let mut backends = BTreeSet::new();
        for slice in self.cluster.slices.values() {
            if slice.service != service.key || slice.family != Family::of(&ip) {
                continue;
            }
            for port in slice
                .ports
                .iter()
                .filter(|port| port.protocol == protocol(proto))
            {
                let serving = slice
                    .endpoints
                    .iter()
                    .filter(|end| end.ready || end.serving);
                backends.extend(serving.map(|end| (end.address, port.port)));
            }
        }
        Some(backends)
    }

    /// Addresses, ports and protocols of all services.
    pub(super) fn all(&self) -> Vec<(SocketAddr, Proto)> {
        let mut all = Vec::new();
        for service in self.cluster.services.values() {
            for port in &service.ports {
                let proto = match port.protocol {
                    Protocol::Tcp => Proto::Tcp,
                    Protocol::Udp => Proto::Udp,
                    Protocol::Sctp => continue,
                };
                let at = |ip: &IpAddr| (SocketAddr::new(*ip, port.port), proto);
                all.extend(service.cluster_ips.iter().map(at));
            }
        }
        all
    }
}
