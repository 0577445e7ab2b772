//! Objects change, and packets follow.

use agent_common::Reason;
use anyhow::{Result, ensure};
use tests::lab::traffic::Outcome;

use crate::world::{ELSEWHERE, NAMESPACE, World, service};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers: [{ name: web, image: web, ports: [{ name: web, containerPort: 8080 }] }]
";

/// Only clients of the shop reach what is guarded: by the name of its port, which is TCP, and by number for UDP.
const GUARD: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: guard, namespace: shop }
spec:
  podSelector: { matchLabels: { app: target } }
  policyTypes: [Ingress]
  ingress:
  - from: [{ podSelector: { matchLabels: { role: client } } }]
    ports: [{ port: web }, { protocol: UDP, port: 8080 }]
";

/// The teams that may reach what is guarded, besides.
const OPERATORS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: operators, namespace: shop }
spec:
  podSelector: { matchLabels: { app: target } }
  ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: ops } } }] }]
";

/// The stranger reaches nobody.
const SILENT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: silent, namespace: shop }
spec: { podSelector: { matchLabels: { role: stranger } }, policyTypes: [Egress] }
";

/// Pods of a Deployment come and go, and a service with them. Leaves the Deployment `web` with two pods, and its service.
pub(crate) async fn endpoints(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    cluster.apply(DEPLOYMENT).await?;
    cluster.apply(&service("web", "app: web")).await?;
    let web = world.addresses("web").await?;
    let client = &world.client;
    for (what, count) in [
        ("two endpoints", 2),
        ("scaled up", 3),
        ("scaled down", 1),
        ("scaled up again", 2),
    ] {
        cluster
            .scale(NAMESPACE, "web", u32::try_from(count)?)
            .await?;
        let used = world.run_web(count).await?;
        let names: Vec<&str> = used.iter().map(|backend| backend.name()).collect();
        world.served_by(what, client, &web, &names)?;
    }

    let refused = world.drops(Reason::NoEndpoint)?;
    cluster.scale(NAMESPACE, "web", 0).await?;
    world.run_web(0).await?;
    world.eventually("scaled to nothing", || {
        let asked = world.ask(client, &web)?;
        ensure!(asked.all("refused"), "not refused");
        Ok(())
    })?;
    ensure!(
        world.drops(Reason::NoEndpoint)? > refused,
        "refused, but not for want of endpoints"
    );

    cluster.scale(NAMESPACE, "web", 2).await?;
    let used = world.run_web(2).await?;
    let names: Vec<&str> = used.iter().map(|backend| backend.name()).collect();
    world.served_by("back from nothing", client, &web, &names)?;

    // A service ends, and the other over the same pods goes on.
    cluster.apply(&service("also-web", "app: web")).await?;
    let also = world.addresses("also-web").await?;
    world.served_by("a second service", client, &also, &names)?;
    cluster.delete(&service("also-web", "app: web")).await?;
    world.eventually("a service deleted", || {
        let asked = world.ask(client, &also)?;
        ensure!(
            !asked.outcomes.iter().any(Outcome::is_answered),
            "still answered"
        );
        Ok(())
    })?;
    world.served_by("the other service", client, &web, &names)
}

/// Policies and labels come and go. Leaves the policy `guard`: the client reaches the target, others do not.
pub(crate) async fn policies(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    let target = world.addresses("target").await?;
    let (client, stranger, tool) = (&world.client, &world.stranger, &world.tool);
    let denied =
        |what: &str, from| world.denied(what, from, client, &target, Reason::PolicyIngress);
    for pod in [client, stranger, tool] {
        world.allowed("no policy", pod, &target)?;
    }

    cluster.apply(GUARD).await?;
    denied("a policy applied", stranger)?;
    denied("a policy applied, another namespace", tool)?;

    relabel(world, "client").await?;
    world.allowed("a pod relabelled", stranger, &target)?;
    relabel(world, "stranger").await?;
    denied("a pod relabelled back", stranger)?;

    cluster.apply(OPERATORS).await?;
    world.allowed("a policy for a namespace", tool, &target)?;
    denied("a policy for a namespace, not this one", stranger)?;
    cluster
        .create_namespace(ELSEWHERE, &[("team", "dev")])
        .await?;
    denied("a namespace relabelled", tool)?;
    cluster
        .create_namespace(ELSEWHERE, &[("team", "ops")])
        .await?;
    world.allowed("a namespace relabelled back", tool, &target)?;
    cluster.delete(OPERATORS).await?;
    denied("a policy for a namespace removed", tool)?;

    // Egress, to a service that no policy guards.
    let web = world.addresses("web").await?;
    world.allowed("no egress policy", stranger, &web)?;
    cluster.apply(SILENT).await?;
    world.denied(
        "an egress policy",
        stranger,
        client,
        &web,
        Reason::PolicyEgress,
    )?;
    cluster.delete(SILENT).await?;
    world.allowed("an egress policy removed", stranger, &web)?;

    cluster.delete(GUARD).await?;
    world.allowed("the policy removed", stranger, &target)?;
    cluster.apply(GUARD).await?;
    denied("the policy applied again", stranger)
}

/// The stranger's role.
pub(crate) async fn relabel(world: &World, role: &str) -> Result<()> {
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::{Patch, PatchParams};
    let pods: Api<Pod> = Api::namespaced(world.cluster.client(), NAMESPACE);
    let patch = serde_json::json!({ "metadata": { "labels": { "role": role } } });
    pods.patch("stranger", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}
