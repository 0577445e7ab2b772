//! What the policies of a cluster say of a connection, straight from the objects: no indexes, no numbers, no maps.

use std::net::IpAddr;

use crate::compile::{IpBlockMode, Options, UnknownPod};
use crate::local::Local;
use crate::model::{
    Cluster, Direction, Labels, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PodPhase,
    PolicyRule, PortMatch, PortSpec, Selector, Text,
};

/// IP protocol numbers that policies can name (IANA "Protocol Numbers").
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// A rule of a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RuleRef {
    /// The policy.
    pub policy: ObjectKey,
    /// Direction of the rule.
    pub direction: Direction,
    /// Place in the policy's `ingress` or `egress`, from 0.
    pub index: u32,
}

/// Why a direction is as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum By {
    /// No policy isolates the pod, or the end is no pod of this node.
    Nothing,
    /// Policy does not apply: a pod to itself, or this host to its pods.
    Exempt(&'static str),
    /// These rules allow it.
    Rules(Vec<RuleRef>),
    /// These policies isolate the pod, and no rule of theirs allows it.
    Default(Vec<ObjectKey>),
    /// The pod behind the link is not known yet, and unknown pods are denied.
    UnknownPod,
}

/// What holds in one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Whether the connection passes.
    pub allowed: bool,
    /// It passes only because every policy that would deny it is audited.
    pub audited: bool,
    /// Why.
    pub by: By,
}

impl Answer {
    fn open(by: By) -> Self {
        Self {
            allowed: true,
            audited: false,
            by,
        }
    }
}

/// A connection, as it is judged: after translation, in the direction it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// Whom it reaches, after translation.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port after translation; 0 where the protocol has none.
    pub port: u16,
    /// The packet was generated on this host (not only sent from its address).
    pub from_host: bool,
}

/// Both directions of a connection. A direction whose pod is not on this node is `Nothing`: its own node judges it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdicts {
    /// What the source's policies say.
    pub egress: Answer,
    /// What the destination's policies say.
    pub ingress: Answer,
}

impl Verdicts {
    /// Whether the connection passes on this node.
    pub fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// What a tier says of a connection.
enum TierAnswer {
    /// It decides.
    Decided(Answer),
    /// It leaves the connection to the next tier.
    Pass,
}

/// One end of a connection in the eyes of the other.
struct End<'a> {
    ip: IpAddr,
    pod: Option<&'a Pod>,
    /// The address of a pod, a node or this host: what ipBlocks never match in cilium mode.
    internal: bool,
}

/// A tier: says of a pod, a direction, the peer and the destination's port what holds, or passes.
type Tier = fn(&View<'_>, &Pod, Direction, &End<'_>, &Destination<'_>) -> TierAnswer;

/// The tiers, strongest first.
const TIERS: [Tier; 1] = [network_policies];

/// The target of a connection.
struct Destination<'a> {
    pod: Option<&'a Pod>,
    protocol: u8,
    port: u16,
}

struct View<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    local: &'a Local,
}

impl<'a> View<'a> {
    const fn new(cluster: &'a Cluster, local: &'a Local, options: &'a Options) -> Self {
        Self {
            cluster,
            options,
            local,
        }
    }

    /// What a pod's policies of one direction say of a connection with a peer, by protocol and destination's port.
    fn judge_one(
        &self,
        pod: &Pod,
        direction: Direction,
        peer: IpAddr,
        (protocol, port): (u8, u16),
    ) -> Answer {
        let end = self.end(peer);
        let to = Destination {
            pod: match direction {
                Direction::Egress => end.pod,
                Direction::Ingress => Some(pod),
            },
            protocol,
            port,
        };
        judge(self, pod, direction, &end, &to)
    }

