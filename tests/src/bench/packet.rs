//! What a packet costs: nanoseconds in the programs above those of an empty one, with the cluster in force.
//!
//! *Established, translated, denied*: by `BPF_PROG_TEST_RUN`, with the packet restored each round. A program by hand writes the packet's
//! bytes and tail-calls the stub; another writes the same bytes and tail-calls a program that does nothing. The difference is the stub and
//! all behind it. Rounds of both alternate.
//!
//! *New flow*: each SYN is another tuple, so each is a run of its own, and the kernel's run-time statistics tell how long the stub took
//! in the middle of everything else; likewise of an empty program, in turns. Nobody answers: so after as many as their table has room for each evicts
//! another, which is a scan's figure and stands by itself; and each kind has tables of its own, or the second would be measured on what the first
//! has left.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use super::bars;
use super::bpf::{self, Place, REDIRECT, SHOT};
use super::node::Node;
use super::offline::{self, Offline};
use super::population::{
    DENIED_PORT, FIRST_PORT, OWN_CLUSTER_IP, OWN_SERVICE, Own, OwnService, PORTS, Size, others, own,
};
use super::report::Row;
use super::runs::{self, Runs};
use super::stats::Summary;
use crate::packet::build::Packet;
use crate::packet::links;
use crate::packet::seen::Seen;

/// The name of the rows' group.
const GROUP: &str = "a packet, above an empty program";
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3));
/// Client ports of the flows that stand.
const DIRECT_PORT: u16 = 20_000;
const SERVICE_PORT: u16 = 20_001;
/// Client ports of new flows begin here, of those by address and of those by ClusterIP: behind its translation a flow of one would
/// look like a flow of the other. There are so many of each.
const FRESH_DIRECT: u32 = 21_000;
const FRESH_SERVICE: u32 = 41_000;
const FRESH: u32 = 20_000;
/// SYNs between two readings of the kernel's statistics.
const BLOCK: u32 = 1_000;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each kind.
    pub rounds: usize,
    /// Runs of a round.
    pub repeat: u32,
    /// SYNs from fresh tuples.
    pub syns: u32,
}

impl Effort {
    /// Enough for a developer's look.
    pub const QUICK: Self = Self {
        rounds: 7,
        repeat: 200_000,
        syns: 100_000,
    };
    /// Enough to be written down.
    pub const WHOLE: Self = Self {
        rounds: 21,
        repeat: 1_000_000,
        syns: 150_000,
    };
}

/// Measures with little and with much in force.
///
/// # Errors
/// Not root, the kernel refuses a program, or a packet was not treated as it is to be.
pub fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in [Size::FULL, Size::SMALL] {
        rows.extend(measure_in(&size, effort)?);
    }
    // What is compared stands together.
    let mut order: Vec<String> = Vec::new();
    for row in &rows {
        if !order.contains(&row.name) {
            order.push(row.name.clone());
        }
    }
    rows.sort_by_key(|row| order.iter().position(|name| *name == row.name));
    Ok(rows)
}

/// A node with the cluster in force, and two pods on it.
struct Scene {
    node: Node,
    // The maps' mirror: it holds what is in force.
    _agent: Offline,
    client: Place,
    server: Place,
    side: String,
    denies: bool,
}

fn measure_in(size: &Size, effort: &Effort) -> Result<Vec<Row>> {
    let scene = Scene::new(size)?;
    scene.open()?;
    let mut rows = vec![
        scene.established(effort)?,
        scene.reply(effort)?,
        scene.translated(effort)?,
        scene.translated_back(effort)?,
    ];
    if scene.denies {
        rows.push(scene.denied(effort)?);
    }
    if *size == Size::FULL {
        rows.push(scene.empty(effort)?);
    }
    drop(scene);
    for (called, name) in [
        (SERVER, "new flow, pod to pod"),
        (OWN_CLUSTER_IP, "new flow of a service"),
    ] {
        rows.extend(new_flows(size, effort, called, name)?);
    }
    Ok(rows)
}

