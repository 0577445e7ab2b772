//! Somebody's hand removes pins, programs and entries of maps, or changes them. It is found and mended, and nobody else notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_common::{
    Address, AddressEntry, LinkEntry, Pod, Reason, ServiceEntry, ServiceKey, gate, hook, protocol,
};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, ProgramArray};
use serde_json::json;
use tests::lab::foreign::{Counting, tc};
use tests::lab::host::HostProcess;
use tests::lab::node::Node;
use tests::lab::patience;
use tests::lab::scrape;
use tests::lab::traffic::Proto;
use tests::lab::traffic::held::{Held, HoldPlan};

use crate::node_parts::{Stage, await_that, open};
use crate::scene::{DEADLINE, HTTP, SERVICE, at, service, vip};
use crate::services::{EMPTY, WEB, assert_host};

/// Where only the event counts: not within a test's time.
const BY_EVENTS: &str = "--drift-interval=86400";

/// So often something is tried that a check may come before.
const TRIES: u32 = 10;

/// Look every second, where the machine is not emulated.
pub(crate) fn often() -> String {
    format!("--drift-interval={}", patience())
}

impl Stage {
    fn pins(&self) -> Result<Vec<PathBuf>> {
        pins(&self.scene.agent.plan().pin_root)
    }

    /// How often something of a part was mended, as status says.
    fn mended(&self, part: &str) -> Result<u64> {
        let status = self.scene.agent.status()?;
        status["drift"]["repaired"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|repaired| repaired["part"] == part)
            .and_then(|repaired| repaired["count"].as_u64())
            .with_context(|| format!("status says nothing of {part}: {status}"))
    }

    fn await_mended(&self, part: &str, least: u64) -> Result<()> {
        await_that(&format!("{least} mends of {part}"), || {
            Ok(self.mended(part)? >= least)
        })
        .with_context(|| self.scene.agent.log_tail())
    }
}

/// Everything that is pinned under a directory, sorted.
pub(crate) fn pins(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.extend(pins(&entry.path())?);
        } else {
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}