    /// The newest live pod that claims an address.
    fn claimant(&self, ip: &IpAddr) -> Option<&'a Pod> {
        let mut newest: Option<&Pod> = None;
        for pod in self.cluster.pods.values() {
            if pod.host_network || pod.phase == PodPhase::Finished || !pod.addresses.contains(ip) {
                continue;
            }
            let key = (pod.created, &pod.uid, &pod.key);
            if newest.is_none_or(|n| key > (n.created, &n.uid, &n.key)) {
                newest = Some(pod);
            }
        }
        newest
    }

    /// Whether an address is plugged in on this node, and then which pod is (None: not known).
    fn plugged(&self, ip: &IpAddr) -> Option<Option<&'a Pod>> {
        if self.is_host(ip) {
            return None;
        }
        let link = self
            .local
            .pods
            .values()
            .rev()
            .find(|link| link.addresses.contains(ip))?;
        Some(link.addresses.iter().find_map(|ip| {
            self.claimant(ip).filter(|pod| match &pod.node {
                Some(node) => *node == self.options.node_name,
                None => true,
            })
        }))
    }

    fn is_host(&self, ip: &IpAddr) -> bool {
        self.local.addresses.contains(ip)
            || self.cluster.nodes.values().any(|node| {
                node.name == self.options.node_name
                    && (node.internal_ips.contains(ip) || node.external_ips.contains(ip))
            })
    }

    fn is_node(&self, ip: &IpAddr) -> bool {
        self.cluster
            .nodes
            .values()
            .any(|node| node.internal_ips.contains(ip) || node.external_ips.contains(ip))
    }

    fn end(&self, ip: IpAddr) -> End<'a> {
        let host = self.is_host(&ip);
        let plugged = self.plugged(&ip);
        let pod = if host {
            None
        } else {
            match plugged {
                Some(pod) => pod,
                None => self.claimant(&ip),
            }
        };
        End {
            ip,
            pod,
            internal: host || plugged.is_some() || pod.is_some() || self.is_node(&ip),
        }
    }

    fn namespace_labels(&self, name: &Text) -> Labels {
        for namespace in self.cluster.namespaces.values() {
            if namespace.name == *name {
                return namespace.labels.clone();
            }
        }
        let mut labels = Labels::new();
        labels.insert(Text::from("kubernetes.io/metadata.name"), name.clone());
        labels
    }
}

fn selects(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let mut has_key = false;
        let mut has_value = false;
        for (key, value) in labels {
            if *key == requirement.key {
                has_key = true;
                for wanted in &requirement.values {
                    if wanted == value {
                        has_value = true;
                    }
                }
            }
        }
        let holds = match requirement.operator {
            Operator::In => has_value,
            Operator::NotIn => !has_value,
            Operator::Exists => has_key,
            Operator::DoesNotExist => !has_key,
        };
        if !holds {
            return false;
        }
    }
    true
}

fn in_cidr(ip: &IpAddr, network: &IpAddr, length: u8) -> bool {
    let (a, b): (Vec<u8>, Vec<u8>) = match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().to_vec(), b.octets().to_vec()),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().to_vec(), b.octets().to_vec()),
        _ => return false,
    };
    for bit in 0..usize::from(length) {
        let at = |bytes: &[u8]| bytes[bit / 8] >> (7 - bit % 8) & 1;
        if at(&a) != at(&b) {
            return false;
        }
    }
    true
}

fn peer_matches(view: &View<'_>, policy: &NetworkPolicy, peer: &Peer, end: &End<'_>) -> bool {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let Some(pod) = end.pod else {
                return false;
            };
            let namespace = match namespaces {
                None => pod.key.namespace == policy.key.namespace,
                Some(selector) => selects(selector, &view.namespace_labels(&pod.key.namespace)),
            };
            namespace && selects(pods, &pod.labels)
        }
        Peer::Block(block) => {
            if view.options.ip_block_mode == IpBlockMode::Cilium && end.internal {
                return false;
            }
            in_cidr(&end.ip, &block.address, block.length)
                && !block
                    .except
                    .iter()
                    .any(|(network, length)| in_cidr(&end.ip, network, *length))
        }
    }
}

fn port_matches(port: &PortMatch, to: &Destination<'_>) -> bool {
    let protocol = match port.protocol {
        crate::model::Protocol::Tcp => TCP,
        crate::model::Protocol::Udp => UDP,
        crate::model::Protocol::Sctp => SCTP,
    };
    if protocol != to.protocol {
        return false;
    }
    match &port.port {
        PortSpec::All => true,
        PortSpec::Range(first, last) => to.port >= *first && to.port <= *last,
        PortSpec::Named(name) => to.pod.is_some_and(|pod| {
            pod.ports.iter().any(|own| {
                own.name == *name && own.protocol == port.protocol && own.port == to.port
            })
        }),
    }
}

fn rule_matches(
    view: &View<'_>,
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    end: &End<'_>,
    to: &Destination<'_>,
) -> bool {
    let peer = match &rule.peers {
        None => true,
        Some(peers) => peers.iter().any(|p| peer_matches(view, policy, p, end)),
    };
    let port = match &rule.ports {
        None => true,
        Some(ports) => ports.iter().any(|p| port_matches(p, to)),
    };
    peer && port
}