/// SYNs of tuples that nobody had before: those that find room, as many as are asked for, and those that evict others.
fn new_flows(size: &Size, effort: &Effort, called: IpAddr, name: &str) -> Result<Vec<Row>> {
    let mut blocks = Blocks::default();
    let mut side = String::new();
    while blocks.in_room() < effort.syns {
        let scene = Scene::new(size)?;
        ensure!(
            scene.node.unanswered > 2 * BLOCK,
            "this machine's memory gives room for {} flows that nobody has answered: too few to measure",
            scene.node.unanswered
        );
        scene.fresh_syns(effort, called, &mut blocks)?;
        side = scene.side;
    }
    let row = |name: &str, cost| Row::new(GROUP, name, &side, cost, "ns");
    let cost = Summary::of(&blocks.roomy).context("no block")?;
    let note = format!("{} SYNs from fresh tuples", blocks.in_room());
    let bar = if size.policies > 0 {
        bars::NEW_FLOW
    } else {
        None
    };
    let mut rows = vec![row(name, cost).note(note).bar(bar)];
    if let Some(cost) = Summary::of(&blocks.full) {
        let number = blocks.full.len() * BLOCK as usize;
        let row = row(&format!("{name}, table full"), cost);
        rows.push(row.note(format!("{number} SYNs, each in place of another")));
    }
    Ok(rows)
}

/// What SYNs took, by blocks.
#[derive(Default)]
struct Blocks {
    /// Those that found room.
    roomy: Vec<f64>,
    /// Those that evicted others.
    full: Vec<f64>,
}

impl Blocks {
    fn in_room(&self) -> u32 {
        u32::try_from(self.roomy.len()).map_or(u32::MAX, |blocks| blocks.saturating_mul(BLOCK))
    }
}

impl Scene {
    fn new(size: &Size) -> Result<Self> {
        let links = links::enter()?;
        let (node, datapath) = Node::load()?;
        let place = |ifindex: u32| Place {
            ifindex,
            ingress_ifindex: ifindex,
        };
        let (client, server) = (place(links[1]), place(links[2]));
        let pods = [("client", CLIENT), ("server", SERVER)].map(|(name, address)| Own {
            name: name.to_owned(),
            node: offline::NODE.to_owned(),
            addresses: vec![address],
        });
        let local = offline::local(&[(client.ifindex, CLIENT), (server.ifindex, SERVER)]);
        let mut agent = Offline::new(Box::new(datapath), local);
        let service = OwnService {
            name: OWN_SERVICE,
            address: OWN_CLUSTER_IP,
            server: &pods[1],
        };
        agent.start(others(size).chain(own(size, &pods, &[service])))?;
        Ok(Self {
            node,
            _agent: agent,
            client,
            server,
            side: bars::in_force(size),
            denies: size.policies > 0,
        })
    }

    /// Makes the flows that stand: each by its three packets.
    fn open(&self) -> Result<()> {
        let server = SocketAddr::new(SERVER, FIRST_PORT);
        let service = SocketAddr::new(OWN_CLUSTER_IP, FIRST_PORT);
        for (port, called) in [(DIRECT_PORT, server), (SERVICE_PORT, service)] {
            let client = SocketAddr::new(CLIENT, port);
            let sent = self.from(self.client, &Packet::syn(client, called))?;
            ensure!(
                sent.destination == server,
                "a SYN to {called} goes to {}",
                sent.destination
            );
            let answered = self.from(self.server, &Packet::syn_ack(server, client))?;
            ensure!(
                answered.source == called,
                "the answer of {called} comes from {}",
                answered.source
            );
            self.from(self.client, &Packet::ack(client, called))?;
        }
        Ok(())
    }

    /// Lets a pod send a packet, which must go straight into the other pod.
    fn from(&self, place: Place, packet: &Packet) -> Result<Seen> {
        let ran = bpf::run(self.node.from_pod.fd(), place, &packet.bytes(), 1)?;
        ensure!(
            ran.verdict == REDIRECT,
            "{packet:?} should be redirected, and the program returned {}",
            ran.verdict
        );
        Seen::read(&ran.frame).context("the packet out")
    }

