//! Continuous traffic, from one thread that enters a namespace to make a socket there: a socket stays where it was made.

mod held;
mod host;
mod request;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub(super) use self::host::keep_asking;
use super::cast::Shared;
use super::flow::{Client, Done, Flow, Place};
use super::history::History;
use super::judge::must_be_answered;
use super::policy::PORTS;
use crate::dice::Dice;
use crate::lab::lock;
use crate::lab::netns::Netns;
use crate::lab::traffic::Proto;
use crate::lab::wire::Wire;

/// New connections are begun at this distance.
const REQUEST_EVERY: Duration = Duration::from_millis(16);
/// Connections that are held at once.
const HELD: usize = 20;
/// Streams that run at once.
const STREAMS: usize = 10;
/// From one connection or stream to the next in its place.
const BETWEEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(600));
/// How long a connection is held and a stream runs.
const LASTS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// For a connection that can only be answered: far beyond what a busy machine takes.
pub(super) const PATIENT: Duration = Duration::from_secs(4);
/// For one that may meet silence.
pub(super) const IMPATIENT: Duration = Duration::from_millis(350);

/// What all generators share.
#[derive(Debug)]
pub(super) struct Context {
    /// What connections are judged by.
    pub(super) history: Arc<Mutex<History>>,
    /// Who opens them.
    pub(super) cast: Shared,
    /// Where connections go that have ended.
    pub(super) done: mpsc::Sender<Done>,
    /// No more are begun.
    pub(super) stop: AtomicBool,
    /// The world's network namespace.
    pub(super) world: Arc<Netns>,
    /// Tokens so far.
    pub(super) next: AtomicU64,
    /// Of the dice.
    pub(super) seed: u64,
}

impl Context {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn token(&self, letter: char) -> String {
        format!("{letter}{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn tell(&self, done: Done) {
        // The judge is gone only when the run is over.
        let _ = self.done.send(done);
    }

    /// Whether the client is still there.
    fn lives(&self, client: &Client) -> bool {
        match client.place {
            Place::Pod(_) => lock(&self.cast)
                .iter()
                .any(|(pod, _)| pod.name == client.name),
            Place::Host(_) | Place::World => true,
        }
    }

    /// How long a connection that begins at this moment waits for its answer. It is the moment by which it is judged too: whoever is
    /// told to be impatient, because an older state may still deny it, is judged by that state with the rest.
    fn patience(&self, flow: &Flow, begun: Instant) -> Duration {
        if must_be_answered(&lock(&self.history), flow, begun) {
            PATIENT
        } else {
            IMPATIENT
        }
    }

    /// A connection from this client to a service, a pod or the world.
    fn target(&self, dice: &mut Dice, client: &Client, proto: Proto) -> Option<SocketAddr> {
        let ipv6 = dice.chance(50);
        let port = *dice.pick(&[PORTS[0], PORTS[0], PORTS[1], PORTS[2]]);
        let weights = match client.place {
            Place::World => [0, 1, 0],
            Place::Pod(_) => [52, 43, 5],
            Place::Host(_) => [70, 30, 0],
        };
        match dice.weighted(&weights) {
            0 => {
                let services = lock(&self.history).current()?.services.all();
                let fits = |(to, of): &&(SocketAddr, Proto)| to.is_ipv6() == ipv6 && *of == proto;
                let fitting: Vec<_> = services.iter().filter(fits).collect();
                let (mut to, _) = **fitting.get(dice.below(fitting.len().max(1)))?;
                if dice.chance(3) {
                    // A port that the service may have had, or have next.
                    to.set_port(if to.port() == 80 { 81 } else { 80 });
                }
                Some(to)
            }
            1 => {
                let pods = lock(&self.cast);
                let others: Vec<_> = pods
                    .iter()
                    .filter(|(pod, _)| pod.name != client.name)
                    .collect();
                let (pod, _) = others.get(dice.below(others.len().max(1)))?;
                Some(SocketAddr::new(pod.address(ipv6), port))
            }
            _ => {
                let world = [IpAddr::from(Wire::WORLD_V4), IpAddr::from(Wire::WORLD_V6)];
                Some(SocketAddr::new(world[usize::from(ipv6)], port))
            }
        }
    }

    fn client(&self, dice: &mut Dice) -> Option<Client> {
        if dice.chance(4) {
            return Some(Client {
                name: super::expect::WORLD.into(),
                place: Place::World,
                // It is behind the router, which asks with its own address.
                addresses: [Wire::GATEWAY_V4.into(), Wire::GATEWAY_V6.into()],
                netns: Arc::clone(&self.world),
            });
        }
        let pods = lock(&self.cast);
        let (client, _) = pods.get(dice.below(pods.len().max(1)))?;
        Some(client.clone())
    }

    fn flow(&self, dice: &mut Dice, proto: Proto) -> Option<Flow> {
        let client = self.client(dice)?;
        let to = self.target(dice, &client, proto)?;
        Some(Flow { client, proto, to })
    }
}

/// Generates traffic until it is stopped; connections that are under way are then waited for.
///
/// # Errors
/// The lab failed: no runtime, or a namespace could not be entered.
pub(super) fn generate(context: &Arc<Context>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the traffic's runtime")?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..HELD {
            tasks.spawn(again_and_again(
                Arc::clone(context),
                1000 + number as u64,
                Proto::Tcp,
            ));
        }
        for number in 0..STREAMS {
            tasks.spawn(again_and_again(
                Arc::clone(context),
                2000 + number as u64,
                Proto::Udp,
            ));
        }
        tasks.spawn(requests(Arc::clone(context)));
        while let Some(task) = tasks.join_next().await {
            task.context("a generator's task")??;
        }
        Ok(())
    })
}

async fn requests(context: Arc<Context>) -> Result<()> {
    let mut dice = Dice::of(context.seed, 3000);
    let mut tick = tokio::time::interval(REQUEST_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut under_way = tokio::task::JoinSet::new();
    while !context.stopped() {
        tick.tick().await;
        let proto = *dice.pick(&Proto::ALL);
        if let Some(flow) = context.flow(&mut dice, proto) {
            under_way.spawn(request::make(Arc::clone(&context), flow));
        }
        while let Some(made) = under_way.try_join_next() {
            made.context("a request's task")??;
        }
    }
    while let Some(made) = under_way.join_next().await {
        made.context("a request's task")??;
    }
    Ok(())
}

/// One connection or stream after the other.
async fn again_and_again(context: Arc<Context>, number: u64, proto: Proto) -> Result<()> {
    let mut dice = Dice::of(context.seed, number);
    while !context.stopped() {
        tokio::time::sleep(dice.between(BETWEEN.0, BETWEEN.1)).await;
        let lasts = dice.between(LASTS.0, LASTS.1);
        let Some(flow) = context.flow(&mut dice, proto) else {
            continue;
        };
        match proto {
            Proto::Tcp => held::hold(&context, flow, lasts).await?,
            Proto::Udp => stream::run(&context, flow, lasts).await?,
        }
    }
    Ok(())
}
