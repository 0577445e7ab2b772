//! The tables of flows under pressure: a scan, and a pod whose partner answers whatever it opens. Connections of others, idle ones
//! too, do not notice.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use agent_common::{Address, protocol};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::netns::Netns;
use tests::lab::patience;
use tests::lab::traffic::held::{Held, HoldPlan};

use crate::scene::{DEADLINE, HTTP, SERVICE, Scene, at, roles, service, vip};
use crate::services::ready;

/// Connections that `conntrack` has room for.
const ROOM: usize = 1_024;
/// A pod's share of them, by default.
const SHARE: usize = ROOM / 2;
/// Idle connections of the other pods, in each family.
const IDLE: usize = 25;
/// The service of the other pods. Behind it, a connection that lost its entry is refused: nothing else would show it so surely.
const WEB: u8 = 10;
/// Passes through the tables follow each other so closely that a test can wait for two.
const SOON: Duration = Duration::from_secs(20);
/// Between two looks at the agent's status.
const POLL: Duration = Duration::from_millis(50);

/// A connection that is silent between two questions.
struct Line(BufReader<TcpStream>);

impl Line {
    fn open(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let stream = netns.run(|| TcpStream::connect_timeout(&to, DEADLINE))??;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        let mut line = Self(BufReader::new(stream));
        line.ask()?;
        Ok(line)
    }

    /// A question and its answer.
    fn ask(&mut self) -> Result<()> {
        self.0.get_mut().write_all(b"still-there\n")?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        ensure!(answer.ends_with("still-there\n"), "answered {answer:?}");
        Ok(())
    }
}

/// A client with connections to a service, idle and busy, and two pods that press.
pub(crate) struct Stage {
    scene: Scene,
    idle: Vec<Line>,
    busy: Vec<Held>,
}

impl Stage {
    fn new(arguments: &[&str]) -> Result<Self> {
        let names = ["client", "server", "presser", "partner"];
        let mut all = vec!["--conntrack-max=1024"];
        all.extend(arguments);
        let scene = Scene::with_arguments(&roles(&names), &all)?;
        scene.apply(&service("web", WEB, &ready(&scene, &["server"])?))?;
        let client = scene.netns("client")?;
        let (mut idle, mut busy) = (Vec::new(), Vec::new());
        for to in at(vip(WEB), SERVICE) {
            for _ in 0..IDLE {
                idle.push(Line::open(client, to)?);
            }
            let mut plan = HoldPlan::new(to, 3);
            plan.deadline = DEADLINE;
            busy.push(Held::start(client, plan)?);
        }
        Ok(Self { scene, idle, busy })
    }

    /// None of the client's connections noticed anything.
    fn ensure_unharmed(&mut self) -> Result<()> {
        for (number, line) in self.idle.iter_mut().enumerate() {
            line.ask()
                .with_context(|| format!("the idle connection {number}"))?;
        }
        for held in &self.busy {
            ensure!(held.failed() == 0, "{:?}", held.connections());
        }
        Ok(())
    }

    /// Waits until the agent's status is as wanted.
    fn await_status(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + SOON * patience();
        loop {
            let status = self.scene.agent.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(
                Instant::now() < end,
                "{what}: {:#} {:#}",
                status["flows"],
                status["counts"]
            );
            // The status says what the last pass found; nothing tells when the next is over.
            std::thread::sleep(POLL);
        }
    }

    /// A flow from each of these ports of the pod that presses to its partner, who answers. How many were not answered.
    fn press(&self, ports: Range<u16>) -> Result<usize> {
        let partner = SocketAddr::new(self.scene.addresses("partner")?[0], HTTP);
        let own = self.scene.addresses("presser")?[0];
        self.scene.netns("presser")?.run(|| {
            let mut unanswered = 0;
            for port in ports {
                let socket = UdpSocket::bind((own, port))?;
                socket.connect(partner)?;
                socket.set_read_timeout(Some(DEADLINE))?;
                socket.send(b"more\n")?;
                unanswered += usize::from(socket.recv(&mut [0; 512]).is_err());
            }
            Ok(unanswered)
        })?
    }

    /// Entries of `conntrack` whose flow a pod opened with UDP.
    fn opened_by(&self, name: &str) -> Result<usize> {
        let own = self.scene.addresses(name)?.map(Address::from);
        let flows = self.scene.pinned().flows()?;
        Ok(flows
            .iter()
            .filter(|(key, _)| key.protocol == protocol::UDP && own.contains(&key.source))
            .count())
    }
}

/// What the status counted under a name.
fn counted(status: &Value, name: &str) -> u64 {
    let counts = status["counts"].as_array().into_iter().flatten();
    counts
        .filter(|count| count["name"] == name)
        .find_map(|count| count["count"].as_u64())
        .unwrap_or(0)
}

/// Entries evicted from a table, by the status.
fn evicted(status: &Value, map: &str) -> u64 {
    let tables = status["flows"]["tables"].as_array().into_iter().flatten();
    tables
        .filter(|table| table["map"] == map)
        .find_map(|table| table["evicted"].as_u64())
        .unwrap_or(0)
}

#[test]
fn a_scan_evicts_nobodys_connections_idle_or_busy() -> Result<()> {
    assert_scan_evicts_nobody(&[])
}