    fn established(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, DIRECT_PORT);
        let packet = Packet::ack(client, SocketAddr::new(SERVER, FIRST_PORT));
        let cost = self.cost(effort, self.client, &packet, REDIRECT)?;
        Ok(self
            .row("established, pod to pod", cost)
            .bar(bars::ESTABLISHED))
    }

    fn reply(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, DIRECT_PORT);
        let packet = Packet::ack(SocketAddr::new(SERVER, FIRST_PORT), client);
        let cost = self.cost(effort, self.server, &packet, REDIRECT)?;
        Ok(self
            .row("established, its answers", cost)
            .bar(bars::ESTABLISHED))
    }

    fn translated(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, SERVICE_PORT);
        let packet = Packet::ack(client, SocketAddr::new(OWN_CLUSTER_IP, FIRST_PORT));
        let cost = self.cost(effort, self.client, &packet, REDIRECT)?;
        Ok(self
            .row("translated, to a service", cost)
            .bar(bars::ESTABLISHED))
    }

    fn translated_back(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, SERVICE_PORT);
        let packet = Packet::ack(SocketAddr::new(SERVER, FIRST_PORT), client);
        let cost = self.cost(effort, self.server, &packet, REDIRECT)?;
        Ok(self
            .row("translated, its answers", cost)
            .bar(bars::ESTABLISHED))
    }

    fn denied(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, DIRECT_PORT);
        let packet = Packet::syn(client, SocketAddr::new(SERVER, DENIED_PORT));
        let cost = self.cost(effort, self.client, &packet, SHOT)?;
        Ok(self
            .row("denied", cost)
            .note("judged each time; events beyond their rate are counted and not told"))
    }

    /// Nanoseconds above an empty program, of each round.
    fn cost(
        &self,
        effort: &Effort,
        place: Place,
        packet: &Packet,
        verdict: i32,
    ) -> Result<Summary> {
        let frame = packet.bytes();
        let nothing = Runner::new(&frame, bpf::load("bench_empty", &bpf::empty())?.as_fd())?;
        let stub = Runner::new(&frame, self.node.from_pod.fd())?;
        let mut above = Vec::new();
        for _ in 0..effort.rounds {
            let empty = nothing.round(place, &frame, effort.repeat, bpf::NEXT)?;
            let with = stub.round(place, &frame, effort.repeat, verdict)?;
            above.push(with - empty);
        }
        Summary::of(&above).context("no round")
    }

    /// What the empty program and the restoring cost by themselves.
    fn empty(&self, effort: &Effort) -> Result<Row> {
        let client = SocketAddr::new(CLIENT, DIRECT_PORT);
        let frame = Packet::ack(client, SocketAddr::new(SERVER, FIRST_PORT)).bytes();
        let nothing = Runner::new(&frame, bpf::load("bench_empty", &bpf::empty())?.as_fd())?;
        let mut rounds = Vec::new();
        for _ in 0..effort.rounds {
            rounds.push(nothing.round(self.client, &frame, effort.repeat, bpf::NEXT)?);
        }
        let summary = Summary::of(&rounds).context("no round")?;
        Ok(
            Row::new(GROUP, "the empty program itself", "", summary, "ns")
                .note("with the restored packet and the tail call, which are in both"),
        )
    }

    /// Sends fresh SYNs until there are enough of those that found room.
    fn fresh_syns(&self, effort: &Effort, called: IpAddr, blocks: &mut Blocks) -> Result<()> {
        let empty = bpf::load("bench_empty", &bpf::empty())?;
        let _counting = runs::count()?;
        let (stub_before, mut sent) = (self.node.from_pod.runs()?, 0_u32);
        while sent < effort.syns && blocks.in_room() < effort.syns {
            let frames: Vec<Vec<u8>> = (sent..sent + BLOCK)
                .map(|number| fresh_syn(number, called))
                .collect::<Result<_>>()?;
            let nothing = block(empty.as_fd(), self.client, &frames, bpf::NEXT)?;
            let stub = block(self.node.from_pod.fd(), self.client, &frames, REDIRECT)?;
            sent += BLOCK;
            // A block less: the kernel deals room out to CPUs, and evicts before the last of it is taken.
            let taken = if sent + BLOCK <= self.node.unanswered {
                &mut blocks.roomy
            } else {
                &mut blocks.full
            };
            taken.push(stub.each() - nothing.each());
        }
        let ran = self.node.from_pod.runs()?.since(stub_before).count;
        ensure!(
            ran == u64::from(sent),
            "{sent} SYNs were sent and the program ran {ran} times: something else uses it"
        );
        Ok(())
    }

    fn row(&self, name: &str, cost: Summary) -> Row {
        Row::new(GROUP, name, &self.side, cost, "ns")
    }
}

