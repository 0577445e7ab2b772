//! The node's parts go and come: links, pods, uplinks, addresses; and somebody's hand removes pins, programs and entries of
//! maps. Each is found and mended, and nobody else notices.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use agent_common::{
    Address, AddressEntry, LinkEntry, Pod, Reason, ServiceEntry, ServiceKey, hook, protocol,
};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, ProgramArray};
use serde_json::{Value, json};
use tests::lab::foreign::{Counting, Side, tc};
use tests::lab::manifests;
use tests::lab::node::Node;
use tests::lab::pod::Pod as LabPod;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::wire::Wire;

use crate::cleanup::attached;
use crate::policies::{deny_all, on};
use crate::scene::{DEADLINE, HTTP, POLL, SERVICE, Scene, at, roles, service, vip};
use crate::services::{BACKENDS, WEB, assert_host, ready, service_probes};

/// Look every second; where only the event counts, the default of a minute is left.
const OFTEN: &str = "--drift-interval=1";
/// Connections that stand all the while.
const HELD: usize = 4;

/// Clients, a guarded pod, backends of a service, and connections that stand.
struct Stage {
    held: Vec<Held>,
    scene: Scene,
}

impl Stage {
    fn new(arguments: &[&str]) -> Result<Self> {
        let names = [
            "client",
            "stranger",
            "guarded",
            "kept",
            BACKENDS[0],
            BACKENDS[1],
            BACKENDS[2],
        ];
        let scene = Scene::with_arguments(&roles(&names), arguments)?;
        // Two pods that are guarded alike: nothing stands with one, so that what it sees tells of denied ones.
        let guards = ["guarded", "kept"].map(|name| {
            on(
                name,
                name,
                json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
            )
        });
        scene.apply(
            service("web", WEB, &ready(&scene, &BACKENDS)?)
                .iter()
                .chain(&guards),
        )?;
        let mut held = Vec::new();
        for to in at(vip(WEB), SERVICE)
            .into_iter()
            .chain(at(scene.addresses("kept")?, HTTP))
        {
            held.push(hold(&scene, to)?);
        }
        let stage = Self { held, scene };
        stage.assert_in_force()?;
        Ok(stage)
    }

    /// New connections are judged as the policies say, and translated.
    fn assert_in_force(&self) -> Result<()> {
        self.scene.assert_allowed("client", "guarded", HTTP)?;
        self.scene
            .assert_denied("stranger", "guarded", HTTP, Reason::PolicyIngress)?;
        self.scene
            .assert_answered_by_any(&service_probes(&self.scene, WEB, SERVICE)?)
    }

    /// The connections that stood from the beginning stand, and are answered.
    fn assert_held(&self) -> Result<()> {
        for held in &self.held {
            let before = held.rounds();
            await_that("answers on the connections that stand", || {
                Ok(held.rounds() > before)
            })?;
            ensure!(held.failed() == 0, "{:?}", held.connections());
        }
        Ok(())
    }

    fn pins(&self) -> Result<Vec<PathBuf>> {
        pins(&self.scene.agent.plan().pin_root)
    }

