//! The API server is away, or does not let the agent see a kind: the last state stays, and status says so.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent_common::Reason;
use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tests::controlplane::ControlPlane;
use tests::lab::traffic::Outcome;
use tests::lab::traffic::held::{Held, HoldPlan};

use crate::audit::Audit;
use crate::changes::relabel;
use crate::scrape;
use crate::withdrawn::withdraw;
use crate::world::{ELSEWHERE, PORT, World, rbac, service};

/// Kinds that the agent follows.
pub(crate) const KINDS: usize = 6;
/// Slices, besides all others: more than a page of the agent's lists, which is 500.
const MANY: u64 = 600;
/// Requests that make them at a time.
const AT_ONCE: usize = 16;
/// Endpoints of a service that no outage concerns: each is two entries of maps, which a recovery that is no difference would write again.
const BALLAST: u64 = 250;
/// Writes that three services of two families, two protocols and three endpoints, a policy and a pod's labels may cost at most.
const DIFFERENCE: u64 = 300;
/// How long an answer on a held connection may take, on a busy machine.
const HELD_DEADLINE: Duration = Duration::from_secs(20);

/// The tool too.
const TOOLS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: tools, namespace: shop }
spec:
  podSelector: { matchLabels: { app: target } }
  ingress: [{ from: [{ namespaceSelector: {}, podSelector: { matchLabels: { role: tool } } }] }]
";