/// Restores a packet and runs a program on it, over and over.
struct Runner {
    program: OwnedFd,
    // The program's own reference is enough; but a program array is emptied with its last descriptor.
    _array: OwnedFd,
}

impl Runner {
    fn new(frame: &[u8], program: BorrowedFd<'_>) -> Result<Self> {
        use std::os::fd::AsRawFd as _;
        let array = bpf::array_of(program)?;
        let code = bpf::restore_and_call(frame, array.as_raw_fd());
        Ok(Self {
            program: bpf::load("bench_restore", &code)?,
            _array: array,
        })
    }

    /// Nanoseconds of a run.
    fn round(&self, place: Place, frame: &[u8], repeat: u32, verdict: i32) -> Result<f64> {
        let ran = bpf::run(self.program.as_fd(), place, frame, repeat)?;
        ensure!(
            ran.verdict == verdict,
            "after {repeat} runs the verdict is {} where it should be {verdict}",
            ran.verdict
        );
        Ok(ran.each.as_secs_f64() * 1e9)
    }
}

/// Runs a program once on each frame; what the kernel counted of it.
fn block(program: BorrowedFd<'_>, place: Place, frames: &[Vec<u8>], verdict: i32) -> Result<Runs> {
    let before = Runs::of(program)?;
    for frame in frames {
        let ran = bpf::run(program, place, frame, 1)?;
        ensure!(
            ran.verdict == verdict,
            "a SYN's verdict is {} where it should be {verdict}",
            ran.verdict
        );
    }
    Ok(Runs::of(program)?.since(before))
}

/// SYN `number`.
fn fresh_syn(number: u32, called: IpAddr) -> Result<Vec<u8>> {
    let (from, to) = fresh_ports(number, called)?;
    let (client, called) = (SocketAddr::new(CLIENT, from), SocketAddr::new(called, to));
    Ok(Packet::syn(client, called).bytes())
}

/// The client's port of SYN `number`, and the server's, which tell it from all others.
fn fresh_ports(number: u32, called: IpAddr) -> Result<(u16, u16)> {
    let first = if called == SERVER {
        FRESH_DIRECT
    } else {
        FRESH_SERVICE
    };
    let from = u16::try_from(first + number % FRESH)?;
    let to = FIRST_PORT + u16::try_from(number / FRESH % u32::from(PORTS))?;
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_syns_are_the_same() {
        let syns = Effort::WHOLE.syns;
        for called in [SERVER, OWN_CLUSTER_IP] {
            let ports: BTreeSet<(u16, u16)> = (0..syns)
                .map(|number| fresh_ports(number, called).unwrap())
                .collect();
            assert_eq!(ports.len(), syns as usize);
        }
        // Nor are they of a flow that stands, or of the other kind.
        const { assert!(FRESH_DIRECT > SERVICE_PORT as u32) };
        const { assert!(FRESH_DIRECT + FRESH <= FRESH_SERVICE) };
        const { assert!(FRESH_SERVICE + FRESH <= u16::MAX as u32 + 1) };
        assert!(syns <= FRESH * u32::from(PORTS));
    }
}
