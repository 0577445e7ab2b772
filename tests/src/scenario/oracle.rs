//! Maps against the oracle: every service address and port, every pair of ends and port of interest.

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_common::lookup::{self, Tables, Target};
use agent_common::{Address, ServiceKey, Verdict, action, address_kind, protocol};
use anyhow::{Context, Result, bail, ensure};
use sluice::compile::{Options, RuleName};
use sluice::model::{Peer, PortSpec, Protocol};
use sluice::oracle::policy::{self, Answer, By, Flow};
use sluice::oracle::services::{ServiceAnswer, backends};
use sluice::reconcile::State;

/// Addresses that no scenario knows.
const STRANGERS: [&str; 2] = ["203.0.113.250", "2001:db8:ffff::250"];
/// Ports that no scenario names.
const NO_PORT: u16 = 7;

/// Holds the maps of a state against what the oracle says of its objects.
///
/// # Errors
/// The first difference.
pub fn hold(state: &State, options: &Options) -> Result<()> {
    services(state, options)?;
    policies(state, options)
}

fn services(state: &State, options: &Options) -> Result<()> {
    let maps = &state.contents;
    let mut ports: BTreeSet<u16> = BTreeSet::from([NO_PORT]);
    let mut addresses: BTreeSet<IpAddr> = ends(state);
    for service in state.cluster.services.values() {
        ports.extend(service.ports.iter().map(|port| port.port));
        addresses.extend(&service.cluster_ips);
    }
    for ip in &addresses {
        let address = Address::from(*ip);
        let entry = maps.address(&address);
        if entry.is_some_and(|entry| entry.kind == address_kind::HOST) {
            // What this host owns, it answers for.
            continue;
        }
        for port in &ports {
            for name in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let key = ServiceKey::new(address, port.to_be(), name.number());
                let want = backends(&state.cluster, &options.node_name, *ip, *port, name);
                let got = match lookup::target(maps, &key, entry) {
                    Target::Direct => ServiceAnswer::NotAService,
                    Target::NoServicePort => ServiceAnswer::NoSuchPort,
                    Target::NoEndpoint => ServiceAnswer::NoEndpoint,
                    Target::NoLocalEndpoint => ServiceAnswer::NoLocalEndpoint,
                    Target::Pool { head, .. } => {
                        let mut found = BTreeSet::new();
                        for place in 0..head.count {
                            let (_, backend) = lookup::backend_at(maps, head, place)
                                .with_context(|| format!("{ip}:{port}: place {place} is empty"))?;
                            let port = u16::from_be(backend.word.port_be);
                            let new = found.insert((IpAddr::from(backend.address), port));
                            ensure!(new, "{ip}:{port}: a backend stands there twice");
                        }
                        ServiceAnswer::Backends(found)
                    }
                };
                let socket = format!("{ip} port {port} {}", name.name());
                ensure!(
                    got == want,
                    "{socket}: the maps say {got:?}, it is {want:?}"
                );
            }
        }
    }
    Ok(())
}

/// Addresses worth asking for: what is known, the edges of every ipBlock, and strangers.
fn ends(state: &State) -> BTreeSet<IpAddr> {
    let cluster = &state.cluster;
    let mut ends: BTreeSet<IpAddr> = cluster.pods_at.keys().copied().collect();
    ends.extend(cluster.nodes_at.keys());
    ends.extend(&state.local.addresses);
    ends.extend(state.local.pods.values().flat_map(|link| &link.addresses));
    ends.extend(
        STRANGERS
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok()),
    );
    for policy in cluster.policies.values() {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
            if let Peer::Block(block) = peer {
                edges(block.address, block.length, &mut ends);
                for (address, length) in &block.except {
                    edges(*address, *length, &mut ends);
                }
            }
        }
    }
    ends
}

