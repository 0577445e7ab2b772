//! A pod that nobody knew when a flow to it was opened: the flow is judged as soon as the pod is known.

use agent_common::Reason;
use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::traffic::Server;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::wire::Wire;
use tests::lab::{manifests, patience};

use crate::policies::deny_all;
use crate::scene::{DEADLINE, HTTP, PORTS, Scene, at, roles};

/// Connections to each address.
const CONNECTIONS: usize = 2;

#[test]
fn a_flow_to_a_pod_that_was_not_known_is_judged_once_it_is() -> Result<()> {
    assert_late_pod_is_judged(&[])
}

/// A pod comes, and connections to it, while no agent runs.
pub(crate) fn assert_late_pod_is_judged(arguments: &[&str]) -> Result<()> {
    let mut scene = Scene::with_arguments(&roles(&["client"]), arguments)?;
    scene.agent.kill()?;
    let late = scene.node.pod("late")?;
    let _server = Server::on_ports(late.netns(), "late", &late.addresses(), &PORTS)?;
    let mut held = Vec::new();
    for to in at(late.addresses(), HTTP) {
        let plan = HoldPlan::new(to, CONNECTIONS);
        held.push(Held::start(scene.netns("client")?, plan)?);
    }
    scene
        .dir
        .put(&manifests::pod(&late, &[("app", "late")], &[]))?;
    scene.agent.start_again()?;
    scene.apply([&deny_all("late")])?;
    for (family, held) in ["IPv4", "IPv6"].iter().zip(&held) {
        let ended = held.wait_for_failures(CONNECTIONS, DEADLINE * patience());
        ensure!(
            ended == CONNECTIONS,
            "{family}: {ended} of {CONNECTIONS} connections ended, although policy lets none of them in"
        );
    }
    Ok(())
}

/// A pod that may open connections and take none, and one the other way round, both made while the agent is dead, and each with connections
/// of both kinds, whose beginning nobody saw. In their other orientation those that are denied would be allowed.
#[test]
fn who_opened_a_connection_that_nobody_saw_is_told_by_the_pods_sockets() -> Result<()> {
    let mut scene = Scene::new(&roles(&["client"]))?;
    scene.agent.kill()?;
    let mut stays = Vec::new();
    let mut ends = Vec::new();
    let mut late = Vec::new();
    for (name, denied) in [("takes-none", "Ingress"), ("opens-none", "Egress")] {
        let pod = scene.node.pod(name)?;
        let server = Server::on_ports(pod.netns(), name, &pod.addresses(), &PORTS)?;
        for to in at(pod.addresses(), HTTP) {
            let plan = HoldPlan::new(to, CONNECTIONS);
            let taken = Held::start(scene.lab.wire().netns(), plan)?;
            if denied == "Ingress" {
                &mut ends
            } else {
                &mut stays
            }
            .push((name, "taken", taken));
        }
        for to in at([Wire::WORLD_V4.into(), Wire::WORLD_V6.into()], HTTP) {
            let opened = Held::start(pod.netns(), HoldPlan::new(to, CONNECTIONS))?;
            if denied == "Egress" {
                &mut ends
            } else {
                &mut stays
            }
            .push((name, "opened", opened));
        }
        let spec = json!({
            "podSelector": { "matchLabels": { "app": name } },
            "policyTypes": [denied],
        });
        scene.dir.put_all([
            &manifests::pod(&pod, &[("app", name)], &[]),
            &manifests::network_policy("default", name, spec),
        ])?;
        late.push((pod, server));
    }
    scene.agent.start_again()?;
    for (name, kind, held) in &ends {
        let ended = held.wait_for_failures(CONNECTIONS, DEADLINE * patience());
        ensure!(
            ended == CONNECTIONS,
            "{name}: {ended} of {CONNECTIONS} that it has {kind} ended, although policy denies them"
        );
    }
    for reason in [Reason::PolicyIngress, Reason::PolicyEgress] {
        ensure!(scene.pinned().drops(reason)? > 0, "{}", reason.name());
    }
    for (name, kind, held) in &stays {
        let rounds = held.rounds();
        let failed = held.failed();
        ensure!(
            failed == 0,
            "{name}: {failed} of those that it has {kind} failed after {rounds} rounds"
        );
    }
    Ok(())
}
