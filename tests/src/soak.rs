//! The soak: two nodes on one machine, each with its agent, under random changes, random kills and continuous traffic; each
//! connection is held against the oracle.
//!
//! ```text
//! churn ──> manifests, links ──> agents a, b      traffic ──> connections ──┐
//!   │ each object, each link      ^                                         v
//!   └──> history of states        └── kills ──> outages in the history ──> bench: judge ──> counts
//! ```
//!
//! **Which states a packet may have met.** Each write of one object, and each change of one link, makes a state. It may be in
//! force on a node from the moment at which the write begins. A second after the write has ended it must be, and no earlier
//! state may answer. Where the node's agent was down at any moment of that second, the second begins with its `READY=1`. A kill
//! takes nothing back: what was in force stays.
//!
//! **What is right.** The client's node translates and judges egress, the backend's node judges ingress, each by some state
//! that its packets may have met there from the connection's begin to its end ([`expect`]). So where states agree, one outcome
//! is right, and the counts say how often that was so.
//!
//! - *Wrong*: an answer that no such state allows, by a server that no such state has behind the service, or from another
//!   address than was asked; a refusal where no state has the service without an endpoint; a request that every state denies and
//!   that a server saw all the same.
//! - *Lost*: a request that every such state allows, and that nobody answered. For a connection that stands, and for a
//!   datagram, the states are those from a second before to a second after.
//! - *Reset*: the same, reset or closed.
//! - *Excused*: what fails while an end of the connection, or its backend, came or went: unless its link was up and its server
//!   the same from a second before to a second after, and the service had it as a backend all the while.
//! - *Denied* counts only where every state denies, nothing came back within [`traffic::IMPATIENT`] or more, and no server has
//!   the request in its record. The programs' counters of drops must have risen by as many packets at least.
//!
//! A new pod's link is plugged in before the agent can know of it, and so is not judged for a second either.
//!
//! The sequence of changes, kills and connections depends on the seed; when each happens depends on the machine.

mod agents;
mod bench;
mod cast;
mod churn;
mod evidence;
mod expect;
mod explain;
mod flow;
mod history;
mod judge;
mod policy;
mod tally;
mod traffic;
mod view;
mod world;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

pub use self::tally::{MINIMUM, Minimum, SHORTEST, Tally};

use self::bench::{Asked, Bench};
use self::cast::Cast;
use self::churn::Churn;
use self::expect::WORLD;
use self::policy::{NAMESPACES, PORTS, namespace_labels};
use self::traffic::{Context, generate, keep_asking};
use self::view::NODES;
use self::world::World;
use crate::dice::Dice;
use crate::lab::Lab;
use crate::lab::agent::{Agent, AgentPlan, Source};
use crate::lab::host::HostProcess;
use crate::lab::manifests::{self, ManifestDir};
use crate::lab::pinned::Pinned;
use crate::lab::traffic::Server;
use crate::lab::traffic::server::{Keep, ServerOptions};
use crate::lab::wire::Wire;

/// Traffic goes on for so long after the last change: it must be in force alone.
const AFTERMATH: Duration = Duration::from_secs(4);
/// Between two lines that tell how far a run is.
const TELL: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// For how long there are changes and kills.
    pub time: Duration,
    /// Of the dice.
    pub seed: u64,
}

