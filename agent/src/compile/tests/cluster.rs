//! Random clusters.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::local::{Local, PodLink};
use crate::model::*;

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];
const KEYS: [&str; 4] = ["app", "tier", "env", "x"];
const VALUES: [&str; 3] = ["1", "2", "3"];
const PORT_NAMES: [&str; 2] = ["web", "db"];
const PORTS: [u16; 4] = [80, 81, 8080, 9090];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) local: Local,
    born: i64,
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn labels(rng: &mut Rng, percent: u64) -> Labels {
    let mut labels = Labels::new();
    for key in KEYS {
        if rng.chance(percent) {
            labels.insert(intern(key), intern(rng.pick(&VALUES)));
        }
    }
    labels
}

fn selector(rng: &mut Rng) -> Selector {
    let mut requirements = Vec::new();
    for _ in 0..rng.pick(&[0, 0, 1, 1, 1, 2]) {
        let operator = rng.pick(&[
            Operator::In,
            Operator::In,
            Operator::In,
            Operator::NotIn,
            Operator::Exists,
            Operator::DoesNotExist,
        ]);
        let mut values = Vec::new();
        if matches!(operator, Operator::In | Operator::NotIn) {
            for value in VALUES {
                if rng.chance(50) {
                    values.push(intern(value));
                }
            }
            if values.is_empty() {
                values.push(intern("1"));
            }
        }
        requirements.push(Requirement {
            key: intern(rng.pick(&KEYS)),
            operator,
            values,
        });
    }
    requirements.sort();
    requirements.dedup();
    Selector { requirements }
}

fn block(rng: &mut Rng) -> IpBlock {
    let (address, length, excepts): (&str, u8, &[(&str, u8)]) = rng.pick(&[
        (
            "0.0.0.0",
            0u8,
            &[("10.0.0.0", 8u8), ("10.0.1.0", 24), ("192.0.2.0", 25)][..],
        ),
        (
            "10.0.0.0",
            8,
            &[("10.0.1.0", 24), ("10.0.1.4", 30), ("10.0.2.3", 32)][..],
        ),
        ("10.0.1.0", 24, &[("10.0.1.0", 29), ("10.0.1.2", 32)][..]),
        ("10.0.2.0", 29, &[("10.0.2.1", 32)][..]),
        (
            "192.0.2.0",
            24,
            &[("192.0.2.128", 25), ("192.0.2.7", 32)][..],
        ),
        ("192.0.2.7", 32, &[][..]),
        ("172.16.0.1", 32, &[][..]),
        ("::", 0, &[("fd00::", 8), ("2001:db8::", 64)][..]),
        ("fd00::", 16, &[("fd00::1:0", 112)][..]),
        ("2001:db8::", 32, &[("2001:db8::7", 128)][..]),
    ]);
    let mut except = Vec::new();
    for (address, length) in excepts {
        if rng.chance(50) {
            except.push((ip(address), *length));
        }
    }
    IpBlock {
        address: ip(address),
        length,
        except,
    }
}

fn rule(rng: &mut Rng) -> PolicyRule {
    let peers = (!rng.chance(20)).then(|| {
        (0..1 + rng.below(2))
            .map(|_| {
                if rng.chance(35) {
                    Peer::Block(block(rng))
                } else {
                    Peer::Pods {
                        namespaces: rng.chance(50).then(|| selector(rng)),
                        pods: selector(rng),
                    }
                }
            })
            .collect()
    });
    let ports = (!rng.chance(30)).then(|| {
        (0..1 + rng.below(2))
            .map(|_| PortMatch {
                protocol: rng.pick(&PROTOCOLS),
                port: match rng.below(4) {
                    0 => PortSpec::All,
                    1 => {
                        let port = rng.pick(&PORTS);
                        PortSpec::Range(port, port)
                    }
                    2 => rng.pick(&[
                        PortSpec::Range(1, 65_535),
                        PortSpec::Range(53, 8_080),
                        PortSpec::Range(81, 9_000),
                    ]),
                    _ => PortSpec::Named(intern(rng.pick(&PORT_NAMES))),
                }
                .clone(),
            })
            .collect()
    });
    PolicyRule { peers, ports }
}

pub(crate) fn policy(rng: &mut Rng) -> NetworkPolicy {
    let half = |rng: &mut Rng| {
        rng.chance(70)
            .then(|| (0..rng.below(4)).map(|_| rule(rng)).collect())
    };
    NetworkPolicy {
        key: ObjectKey::new(rng.pick(&NAMESPACES), rng.pick(&["p", "q", "r"])),
        selector: selector(rng),
        ingress: half(rng),
        egress: half(rng),
        audit: rng.chance(25),
    }
}

fn namespace(rng: &mut Rng) -> Namespace {
    let name = intern(rng.pick(&NAMESPACES));
    let mut labels = labels(rng, 40);
    labels.insert(intern("kubernetes.io/metadata.name"), name.clone());
    Namespace { name, labels }
}

