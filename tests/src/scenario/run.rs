//! Runs scenarios.

use std::sync::Arc;

use agent_common::{backend_state, pod_flag};
use anyhow::{Context, Result, bail, ensure};
use sluice::compile::{Compiler, Options};
use sluice::datapath::{Contents, Write};
use sluice::dump;
use sluice::local::Local;
use sluice::model::{Cluster, Kind, Object, intern};
use sluice::problem::Problem;
use sluice::reconcile::{Attach, Handle, ReconcileError, Reconciler, State};
use sluice::source::{Documents, Event};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::order::{Order, Told, in_order};
use super::{NODE, Scenario, Shared, shared};

/// What a step came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The dump of the maps.
    pub maps: String,
    /// Problems, rejections and notices, a line each.
    pub told: String,
    /// Writes, by map.
    pub writes: String,
}

impl Outcome {
    /// What `-- expect --` holds.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.maps, self.told)
    }

    /// What the maps say of new flows. Which backends live on for flows that they have depends on who was ever chosen, and so on
    /// what came first.
    #[must_use]
    pub fn for_new_flows(&self) -> String {
        let lines = self.maps.split_inclusive('\n');
        lines
            .filter(|line| !line.trim_end().ends_with(dump::FOR_ITS_FLOWS))
            .collect()
    }
}

/// Attaches nothing: there are no programs.
struct Nowhere;

impl Attach for Nowhere {
    fn attach(
        &mut self,
        _local: &Local,
    ) -> Result<Vec<Problem>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Vec::new())
    }
}

/// Events that may wait for the loop.
const QUEUE: usize = 1_024;

/// The agent from its sources' channel to its datapath. It needs a [`tokio::task::LocalSet`].
#[derive(Debug)]
pub struct Agent {
    /// Where sources tell.
    events: mpsc::Sender<Event>,
    local: watch::Sender<Option<Arc<Local>>>,
    /// The loop's face.
    handle: Handle,
    running: JoinHandle<Result<(), ReconcileError>>,
}

impl Agent {
    /// Starts an agent over maps; nothing is told yet.
    #[must_use]
    pub fn start(options: &Options, maps: &Shared) -> Self {
        let (reconciler, handle) = Reconciler::new(
            Box::new(Compiler::new(options.clone())),
            Box::new(maps.clone()),
            &Kind::ALL,
            Box::new(Nowhere),
            intern(NODE),
        );
        let (events, received) = mpsc::channel(QUEUE);
        let (local, local_seen) = watch::channel(None);
        let running = tokio::task::spawn_local(reconciler.run(received, local_seen));
        Self {
            events,
            local,
            handle,
            running,
        }
    }

    /// Tells of some events.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn tell(&self, events: impl IntoIterator<Item = Event>) -> Result<()> {
        for event in events {
            self.events.send(event).await.context("the loop ended")?;
        }
        Ok(())
    }

    /// Tells of the node's own state.
    pub fn tell_local(&self, local: &Local) {
        self.local.send_replace(Some(Arc::new(local.clone())));
    }

    /// Tells that everything has been told.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn tell_synced(&self) -> Result<()> {
        self.tell(Kind::ALL.into_iter().map(Event::Synced)).await
    }

    /// The state once everything told before has been applied.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn settled(&self) -> Result<Arc<State>> {
        // An answer may come before what is queued is taken in, but that happens before the next one.
        let _before = self.handle.state().await.context("the loop ended")?;
        self.handle.state().await.context("the loop ended")
    }

    /// Problems, rejections and notices.
    #[must_use]
    pub fn told(&self) -> String {
        let snapshot = self.handle.snapshots.borrow();
        let mut lines: Vec<String> = Vec::new();
        lines.extend(snapshot.problems.iter().map(|p| format!("problem {p}\n")));
        lines.extend(snapshot.rejected.iter().map(|r| format!("rejected {r}\n")));
        lines.extend(snapshot.notices.iter().map(|n| format!("notice {n}\n")));
        lines.sort();
        lines.concat()
    }

    /// Ends it; the maps stay.
    ///
    /// # Errors
    /// The loop ended with one.
    pub async fn end(self) -> Result<()> {
        drop(self.events);
        self.running.await.context("the loop panicked")??;
        Ok(())
    }
}

/// Every object of a cluster, as a source tells it.
fn everything(cluster: &Cluster) -> Vec<Event> {
    let objects = (cluster.namespaces.values().cloned().map(Object::Namespace))
        .chain(cluster.nodes.values().cloned().map(Object::Node))
        .chain(cluster.pods.values().cloned().map(Object::Pod))
        .chain(cluster.services.values().cloned().map(Object::Service))
        .chain(cluster.slices.values().cloned().map(Object::EndpointSlice))
        .chain(
            cluster
                .policies
                .values()
                .cloned()
                .map(Object::NetworkPolicy),
        );
    objects.map(Event::Upsert).collect()
}

