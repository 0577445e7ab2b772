//! A pod that nobody knew when a flow to it was opened: the flow is judged as soon as the pod is known.

use anyhow::{Result, ensure};
use tests::lab::manifests;
use tests::lab::traffic::Server;
use tests::lab::traffic::held::{Held, HoldPlan};

use crate::policies::deny_all;
use crate::scene::{DEADLINE, HTTP, PORTS, Scene, at, roles};

/// Connections to each address.
const CONNECTIONS: usize = 2;

#[test]
fn a_flow_to_a_pod_that_was_not_known_is_judged_once_it_is() -> Result<()> {
    let mut scene = Scene::new(&roles(&["client"]))?;
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
        let ended = held.wait_for_failures(CONNECTIONS, DEADLINE);
        ensure!(
            ended == CONNECTIONS,
            "{family}: {ended} of {CONNECTIONS} connections ended, although policy lets none of them in"
        );
    }
    Ok(())
}