fn bpftool(words: &[&str]) -> Result<()> {
    let output = Command::new("bpftool")
        .args(words)
        .output()
        .context("running bpftool")?;
    ensure!(
        output.status.success(),
        "bpftool {words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn pins_that_are_removed_come_back_and_no_packet_notices() -> Result<()> {
    assert_pins_come_back(&[&often()])
}

/// Every pin is removed; then a map's is, and somebody else's object stands there.
pub(crate) fn assert_pins_come_back(arguments: &[&str]) -> Result<()> {
    let mut stage = Stage::new(arguments)?;
    let before = stage.pins()?;
    let dropped = stage.scene.pinned().drops(Reason::PolicyIngress)?;
    ensure!(dropped > 0);
    for entry in fs::read_dir(&stage.scene.agent.plan().pin_root)? {
        fs::remove_dir_all(entry?.path())?;
    }
    stage.assert_held()?;
    stage.await_mended("pin", u64::try_from(before.len())?)?;
    ensure!(
        stage.pins()? == before,
        "the same names: {:?}",
        stage.pins()?
    );
    ensure!(
        stage.scene.pinned().drops(Reason::PolicyIngress)? >= dropped,
        "the same maps: what they counted is still there"
    );
    ensure!(
        stage.mended("attachment")? == 0,
        "programs stayed where they were"
    );
    stage.assert_in_force()?;
    // What a start finds is what it would have found: no connection is lost.
    stage.scene.agent.kill()?;
    stage.scene.agent.start_again()?;
    stage.assert_held()?;
    stage.assert_in_force()?;

    // A foreign object in a map's place is told of and left alone.
    let path = stage.scene.pinned().path("services");
    fs::remove_file(&path)?;
    let other = Counting::load(&path)?;
    await_that("a problem about the foreign pin", || {
        let status = stage.scene.agent.status()?;
        Ok(status["problems"].to_string().contains("not Sluice's"))
    })?;
    drop(other);
    stage.await_mended("pin", 1)?;
    await_that("no problem any more", || {
        Ok(stage.scene.agent.status()?["problems"] == json!([]))
    })?;
    let text = stage.scene.agent.status()?["drift"].to_string();
    ensure!(text.contains("services"), "{text}");
    stage.assert_held()
}

#[test]
fn links_that_are_detached_come_back() -> Result<()> {
    let stage = Stage::new(&[&often()])?;
    let pod = stage.scene.actor("guarded")?.pod.ifindex()?;
    let uplink = stage.scene.node.netns();
    let uplink = uplink.run(|| nix::net::if_::if_nametoindex(Node::UPLINK))??;
    let links = [pod, uplink].map(|ifindex| format!("-{ifindex}-"));
    // Only links can be detached, and filters are none; those have a test of their own.
    let status = stage.scene.agent.status()?;
    let mut all = status["attachments"].as_array().into_iter().flatten();
    let attachments = match all.any(|a| a["mode"] == "tcx") {
        true => 3,
        false => 0,
    };
    let mut detached = 0;
    for path in stage.pins()? {
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        let attached = links.iter().any(|link| name.contains(link));
        if attached || name == "cgroup-connect4" {
            bpftool(&["link", "detach", "pinned", &path.display().to_string()])?;
            detached += 1;
        }
    }
    ensure!(
        detached == attachments + 1,
        "{attachments} of the pod and the uplink, and one of the cgroup: {detached}"
    );
    stage.await_mended("attachment", attachments)?;
    stage.await_mended("cgroup", 1)?;
    stage.assert_in_force()?;
    stage.assert_held()?;
    // The host asks a service without endpoints too.
    let [empty, ..] = service("empty", EMPTY, &[]);
    stage.scene.apply([&empty])?;
    assert_host(&stage.scene)?;
    let problems = stage.scene.agent.status()?["problems"].clone();
    ensure!(problems == json!([]), "{problems}");
    Ok(())
}

#[test]
fn clsact_filters_and_qdiscs_that_are_removed_come_back_at_once() -> Result<()> {
    // Netlink tells.
    let stage = Stage::new(&["--attach=clsact", BY_EVENTS])?;
    let device = &stage.scene.actor("guarded")?.pod.device;
    let node = stage.scene.node.netns();
    tc(node, &format!("filter del dev {device} egress"))?;
    stage.await_mended("attachment", 1)?;
    stage.assert_in_force()?;
    tc(node, &format!("qdisc del dev {device} clsact"))?;
    stage.await_mended("attachment", 3)?;
    tc(node, &format!("filter del dev {} ingress", Node::UPLINK))?;
    stage.await_mended("attachment", 4)?;
    stage.assert_in_force()?;
    stage.assert_held()
}

#[test]
fn elements_of_maps_that_are_changed_are_set_back_and_flows_judged_again() -> Result<()> {
    assert_elements_are_set_back(&[&often()])
}

/// Elements of maps, a pod's isolation and slots of the program array are changed by hand.
pub(crate) fn assert_elements_are_set_back(arguments: &[&str]) -> Result<()> {
    let metrics = format!("--metrics-address={}", scrape::ADDRESS);
    let arguments: Vec<&str> = arguments.iter().copied().chain([&*metrics]).collect();
    let stage = Stage::new(&arguments)?;
    let scene = &stage.scene;
    let [vip4, _] = vip(WEB);
    let key = ServiceKey::new(vip4.into(), SERVICE.to_be(), protocol::TCP);
    let mut services: HashMap<_, ServiceKey, ServiceEntry> =
        HashMap::try_from(Map::HashMap(open(&stage, "services")?))?;
    let service = services.get(&key, 0)?;
    services.remove(&key)?;
    let client = Address::from(scene.addresses("client")?[0]);
    let mut addresses: HashMap<_, Address, AddressEntry> =
        HashMap::try_from(Map::HashMap(open(&stage, "addresses")?))?;
    addresses.remove(&client)?;
    let mut links: HashMap<_, u32, LinkEntry> =
        HashMap::try_from(Map::HashMap(open(&stage, "links")?))?;
    links.insert(9_999, LinkEntry { slot: 1, _zero: 0 }, 0)?;
    stage.await_mended("map", 3)?;
    ensure!(services.get(&key, 0)? == service);
    ensure!(addresses.get(&client, 0).is_ok() && links.get(&9_999, 0).is_err());

    // A pod's isolation is taken away by hand: what got in meanwhile is cut when that is mended.
    let ifindex = scene.actor("guarded")?.pod.ifindex()?;
    let slot = links.get(&ifindex, 0)?.slot;
    let mut pods: Array<_, Pod> = Array::try_from(Map::Array(open(&stage, "pods")?))?;
    let pod = pods.get(&slot, 0)?;
    let mut open_pod = pod;
    open_pod.ingress = agent_common::SetWord::default();
    let [to, _] = at(scene.addresses("guarded")?, HTTP);
    let mut tries = 0;
    // A check may come between the two steps, and then nothing gets in.
    let intruder = loop {
        tries += 1;
        pods.set(slot, open_pod, 0)?;
        match Held::start(scene.netns("stranger")?, HoldPlan::new(to, 1)) {
            Ok(intruder) => break intruder,
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => {}
        }
    };
    await_that("the isolation is set back", || {
        Ok(pods.get(&slot, 0)?.ingress == pod.ingress)
    })?;
    stage.await_mended("map", 4)?;
    ensure!(
        intruder.wait_for_failures(1, DEADLINE * patience()) == 1,
        "what was let in while the map was wrong is judged again"
    );

    // Slots of the program array.
    let mut programs = ProgramArray::try_from(Map::ProgramArray(open(&stage, "programs")?))?;
    programs.clear_index(&hook::slot::NEW_FROM_UPLINK)?;
    programs.clear_index(&hook::slot::NEW_TO_POD)?;
    stage.await_mended("program", 2)?;
    assert_gate_is_mended(&stage)?;
    stage.assert_in_force()?;
    stage.assert_held()?;
    await_that("a check that ends", || {
        Ok(!scene.agent.status()?["drift"]["checked"].is_null())
    })?;
    for part in ["map", "program", "attachment"] {
        let sample = format!("sluice_drift_repaired_total{{part=\"{part}\"}}");
        let counted = scrape::sample(scene.node.netns(), &sample)?;
        ensure!(counted == stage.mended(part)?, "{sample} {counted}");
    }
    Ok(())
}

/// Slots of the gate: what passes the empty ones meets no program of ours, until they are filled again.
fn assert_gate_is_mended(stage: &Stage) -> Result<()> {
    let scene = &stage.scene;
    let pinned = scene.pinned();
    let array = |map: &str| -> Result<ProgramArray<MapData>> {
        let path = scene.agent.plan().pin_root.join("hooks/maps").join(map);
        let map = MapData::from_pin(path)?;
        Ok(ProgramArray::try_from(Map::ProgramArray(map))?)
    };
    let (side, whole) = (pinned.in_force()?.side(), pinned.gate_programs()?);
    let before = stage.mended("program")?;
    // Not a pod's own: it translates, and a client that sees a backend's address resets its connection.
    for hook in [hook::TO_POD, hook::FROM_UPLINK] {
        array("gate")?.clear_index(&gate::slot(side, hook))?;
    }
    let sockets = ["gate_connect4", "gate_recvmsg6"];
    for map in sockets {
        array(map)?.clear_index(&side)?;
    }
    let mut host = HostProcess::start(&scene.node)?;
    stage.await_mended("program", before + 4)?;
    let now = pinned.gate_programs()?;
    ensure!(now == whole, "{whole:?}, then {now:?}");
    for to in at(vip(WEB), SERVICE) {
        for outcome in [
            host.ask(Proto::Tcp, to, DEADLINE)?,
            host.send_to(to, DEADLINE)?,
        ] {
            ensure!(outcome.is_answered(), "the host at {to}: {outcome}");
        }
    }
    scene.assert_denied("world", "guarded", HTTP, Reason::PolicyIngress)
}

#[test]
fn nothing_is_mended_where_nothing_was_touched() -> Result<()> {
    let stage = Stage::new(&[&often()])?;
    let checked =
        || -> Result<String> { Ok(stage.scene.agent.status()?["drift"]["checked"].to_string()) };
    for round in 0..3 {
        // Changes of all kinds while the checks run.
        stage.scene.relabel(
            "stranger",
            &[("app", if round % 2 == 0 { "x" } else { "stranger" })],
        )?;
        let before = checked()?;
        await_that("another check", || Ok(checked()? != before))?;
    }
    let drift = stage.scene.agent.status()?["drift"].clone();
    ensure!(drift["last"].is_null(), "{drift}");
    stage.assert_held()
}
