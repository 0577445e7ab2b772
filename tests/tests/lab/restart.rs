//! The datapath outlives the daemon: `kill -9` under load, changes made while it is dead, and a start on what it left.

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::lab::manifests::{self, Endpoint};
use tests::lab::traffic::counters::Counters;
use tests::lab::traffic::stream::{Receiver, Sender, StreamPlan};
use tests::lab::traffic::{Patience, Proto, probe};

use crate::policies::on;
use crate::scene::{
    DEADLINE, HTTP, OTHER, Role, SERVICE, Scene, at, port, roles, service, slices, vip,
};
use crate::services::{BACKENDS, Load, WEB, ready, web};

/// New connections a second, and datagrams a second of the stream.
const RATE: u32 = 500;
/// Connections to see in each phase: before the kill, while the agent is dead, after the start.
const PHASE: u64 = 500;
/// The service of the stream.
const STREAM: u8 = 20;
/// A port that only the stream's receiver has.
const STREAM_PORT: u16 = 7000;

#[test]
fn killed_under_load_and_started_again_nothing_is_lost() -> Result<()> {
    assert_kill_is_not_noticed(&mut web(&[])?)
}

/// `kill -9` under new connections without retry and a stream of numbered datagrams, and a new start.
pub(crate) fn assert_kill_is_not_noticed(scene: &mut Scene) -> Result<()> {
    let receiver = &scene.actor(BACKENDS[0])?.pod;
    let stream_port = port(STREAM_PORT, Proto::Udp);
    let stream_slices = manifests::endpoint_slices(
        "default",
        "stream",
        &[stream_port],
        &[Endpoint::ready(receiver)],
    );
    scene.dir.put_all(&stream_slices)?;
    scene.apply([&manifests::service(
        "default",
        "stream",
        &vip(STREAM),
        &[stream_port],
    )])?;
    let mut receivers = Vec::new();
    let mut senders = Vec::new();
    for (bind, to) in at(receiver.addresses(), STREAM_PORT)
        .into_iter()
        .zip(at(vip(STREAM), SERVICE))
    {
        receivers.push(Receiver::start(receiver.netns(), bind, None)?);
        let plan = StreamPlan {
            to,
            rate: RATE,
            cpu: None,
        };
        senders.push(Sender::start(scene.actor("client")?.pod.netns(), plan)?);
    }
    // Sockets of servers count too: what they send again is a retransmission as well.
    let servers_before: Vec<Counters> = BACKENDS
        .iter()
        .map(|name| Counters::read(scene.netns(name)?))
        .collect::<Result<_>>()?;
    let load = Load::start(scene, RATE)?;
    load.more(PHASE)?;
    let killed = scene.agent.process().id();
    scene.agent.kill().context("it must have run until now")?;
    ensure!(
        !std::path::Path::new(&format!("/proc/{killed}")).exists(),
        "the process {killed} is still there"
    );
    ensure!(
        scene.agent.status().is_err(),
        "something answers for an agent that is dead"
    );
    load.more(PHASE)?;
    scene.agent.start_again()?;
    ensure!(scene.agent.process().id() != killed);
    scene.settle()?;
    load.more(PHASE)?;
    for report in load.stop()? {
        ensure!(
            report.namespace_retransmits == 0,
            "{report:?}; drops: {:?}",
            scene.pinned().all_drops()?
        );
        ensure!(
            report.by.len() == BACKENDS.len(),
            "all backends had their share: {:?}",
            report.by
        );
    }
    for (name, before) in BACKENDS.iter().zip(&servers_before) {
        let again = Counters::read(scene.netns(name)?)?.retransmits_since(before);
        ensure!(again == 0, "{name} sent {again} segments again");
    }
    for (sender, receiver) in senders.into_iter().zip(&receivers) {
        let report = sender.stop(DEADLINE)?;
        let there = receiver.report(report.stream, report.sent);
        ensure!(
            report.errors == 0 && report.echoes.is_perfect() && there.is_perfect(),
            "{report:?}, {there:?}"
        );
        ensure!(
            report.sent > PHASE,
            "the stream was to run all the while: {}",
            report.sent
        );
    }
    Ok(())
}