/// Runs the soak; what goes wrong is printed as it is found. The counts say whether the run was clean:
/// [`Tally::complaints`].
///
/// # Errors
/// The lab failed, or an agent ended by itself or did not become ready.
pub fn run(plan: &Plan) -> Result<Tally> {
    let lab = Lab::new("soak")?;
    let nodes = [lab.node(NODES[0])?, lab.node(NODES[1])?];
    let dir = ManifestDir::create(lab.dir(), "manifests")?;
    let manifests = dir.path().to_owned();
    let mut dice = Dice::of(plan.seed, 1);
    let mut world = World::new(dir, [nodes[0].addresses(), nodes[1].addresses()]);
    for node in &nodes {
        world.put(&manifests::node(node, &[]))?;
    }
    for namespace in NAMESPACES {
        world.put(&manifests::namespace(
            namespace,
            &namespace_labels(&mut dice),
        ))?;
    }
    let outside = outside(&lab)?;
    let cast = Cast::new(&mut dice, &nodes, &mut world)?;
    let mut churn = Churn::new(
        Dice::of(plan.seed, 2),
        &nodes,
        lab.wire().netns(),
        world,
        cast,
    )?;
    let mut agents = Vec::new();
    for node in &nodes {
        let plan = AgentPlan::new(node, Source::Manifests(manifests.clone()))?;
        agents.push(Agent::start(node, plan)?);
    }
    let asked = |agent: &Agent| Asked {
        name: agent.plan().node_name.clone(),
        socket: agent.plan().socket.clone(),
        pinned: Pinned::new(&agent.plan().pin_root),
    };
    let asked = [asked(&agents[0]), asked(&agents[1])];
    let hosts = [
        HostProcess::start(&nodes[0])?,
        HostProcess::start(&nodes[1])?,
    ];

    let history = churn.world().begin();
    let (tell, done) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let bench = Bench {
        history: Arc::clone(&history),
        cast: Arc::clone(&churn.cast().shared),
        agents: asked,
        zero: Instant::now(),
        stop: Arc::clone(&stop),
    };
    let context = Context {
        history: Arc::clone(&history),
        cast: Arc::clone(&churn.cast().shared),
        done: tell,
        stop: AtomicBool::new(false),
        world: Arc::clone(lab.wire().netns()),
        next: AtomicU64::new(0),
        seed: plan.seed,
    };
    let kills = AtomicU64::new(0);
    let mut tally = std::thread::scope(|scope| -> Result<Tally> {
        let bench = &bench;
        let judged = scope.spawn(move || bench.sit(&done));
        let context = Arc::new(context);
        let mut generators = Vec::new();
        for (number, (node, host)) in nodes.iter().zip(hosts).enumerate() {
            let context = Arc::clone(&context);
            generators.push(scope.spawn(move || keep_asking(&context, node, number, host)));
        }
        {
            let context = Arc::clone(&context);
            generators.push(scope.spawn(move || generate(&context)));
        }
        let (mut orders, mut keepers) = (Vec::new(), Vec::new());
        for (number, (node, agent)) in nodes.iter().zip(agents).enumerate() {
            let (order, ordered) = mpsc::channel();
            orders.push(order);
            let (history, kills, stop) = (&history, &kills, &stop);
            keepers.push(scope.spawn(move || {
                let kept = agents::keep(node, number, agent, &ordered, history, kills);
                if kept.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                kept
            }));
        }
        churn.kill_through(orders);
        let turned = turn(&mut churn, plan, bench, &kills);
        churn.kill_through(Vec::new());
        // Ready again, and then nothing changes any more.
        let kept: Vec<Result<Agent>> = keepers.into_iter().map(joined).collect();
        if !stop.load(Ordering::Relaxed) {
            std::thread::sleep(AFTERMATH);
        }
        context.stop.store(true, Ordering::Relaxed);
        drop(context);
        let generated: Vec<Result<()>> = generators.into_iter().map(joined).collect();
        let tally = judged.join().map_err(|_| anyhow!("the judge panicked"))?;
        if let Some(failed) = kept.into_iter().find_map(Result::err) {
            println!("{tally}");
            return Err(failed);
        }
        generated.into_iter().collect::<Result<()>>()?;
        turned?;
        Ok(tally)
    })?;
    tally.changes = churn.changes;
    tally.kills = kills.load(Ordering::Relaxed);
    drop(outside);
    Ok(tally)
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_) => Err(anyhow!("a thread of the soak panicked")),
    }
}

/// Makes changes until the time is over or the run is given up.
fn turn(churn: &mut Churn<'_>, plan: &Plan, bench: &Bench, kills: &AtomicU64) -> Result<()> {
    let end = bench.zero + plan.time;
    let mut told = Instant::now();
    while Instant::now() < end && !bench.stop.load(Ordering::Relaxed) {
        let pause = churn.step()?;
        std::thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
        if told.elapsed() >= TELL {
            told = Instant::now();
            println!(
                "{:>6.0} s: {} changes, {} kills",
                bench.zero.elapsed().as_secs_f64(),
                churn.changes,
                kills.load(Ordering::Relaxed)
            );
        }
    }
    Ok(())
}

/// The world's server, which keeps no record.
fn outside(lab: &Lab) -> Result<Server> {
    let mut binds = Vec::new();
    for ip in [IpAddr::from(Wire::WORLD_V4), IpAddr::from(Wire::WORLD_V6)] {
        for port in PORTS {
            for proto in crate::lab::traffic::Proto::ALL {
                binds.push((proto, (ip, port).into()));
            }
        }
    }
    let options = ServerOptions {
        keep: Keep::Counts,
        cpu: None,
    };
    Server::start_with(lab.wire().netns(), WORLD, &binds, options)
}

/// A seed that no run had before, short enough to be typed.
pub fn fresh_seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u32::MAX)).unwrap_or_default()
}
