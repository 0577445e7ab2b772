//! ICMP errors reach whom they are meant for, through services: the path's MTU is found, and a closed port refuses. The outside is refused too.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use agent_common::{Reason, hook};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::manifests::{self, Endpoint};
use tests::lab::netns::Netns;
use tests::lab::node::Node;
use tests::lab::patience;
use tests::lab::pinned::Pinned;
use tests::lab::pod::Pod;
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, probe};
use tests::lab::wire::Wire;

use crate::policies::on;
use crate::scene::{DEADLINE, SERVICE, Scene, at, port, roles, service, vip};

const TCX: &[&str] = &["--attach=tcx"];
const CLSACT: &[&str] = &["--attach=clsact"];
/// A port of pods where the test listens itself, and one where nobody does.
const BULK: u16 = 7000;
/// See [`BULK`].
const CLOSED: u16 = 7001;
/// What the narrow part of the way takes, in bytes: less than pods' links do, and more than every IPv6 link must.
const NARROW: u32 = 1400;
/// Bytes each way: many windows.
const TRANSFER: usize = 4 << 20;

/// A scene with the pods `client` and `near`, and a pod `remote` on another node with its own agent.
struct Pair {
    agent: Agent,
    remote: Pod,
    node: Node,
    scene: Scene,
}

impl Pair {
    fn new(arguments: &[&str]) -> Result<Self> {
        let scene = Scene::with_arguments(&roles(&["client", "near"]), arguments)?;
        let node = scene.lab.node("b")?;
        let remote = node.pod("remote")?;
        scene.dir.put(&manifests::node(&node, &[]))?;
        scene
            .dir
            .put(&manifests::pod(&remote, &[("app", "remote")], &[]))?;
        let mut plan = AgentPlan::new(&node, Source::Manifests(scene.dir.path().to_owned()))?;
        for argument in arguments {
            plan = plan.arg(argument);
        }
        let agent = Agent::start(&node, plan)?;
        scene.settle()?;
        Ok(Self {
            agent,
            remote,
            node,
            scene,
        })
    }

    /// A service at [`vip`] of which port [`SERVICE`] leads to a pod's port.
    fn serve(&self, name: &str, number: u8, target: u16, pod: &Pod) -> Result<()> {
        let ports = Proto::ALL.map(|proto| port(target, proto));
        let service = manifests::service("default", name, &vip(number), &ports);
        let [v4, v6] = manifests::endpoint_slices("default", name, &ports, &[Endpoint::ready(pod)]);
        self.scene.apply(&[service, v4, v6])
    }

    fn drops(&self, reason: Reason) -> Result<u64> {
        let there = Pinned::new(&self.agent.plan().pin_root);
        Ok(self.scene.pinned().drops(reason)? + there.drops(reason)?)
    }

    /// Makes the way between the nodes' pods narrow: on the nodes themselves, whose own stacks find out, or on a router between them.
    fn narrow(&self, by_router: bool) -> Result<()> {
        let (a, b) = (&self.scene.node, &self.node);
        let narrow = format!("mtu lock {NARROW}");
        for (from, to) in [(a, b), (b, a)] {
            let (v4, v6) = (to.pod_range_v4(), to.pod_range_v6());
            let direct = format!(
                "route replace {v4} via {} {narrow}\nroute replace {v6} via {} {narrow}\n",
                to.ipv4, to.ipv6
            );
            if by_router {
                self.scene.lab.wire().netns().ip(&direct)?;
                from.netns().ip(&format!(
                    "route replace {v4} via {}\nroute replace {v6} via {}\n",
                    Wire::GATEWAY_V4,
                    Wire::GATEWAY_V6
                ))?;
            } else {
                from.netns().ip(&direct)?;
            }
        }
        // What pods have learned of the way so far.
        for netns in [self.scene.netns("client")?, self.remote.netns()] {
            netns.ip("route flush cache\n-6 route flush cache\n")?;
        }
        Ok(())
    }
}

/// What a namespace knows of the way to an address, in `ip`'s words.
fn way(netns: &Netns, to: IpAddr) -> Result<String> {
    let get = || {
        Command::new("ip")
            .args(["route", "get", &to.to_string()])
            .output()
    };
    let output = netns.run(get)?.context("starting `ip`")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Everything that one end writes, the other reads.
fn pump(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let (mut from, mut to) = (from, to);
    thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<()> {
            from.write_all(&vec![0x5a; TRANSFER]).context("writing")?;
            from.shutdown(Shutdown::Write).context("ending")
        });
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        loop {
            match to.read(&mut buffer).context("reading") {
                Ok(0) => break,
                Ok(n) => read += n,
                // The writer has its own deadline.
                Err(error) => return Err(error.context(format!("after {read} bytes"))),
            }
        }
        writer
            .join()
            .map_err(|_| anyhow!("the writer panicked"))??;
        ensure!(read == TRANSFER, "{read} of {TRANSFER} bytes");
        Ok(())
    })
}

/// A transfer each way on a connection from `client` to a listener of `server`.
fn transfer(client: &Netns, to: SocketAddr, server: &Netns, listen: SocketAddr) -> Result<()> {
    let deadline = DEADLINE * patience();
    let listener = server.run(|| TcpListener::bind(listen))??;
    let here = client
        .run(|| TcpStream::connect_timeout(&to, deadline))?
        .with_context(|| format!("connecting to {to}"))?;
    let (there, _) = listener.accept()?;
    for stream in [&here, &there] {
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
    }
    pump(&here, &there).with_context(|| format!("to {to}"))?;
    pump(&there, &here).with_context(|| format!("from {to}"))
}

