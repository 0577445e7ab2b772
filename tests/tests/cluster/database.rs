//! The API server's database refuses it: it answers lists with 500, and an agent that starts then knows nothing but what its maps hold.

use std::path::Path;
use std::time::Instant;

use agent_common::Reason;
use anyhow::{Result, ensure};
use serde_json::Value;
use tests::controlplane::ControlPlane;

use crate::outage::{KINDS, stale};
use crate::scrape;
use crate::world::World;

/// Writes of a start at most: an epoch for each of seven pods, and what the API server's own endpoints cost, which go and come with its
/// database. The maps hold some hundred entries of this cluster, `outage::server_gone`'s among them.
const DIFFERENCE: u64 = 60;

/// etcd refuses the API server, the agent is killed and starts, etcd answers again.
pub(crate) async fn refuses(
    plane: &ControlPlane,
    world: &mut World,
    kubeconfig: &Path,
) -> Result<()> {
    let target = world.addresses("target").await?;
    let closed = plane.close_etcd().await?;
    world.agent()?.kill()?;
    world.launch_agent(kubeconfig)?;
    let failed = |source: &Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        source["synced"] == false && reason.contains("(500)")
    };
    let status = world.wait_status("a refusing database", |status| {
        let lost = stale(status);
        lost.len() == KINDS && lost.iter().all(failed)
    })?;
    println!("a refusing database: {}", stale(&status)[0]["reason"]);
    ensure!(status["ready"] == false, "ready: {status:#}");
    let said = scrape::unready(world)?;
    ensure!(
        said.contains("waits for Pods of kubernetes\n")
            && said.contains("waits for the first apply\n")
            && said.contains("kubernetes, lost since"),
        "/readyz: {said}"
    );
    let in_force = |world: &World, when: &str| -> Result<()> {
        let (stranger, client) = (&world.stranger, &world.client);
        world.denied(when, stranger, client, &target, Reason::PolicyIngress)
    };
    in_force(world, "a refusing database")?;
    ensure!(
        scrape::writes(world)? == 0,
        "maps were written by an agent that knows nothing"
    );

    let back = Instant::now();
    plane.open_etcd(closed).await?;
    world.wait_ready()?;
    let status = world.wait_status("the database answers again", |status| {
        stale(status).is_empty()
    })?;
    let writes = scrape::writes(world)?;
    println!(
        "the database answers again: ready after {:.1?}, {writes} map writes",
        back.elapsed(),
    );
    ensure!(
        (1..=DIFFERENCE).contains(&writes),
        "{writes} writes where nothing changed"
    );
    ensure!(status["ready"] == true, "not ready: {status:#}");
    scrape::ready(world)?;
    in_force(world, "the database answers again")
}