/// A service by hand, with addresses that nobody has (RFC 2544).
fn ballast() -> String {
    let endpoints: String = (1..=BALLAST)
        .map(|last| format!("  - {{ addresses: [198.18.0.{last}] }}\n"))
        .collect();
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: ballast, namespace: shop }}
spec: {{ ports: [{{ port: 80 }}] }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: ballast
  namespace: shop
  labels: {{ kubernetes.io/service-name: ballast, endpointslice.kubernetes.io/managed-by: tests }}
addressType: IPv4
ports: [{{ name: \"\", port: 80, protocol: TCP }}]
endpoints:
{endpoints}"
    )
}

/// Connections of before, which no trouble of a source concerns.
pub(crate) struct Lasting(Held);

impl Lasting {
    /// Two to a service.
    pub(crate) async fn start(world: &World) -> Result<Self> {
        let [web, _] = world.addresses("web").await?;
        let mut plan = HoldPlan::new((web, PORT).into(), 2);
        plan.deadline = HELD_DEADLINE;
        Ok(Self(Held::start(world.client.netns(), plan)?))
    }

    /// None has failed, and they go on.
    pub(crate) fn check(&self, world: &World) -> Result<()> {
        let before = self.0.rounds();
        world.eventually("connections of before", || {
            ensure!(self.0.failed() == 0, "failed: {:?}", self.0.connections());
            ensure!(self.0.rounds() > before, "they stand still");
            Ok(())
        })
    }
}

/// The agent is cut off, the cluster changes, the server is away altogether and comes back without its history.
///
/// Away for some seconds, not for minutes: longer than the first waits of the backoff, and until its end nothing else ends a wait. How the
/// waits grow, to a minute at most, a unit test shows with a clock of its own; what is in force has no clock that could run out.
pub(crate) async fn server_gone(
    plane: &mut ControlPlane,
    world: &mut World,
    held: &Lasting,
) -> Result<()> {
    let cluster = world.cluster.clone();
    let (brief, lasting) = (service("brief", "app: web"), service("lasting", "app: web"));
    let empty = scrape::writes(world)?;
    cluster.apply(&ballast()).await?;
    world.eventually("the ballast in force", || {
        let writes = scrape::writes(world)? - empty;
        ensure!(writes >= 2 * BALLAST, "{writes} writes");
        Ok(())
    })?;
    cluster.apply(&brief).await?;
    cluster.apply(&lasting).await?;
    let (brief_at, lasting_at) = (
        world.addresses("brief").await?,
        world.addresses("lasting").await?,
    );
    let target = world.addresses("target").await?;
    world.allowed("a service before the outage", &world.client, &brief_at)?;
    world.allowed("another before the outage", &world.client, &lasting_at)?;
    cut(world, plane.server().ip())?;
    let status = world.wait_status("every kind stale", |status| stale(status).len() == KINDS)?;
    let since = stale(&status);
    println!("cut off: {}", since[0]["reason"]);

    // Meanwhile: deleted, deleted and made again, made, changed.
    cluster.delete(&brief).await?;
    cluster.delete(&lasting).await?;
    cluster.apply(&lasting).await?;
    let again_at = world.addresses("lasting").await?;
    let fresh = service("fresh", "app: web");
    cluster.apply(&fresh).await?;
    let fresh_at = world.addresses("fresh").await?;
    cluster.apply(TOOLS).await?;
    relabel(world, "client").await?;
    let old_state = |world: &World, when: &str| -> Result<()> {
        world.allowed(
            &format!("{when}: a deleted service"),
            &world.client,
            &brief_at,
        )?;
        let strange = (&world.stranger, &world.client);
        world.denied(
            &format!("{when}: a relabelled pod"),
            strange.0,
            strange.1,
            &target,
            Reason::PolicyIngress,
        )
    };
    old_state(world, "cut off")?;
    plane.stop_apiserver().await?;
    mend(world, plane.server().ip())?;
    old_state(world, "the server stopped")?;
    let status = world.wait_status("a server that does not listen", |status| {
        stale(status).iter().all(|source| {
            let reason = source["reason"].as_str().unwrap_or_default();
            reason.contains("refused")
        })
    })?;
    let later = stale(&status);
    ensure!(later.len() == KINDS, "not every kind is stale: {status:#}");
    for (first, now) in since.iter().zip(&later) {
        ensure!(
            first["stale_since"] == now["stale_since"],
            "stale since {} and then since {}",
            first["stale_since"],
            now["stale_since"]
        );
    }
    println!(
        "server stopped: {}, stale since {}",
        later[0]["reason"], later[0]["stale_since"]
    );

    let writes = scrape::writes(world)?;
    plane.start_apiserver().await?;
    plane.restart_controller_manager().await?;
    world.wait_status("no kind stale", |status| stale(status).is_empty())?;
    world.eventually("after the outage: a deleted service", || {
        let asked = world.ask(&world.client, &brief_at)?;
        ensure!(
            !asked.outcomes.iter().any(Outcome::is_answered),
            "still answered"
        );
        Ok(())
    })?;
    world.allowed(
        "after the outage: a relabelled pod",
        &world.stranger,
        &target,
    )?;
    world.allowed("after the outage: a new policy", &world.tool, &target)?;
    world.allowed(
        "after the outage: a service made again",
        &world.client,
        &again_at,
    )?;
    world.allowed("after the outage: a new service", &world.client, &fresh_at)?;
    let lost = world.agent_log().matches("410 Gone").count();
    println!("after the outage: {lost} of {KINDS} kinds had to be listed again (410 Gone)");
    ensure!(
        lost > 0,
        "the server's history was not lost: the recovery was none"
    );
    let writes = scrape::writes(world)? - writes;
    println!("after the outage: {writes} map writes");
    ensure!(
        (1..=DIFFERENCE).contains(&writes),
        "{writes} writes for what changed meanwhile"
    );
    // What the outage did not touch went on.
    held.check(world)?;

    // And back, by the same watches.
    relabel(world, "stranger").await?;
    cluster.delete(TOOLS).await?;
    for pod in [&world.stranger, &world.tool] {
        world.denied(
            "after the outage",
            pod,
            &world.client,
            &target,
            Reason::PolicyIngress,
        )?;
    }
    Ok(())
}

/// The agent may not see policies: it says so, and prunes nothing. It starts in a cluster whose slices need a second page.
pub(crate) async fn forbidden(world: &mut World, audit: &Audit, kubeconfig: &Path) -> Result<()> {
    let cluster = world.cluster.clone();
    let (target, fresh_at) = (
        world.addresses("target").await?,
        world.addresses("fresh").await?,
    );
    withdraw(&cluster, "networkpolicies").await?;

    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), ELSEWHERE);
    let many = (0..MANY).map(|number| create_slice(&slices, number));
    let made: Vec<Result<()>> = futures::stream::iter(many)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    made.into_iter().collect::<Result<()>>()?;
    let sees_them = |status: &Value| slices_seen(status) > MANY;
    world.wait_status("many slices by a watch", sees_them)?;

    world.agent()?.kill()?;
    let listed = audit.count("list", "endpointslices")?;
    cluster.delete(&service("fresh", "app: web")).await?;
    world.launch_agent(kubeconfig)?;
    let status = world.wait_status("a forbidden kind named", |status| {
        stale(status).iter().any(|source| {
            let reason = source["reason"].as_str().unwrap_or_default();
            source["kind"] == "NetworkPolicy"
                && source["synced"] == false
                && reason.contains("networkpolicies")
                && reason.contains("403")
            // What a status tells of kinds may be a moment newer than what it counts of objects.
        }) && synced(status) == KINDS - 1
            && slices_seen(status) > MANY
    })?;
    println!("forbidden: {}", stale(&status)[0]["reason"]);
    ensure!(
        slices_seen(&status) > MANY,
        "slices are missing: {status:#}"
    );
    ensure!(
        audit.count("list", "endpointslices")? == listed + 2,
        "the list of slices was to be two pages"
    );
    ensure!(
        status["ready"] == false,
        "ready without policies: {status:#}"
    );
    world.denied(
        "a forbidden kind",
        &world.stranger,
        &world.client,
        &target,
        Reason::PolicyIngress,
    )?;
    world.allowed("a forbidden kind, nothing pruned", &world.client, &fresh_at)?;

    cluster.apply(&rbac()?).await?;
    world.wait_ready()?;
    world.wait_status("no kind stale", |status| stale(status).is_empty())?;
    world.eventually("pruned once all is known", || {
        let asked = world.ask(&world.client, &fresh_at)?;
        ensure!(
            !asked.outcomes.iter().any(Outcome::is_answered),
            "still answered"
        );
        Ok(())
    })?;
    for pod in [&world.stranger, &world.tool] {
        world.denied(
            "allowed again",
            pod,
            &world.client,
            &target,
            Reason::PolicyIngress,
        )?;
    }
    let (every, none) = (ListParams::default(), DeleteParams::default());
    slices.delete_collection(&none, &every).await?;
    world.wait_status("many deletions by a watch", |status| {
        slices_seen(status) < MANY
    })?;
    Ok(())
}