fn assert_the_paths_mtu_is_found(arguments: &[&str]) -> Result<()> {
    let pair = Pair::new(arguments)?;
    pair.serve("bulk", 20, BULK, &pair.remote)?;
    let client = pair.scene.netns("client")?;
    let refused = pair.drops(Reason::IcmpError)?;
    for by_router in [false, true] {
        pair.narrow(by_router)?;
        for (to, listen) in at(vip(20), SERVICE)
            .into_iter()
            .zip(at(pair.remote.addresses(), BULK))
        {
            let drops = || -> Result<String> {
                let there = Pinned::new(&pair.agent.plan().pin_root);
                let here = pair.scene.pinned().all_drops()?;
                Ok(format!(
                    "router: {by_router}; {}; drops: {here:?}, {:?}",
                    way(client, to.ip())?,
                    there.all_drops()?
                ))
            };
            transfer(client, to, pair.remote.netns(), listen).with_context(|| {
                drops().unwrap_or_else(|error| format!("and no word why: {error:#}"))
            })?;
            // It is the service's way that the client has learned, which it knows of from the quote alone.
            let learned = way(client, to.ip())?;
            ensure!(
                learned.contains(&format!("mtu {NARROW}")),
                "{to}, router: {by_router}: {learned}; {}",
                drops()?
            );
        }
    }
    ensure!(
        pair.drops(Reason::IcmpError)? == refused,
        "every error was about a flow that is known"
    );
    Ok(())
}

#[test]
fn by_tcx_a_transfer_through_a_service_finds_the_paths_mtu() -> Result<()> {
    assert_the_paths_mtu_is_found(TCX)
}

#[test]
fn by_clsact_a_transfer_through_a_service_finds_the_paths_mtu() -> Result<()> {
    assert_the_paths_mtu_is_found(CLSACT)
}

fn assert_a_closed_port_refuses(arguments: &[&str]) -> Result<()> {
    let pair = Pair::new(arguments)?;
    let near = &pair.scene.actor("near")?.pod;
    pair.serve("near", 21, CLOSED, near)?;
    pair.serve("far", 22, CLOSED, &pair.remote)?;
    // Nobody may send such an error of its own accord, and nobody get one.
    let only_client = json!({
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }],
    });
    let only_out = json!({ "policyTypes": ["Ingress", "Egress"], "egress": [{}] });
    let policies = [
        on("near", "near-only-client", only_client.clone()),
        on("remote", "remote-only-client", only_client),
        on("client", "client-only-out", only_out),
    ];
    for round in 0..2 {
        let client = pair.scene.netns("client")?;
        let mut probes = Vec::new();
        for number in [21, 22] {
            for proto in Proto::ALL {
                probes.extend(at(vip(number), SERVICE).map(|to| Probe::new(client, proto, to)));
            }
        }
        let refused = pair.drops(Reason::IcmpError)?;
        let outcomes = probe::run(&probes, Patience::deadline(DEADLINE))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                *outcome == Outcome::Refused,
                "round {round}, {probe}: {outcome}; drops: {:?}",
                pair.scene.pinned().all_drops()?
            );
        }
        ensure!(pair.drops(Reason::IcmpError)? == refused);
        if round == 0 {
            pair.scene.apply(&policies)?;
            // The other agent follows the same directory: what it has in force shows in its own answers.
            pair.scene.settle()?;
        }
    }
    Ok(())
}

#[test]
fn by_tcx_a_closed_port_behind_a_service_refuses() -> Result<()> {
    assert_a_closed_port_refuses(TCX)
}

#[test]
fn by_clsact_a_closed_port_behind_a_service_refuses() -> Result<()> {
    assert_a_closed_port_refuses(CLSACT)
}

#[test]
fn the_outside_is_refused_at_a_cluster_ip_at_once() -> Result<()> {
    let scene = Scene::new(&roles(&["client"]))?;
    let endpoint = Endpoint::ready(&scene.actor("client")?.pod);
    scene.apply(&service("web", 20, &[endpoint]))?;
    let world = scene.lab.wire().netns();
    world.ip(&format!(
        "route add 10.96.0.0/24 via {}\nroute add fd00:96::/64 via {}\n",
        scene.node.ipv4, scene.node.ipv6
    ))?;
    let mut probes = Vec::new();
    for port in [SERVICE, SERVICE + 1] {
        for proto in Proto::ALL {
            probes.extend(at(vip(20), port).map(|to| Probe::new(world, proto, to)));
        }
    }
    let count = || {
        scene
            .pinned()
            .drops_at(hook::FROM_UPLINK, Reason::ClusterIpFromOutside)
    };
    let before = count()?;
    let outcomes = probe::run(&probes, Patience::deadline(DEADLINE))?;
    for (probe, outcome) in probes.iter().zip(&outcomes) {
        ensure!(*outcome == Outcome::Refused, "{probe}: {outcome}");
    }
    ensure!(count()? - before == probes.len() as u64);
    ensure!(scene.server("client")?.requests() == 0);
    Ok(())
}
