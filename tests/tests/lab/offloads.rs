//! Bulk transfers and large datagrams, with the offloads of every link on and off: what arrives is what was sent, byte for byte.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use agent_common::Reason;
use anyhow::{Context, Result, anyhow, ensure};
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::manifests::{self, Endpoint, ServicePort};
use tests::lab::netns::Netns;
use tests::lab::node::Node;
use tests::lab::offload;
use tests::lab::pinned::Pinned;
use tests::lab::pod::Pod;
use tests::lab::traffic::Proto;

use crate::scene::{DEADLINE, SERVICE, Scene, at, roles, vip};

/// Where the servers here answer with what they get.
const ECHO: u16 = 7;
/// Bytes of a transfer, each way: many segments of 64 KiB.
const BULK: usize = 1 << 20;
/// Bytes of datagrams: three fragments, and nearly as many as there can be.
const DATAGRAMS: [usize; 2] = [4_000, 60_000];
/// Datagrams of each size to each address.
const ROUNDS: u8 = 5;

/// Bytes that tell where they stand.
fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| u8::try_from((n / 251 + n) % 251).unwrap_or(0) ^ seed)
        .collect()
}

/// A pod's server that sends back what it gets, over TCP and UDP, on both addresses, until it is dropped.
struct Echo {
    netns: Arc<Netns>,
    ended: Arc<AtomicBool>,
    threads: Vec<(SocketAddr, JoinHandle<Result<()>>)>,
}

impl Echo {
    fn start(pod: &Pod) -> Result<Self> {
        let mut echo = Self {
            netns: Arc::clone(pod.netns()),
            ended: Arc::default(),
            threads: Vec::new(),
        };
        for address in pod.addresses() {
            let bound = SocketAddr::new(address, ECHO);
            let (tcp, udp) = pod
                .netns()
                .run(|| {
                    Ok::<_, std::io::Error>((TcpListener::bind(bound)?, UdpSocket::bind(bound)?))
                })?
                .with_context(|| format!("a server at {bound}"))?;
            let ended = Arc::clone(&echo.ended);
            let thread = pod.netns().thread("echo-tcp", None, move || {
                for stream in tcp.incoming() {
                    if ended.load(Ordering::Acquire) {
                        break;
                    }
                    let mut stream = stream.context("a connection")?;
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).context("a transfer")?;
                    stream.write_all(&all).context("sending it back")?;
                }
                Ok(())
            })?;
            echo.threads.push((bound, thread));
            let ended = Arc::clone(&echo.ended);
            let thread = pod.netns().thread("echo-udp", None, move || {
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let (length, from) = udp.recv_from(&mut buffer).context("a datagram")?;
                    if ended.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    udp.send_to(&buffer[..length], from)
                        .context("sending it back")?;
                }
            })?;
            echo.threads.push((bound, thread));
        }
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        for (bound, thread) in self.threads.drain(..) {
            // Each waits for one more, whichever of the two it is for. Where nobody listens any more, its thread has ended.
            let _ = self.netns.run(|| -> std::io::Result<()> {
                drop(TcpStream::connect_timeout(&bound, DEADLINE));
                UdpSocket::bind(SocketAddr::new(bound.ip(), 0))?.send_to(&[], bound)?;
                Ok(())
            });
            let _ = thread.join();
        }
    }
}

/// Sends a transfer and gets it back.
fn transfer(from: &Arc<Netns>, to: SocketAddr, seed: u8) -> Result<()> {
    let back = from.run(|| -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(&content(BULK, seed))?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        Ok(back)
    })?;
    let back = back.with_context(|| format!("a transfer to {to}"))?;
    ensure!(
        back == content(BULK, seed),
        "{to} sent back {} of {BULK} bytes, or others",
        back.len()
    );
    Ok(())
}

/// Sends datagrams of every size and gets each back, from whom it was sent to.
fn datagrams(from: &Arc<Netns>, to: SocketAddr) -> Result<()> {
    let asked = from.run(|| -> Result<()> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let mut buffer = vec![0; 1 << 16];
        for size in DATAGRAMS {
            for seed in 0..ROUNDS {
                let sent = content(size, seed);
                socket.send(&sent).context("sending")?;
                let length = socket
                    .recv(&mut buffer)
                    .with_context(|| format!("no answer to {size} bytes"))?;
                ensure!(
                    buffer[..length] == sent,
                    "{length} of {size} bytes, or others"
                );
            }
        }
        Ok(())
    })?;
    asked.with_context(|| format!("datagrams to {to}"))
}

/// A second node with a pod and an agent of its own; and both servers.
struct Far {
    _servers: [Echo; 2],
    agent: Agent,
    pod: Pod,
    node: Node,
}