/// A slice of a service that does not exist.
async fn create_slice(slices: &Api<EndpointSlice>, number: u64) -> Result<()> {
    let slice = serde_json::from_value(json!({
        "metadata": {
            "name": format!("page-{number}"),
            "labels": { "kubernetes.io/service-name": "nobody", "endpointslice.kubernetes.io/managed-by": "tests" },
        },
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [],
    }))?;
    slices.create(&PostParams::default(), &slice).await?;
    Ok(())
}

/// Slices that the agent knows.
fn slices_seen(status: &Value) -> u64 {
    let objects = status["objects"].as_array();
    let slices = objects
        .into_iter()
        .flatten()
        .find(|object| object["kind"] == "EndpointSlice");
    slices
        .and_then(|slices| slices["count"].as_u64())
        .unwrap_or_default()
}

/// The sources that are lost.
pub(crate) fn stale(status: &Value) -> Vec<Value> {
    let sources = status["sources"].as_array().cloned().unwrap_or_default();
    sources
        .into_iter()
        .filter(|source| !source["stale_since"].is_null())
        .collect()
}

/// How many kinds were told whole.
fn synced(status: &Value) -> usize {
    let sources = status["sources"].as_array();
    sources.map_or(0, |sources| {
        sources
            .iter()
            .filter(|source| source["synced"] == true)
            .count()
    })
}

/// Cuts the node off from the server: no way there, and the connections that exist are ended.
fn cut(world: &World, server: IpAddr) -> Result<()> {
    let netns = world.node.netns();
    netns.ip(&format!("route add prohibit {server}/32"))?;
    disconnect(world, server)
}

/// Ends the connections between the node and the server, at both ends at once; others may be opened. What stands between them and
/// is replaced does that.
pub(crate) fn disconnect(world: &World, server: IpAddr) -> Result<()> {
    let netns = world.node.netns();
    let killed = netns.run(|| {
        Command::new("ss")
            .args(["--kill", "--tcp", "dst", &server.to_string()])
            .output()
    })?;
    let killed = killed.context("running ss (install iproute2)")?;
    ensure!(
        killed.status.success(),
        "ss --kill: {}",
        String::from_utf8_lossy(&killed.stderr).trim()
    );
    Ok(())
}

/// The way is there again.
fn mend(world: &World, server: IpAddr) -> Result<()> {
    world
        .node
        .netns()
        .ip(&format!("route del prohibit {server}/32"))
}