/// A pod sends a datagram to each of many addresses, where nobody is.
pub(crate) fn assert_scan_evicts_nobody(arguments: &[&str]) -> Result<()> {
    /// Twenty times what the table of unanswered flows holds.
    const SCANNED: u16 = 20_000;
    let mut stage = Stage::new(&[arguments, &["--conntrack-udp-timeout=4s"]].concat())?;
    let before = stage.scene.agent.status()?;
    stage.scene.netns("presser")?.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..SCANNED {
            let [high, low] = number.to_be_bytes();
            let to = SocketAddr::new(IpAddr::from(Ipv4Addr::new(198, 18, high, low)), 9);
            // What the network says of it does not matter.
            let _ = socket.send_to(b"anybody", to);
        }
        Ok(())
    })??;
    let after = stage.await_status("a scan fills the table of unanswered flows", |status| {
        evicted(status, "unreplied") > u64::from(SCANNED)
    })?;
    let made = counted(&after, "flow-created") - counted(&before, "flow-created");
    ensure!(made >= SCANNED.into(), "the scan made {made} flows");
    ensure!(
        evicted(&after, "conntrack") == 0,
        "and no other: {:#}",
        after["flows"]
    );
    stage.ensure_unharmed()?;
    tests::say(format_args!(
        "a scan of {made} flows: {} entries evicted from unreplied, none from conntrack",
        evicted(&after, "unreplied")
    ));
    Ok(())
}

// Fails with mutant "no-share".
#[test]
fn a_pod_whose_partner_answers_takes_its_share_and_no_more() -> Result<()> {
    // So long that none goes while they are opened.
    let timeout = format!("--conntrack-udp-timeout-stream={}s", 8 * patience());
    let mut stage = assert_share(&[&timeout])?;
    // What is idle for as long as the flag says goes, and the share with it; what may be idle for longer stays.
    stage.await_status("the share is free again", |status| {
        status["flows"]["pods_at_share"] == 0
    })?;
    stage.ensure_unharmed()
}

/// A pod opens more flows than its share, all of which are answered. Answers the stage as it is then.
pub(crate) fn assert_share(arguments: &[&str]) -> Result<Stage> {
    /// Five times what the table holds.
    const OPENED: u16 = 5_000;
    const FIRST_PORT: u16 = 20_000;
    let mut stage = Stage::new(arguments)?;
    let unanswered = stage.press(FIRST_PORT..FIRST_PORT + OPENED)?;
    ensure!(
        unanswered == 0,
        "beyond its share a pod's own flows work: {unanswered} of {OPENED} were not answered"
    );
    let held = stage.opened_by("presser")?;
    ensure!(
        held <= SHARE,
        "the pod holds {held} flows, and its share is {SHARE}"
    );
    stage.ensure_unharmed()?;
    // Who it is stands in the status, and that no entry of another pod had to go for it.
    // (A pass in the middle may have counted some flows twice: what comes after it takes the room that is left.)
    let mut ports = FIRST_PORT + OPENED..;
    let status = stage.await_status("the pod at its share is told of", |status| {
        let full = status["flows"]["pods_at_share"] == 1;
        if let (false, Some(port)) = (full, ports.nth(9)) {
            // Whether these are answered was asked above.
            let _ = stage.press(port..port + 10);
        }
        full
    })?;
    let biggest = &status["flows"]["biggest"][0];
    ensure!(biggest["pod"] == "default/presser", "{biggest:#}");
    ensure!(
        counted(&status, "conntrack-share") >= u64::from(OPENED) - SHARE as u64,
        "{:#}",
        status["counts"]
    );
    ensure!(evicted(&status, "conntrack") == 0, "{:#}", status["flows"]);
    tests::say(format_args!(
        "{OPENED} answered flows of one pod: {held} in conntrack ({SHARE} are its share), all answered, {} other connections unharmed",
        stage.idle.len() + stage.busy.len() * 3
    ));
    Ok(stage)
}

#[test]
fn without_a_bound_what_one_pod_makes_evicts_others_and_is_counted() -> Result<()> {
    const OPENED: u16 = 4_000;
    const FIRST_PORT: u16 = 20_000;
    let stage = Stage::new(&["--conntrack-share=100", "--conntrack-udp-timeout=4s"])?;
    let unanswered = stage.press(FIRST_PORT..FIRST_PORT + OPENED)?;
    ensure!(unanswered == 0, "{unanswered} were not answered");
    // Two entries a flow came, and the table has room for so many.
    let least = 2 * (u64::from(OPENED) - ROOM as u64);
    let most = 2 * (u64::from(OPENED) + IDLE as u64 * 2 + 10);
    let status = stage.await_status("evictions are inferred", |status| {
        evicted(status, "conntrack") >= least
    })?;
    let inferred = evicted(&status, "conntrack");
    ensure!(inferred <= most, "{inferred} evicted, {most} at most came");
    tests::say(format_args!(
        "{OPENED} answered flows without a bound: {inferred} entries evicted, as inferred"
    ));
    Ok(())
}

#[test]
fn another_size_is_asked_for_and_the_pinned_tables_keep_theirs() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    stage.scene.agent.kill()?;
    let mut plan = stage.scene.agent.plan().clone();
    plan.args.retain(|arg| !arg.starts_with("--conntrack-max"));
    stage
        .scene
        .agent
        .start_again_as(plan.arg("--conntrack-max=4096"))?;
    let status = stage.scene.agent.status()?;
    let maps = status["maps"].as_array().into_iter().flatten();
    let capacity = maps
        .filter(|map| map["name"] == "conntrack")
        .find_map(|map| map["capacity"].as_u64());
    ensure!(capacity == Some(2 * ROOM as u64), "{:#}", status["maps"]);
    let notices = status["notices"].to_string();
    ensure!(
        notices.contains("keeps its 2048 entries") && notices.contains("8192 are asked for"),
        "{notices}"
    );
    stage.ensure_unharmed()
}