/// What is left in maps that should hold nothing.
///
/// # Errors
/// What there is.
pub fn is_empty(maps: &Contents) -> Result<()> {
    // A number of a backend keeps its generation, and a slot of a pod its epoch.
    let backends = maps.backends.values();
    let backends = backends.filter(|b| b.word.state != backend_state::GONE);
    let pods = maps.pods.values();
    let pods = pods.filter(|p| p.flags & pod_flag::USED != 0 || p.egress.set | p.ingress.set != 0);
    let left = [
        ("backends", backends.count()),
        ("slots", maps.slots.len()),
        ("heads", maps.heads.len()),
        ("services", maps.services.len()),
        ("addresses", maps.addresses.len()),
        // ::ffff:0:0/96 is always there (DATAPATH.md 2).
        ("prefixes", maps.prefixes.len().saturating_sub(1)),
        ("groups", maps.groups.len()),
        ("rules", maps.rules.len()),
        ("pods", pods.count()),
        ("links", maps.links.len()),
    ];
    let left: Vec<_> = left.into_iter().filter(|(_, count)| *count > 0).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Runs a scenario in an order: what each step came to. At its end everything goes, and nothing may be left.
///
/// # Errors
/// What is wrong beside the goldens: the oracle says something else, a restart writes, something is left behind.
pub fn run(scenario: &Scenario, order: Order) -> Result<Vec<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, run_in(scenario, order))
}

async fn run_in(scenario: &Scenario, order: Order) -> Result<Vec<Outcome>> {
    let maps = Shared::new(&scenario.options);
    let mut documents = Documents::new();
    let mut agent = Agent::start(&scenario.options, &maps);
    let batch = matches!(order, Order::Forward | Order::Restarting);
    if !batch {
        agent.tell_local(&Local::default());
        agent.tell_synced().await?;
    }
    let mut outcomes = Vec::new();
    let mut local = Local::default();
    for (number, step) in scenario.steps.iter().enumerate() {
        for (name, text) in &step.files {
            match text {
                Some(text) => documents.put(name, text),
                None => documents.remove(name),
            }
        }
        let first = number == 0;
        if let Some(now) = &step.local {
            local.clone_from(now);
        }
        let told_local = (first || step.local.is_some()).then_some(&local);
        for told in in_order(order, documents.changes(), told_local) {
            match told {
                Told::Events(events) => agent.tell(events).await?,
                Told::Local(local) => agent.tell_local(&local),
            }
            if !batch {
                agent.settled().await?;
            }
        }
        if batch && first {
            agent.tell_synced().await?;
        }
        let state = agent.settled().await?;
        let outcome = Outcome {
            maps: dump::maps(&state),
            told: agent.told(),
            writes: shared::summary(&maps.take_log()),
        };
        if order == Order::Forward && scenario.oracle_same {
            super::hold(&state, &scenario.options)
                .with_context(|| format!("step {} and the oracle", number + 1))?;
        }
        if order == Order::Restarting && scenario.restart_same {
            agent = restarted(scenario, agent, &maps, &state)
                .await
                .with_context(|| format!("a restart after step {}", number + 1))?;
        }
        outcomes.push(outcome);
    }
    let names: Vec<&String> = scenario
        .steps
        .iter()
        .flat_map(|step| step.files.iter().map(|(name, _)| name))
        .collect();
    for name in names {
        documents.remove(name);
    }
    for told in in_order(order, documents.changes(), Some(&Local::default())) {
        match told {
            Told::Events(events) => agent.tell(events).await?,
            Told::Local(local) => agent.tell_local(&local),
        }
        if !batch {
            agent.settled().await?;
        }
    }
    let state = agent.settled().await?;
    is_empty(&maps.view()).with_context(|| format!("at the end:\n{}", dump::maps(&state)))?;
    agent.end().await?;
    Ok(outcomes)
}

/// Another agent in the place of one, over the same maps. It must write nothing but epochs, and mean the same.
async fn restarted(
    scenario: &Scenario,
    agent: Agent,
    maps: &Shared,
    before: &State,
) -> Result<Agent> {
    agent.end().await?;
    let agent = Agent::start(&scenario.options, maps);
    agent.tell_local(&before.local);
    agent.tell(everything(&before.cluster)).await?;
    agent.tell_synced().await?;
    let state = agent.settled().await?;
    let log = maps.take_log();
    if let Some(write) = log.iter().find(|w| !matches!(w, Write::Epoch(..))) {
        bail!("it wrote {write:?}, and in all:\n{}", shared::summary(&log));
    }
    let (was, is) = (dump::maps(before), dump::maps(&state));
    ensure!(was == is, "the maps said\n{was}and now say\n{is}");
    Ok(agent)
}
