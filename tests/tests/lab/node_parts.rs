//! The node's parts go and come: links, pods, uplinks, addresses; and somebody else's programs sit behind ours. Each is found, and nobody
//! else notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Result, ensure};
use aya::maps::MapData;
use serde_json::json;
use tests::lab::foreign::{Counting, Side};
use tests::lab::manifests;
use tests::lab::node::Node;
use tests::lab::patience;
use tests::lab::pod::Pod;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::wire::Wire;

use crate::addresses;
use crate::cleanup::attached;
use crate::policies::{deny_all, on};
use crate::scene::{DEADLINE, HTTP, POLL, SERVICE, Scene, at, roles, service, vip};
use crate::services::{BACKENDS, WEB, ready, service_probes};

/// Connections that stand all the while.
const HELD: usize = 4;

/// Clients, a guarded pod, backends of a service, and connections that stand.
pub(crate) struct Stage {
    held: Vec<Held>,
    pub(crate) scene: Scene,
}

impl Stage {
    pub(crate) fn new(arguments: &[&str]) -> Result<Self> {
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
    pub(crate) fn assert_in_force(&self) -> Result<()> {
        self.scene.assert_allowed("client", "guarded", HTTP)?;
        self.scene
            .assert_denied("stranger", "guarded", HTTP, Reason::PolicyIngress)?;
        self.scene
            .assert_answered_by_any(&service_probes(&self.scene, WEB, SERVICE)?)
    }

    /// The connections that stood from the beginning stand, and are answered.
    pub(crate) fn assert_held(&self) -> Result<()> {
        for held in &self.held {
            let before = held.rounds();
            await_that("answers on the connections that stand", || {
                Ok(held.rounds() > before)
            })?;
            ensure!(held.failed() == 0, "{:?}", held.connections());
        }
        Ok(())
    }
}

/// Holds connections from the client.
fn hold(scene: &Scene, to: SocketAddr) -> Result<Held> {
    let plan = HoldPlan {
        deadline: DEADLINE / 2,
        ..HoldPlan::new(to, HELD)
    };
    Held::start(scene.netns("client")?, plan)
}

/// Waits for what is to come.
pub(crate) fn await_that(what: &str, come: impl FnMut() -> Result<bool>) -> Result<()> {
    await_within(DEADLINE, what, come)
}

/// Waits so long for what is to come.
pub(crate) fn await_within(
    most: Duration,
    what: &str,
    mut come: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let most = most * patience();
    let end = Instant::now() + most;
    while !come()? {
        ensure!(Instant::now() < end, "not after {most:?}: {what}");
        // What other processes do to the kernel tells nobody.
        std::thread::sleep(POLL * 20);
    }
    Ok(())
}

/// A map of the agent's.
pub(crate) fn open(stage: &Stage, map: &str) -> Result<MapData> {
    Ok(MapData::from_pin(stage.scene.pinned().path(map))?)
}

#[test]
fn a_link_that_goes_down_and_up_is_served_again() -> Result<()> {
    assert_link_is_served_again(&[], 3)
}

/// A pod's link goes down and up so many times.
pub(crate) fn assert_link_is_served_again(arguments: &[&str], times: usize) -> Result<()> {
    let stage = Stage::new(arguments)?;
    let scene = &stage.scene;
    let pod = &scene.actor("guarded")?.pod;
    let ifindex = u64::from(pod.ifindex()?);
    for _ in 0..times {
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
    [false, true]
        .into_iter()
        .try_for_each(|same_ifindex| assert_made_again_it_inherits_nothing(&[], same_ifindex))
}

/// A pod goes, and another comes with its name and addresses; with its interface's index too, or not.
pub(crate) fn assert_made_again_it_inherits_nothing(
    arguments: &[&str],
    same_ifindex: bool,
) -> Result<()> {
    let mut stage = Stage::new(arguments)?;
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
            held.wait_for_failures(HELD, DEADLINE * patience()) == HELD,
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
    Ok(())
}

/// The kernel itself says that a pod's link carries our programs, both ways: on an index that is given out again, status and pins of
/// the link before look the same.
pub(crate) fn await_programs(scene: &Scene, name: &str) -> Result<()> {
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
    assert_uplink_and_addresses_are_followed(&[])
}

/// The uplink goes and comes; an address of the host's too.
pub(crate) fn assert_uplink_and_addresses_are_followed(arguments: &[&str]) -> Result<()> {
    let stage = Stage::new(arguments)?;
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

    addresses::assert_followed(&stage)?;
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
    let server: &Pod = &scene.actor("server")?.pod;
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
