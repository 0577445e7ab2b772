//! The agent may not see a kind any more, in the middle of its work: that kind's last state stays, all others go on.

use std::time::{Duration, Instant, SystemTime};

use agent_common::Reason;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sluice::observe::time::Time;
use tests::controlplane::{Cluster, ControlPlane};

use crate::AGENT;
use crate::audit::Audit;
use crate::changes::relabel;
use crate::outage::{disconnect, stale};
use crate::scrape;
use crate::world::{World, rbac};

/// The kind that is withdrawn, as rules name it.
const RESOURCE: &str = "networkpolicies";
/// Its API group.
const GROUP: &str = "networking.k8s.io";
/// How long the server may take to know its own rules: it watches them as others do.
const DECIDED: Duration = Duration::from_secs(30);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// Writes that two policies of one pod may cost at most. The maps of this cluster hold some hundred entries.
const DIFFERENCE: u64 = 60;

/// The tools' team may reach what is guarded.
const BEFORE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: before, namespace: shop }
spec:
  podSelector: { matchLabels: { app: target } }
  ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: ops } } }] }]
";

/// The stranger may.
const AFTER: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: after, namespace: shop }
spec:
  podSelector: { matchLabels: { app: target } }
  ingress: [{ from: [{ podSelector: { matchLabels: { role: stranger } } }] }]
";

/// Policies are withdrawn, one goes and one comes meanwhile, and they are given back.
pub(crate) async fn permission(
    plane: &ControlPlane,
    world: &mut World,
    audit: &Audit,
) -> Result<()> {
    let cluster = world.cluster.clone();
    let target = world.addresses("target").await?;
    cluster.apply(BEFORE).await?;
    world.allowed("a policy before it is withdrawn", &world.tool, &target)?;
    let started = world.wait_status("ready", |status| status["ready"] == true)?["started"].clone();
    scrape::ready(world)?;
    let lists = audit.count("list", RESOURCE)?;

    withdraw(&cluster, RESOURCE).await?;
    until_decided(&cluster, false).await?;
    // Who watches is not asked again; the next watch is refused.
    let withdrawn = Time::from(SystemTime::now());
    disconnect(world, plane.server().ip())?;
    let status = world.wait_status("one kind withdrawn", |status| {
        let lost = stale(status);
        lost.len() == 1 && is_refused(&lost[0])
    })?;
    let source = &stale(&status)[0];
    println!("withdrawn: {}", source["reason"]);
    let since = source["stale_since"].as_str().context("since when")?;
    ensure!(
        *since >= *withdrawn.to_string() && *since <= *Time::now().to_string(),
        "stale since {since}, withdrawn at {withdrawn}"
    );
    ensure!(source["synced"] == true, "forgotten: {status:#}");
    ensure!(status["ready"] == false, "ready: {status:#}");
    let said = scrape::unready(world)?;
    ensure!(
        said == format!("waits for kubernetes, lost since {since} (NetworkPolicy)\n"),
        "/readyz says {said}"
    );

    cluster.delete(BEFORE).await?;
    cluster.apply(AFTER).await?;
    // What comes after these and is followed shows that these would have come: pods, judged by policies as they were.
    relabel(world, "client").await?;
    world.allowed(
        "withdrawn: pods go on, by the last policies",
        &world.stranger,
        &target,
    )?;
    relabel(world, "stranger").await?;
    let denied = |world: &World, what: &str, from| {
        world.denied(what, from, &world.client, &target, Reason::PolicyIngress)
    };
    denied(
        world,
        "withdrawn: a new policy is not seen",
        &world.stranger,
    )?;
    world.allowed("withdrawn: a deleted policy stays", &world.tool, &target)?;
    let now = world.wait_status("still withdrawn", |status| !stale(status).is_empty())?;
    ensure!(
        stale(&now).len() == 1 && stale(&now)[0]["stale_since"] == since,
        "stale since {since}, and then: {now:#}"
    );

    let writes = scrape::writes(world)?;
    let given_back = Instant::now();
    cluster.apply(&rbac()?).await?;
    let status = world.wait_status("given back", |status| stale(status).is_empty())?;
    let took = given_back.elapsed();
    denied(world, "given back: the deleted policy", &world.tool)?;
    world.allowed("given back: the new policy", &world.stranger, &target)?;
    let writes = scrape::writes(world)? - writes;
    println!("given back: followed again after {took:.1?}, {writes} map writes");
    ensure!(
        (1..=DIFFERENCE).contains(&writes),
        "{writes} writes for two policies"
    );
    ensure!(
        audit.count("list", RESOURCE)? == lists,
        "listed again, though the watch could go on from its place"
    );
    ensure!(status["started"] == started, "it was restarted");
    ensure!(status["ready"] == true, "not ready: {status:#}");
    scrape::ready(world)?;

    cluster.delete(AFTER).await?;
    denied(world, "given back: a policy deleted", &world.stranger)
}

/// Takes the rule of this resource from the agent's role.
pub(crate) async fn withdraw(cluster: &Cluster, resource: &str) -> Result<()> {
    let roles: Api<ClusterRole> = Api::all(cluster.client());
    let mut rules = roles.get("sluice").await?.rules.unwrap_or_default();
    let all = rules.len();
    rules.retain(|rule| !rule.resources.iter().flatten().any(|r| r == resource));
    ensure!(
        rules.len() + 1 == all,
        "deploy/rbac.yaml has no rule of its own for {resource}"
    );
    let patch = json!({ "rules": rules });
    roles
        .patch("sluice", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Waits until the server would let the agent watch policies, or would not.
async fn until_decided(cluster: &Cluster, allowed: bool) -> Result<()> {
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(AGENT.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some("watch".to_owned()),
                group: Some(GROUP.to_owned()),
                resource: Some(RESOURCE.to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let end = Instant::now() + DECIDED;
    while Instant::now() < end {
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if answer
            .status
            .is_some_and(|status| status.allowed == allowed)
        {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("after {DECIDED:?} the server still does not know its own rules")
}

fn is_refused(source: &Value) -> bool {
    let reason = source["reason"].as_str().unwrap_or_default();
    source["kind"] == "NetworkPolicy" && reason.contains(RESOURCE) && reason.contains("(403)")
}