    /// How often something of a part was mended, as status says.
    fn mended(&self, part: &str) -> Result<u64> {
        mended(&self.scene, part)
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

/// Holds connections from the client.
fn hold(scene: &Scene, to: SocketAddr) -> Result<Held> {
    let plan = HoldPlan {
        deadline: DEADLINE / 2,
        ..HoldPlan::new(to, HELD)
    };
    Held::start(scene.netns("client")?, plan)
}

fn mended(scene: &Scene, part: &str) -> Result<u64> {
    let status = scene.agent.status()?;
    status["drift"]["repaired"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|repaired| repaired["part"] == part)
        .and_then(|repaired| repaired["count"].as_u64())
        .with_context(|| format!("status says nothing of {part}: {status}"))
}

/// Waits for what is to come.
fn await_that(what: &str, mut come: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !come()? {
        ensure!(Instant::now() < end, "not after {DEADLINE:?}: {what}");
        // What other processes do to the kernel tells nobody.
        std::thread::sleep(POLL * 20);
    }
    Ok(())
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
    let mut stage = Stage::new(&[OFTEN])?;
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
    let stage = Stage::new(&[OFTEN])?;
    let ifindex = stage.scene.actor("guarded")?.pod.ifindex()?;
    let mut detached = 0;
    for path in stage.pins()? {
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        if name.contains(&format!("-{ifindex}-")) || name == "cgroup-connect4" {
            bpftool(&["link", "detach", "pinned", &path.display().to_string()])?;
            detached += 1;
        }
    }
    ensure!(
        detached == 3,
        "two of the pod and one of the cgroup: {detached}"
    );
    stage.await_mended("attachment", 2)?;
    stage.await_mended("cgroup", 1)?;
    stage.assert_in_force()?;
    stage.assert_held()?;
    assert_host(&stage.scene_with_empty()?.scene)?;
    ensure!(stage_problems(&stage)? == json!([]));
    Ok(())
}

fn stage_problems(stage: &Stage) -> Result<Value> {
    Ok(stage.scene.agent.status()?["problems"].clone())
}

impl Stage {
    /// [`assert_host`] asks a service without endpoints too.
    fn scene_with_empty(&self) -> Result<&Self> {
        let [empty, ..] = service("empty", 11, &[]);
        self.scene.apply([&empty])?;
        Ok(self)
    }
}

#[test]
fn clsact_filters_and_qdiscs_that_are_removed_come_back_at_once() -> Result<()> {
    // No timer within the test's time: netlink tells.
    let stage = Stage::new(&["--attach=clsact"])?;
    let device = &stage.scene.actor("guarded")?.pod.device;
    let node = stage.scene.node.netns();
    tc(node, &format!("filter del dev {device} egress"))?;
    stage.await_mended("attachment", 1)?;
    stage.assert_in_force()?;
    tc(node, &format!("qdisc del dev {device} clsact"))?;
    stage.await_mended("attachment", 3)?;
    stage.assert_in_force()?;
    stage.assert_held()
}

fn open(stage: &Stage, map: &str) -> Result<MapData> {
    Ok(MapData::from_pin(stage.scene.pinned().path(map))?)
}

#[test]
fn elements_of_maps_that_are_changed_are_set_back_and_flows_judged_again() -> Result<()> {
    let stage = Stage::new(&[OFTEN])?;
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
    pods.set(slot, open_pod, 0)?;
    let [to, _] = at(scene.addresses("guarded")?, HTTP);
    let intruder = Held::start(scene.netns("stranger")?, HoldPlan::new(to, 1))?;
    stage.await_mended("map", 4)?;
    ensure!(pods.get(&slot, 0)?.ingress == pod.ingress);
    ensure!(
        intruder.wait_for_failures(1, DEADLINE) == 1,
        "what was let in while the map was wrong is judged again"
    );

    // Slots of the program array.
    let mut programs = ProgramArray::try_from(Map::ProgramArray(open(&stage, "programs")?))?;
    programs.clear_index(&hook::slot::NEW_FROM_UPLINK)?;
    programs.clear_index(&hook::slot::NEW_TO_POD)?;
    stage.await_mended("program", 2)?;
    stage.assert_in_force()?;
    stage.assert_held()?;
    await_that("a check that ends", || {
        Ok(!scene.agent.status()?["drift"]["checked"].is_null())
    })
}

#[test]
fn nothing_is_mended_where_nothing_was_touched() -> Result<()> {
    let stage = Stage::new(&[OFTEN])?;
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

#[test]
fn a_link_that_goes_down_and_up_is_served_again() -> Result<()> {
    let stage = Stage::new(&[])?;
    let scene = &stage.scene;
    let pod = &scene.actor("guarded")?.pod;
    let ifindex = u64::from(pod.ifindex()?);
    for _ in 0..3 {
        pod.link_down()?;
        await_that(
            "the pod's programs gone",
            || Ok(hooks(scene, ifindex)? == 0),
        )?;
        pod.link_up()?;
        await_that(
            "the pod's programs back",
            || Ok(hooks(scene, ifindex)? == 2),
        )?;
        scene.settle()?;
        stage.assert_in_force()?;
    }
    // All others have nothing to do with it.
    stage.assert_held()
}

/// Hooks at an interface, as status shows them.
fn hooks(scene: &Scene, ifindex: u64) -> Result<usize> {
    let status = scene.agent.status()?;
    let all = status["attachments"].as_array().into_iter().flatten();
    Ok(all.filter(|a| a["ifindex"] == ifindex).count())
}

#[test]
fn a_pod_that_is_made_again_inherits_nothing() -> Result<()> {
    for same_ifindex in [false, true] {
        let mut stage = Stage::new(&[])?;
        // Its name and addresses are those of the one before; who it is, is not.
        let before = stage.scene.actor("guarded")?.pod.ifindex()?;
        let mut old = Vec::new();
        for to in at(stage.scene.addresses("guarded")?, HTTP) {
            old.push(hold(&stage.scene, to)?);
        }
        stage
            .scene
            .make_again("guarded", same_ifindex.then_some(before))?;
        let now = stage.scene.actor("guarded")?.pod.ifindex()?;
        ensure!((now == before) == same_ifindex, "{before} {now}");
        let pod = &stage.scene.actor("guarded")?.pod;
        let shut = deny_all("another");
        stage
            .scene
            .apply([&manifests::pod(pod, &[("app", "another")], &[]), &shut])?;
        await_programs(&stage.scene, "guarded")?;
        for held in &old {
            ensure!(
                held.wait_for_failures(HELD, DEADLINE) == HELD,
                "connections of the pod before: {:?}",
                held.connections()
            );
        }
        stage
            .scene
            .assert_denied("client", "guarded", HTTP, Reason::PolicyIngress)?;
        stage.assert_held()?;
        // And again as what it was: the same labels, so the same rights.
        stage.scene.remove([&shut])?;
        stage
            .scene
            .make_again("guarded", same_ifindex.then_some(now))?;
        stage.scene.relabel("guarded", &[("app", "guarded")])?;
        await_programs(&stage.scene, "guarded")?;
        stage.assert_in_force()?;
    }
    Ok(())
}

/// The kernel itself says that a pod's link carries our programs, both ways: on an index that is given out again, status and pins of
/// the link before look the same.
fn await_programs(scene: &Scene, name: &str) -> Result<()> {
    let device = &scene.actor(name)?.pod.device;
    await_that("two programs at the pod's link", || {
        let all = attached(&scene.node)?;
        Ok(all.iter().filter(|line| line.starts_with(device)).count() == 2)
    })
}

/// Deletes the node's uplink and makes it again, as a driver that is loaded again does.
fn replace_uplink(scene: &Scene) -> Result<()> {
    let (node, wire) = (&scene.node, scene.lab.wire().netns());
    let up = Node::UPLINK;
    node.netns().ip(&format!("link del {up}"))?;
    node.netns().ip(&format!(
        "link add {up} type veth peer name port1 netns {}\n\
         addr add {}/24 dev {up}\naddr add {}/64 dev {up} nodad\nlink set {up} up\n",
        wire.name(),
        node.ipv4,
        node.ipv6
    ))?;
    // A driver would announce its new MAC; here the neighbours forget the old one.
    wire.ip("link set port1 master br0\nlink set port1 up\nneigh flush dev br0\n")?;
    node.netns().ip(&format!(
        "route add default via {}\nroute add default via {}\n",
        Wire::GATEWAY_V4,
        Wire::GATEWAY_V6
    ))
}

#[test]
fn an_uplink_that_is_replaced_is_served_and_addresses_are_followed() -> Result<()> {
    let stage = Stage::new(&[])?;
    let scene = &stage.scene;
    let index = || -> Result<u64> {
        let index = scene
            .node
            .netns()
            .run(|| nix::net::if_::if_nametoindex(Node::UPLINK))?;
        Ok(u64::from(index?))
    };
    let before = index()?;
    scene.assert_denied("world", "guarded", HTTP, Reason::PolicyIngress)?;
    replace_uplink(scene)?;
    let now = index()?;
    ensure!(now != before);
    await_that("the uplink's program", || {
        Ok(hooks(scene, now)? == 1 && hooks(scene, before)? == 0)
    })?;
    scene.assert_allowed("world", BACKENDS[0], HTTP)?;
    scene.assert_allowed(BACKENDS[0], "world", HTTP)?;
    scene.assert_denied("world", "guarded", HTTP, Reason::PolicyIngress)?;

    // The host's addresses: what comes from outside with one of them as source is forged.
    let own: IpAddr = "10.99.0.1".parse()?;
    let known = || -> Result<bool> {
        let addresses: HashMap<_, Address, AddressEntry> =
            HashMap::try_from(Map::HashMap(open(&stage, "addresses")?))?;
        Ok(addresses.get(&Address::from(own), 0).is_ok())
    };
    ensure!(!known()?);
    scene
        .node
        .netns()
        .ip(&format!("addr add {own}/32 dev lo"))?;
    await_that("the host's new address", known)?;
    scene
        .node
        .netns()
        .ip(&format!("addr del {own}/32 dev lo"))?;
    await_that("its end", || Ok(!known()?))?;
    stage.assert_in_force()?;
    stage.assert_held()
}

/// Somebody else's program sits behind ours at a pod's link, both ways, and at the uplink. What goes up the stack reaches it.
fn assert_others_run(attach: &str) -> Result<()> {
    let scene = Scene::with_arguments(&roles(&["client", "server"]), &[attach])?;
    let shut = on(
        "server",
        "shut",
        json!({ "ingress": [{ "from": [{ "podSelector": {} }] }] }),
    );
    scene.apply([&shut])?;
    let server: &LabPod = &scene.actor("server")?.pod;
    let node = scene.node.netns();
    let places = [
        (server.device.as_str(), Side::Ingress),
        (server.device.as_str(), Side::Egress),
        (Node::UPLINK, Side::Ingress),
    ];
    let pins = scene.pins_of_lab()?;
    let mut others = Vec::new();
    for (number, (device, side)) in places.into_iter().enumerate() {
        let mut other = Counting::load(&pins.join(format!("other-{number}")))?;
        if attach.ends_with("clsact") {
            other.attach_clsact(node, device, side)?;
        } else {
            let index = node.run(|| nix::net::if_::if_nametoindex(device))??;
            other.attach_tcx(node, index, side)?;
        }
        others.push(other);
    }
    let seen = || -> Result<Vec<u64>> { others.iter().map(Counting::packets).collect() };
    let before = seen()?;
    scene.assert_allowed("server", "world", HTTP)?;
    let after = seen()?;
    for ((place, before), after) in places.iter().zip(&before).zip(&after) {
        // Two protocols and families; of TCP three packets each way at the least, of UDP one.
        ensure!(
            after - before >= 8,
            "{place:?}: another's program saw {} packets of 4 connections",
            after - before
        );
    }
    tests::say(format!(
        "{attach}: programs of others saw {before:?}, then {after:?} packets"
    ));
    scene.assert_allowed("client", "server", HTTP)
}

#[test]
fn by_tcx_a_program_of_somebody_else_behind_ours_still_runs() -> Result<()> {
    assert_others_run("--attach=tcx")
}

#[test]
fn by_clsact_a_program_of_somebody_else_behind_ours_still_runs() -> Result<()> {
    assert_others_run("--attach=clsact")
}