#[test]
fn what_changed_while_the_agent_was_dead_is_in_force_after_its_start() -> Result<()> {
    let mut scene = Scene::new(&[
        Role::new("client"),
        Role::new("stranger"),
        Role::new(BACKENDS[0]),
        Role::new(BACKENDS[1]),
        Role::new(BACKENDS[2]),
        Role::new("guarded"),
        Role::new("open"),
    ])?;
    let gone = service("gone", 12, &ready(&scene, &["open"])?);
    let only = |app: &str, from: &str| {
        on(
            app,
            &format!("only-{app}"),
            json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": from } } }] }] }),
        )
    };
    let (old, new) = (only("guarded", "client"), only("open", "client"));
    scene.dir.put_all(&gone)?;
    scene
        .dir
        .put_all(&service("web", WEB, &ready(&scene, &BACKENDS)?))?;
    scene.apply([&old])?;
    scene.assert_denied("stranger", "guarded", HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed("stranger", "open", HTTP)?;

    scene.agent.kill()?;
    for object in &gone {
        scene.dir.remove(object)?;
    }
    scene.dir.remove(&old)?;
    scene.dir.put(&new)?;
    scene
        .dir
        .put_all(&slices("web", &ready(&scene, &BACKENDS[..1])?))?;
    scene
        .dir
        .put_all(&service("young", 13, &ready(&scene, &["guarded"])?))?;
    // What was in force stays so until somebody is there to change it.
    scene.assert_denied("stranger", "guarded", HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed("stranger", "open", OTHER)?;
    scene.agent.start_again()?;
    scene.settle()?;

    scene.assert_allowed("stranger", "guarded", HTTP)?;
    scene.assert_denied("stranger", "open", HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed("client", "open", HTTP)?;
    for (number, by) in [(WEB, BACKENDS[0]), (13, "guarded")] {
        for _ in 0..10 {
            scene.assert_answered(
                &crate::services::service_probes(&scene, number, SERVICE)?,
                by,
            )?;
        }
    }
    let stale = probe::run(
        &crate::services::service_probes(&scene, 12, SERVICE)?,
        Patience::MATRIX,
    )?;
    ensure!(stale.iter().all(|o| !o.is_answered()), "{stale:?}");
    assert_nothing_stale(&mut scene)
}

/// After all objects of services and policies went, the maps say of them as little as those of an agent that never knew any.
fn assert_nothing_stale(scene: &mut Scene) -> Result<()> {
    let fresh = Scene::new(&roles(&["client"]))?;
    fresh.settle()?;
    let mut objects = Vec::new();
    for (name, number) in [("web", WEB), ("young", 13)] {
        objects.extend(service(name, number, &[]));
    }
    objects.push(on("open", "only-open", json!({})));
    scene.remove(&objects)?;
    scene.agent.kill()?;
    scene.agent.start_again()?;
    scene.settle()?;
    for map in ["services", "rules", "prefixes"] {
        let (left, wanted) = (scene.pinned().entries(map)?, fresh.pinned().entries(map)?);
        ensure!(
            left == wanted,
            "{map}: {left} entries are left, a fresh agent has {wanted}"
        );
    }
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_end_ends_and_leaves_its_work() -> Result<()> {
    let mut scene = web(&[])?;
    let status = scene.agent.terminate()?;
    ensure!(status.success(), "{status}");
    scene.assert_answered_by_any(&crate::services::service_probes(&scene, WEB, SERVICE)?)?;
    scene.agent.start_again()?;
    scene.settle()?;
    scene.assert_answered_by_any(&crate::services::service_probes(&scene, WEB, SERVICE)?)
}
