//! Maps that the kernel has no room in: what fits stays whole, what does not is named with its limit, and comes into force when there is
//! room, without being asked. Somebody else's entries fill them, so that the agent cannot know how many go in.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent_common::{
    Address, Prefix, PrefixEntry, Reason, ServiceEntry, ServiceKey, limits, protocol,
};
use anyhow::{Result, bail, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapError};
use serde_json::{Value, json};
use tests::lab::scrape::{self, sample};
use tests::lab::traffic::Probe;

use crate::node_parts::{Stage, await_that, await_within, open};
use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, SERVICE, Scene, service};
use crate::services::{BACKENDS, ready, service_probes};

/// The service that comes when there is no room.
const LATE: u8 = 20;
/// So many of the foreign entries go: more than what waits needs.
const ROOM: u32 = 16;
/// What found no room is tried again after twice the time each time, up to half a minute; and then it must be written.
const RETRIED: Duration = Duration::from_secs(40);
/// Of a prefix that is one address.
const BITS: u32 = 128;

/// The n-th address that nothing has.
fn nobody(n: u32) -> Address {
    let [_, a, b, c] = n.to_be_bytes();
    Address::from(std::net::IpAddr::from(Ipv4Addr::new(20, a, b, c)))
}

/// Puts entries in until the kernel takes none; how many.
fn fill(capacity: u32, mut put: impl FnMut(u32) -> Result<(), MapError>) -> Result<u32> {
    for n in 0..=capacity {
        match put(n) {
            Ok(()) => {}
            Err(MapError::SyscallError(error))
                if matches!(
                    error.io_error.raw_os_error(),
                    Some(libc::E2BIG | libc::ENOSPC)
                ) =>
            {
                return Ok(n);
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("{capacity} entries and no end")
}

impl Scene {
    /// What the status says of an object, once it says something.
    fn problem(&self, object: &str) -> Result<Value> {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.agent.status()?;
            let mut problems = status["problems"].as_array().into_iter().flatten();
            if let Some(problem) = problems.find(|problem| problem["object"] == object) {
                return Ok(problem.clone());
            }
            ensure!(
                Instant::now() < end,
                "nothing of {object}: {}",
                status["problems"]
            );
        }
    }

    /// Status, metric and log name the object and the limit.
    fn assert_told(&self, object: &str, map: &str, capacity: u32) -> Result<()> {
        let problem = self.problem(object)?;
        let limit = json!({ "map": map, "capacity": capacity });
        ensure!(problem["limit"] == limit, "{problem}");
        let waiting = format!("sluice_problems{{limit=\"{map}\"}}");
        ensure!(sample(self.node.netns(), &waiting)? > 0, "{waiting} is 0");
        let named = format!(
            "sluice_problem{{object=\"{object}\",limit=\"{map}\",capacity=\"{capacity}\"}}"
        );
        ensure!(sample(self.node.netns(), &named)? == 1, "{named} is not 1");
        let full = format!("map {map} is full at {capacity}");
        let log = self.agent.log();
        ensure!(
            log.lines()
                .any(|line| line.contains(object) && line.contains(&full)),
            "the log does not name {object}:\n{}",
            self.agent.log_tail()
        );
        Ok(())
    }

    /// Nothing is told of any more.
    fn assert_room(&self, map: &str) -> Result<()> {
        await_within(RETRIED, "everything has room", || {
            let status = self.agent.status()?;
            Ok(status["problems"].as_array().is_some_and(Vec::is_empty))
        })?;
        let waiting = format!("sluice_problems{{limit=\"{map}\"}}");
        ensure!(sample(self.node.netns(), &waiting)? == 0, "{waiting}");
        Ok(())
    }
}

#[test]
fn what_the_kernel_has_no_room_for_is_named_and_comes_into_force_when_it_has() -> Result<()> {
    let metrics = format!("--metrics-address={}", scrape::ADDRESS);
    // The check would take the foreign entries away.
    let mut stage = Stage::new(&[&metrics, "--drift-interval=86400"])?;
    services(&stage)?;
    prefixes(&stage)?;
    stage.assert_held()?;
    stage.assert_in_force()?;
    ensure!(!stage.scene.agent.log().contains("panicked"));
    // What a start reads back is whole.
    stage.scene.agent.kill()?;
    stage.scene.agent.start_again()?;
    stage.assert_held()?;
    stage.assert_in_force()
}

fn services(stage: &Stage) -> Result<()> {
    const OBJECT: &str = "Service default/late";
    let scene = &stage.scene;
    let mut map: HashMap<_, ServiceKey, ServiceEntry> =
        HashMap::try_from(Map::HashMap(open(stage, "services")?))?;
    let key = |n| ServiceKey::new(nobody(n), SERVICE.to_be(), protocol::TCP);
    let filled = fill(limits::SERVICES, |n| {
        let entry = ServiceEntry {
            pool: 0,
            flags: 0,
            check: key(n).check(),
        };
        map.insert(key(n), entry, 0)
    })?;
    ensure!(filled > limits::SERVICES / 2, "{filled}");
    scene
        .dir
        .put_all(&service("late", LATE, &ready(scene, &BACKENDS[..1])?))?;
    scene.assert_told(OBJECT, "services", limits::SERVICES)?;
    stage.assert_held()?;
    // Others are put in force.
    let shut = on(
        BACKENDS[2],
        "shut",
        json!({ "policyTypes": ["Ingress"], "ingress": [] }),
    );
    scene.dir.put(&shut)?;
    await_that("a policy beside it", || {
        Ok(scene
            .assert_denied("client", BACKENDS[2], HTTP, Reason::PolicyIngress)
            .is_ok())
    })?;
    for n in 0..ROOM {
        map.remove(&key(n))?;
    }
    scene.assert_room("services")?;
    scene.assert_answered(&service_probes(scene, LATE, SERVICE)?, BACKENDS[0])?;
    for n in ROOM..filled {
        map.remove(&key(n))?;
    }
    scene.remove([&shut])?;
    scene.assert_allowed("client", BACKENDS[2], HTTP)
}

fn prefixes(stage: &Stage) -> Result<()> {
    const OBJECT: &str = "NetworkPolicy default/blocks";
    let scene = &stage.scene;
    let mut map: LpmTrie<_, Prefix, PrefixEntry> =
        LpmTrie::try_from(Map::LpmTrie(open(stage, "prefixes")?))?;
    let key = |n| {
        let bytes = nobody(n).bytes;
        Key::new(BITS, Prefix { bytes })
    };
    let filled = fill(limits::PREFIXES, |n| {
        let entry = PrefixEntry {
            identity: 0,
            _zero: 0,
        };
        map.insert(&key(n), entry, 0)
    })?;
    ensure!(filled > limits::PREFIXES / 2, "{filled}");
    let block = |ip: std::net::IpAddr| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{ip}/{bits}") } })
    };
    let world = scene.addresses("world")?.map(block);
    let blocks = on(
        "stranger",
        "blocks",
        json!({ "ingress": [{ "from": world }] }),
    );
    scene.dir.put(&blocks)?;
    scene.assert_told(OBJECT, "prefixes", limits::PREFIXES)?;
    // What was in force for the pod is.
    scene.assert_allowed("client", "stranger", HTTP)?;
    // One policy's block keeps no other back.
    let shut = on(
        BACKENDS[2],
        "shut",
        json!({ "policyTypes": ["Ingress"], "ingress": [] }),
    );
    scene.apply([&shut])?;
    scene.assert_denied("client", BACKENDS[2], HTTP, Reason::PolicyIngress)?;
    scene.remove([&shut])?;
    for n in 0..ROOM {
        map.remove(&key(n))?;
    }
    scene.assert_room("prefixes")?;
    // The world has addresses of the wire, too.
    let world = scene.addresses("world")?;
    let probes = scene.probes("world", "stranger", HTTP)?;
    let probes: Vec<Probe> = probes
        .into_iter()
        .map(|probe| {
            let own = world.iter().find(|ip| ip.is_ipv4() == probe.to.is_ipv4());
            own.map_or(probe.clone(), |ip| probe.source(SocketAddr::new(*ip, 0)))
        })
        .collect();
    scene.assert_answered(&probes, "stranger")?;
    scene.assert_denied("client", "stranger", HTTP, Reason::PolicyIngress)?;
    for n in ROOM..filled {
        map.remove(&key(n))?;
    }
    scene.remove([&blocks])?;
    scene.assert_allowed("client", "stranger", HTTP)
}
