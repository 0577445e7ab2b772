//! A partition that says nothing, and credentials that are worth nothing behind it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::controlplane::ControlPlane;

use crate::changes::relabel;
use crate::outage::{KINDS, stale};
use crate::world::{World, rbac};

/// Whom the agent's token is for.
const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: { name: sluice, namespace: kube-system }
";
/// The kernel finds a connection dead after 25 s of silence (agent/src/source/kube/client.rs). Bookmarks would take 90 s, and an answer
/// that does not come another minute.
const NOTICED: Duration = Duration::from_secs(40);
/// What an agent may take from SIGTERM to its end.
const END: Duration = Duration::from_secs(1);

/// Packets from the server to the node vanish: no connection is ended, no one is told. Meanwhile the agent's account is deleted and made
/// again, which ends its tokens; then the way is back, and at last there is a new token.
pub(crate) async fn partition_and_revoked_token(
    plane: &ControlPlane,
    world: &mut World,
    kubeconfig: &Path,
) -> Result<()> {
    let target = world.addresses("target").await?;
    let [node, _] = world.node.addresses();
    // This thread is where the server is.
    route(&format!("add blackhole {node}/32"))?;
    let began = Instant::now();
    world.cluster.delete(ACCOUNT).await?;
    world.cluster.apply(&rbac()?).await?;
    relabel(world, "client").await?;
    let status = world.wait_status("a silent partition", |status| stale(status).len() == KINDS)?;
    let took = began.elapsed();
    let since = stale(&status);
    println!(
        "silent partition: every kind stale after {took:.1?}, {}, {}",
        since[0]["reason"], status["waiting_for"]
    );
    ensure!(took < NOTICED, "it took {took:?}");
    ensure!(status["ready"] == false, "ready: {status:#}");
    let waits = status["waiting_for"].to_string();
    ensure!(waits.contains("kubernetes, lost since"), "{waits}");
    let denied = |world: &World, when: &str| {
        let (stranger, client) = (&world.stranger, &world.client);
        world.denied(when, stranger, client, &target, Reason::PolicyIngress)
    };
    denied(world, "behind a silent partition")?;

    route(&format!("del blackhole {node}/32"))?;
    let refused = |source: &Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        reason.contains("the credentials are not accepted")
    };
    let status = world.wait_status("a token that ended", |status| {
        let stale = stale(status);
        stale.len() == KINDS && stale.iter().any(refused)
    })?;
    for (first, now) in since.iter().zip(stale(&status)) {
        ensure!(
            first["stale_since"] == now["stale_since"],
            "stale since {} and then since {}",
            first["stale_since"],
            now["stale_since"]
        );
    }
    denied(world, "with a token that ended")?;

    let rotated = Instant::now();
    let again = plane
        .service_account_kubeconfig("kube-system", "sluice")
        .await?;
    ensure!(again == kubeconfig, "the kubeconfig is another file");
    let status = world.wait_status("a new token", |status| stale(status).is_empty())?;
    println!("a new token was found after {:.1?}", rotated.elapsed());
    ensure!(status["ready"] == true, "not ready: {status:#}");
    world.allowed(
        "after the partition: a relabelled pod",
        &world.stranger,
        &target,
    )?;
    relabel(world, "stranger").await?;
    denied(world, "after the partition")?;

    // An agent that is told to end does not wait for an answer: neither one that follows the server, nor one that has just asked it.
    route(&format!("add blackhole {node}/32"))?;
    let following = end(world)?;
    denied(world, "without an agent")?;
    world.launch_agent(kubeconfig)?;
    world.wait_status("an agent that nobody answers", |status| {
        status["ready"] == false
    })?;
    let asking = end(world)?;
    route(&format!("del blackhole {node}/32"))?;
    println!(
        "SIGTERM behind a silent partition: the end came after {following:.1?}, at a start after {asking:.1?}"
    );
    denied(world, "without an agent, with the way back")?;
    world.fresh_agent(kubeconfig)
}

/// Ends the agent; how long it took.
fn end(world: &mut World) -> Result<Duration> {
    let told = Instant::now();
    let status = world.agent()?.terminate()?;
    let took = told.elapsed();
    ensure!(status.success(), "{status}");
    ensure!(took < END, "{took:?}");
    Ok(took)
}

fn route(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .arg("route")
        .args(words.split_ascii_whitespace())
        .output()
        .context("running ip (install iproute2)")?;
    ensure!(
        output.status.success(),
        "ip route {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
