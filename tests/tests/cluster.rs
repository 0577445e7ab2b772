//! The cluster tier: the real etcd, kube-apiserver and kube-controller-manager, the agent with the rights of
//! `deploy/rbac.yaml`, and real packets between the lab's pods.
//!
//! One control plane, one lab and one agent for everything: parts follow each other, and each leaves what the next needs.
//! Needs root.

#[path = "cluster/audit.rs"]
mod audit;
#[path = "cluster/changes.rs"]
mod changes;
#[path = "cluster/database.rs"]
mod database;
#[path = "cluster/latency.rs"]
mod latency;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/prober.rs"]
mod prober;
#[path = "cluster/scrape.rs"]
mod scrape;
#[path = "cluster/silence.rs"]
mod silence;
#[path = "cluster/throttled.rs"]
mod throttled;
#[path = "cluster/tokens.rs"]
mod tokens;
#[path = "cluster/withdrawn.rs"]
mod withdrawn;
#[path = "cluster/world.rs"]
mod world;

use std::time::Instant;

use anyhow::{Result, ensure};
use tests::controlplane::{ControlPlane, Options};
use tests::lab::Lab;
use tests::lab::wire::Wire;

use audit::Audit;
use world::World;

/// Whom the API server takes the agent for.
const AGENT: &str = "system:serviceaccount:kube-system:sluice";

#[tokio::test]
async fn objects_of_a_real_cluster_decide_real_packets() -> Result<()> {
    let lab = Lab::new("cluster")?;
    let node = lab.node("node-a")?;
    // The control plane runs beside the node, where the default gateway is. This thread only: the runtime has no other,
    // and the threads that it makes later inherit the namespace.
    lab.wire().netns().enter()?;
    let audit = Audit::new(lab.dir(), AGENT)?;
    let options = Options {
        listen: Wire::GATEWAY_V4.into(),
        apiserver_arguments: audit.arguments(),
        ..Options::default()
    };
    ControlPlane::during(options, async |plane| {
        let mut world = World::build(plane, node).await?;
        let result = parts(plane, &mut world, &audit).await;
        if result.is_err() {
            eprintln!("--- the agent's log\n{}", world.agent_log());
        }
        result
    })
    .await
}

async fn parts(plane: &mut ControlPlane, world: &mut World, audit: &Audit) -> Result<()> {
    let (namespace, name) = ("kube-system", "sluice");
    let token = plane
        .service_account_token_for(namespace, name, tokens::LIVES)
        .await?;
    let kubeconfig = plane.kubeconfig_of_token_file(namespace, name, &token)?;
    let token = tokens::Ending::now(token);
    world.fresh_agent(&kubeconfig)?;
    println!("requests at the agent's start: {}", audit.summary()?);
    let mut began = Instant::now();
    let mut part = |name: &str| {
        println!("--- {name}: {:.1?}", began.elapsed());
        began = Instant::now();
    };

    changes::endpoints(world).await?;
    part("endpoints");
    changes::policies(world).await?;
    part("policies");
    let latencies = latency::measure(world).await?;
    latencies.print();
    part("latency");
    let held = outage::Lasting::start(world).await?;
    tokens::expired_and_rotated(plane, world, audit, &token).await?;
    part("expired token");
    world.fresh_agent(&kubeconfig)?;
    withdrawn::permission(plane, world, audit).await?;
    part("permission withdrawn");
    world.fresh_agent(&kubeconfig)?;
    throttled::refused_and_slow(plane, world, audit, &kubeconfig).await?;
    part("too many requests, slow");
    world.fresh_agent(&kubeconfig)?;
    outage::server_gone(plane, world, &held).await?;
    part("server gone");
    world.fresh_agent(&kubeconfig)?;
    silence::partition_and_revoked_token(plane, world, &kubeconfig).await?;
    part("silent partition, revoked token");
    outage::forbidden(world, audit, &kubeconfig).await?;
    part("forbidden");
    database::refuses(plane, world, &kubeconfig).await?;
    part("refusing database");
    held.check(world)?;

    println!("requests altogether: {}", audit.summary()?);
    audit.only_reads()?;
    ensure!(
        latencies.count() >= latency::LEAST,
        "{} changes were measured, at least {} should be",
        latencies.count(),
        latency::LEAST
    );
    Ok(())
}
