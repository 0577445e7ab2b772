//! The real server turns the agent away (429), and then lets it wait: priority and fairness, with a level that has room for nobody.
//!
//! A level without seats holds requests in its queue and rejects those that find the queue full: a queue of one is a server that takes no
//! more, a long one is a slow server.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use agent_common::Reason;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use kube::Api;
use serde_json::Value;
use tests::controlplane::{Cluster, ControlPlane};

use crate::audit::Audit;
use crate::changes::relabel;
use crate::outage::{KINDS, disconnect, stale};
use crate::scrape;
use crate::tokens::lists;
use crate::world::World;

/// A queue that is full with one request.
const FULL: u32 = 1;
/// A queue that no agent fills.
const LONG: u32 = 50;
/// Seats enough for an agent.
const SEATS: u32 = 30;
/// However busy the machine is.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// The server asks for a second at least (`Retry-After`), and on top of it the backoff's second wait is 1.6 s at least (its first was for
/// the connection that ended). A tenth of a second less, for clocks that are set.
const APART: Duration = Duration::from_millis(2_500);

/// Six kinds, each asked for again by itself and turned away: the last state stays, what the server asks for is given to it, and
/// afterwards nothing is written, because nothing is different. Then the server is slow, and things change meanwhile.
pub(crate) async fn refused_and_slow(
    plane: &ControlPlane,
    world: &mut World,
    audit: &Audit,
    kubeconfig: &Path,
) -> Result<()> {
    refused(plane, world, audit).await?;
    world.fresh_agent(kubeconfig)?;
    slow(plane, world).await
}

async fn refused(plane: &ControlPlane, world: &mut World, audit: &Audit) -> Result<()> {
    let target = world.addresses("target").await?;
    let (writes, lists_before) = (scrape::writes(world)?, lists(audit)?);
    let level = Level::new(&world.cluster, "sluice-full", FULL).await?;
    let began = SystemTime::now();
    disconnect(world, plane.server().ip())?;
    let is_refused = |source: &Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        reason.contains("(429)")
    };
    // All but the one that is in the queue.
    let status = world.wait_status("too many requests", |status| {
        let lost = stale(status);
        lost.len() == KINDS && lost.iter().filter(|source| is_refused(source)).count() >= KINDS - 1
    })?;
    let lost = stale(&status);
    let example = lost.iter().find(|source| is_refused(source));
    println!(
        "refused: {}",
        example.context("one that is refused")?["reason"]
    );
    ensure!(status["ready"] == false, "ready: {status:#}");
    let said = scrape::unready(world)?;
    ensure!(said.contains("kubernetes, lost since"), "/readyz: {said}");
    world.denied(
        "turned away",
        &world.stranger,
        &world.client,
        &target,
        Reason::PolicyIngress,
    )?;

    // Each asks again, and not before its time.
    let end = Instant::now() + DEADLINE;
    let apart = loop {
        let moments = audit.moments(began)?;
        let apart: Vec<Duration> = moments
            .values()
            .flat_map(|moments| moments.windows(2))
            .map(|pair| pair[1].duration_since(pair[0]).unwrap_or_default())
            .collect();
        if moments.values().filter(|moments| moments.len() > 1).count() >= KINDS - 1 {
            break apart;
        }
        ensure!(Instant::now() < end, "not asked again: {moments:?}");
        tokio::time::sleep(PAUSE).await;
    };
    println!("refused: asked again after {apart:.2?}");
    ensure!(
        apart.iter().all(|apart| *apart >= APART),
        "asked again before the time that the server asked for: {apart:?}"
    );
    let different: BTreeSet<u128> = apart.iter().map(Duration::as_millis).collect();
    ensure!(different.len() > 1, "all at the same moment: {apart:?}");

    level.open(&world.cluster).await?;
    let status = world.wait_status("taken again", |status| stale(status).is_empty())?;
    ensure!(status["ready"] == true, "not ready: {status:#}");
    scrape::ready(world)?;
    world.allowed("taken again", &world.client, &target)?;
    ensure!(
        scrape::writes(world)? == writes,
        "maps were written, though nothing is different"
    );
    ensure!(
        lists(audit)? == lists_before,
        "listed again, though every watch could go on from its place"
    );
    level.remove(&world.cluster).await
}

