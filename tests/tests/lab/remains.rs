//! Pods whose objects went before their links: their processes run on, and so does what held for them, over a restart of the agent too.

use std::time::Instant;

use agent_common::Reason;
use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::{manifests, patience};

use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, NAMED, OTHER, POLL, Scene, at, roles};

/// Connections that stand all the while, in each family.
const HELD: usize = 4;

/// The guarded pod takes the client's connections and no others.
fn assert_in_force(scene: &Scene) -> Result<()> {
    scene.assert_allowed("client", "guarded", HTTP)?;
    scene.assert_denied("stranger", "guarded", HTTP, Reason::PolicyIngress)?;
    scene.assert_denied("client", "guarded", OTHER, Reason::PolicyIngress)
}

#[test]
fn a_restart_forgets_no_policy_of_a_pod_whose_object_went_before_its_link() -> Result<()> {
    assert_restarts_forget_nothing(&[], 2)
}

/// Objects of pods go, the agent is started anew so many times, and then the pods' links go.
pub(crate) fn assert_restarts_forget_nothing(arguments: &[&str], times: usize) -> Result<()> {
    let names = ["client", "stranger", "guarded", "kept"];
    let mut scene = Scene::with_arguments(&roles(&names), arguments)?;
    // Two pods that are guarded alike: nothing stands with one, so that what it sees tells of denied ones.
    let guards = ["guarded", "kept"].map(|name| {
        on(
            name,
            name,
            json!({ "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
                "ports": [{ "port": HTTP }, { "port": HTTP, "protocol": "UDP" }],
            }] }),
        )
    });
    scene.apply(&guards)?;
    let mut held = Vec::new();
    for to in at(scene.addresses("kept")?, HTTP) {
        let plan = HoldPlan {
            deadline: DEADLINE / 2,
            ..HoldPlan::new(to, HELD)
        };
        held.push(Held::start(scene.netns("client")?, plan)?);
    }
    assert_in_force(&scene)?;
    // Both ends: those that are guarded, and the one that they know by its labels.
    for name in ["guarded", "kept", "client"] {
        let pod = &scene.actor(name)?.pod;
        scene.remove([&manifests::pod(pod, &[("app", name)], &NAMED)])?;
    }
    assert_in_force(&scene)?;
    for _ in 0..times {
        scene.agent.kill()?;
        scene.agent.start_again()?;
        scene.settle()?;
        assert_in_force(&scene)?;
    }
    for held in &held {
        let before = held.rounds();
        let end = Instant::now() + DEADLINE * patience();
        while held.rounds() == before {
            ensure!(Instant::now() < end, "{:?}", held.connections());
            std::thread::sleep(POLL);
        }
        ensure!(held.failed() == 0, "{:?}", held.connections());
    }
    drop(held);
    // With their links the pods are gone.
    let links = scene.pinned().entries("links")?;
    scene.delete("guarded")?;
    scene.delete("kept")?;
    let end = Instant::now() + DEADLINE * patience();
    while scene.pinned().entries("links")? != links - 2 || scene.pinned().entries("rules")? != 0 {
        ensure!(
            Instant::now() < end,
            "{} links and {} rules are left of {links} links:\n{}",
            scene.pinned().entries("links")?,
            scene.pinned().entries("rules")?,
            scene.agent.log_tail()
        );
        std::thread::sleep(POLL);
    }
    Ok(())
}