impl World {
    fn pod(&mut self, rng: &mut Rng) -> Pod {
        let number = rng.below(12);
        let here = number < 7;
        self.born += 1;
        let mut addresses = vec![ip(&format!("10.0.{}.{number}", if here { 1 } else { 2 }))];
        if rng.chance(60) {
            addresses.push(ip(&format!("fd00::{}:{number}", if here { 1 } else { 2 })));
        }
        let mut ports = Vec::new();
        for name in PORT_NAMES {
            for protocol in PROTOCOLS {
                if rng.chance(30) {
                    ports.push(NamedPort {
                        name: intern(name),
                        protocol,
                        port: rng.pick(&PORTS),
                    });
                }
            }
        }
        ports.sort();
        // The name does not depend on the address: another pod may have it.
        let name = format!("pod{}", if rng.chance(90) { number } else { number + 100 });
        Pod {
            key: ObjectKey::new(NAMESPACES[(number % 4) as usize], &name),
            uid: intern(&self.born.to_string()),
            created: self.born,
            node: (!rng.chance(10)).then(|| intern(if here { "here" } else { "there" })),
            host_network: rng.chance(4),
            phase: if rng.chance(5) {
                PodPhase::Finished
            } else {
                PodPhase::Live
            },
            terminating: rng.chance(5),
            addresses,
            labels: labels(rng, 50),
            service_account: intern(rng.pick(&["default", "other"])),
            ports,
            any_source: rng.chance(5),
        }
    }

    /// Links of what is plugged in: every address of this node's range that a live pod claims, and a stranger's. A link goes
    /// with its pod here; that it may stay longer has a test of its own.
    fn plug(&mut self) -> bool {
        let mut local = Local {
            addresses: BTreeSet::from([ip("127.0.0.1"), ip("172.16.0.1"), ip("::1")]),
            ..Local::default()
        };
        let mut link = |index: u64, addresses: BTreeSet<IpAddr>| {
            local.pods.insert(
                10 + index as u32,
                PodLink {
                    ifindex: 10 + index as u32,
                    name: format!("veth{index}"),
                    host_mac: [2, 0, 0, 0, 0, index as u8],
                    pod_mac: (!index.is_multiple_of(3)).then_some([2, 0, 0, 0, 1, index as u8]),
                    addresses,
                    peer_namespace: Some(0),
                },
            );
        };
        for number in 0..7 {
            let claimed: BTreeSet<IpAddr> =
                [format!("10.0.1.{number}"), format!("fd00::1:{number}")]
                    .iter()
                    .map(|s| ip(s))
                    .filter(|ip| self.cluster.owner(ip).is_some())
                    .collect();
            if !claimed.is_empty() {
                link(number, claimed);
            }
        }
        link(50, BTreeSet::from([ip("10.0.1.50")]));
        let changed = self.local != local;
        self.local = local;
        changed
    }

    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut world = Self {
            cluster: Cluster::default(),
            local: Local::default(),
            born: 0,
        };
        for (name, address) in [("here", "172.16.0.1"), ("there", "172.16.0.2")] {
            world.cluster.upsert(Object::Node(Arc::new(Node {
                name: intern(name),
                internal_ips: vec![ip(address), ip(&format!("fd00::ffff:{}", name.len()))],
                external_ips: Vec::new(),
                zone: None,
                leaving: false,
            })));
        }
        for _ in 0..4 {
            let object = Object::Namespace(Arc::new(namespace(rng)));
            world.cluster.upsert(object);
        }
        for _ in 0..5 + rng.below(11) {
            let pod = world.pod(rng);
            world.cluster.upsert(Object::Pod(Arc::new(pod)));
        }
        for _ in 0..rng.below(9) {
            let object = Object::NetworkPolicy(Arc::new(policy(rng)));
            world.cluster.upsert(object);
        }
        world.plug();
        world
    }

    /// Changes something, `count` times; the changes, and whether the links did.
    pub(crate) fn change(&mut self, rng: &mut Rng, count: usize) -> (Vec<Change>, bool) {
        let mut changes = Vec::new();
        for _ in 0..count {
            let object = match rng.below(10) {
                0 | 1 => Object::Pod(Arc::new(self.pod(rng))),
                2 | 3 => {
                    // A relabel.
                    let pods: Vec<_> = self.cluster.pods.values().cloned().collect();
                    if pods.is_empty() {
                        continue;
                    }
                    let mut pod = (*rng.pick(&pods)).clone();
                    pod.labels = labels(rng, 50);
                    Object::Pod(Arc::new(pod))
                }
                4 => Object::Namespace(Arc::new(namespace(rng))),
                5..=7 => Object::NetworkPolicy(Arc::new(policy(rng))),
                8 => {
                    // An edit of a policy.
                    let all: Vec<_> = self.cluster.policies.values().cloned().collect();
                    if all.is_empty() {
                        continue;
                    }
                    let mut policy = (*rng.pick(&all)).clone();
                    if rng.chance(50) {
                        policy.ingress.get_or_insert_default().push(rule(rng));
                    } else {
                        policy.egress.get_or_insert_default().push(rule(rng));
                    }
                    Object::NetworkPolicy(Arc::new(policy))
                }
                _ => {
                    let ids: Vec<_> = super::everything(&self.cluster)
                        .into_iter()
                        .map(|change| change.id)
                        .filter(|id| id.kind != Kind::Node)
                        .collect();
                    if !ids.is_empty() {
                        let id = rng.pick(&ids).clone();
                        changes.extend(self.cluster.delete(&id));
                    }
                    continue;
                }
            };
            changes.extend(self.cluster.upsert(object));
        }
        (changes, self.plug())
    }

    /// Addresses worth asking for.
    pub(crate) fn ends(&self) -> Vec<IpAddr> {
        let mut ends: BTreeSet<IpAddr> = self.cluster.pods_at.keys().copied().collect();
        ends.extend(
            [
                "10.0.1.50",
                "10.0.1.200",
                "10.9.9.9",
                "172.16.0.1",
                "172.16.0.2",
                "192.0.2.7",
                "192.0.2.200",
                "8.8.8.8",
                "2001:db8::7",
                "2001:db8:1::1",
                "fd00::ffff:4",
            ]
            .iter()
            .map(|s| ip(s)),
        );
        ends.into_iter().collect()
    }
}