/// The addresses before the first, first, last, and behind the last of a block.
fn edges(address: IpAddr, length: u8, ends: &mut BTreeSet<IpAddr>) {
    match address {
        IpAddr::V4(first) => {
            let first = u32::from(first);
            let last = first | u32::MAX.checked_shr(length.into()).unwrap_or(0);
            for at in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                ends.insert(IpAddr::from(at.to_be_bytes()));
            }
        }
        IpAddr::V6(first) => {
            let first = u128::from(first);
            let last = first | u128::MAX.checked_shr(length.into()).unwrap_or(0);
            for at in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                let ip = IpAddr::from(at.to_be_bytes());
                // A packet of IPv6 never carries a mapped address.
                if !Address::from(ip).is_v4() {
                    ends.insert(ip);
                }
            }
        }
    }
}

/// The ports that policies speak of, and those beside them.
fn ports(state: &State) -> BTreeSet<u16> {
    let mut ports = BTreeSet::from([NO_PORT, 80]);
    let mut around =
        |port: u16| ports.extend([port.saturating_sub(1), port, port.saturating_add(1)]);
    for policy in state.cluster.policies.values() {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        for port in rules.flat_map(|rule| rule.ports.iter().flatten()) {
            if let PortSpec::Range(first, last) = &port.port {
                around(*first);
                around(*last);
            }
        }
    }
    for pod in state.cluster.pods.values() {
        pod.ports.iter().for_each(|port| around(port.port));
    }
    ports.remove(&0);
    ports
}

fn policies(state: &State, options: &Options) -> Result<()> {
    let ends = ends(state);
    let mut probes = vec![(protocol::ICMP, 0), (protocol::ICMPV6, 0)];
    for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        probes.extend(ports(state).into_iter().map(|port| (number, port)));
    }
    for source in &ends {
        for destination in &ends {
            if source == destination || source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            for (protocol, port) in &probes {
                let flow = Flow {
                    source: *source,
                    destination: *destination,
                    protocol: *protocol,
                    port: *port,
                    from_host: false,
                };
                judge(state, options, &flow).with_context(|| format!("{flow:?}"))?;
            }
        }
    }
    Ok(())
}

fn judge(state: &State, options: &Options, flow: &Flow) -> Result<()> {
    let want = policy::verdict(&state.cluster, &state.local, options, flow);
    if matches!(want.egress.by, By::Exempt(_)) {
        return Ok(());
    }
    let maps = &state.contents;
    let side = |own: IpAddr, peer: IpAddr, egress: bool| {
        let entry = maps.address(&Address::from(own))?;
        let local = entry.kind == address_kind::LOCAL_POD;
        let pod = maps.pods.get(&u32::from(entry.slot)).filter(|_| local)?;
        let peer = Address::from(peer);
        let word = if egress { pod.egress } else { pod.ingress };
        let known = maps.address(&peer);
        let port_be = flow.port.to_be();
        Some(lookup::judge(
            maps,
            word,
            &peer,
            known,
            flow.protocol,
            port_be,
        ))
    };
    let egress = side(flow.source, flow.destination, true);
    same(state, egress, &want.egress).context("egress")?;
    let ingress = side(flow.destination, flow.source, false);
    same(state, ingress, &want.ingress).context("ingress")
}

fn same(state: &State, got: Option<Verdict>, want: &Answer) -> Result<()> {
    let Some(got) = got else {
        ensure!(
            want.by == By::Nothing,
            "no pod is asked, and it is {want:?}"
        );
        return Ok(());
    };
    let name = state.rules.get(&got.rule);
    ensure!(
        got.passes() == want.allowed,
        "{got:?} by {name:?}, and it is {want:?}"
    );
    let audited = got.passes() && got.action & action::MASK != action::ALLOW;
    ensure!(
        audited == want.audited,
        "{got:?} by {name:?}, and it is {want:?}"
    );
    match (&want.by, name) {
        (
            By::Rules(rules),
            Some(RuleName::Rule {
                policy,
                direction,
                index,
            }),
        ) => {
            let named = rules
                .iter()
                .any(|r| r.policy == *policy && r.direction == *direction && r.index == *index);
            ensure!(named, "{name:?} is none of {rules:?}");
        }
        (By::Default(wanted), Some(RuleName::Default { policies, .. })) => {
            ensure!(wanted == policies, "{policies:?} are not {wanted:?}");
        }
        (By::Nothing | By::Exempt(_) | By::UnknownPod, None) => {}
        (by, name) => bail!("it is by {by:?}, and the maps name {name:?}"),
    }
    Ok(())
}
