//! Delivery by peer redirect leaves out the host's side of the target's link, and with it `to_pod`. Its judgement must not.

use std::time::Instant;

use agent_common::{Address, Reason, flow_flag, hook, path};
use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::traffic::counters::Counters;

use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, POLL, Scene, roles};

/// What the node's stack forwarded, by family.
const FORWARDED: [&str; 2] = ["IpForwDatagrams", "Ip6OutForwDatagrams"];

/// The agent learns a pod's MAC from the node's neighbour table, and redirects to and from a pod whose MAC it knows. The node
/// speaks to each, as the kubelet's probes do, and this waits until that is in the maps.
fn know_each_other(scene: &Scene, names: &[&str]) -> Result<()> {
    for name in names {
        scene.assert_allowed("node", name, HTTP)?;
    }
    let end = Instant::now() + DEADLINE;
    while scene.pinned().redirected_pods()? < names.len() {
        ensure!(
            Instant::now() < end,
            "not all pods are delivered to by redirect: {}",
            scene.agent.log_tail()
        );
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[test]
fn a_redirected_packet_meets_its_targets_ingress_policy() -> Result<()> {
    let scene = Scene::new(&roles(&["client", "stranger", "server"]))?;
    let only_client = on(
        "server",
        "only-client",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    // Its egress is allowed by name, everywhere: that must not vouch for anybody's ingress.
    let everywhere = on(
        "stranger",
        "everywhere",
        json!({ "policyTypes": ["Egress"], "egress": [{}] }),
    );
    scene.apply([&only_client, &everywhere])?;
    know_each_other(&scene, &["client", "stranger", "server"])?;

    // The allowed pair goes by redirect: its entries say so, and the node's stack forwarded nothing.
    let before = Counters::read(scene.node.netns())?;
    scene.assert_allowed("client", "server", HTTP)?;
    let after = Counters::read(scene.node.netns())?;
    for forwarded in FORWARDED {
        ensure!(
            after.since(&before, forwarded) == 0,
            "the node's stack forwarded what should be redirected: {:?}",
            after.changes_since(&before)
        );
    }
    let client = scene.addresses("client")?.map(Address::from);
    let flows: Vec<_> = scene
        .pinned()
        .flows()?
        .into_iter()
        .filter(|(tuple, flow)| {
            client.contains(&tuple.source) && flow.flags & flow_flag::REPLY == 0
        })
        .collect();
    ensure!(
        flows.len() >= 4 && flows.iter().all(|(_, flow)| flow.path == path::PEER),
        "both families and both protocols by peer redirect: {flows:?}"
    );

    // The stranger's packets would take the same way, and are dropped where they enter, by the target's ingress.
    let from_pod = |reason| scene.pinned().drops_at(hook::FROM_POD, reason);
    let (ingress, egress) = (
        from_pod(Reason::PolicyIngress)?,
        from_pod(Reason::PolicyEgress)?,
    );
    scene.assert_denied("stranger", "server", HTTP, Reason::PolicyIngress)?;
    ensure!(
        from_pod(Reason::PolicyIngress)? - ingress >= 4,
        "dropped, but not where the redirect would have been"
    );
    ensure!(
        from_pod(Reason::PolicyEgress)? == egress,
        "the stranger's egress is allowed"
    );
    // The same stranger, the same way, another target: what was missing was only the ingress.
    scene.assert_allowed("stranger", "client", HTTP)?;

    // What a label gave goes with the label, on this way too. (Connections that stand: see `policies`.)
    scene.relabel("client", &[("app", "somebody")])?;
    scene.assert_denied("client", "server", HTTP, Reason::PolicyIngress)
}
