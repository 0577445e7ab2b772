//! The same on kernels without tcx: clsact filters.

use std::collections::BTreeMap;
use std::process::Command;

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::policies::{assert_live_policy, on};
use crate::restart::assert_kill_is_not_noticed;
use crate::scene::{HTTP, OTHER, SERVICE, Scene, roles, service};
use crate::services::{
    BACKENDS, EMPTY, WEB, assert_host, assert_spread, ready, service_probes, web,
};

pub(crate) const CLSACT: &[&str] = &["--attach=clsact"];

/// Filters by device and direction: the program's id of each.
pub(crate) fn filters(scene: &Scene) -> Result<BTreeMap<(String, &'static str), Vec<u64>>> {
    let mut filters = BTreeMap::new();
    for actor in scene.actors() {
        for side in ["ingress", "egress"] {
            let device = &actor.pod.device;
            let output = scene.node.netns().run(|| {
                Command::new("tc")
                    .args(["-j", "filter", "show", "dev", device, side])
                    .output()
            })??;
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let listed: Value =
                serde_json::from_slice(&output.stdout).context("what tc printed")?;
            let programs = listed
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|filter| filter["options"]["prog"]["id"].as_u64())
                .collect();
            filters.insert((device.clone(), side), programs);
        }
    }
    Ok(filters)
}

#[test]
fn by_clsact_services_and_policies_work_as_by_tcx() -> Result<()> {
    let scene = web(CLSACT)?;
    let status = scene.agent.status()?;
    let modes: Vec<&str> = status["attachments"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|a| a["of"] != "cgroup")
        .filter_map(|a| a["mode"].as_str())
        .collect();
    ensure!(
        !modes.is_empty() && modes.iter().all(|mode| *mode == "clsact"),
        "{modes:?}"
    );
    assert_spread(&scene)?;
    let [empty, ..] = service("empty", EMPTY, &[]);
    scene.apply([&empty])?;
    assert_host(&scene)?;
    let guard = on(
        BACKENDS[0],
        "guard",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    scene.apply([&guard])?;
    scene.assert_allowed("client", BACKENDS[0], HTTP)?;
    scene.assert_denied("stranger", BACKENDS[0], HTTP, Reason::PolicyIngress)?;
    scene.assert_denied("world", BACKENDS[0], OTHER, Reason::PolicyIngress)
}

#[test]
fn by_clsact_a_policy_reaches_connections_that_stand() -> Result<()> {
    assert_live_policy(&Scene::with_arguments(
        &roles(&["client", "server", "friend"]),
        CLSACT,
    )?)
}

#[test]
fn by_clsact_a_start_adopts_the_filters_and_a_kill_is_not_noticed() -> Result<()> {
    let mut scene = web(CLSACT)?;
    let before = filters(&scene)?;
    ensure!(
        before.values().all(|programs| programs.len() == 1),
        "one filter each way on every pod's link: {before:?}"
    );
    assert_kill_is_not_noticed(&mut scene)?;
    ensure!(
        filters(&scene)? == before,
        "adopted: the same programs, none twice: {:?}",
        filters(&scene)?
    );
    scene.apply(&service("web", WEB, &ready(&scene, &BACKENDS[..1])?))?;
    scene.assert_answered(&service_probes(&scene, WEB, SERVICE)?, BACKENDS[0])
}