/// A scene with a client and a server, and another server on another node; services 10 and 11 lead to them.
fn stage() -> Result<(Scene, Far)> {
    let scene = Scene::new(&roles(&["client", "near"]))?;
    let node = scene.lab.node("b")?;
    let pod = node.pod("far")?;
    scene.dir.put(&manifests::node(&node, &[]))?;
    scene
        .dir
        .put(&manifests::pod(&pod, &[("app", "far")], &[]))?;
    let near = &scene.actor("near")?.pod;
    let servers = [Echo::start(near)?, Echo::start(&pod)?];
    for (name, number, backend) in [("near", 10, near), ("far", 11, &pod)] {
        let ports = Proto::ALL.map(|proto| ServicePort {
            name: match proto {
                Proto::Tcp => "tcp",
                Proto::Udp => "udp",
            },
            port: SERVICE,
            target: ECHO,
            proto,
        });
        let [v4, v6] =
            manifests::endpoint_slices("default", name, &ports, &[Endpoint::ready(backend)]);
        let service = manifests::service("default", name, &vip(number), &ports);
        scene.dir.put_all([&service, &v4, &v6])?;
    }
    scene.settle()?;
    let plan = AgentPlan::new(&node, Source::Manifests(scene.dir.path().to_owned()))?;
    let agent = Agent::start(&node, plan)?;
    let far = Far {
        _servers: servers,
        agent,
        pod,
        node,
    };
    Ok((scene, far))
}

#[test]
fn bulk_transfers_arrive_whole_with_any_offloads() -> Result<()> {
    let (scene, far) = stage()?;
    let client = &scene.actor("client")?.pod;
    let near = &scene.actor("near")?.pod;
    let (here, there, wire) = (scene.node.netns(), far.node.netns(), scene.lab.wire());
    let (port_here, port_there) = (scene.node.wire_port(), far.node.wire_port());
    let links: [(&Netns, &str); 10] = [
        (client.netns(), Pod::DEVICE),
        (near.netns(), Pod::DEVICE),
        (far.pod.netns(), Pod::DEVICE),
        (here, &client.device),
        (here, &near.device),
        (there, &far.pod.device),
        (here, Node::UPLINK),
        (there, Node::UPLINK),
        (wire.netns(), &port_here),
        (wire.netns(), &port_there),
    ];
    let mut seen = BTreeSet::new();
    let mut transfers = 0_u32;
    for bits in 0..16_u8 {
        let wanted = [1, 2, 4, 8].map(|bit| bits & bit == 0);
        let mut on = [false; 4];
        for (netns, device) in links {
            on = offload::set(netns, device, wanted)?;
        }
        if !seen.insert(on) {
            // One of them stands on another that is off.
            continue;
        }
        for (netns, device) in links {
            ensure!(offload::set(netns, device, wanted)? == on, "{device}");
        }
        let targets = [
            at(vip(10), SERVICE),
            at(vip(11), SERVICE),
            at(near.addresses(), ECHO),
            at(far.pod.addresses(), ECHO),
        ];
        for to in targets.into_iter().flatten() {
            transfer(client.netns(), to, bits).with_context(|| format!("with {on:?}"))?;
            transfers += 1;
        }
    }
    tests::say(format_args!(
        "{transfers} transfers of {BULK} bytes there and back, in {} combinations of offloads, of 16 asked for",
        seen.len()
    ));
    ensure!(
        seen.len() >= 8,
        "{} combinations of offloads only",
        seen.len()
    );
    unhindered(&scene.pinned())?;
    unhindered(&Pinned::new(&far.agent.plan().pin_root))
}

#[test]
fn large_datagrams_arrive_through_a_service_both_ways() -> Result<()> {
    let (scene, far) = stage()?;
    let client = &scene.actor("client")?.pod;
    let near = &scene.actor("near")?.pod;
    // By service and by address, on the node and across, twice each: a flow's first datagram and what follows; and at last this host's own.
    for _ in 0..2 {
        let targets = [
            at(vip(10), SERVICE),
            at(vip(11), SERVICE),
            at(near.addresses(), ECHO),
            at(far.pod.addresses(), ECHO),
        ];
        for to in targets.into_iter().flatten() {
            datagrams(client.netns(), to)?;
        }
        for to in at(near.addresses(), ECHO) {
            datagrams(scene.node.netns(), to)?;
        }
    }
    unhindered(&scene.pinned())?;
    unhindered(&Pinned::new(&far.agent.plan().pin_root))?;
    // And where both ends are isolated but for this.
    let spec = |direction: &str, rules: &str| {
        serde_json::json!({
            "podSelector": {}, "policyTypes": [direction],
            (rules): [{ "ports": [{ "port": ECHO, "protocol": "UDP" }] }],
        })
    };
    let sends = manifests::network_policy("default", "sends", spec("Egress", "egress"));
    let takes = manifests::network_policy("default", "takes", spec("Ingress", "ingress"));
    scene.apply([&sends, &takes])?;
    for to in [at(vip(10), SERVICE), at(vip(11), SERVICE)]
        .into_iter()
        .flatten()
    {
        datagrams(client.netns(), to)?;
    }
    unhindered(&scene.pinned())?;
    unhindered(&Pinned::new(&far.agent.plan().pin_root))
}

/// No packet of a transfer was dropped for what it looks like.
fn unhindered(pinned: &Pinned) -> Result<()> {
    for reason in [
        Reason::Fragment,
        Reason::Malformed,
        Reason::RewriteFailed,
        Reason::ExtensionHeader,
    ] {
        let drops = pinned.drops(reason)?;
        ensure!(
            drops == 0,
            "{drops} packets dropped for {}: {:?}",
            reason.name(),
            pinned.all_drops().map_err(|error| anyhow!("{error:#}"))?
        );
    }
    Ok(())
}