/// The policies that isolate a pod in a direction, by name.
pub fn isolating<'a>(
    cluster: &'a Cluster,
    pod: &Pod,
    direction: Direction,
) -> Vec<&'a NetworkPolicy> {
    let mut out = Vec::new();
    for policy in cluster.policies.values() {
        if policy.key.namespace == pod.key.namespace
            && policy.rules(direction).is_some()
            && selects(&policy.selector, &pod.labels)
        {
            out.push(&**policy);
        }
    }
    out
}

fn matching(
    view: &View<'_>,
    policies: &[&NetworkPolicy],
    direction: Direction,
    end: &End<'_>,
    to: &Destination<'_>,
) -> Vec<RuleRef> {
    let mut out = Vec::new();
    for policy in policies {
        for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
            if rule_matches(view, policy, rule, end, to) {
                out.push(RuleRef {
                    policy: policy.key.clone(),
                    direction,
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                });
            }
        }
    }
    out
}

/// NetworkPolicy as a tier. It decides for pods that a policy isolates.
fn network_policies(
    view: &View<'_>,
    pod: &Pod,
    direction: Direction,
    end: &End<'_>,
    to: &Destination<'_>,
) -> TierAnswer {
    let all = isolating(view.cluster, pod, direction);
    if all.is_empty() {
        return TierAnswer::Pass;
    }
    let rules = matching(view, &all, direction, end, to);
    if !rules.is_empty() {
        return TierAnswer::Decided(Answer::open(By::Rules(rules)));
    }
    // Would it pass if the audited ones were not there? Then only they deny it.
    let enforced: Vec<&NetworkPolicy> = all.iter().copied().filter(|p| !p.audit).collect();
    let passes = enforced.is_empty() || !matching(view, &enforced, direction, end, to).is_empty();
    TierAnswer::Decided(Answer {
        allowed: passes,
        audited: passes,
        by: By::Default(all.iter().map(|policy| policy.key.clone()).collect()),
    })
}

fn judge(
    view: &View<'_>,
    pod: &Pod,
    direction: Direction,
    end: &End<'_>,
    to: &Destination<'_>,
) -> Answer {
    for tier in TIERS {
        match tier(view, pod, direction, end, to) {
            TierAnswer::Decided(answer) => return answer,
            TierAnswer::Pass => {}
        }
    }
    Answer::open(By::Nothing)
}

/// What a pod's policies say of a connection that it opens. `local` may be empty where no node is looked at.
pub fn egress(
    cluster: &Cluster,
    local: &Local,
    options: &Options,
    pod: &Pod,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> Answer {
    let view = View::new(cluster, local, options);
    view.judge_one(pod, Direction::Egress, destination, (protocol, port))
}

/// What a pod's policies say of a connection to it.
pub fn ingress(
    cluster: &Cluster,
    local: &Local,
    options: &Options,
    pod: &Pod,
    source: IpAddr,
    protocol: u8,
    port: u16,
) -> Answer {
    let view = View::new(cluster, local, options);
    view.judge_one(pod, Direction::Ingress, source, (protocol, port))
}

/// What this node says of a connection.
pub fn verdict(cluster: &Cluster, local: &Local, options: &Options, flow: &Flow) -> Verdicts {
    let view = View::new(cluster, local, options);
    let exempt = |why| Verdicts {
        egress: Answer::open(By::Exempt(why)),
        ingress: Answer::open(By::Exempt(why)),
    };
    if flow.source == flow.destination {
        return exempt("a pod does not block itself");
    }
    if flow.from_host {
        return exempt("this host reaches its pods always");
    }
    let (source, destination) = (view.end(flow.source), view.end(flow.destination));
    let plugged = (view.plugged(&flow.source), view.plugged(&flow.destination));
    if let (Some(Some(a)), Some(Some(b))) = plugged
        && a.key == b.key
    {
        return exempt("a pod does not block itself");
    }
    let to = Destination {
        pod: destination.pod,
        protocol: flow.protocol,
        port: flow.port,
    };
    let unknown = || match options.unknown_pod {
        UnknownPod::Allow => Answer::open(By::Nothing),
        UnknownPod::Deny => Answer {
            allowed: false,
            audited: false,
            by: By::UnknownPod,
        },
    };
    let side = |pod: Option<Option<&Pod>>, direction, end: &End<'_>| match pod {
        None => Answer::open(By::Nothing),
        Some(None) => unknown(),
        Some(Some(pod)) => judge(&view, pod, direction, end, &to),
    };
    Verdicts {
        egress: side(plugged.0, Direction::Egress, &destination),
        ingress: side(plugged.1, Direction::Ingress, &source),
    }
}