async fn slow(plane: &ControlPlane, world: &mut World) -> Result<()> {
    let target = world.addresses("target").await?;
    let level = Level::new(&world.cluster, "sluice-slow", LONG).await?;
    disconnect(world, plane.server().ip())?;
    let asked = Instant::now();
    level.until_waiting(&world.cluster, KINDS).await?;
    relabel(world, "client").await?;
    let status = world.wait_status("a slow server", |status| stale(status).len() == KINDS)?;
    ensure!(status["ready"] == false, "ready: {status:#}");
    world.denied(
        "a slow server",
        &world.stranger,
        &world.client,
        &target,
        Reason::PolicyIngress,
    )?;
    level.open(&world.cluster).await?;
    println!(
        "slow: every watch was held for up to {:.1?}",
        asked.elapsed()
    );
    world.wait_status("answered at last", |status| stale(status).is_empty())?;
    world.allowed("answered at last", &world.stranger, &target)?;
    level.remove(&world.cluster).await?;
    relabel(world, "stranger").await?;
    world.denied(
        "a server as before",
        &world.stranger,
        &world.client,
        &target,
        Reason::PolicyIngress,
    )
}

/// A priority level for the agent alone, without a seat.
struct Level {
    name: &'static str,
    queue: u32,
}

impl Level {
    /// Made, and in force.
    async fn new(cluster: &Cluster, name: &'static str, queue: u32) -> Result<Self> {
        let level = Self { name, queue };
        cluster.apply(&level.configuration(0)).await?;
        cluster.apply(&level.schema()).await?;
        level.until_in_force(cluster).await?;
        Ok(level)
    }

    /// The level has seats: who waits is answered.
    async fn open(&self, cluster: &Cluster) -> Result<()> {
        cluster.apply(&self.configuration(SEATS)).await?;
        Ok(())
    }

    async fn remove(self, cluster: &Cluster) -> Result<()> {
        cluster.delete(&self.schema()).await?;
        cluster.delete(&self.configuration(SEATS)).await
    }

    fn configuration(&self, seats: u32) -> String {
        let Self { name, queue } = self;
        format!(
            "
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {{ name: {name} }}
spec:
  type: Limited
  limited:
    nominalConcurrencyShares: {seats}
    lendablePercent: 0
    borrowingLimitPercent: 0
    limitResponse: {{ type: Queue, queuing: {{ queues: 1, handSize: 1, queueLengthLimit: {queue} }} }}
"
        )
    }

    fn schema(&self) -> String {
        let name = self.name;
        // Before all that the server has of its own but what is exempt.
        format!(
            "
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {{ name: {name} }}
spec:
  priorityLevelConfiguration: {{ name: {name} }}
  matchingPrecedence: 50
  rules:
  - subjects: [{{ kind: ServiceAccount, serviceAccount: {{ namespace: kube-system, name: sluice }} }}]
    resourceRules: [{{ verbs: ['*'], apiGroups: ['*'], resources: ['*'], clusterScope: true, namespaces: ['*'] }}]
"
        )
    }

    /// The server says so of a schema once it uses it.
    async fn until_in_force(&self, cluster: &Cluster) -> Result<()> {
        let schemas: Api<FlowSchema> = Api::all(cluster.client());
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let status = schemas.get(self.name).await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let found = conditions.iter().any(|condition| {
                condition.type_.as_deref() == Some("Dangling")
                    && condition.status.as_deref() == Some("False")
            });
            if found {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("{} is not in force after {DEADLINE:?}", self.name)
    }

    /// Waits until so many requests wait.
    async fn until_waiting(&self, cluster: &Cluster, count: usize) -> Result<()> {
        const DUMP: &str = "/debug/api_priority_and_fairness/dump_priority_levels";
        /// Of the table's columns.
        const WAITING: usize = 4;
        let end = Instant::now() + DEADLINE;
        let mut last = String::new();
        while Instant::now() < end {
            let request = http::Request::get(DUMP).body(Vec::new())?;
            last = cluster.client().request_text(request).await?;
            let mut rows = last.lines().map(|line| line.split(','));
            let row = rows.find_map(|row| {
                let row: Vec<&str> = row.map(str::trim).collect();
                (row.first() == Some(&self.name)).then_some(row)
            });
            let waiting = row.and_then(|row| row.get(WAITING)?.parse().ok());
            if waiting == Some(count) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("not {count} requests wait after {DEADLINE:?}:\n{last}")
    }
}
