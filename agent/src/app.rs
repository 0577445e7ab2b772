//! The wiring: the only module that knows every part.
//!
//! | thread | what runs there |
//! | --- | --- |
//! | the caller's | sources, netlink, events, collection, admin socket, metrics: one current-thread runtime |
//! | `reconcile` | the loop that owns the cluster and writes maps; its writes block |
//! | blocking pool | collection of flows by age, `flows` |

mod attachments;
mod flows;
mod observed;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_common::{Config as MapConfig, feature, limits};
use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::server::Server;
use crate::compile::{Compiler, IpBlockMode, Options, UnknownPod};
use crate::datapath::attach::{Attacher, Mode};
use crate::datapath::collector::Collector;
use crate::datapath::{Datapath, Write, host, load, pins::Pins, switch::Switch};
use crate::local::{self, Local, UplinkChoice};
use crate::model::intern;
use crate::observe::flows::FlowHub;
use crate::observe::metrics::{Metrics, server::Endpoint};
use crate::observe::readiness::{self, Notice, Readiness};
use crate::reconcile::{Handle, Reconciler};
use crate::source::{self, KubeSource, ManifestSource, Source};

use attachments::Attachments;
use flows::FlowUse;
use observed::{Awaited, Observed};

pub use flows::FlowChoice;

/// Where cluster state comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceChoice {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The Kubernetes API: a kubeconfig, or the pod's own account.
    Kubernetes(Option<PathBuf>),
}

/// What the agent is told at its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The node's name in the cluster.
    pub node_name: String,
    /// Where cluster state comes from.
    pub source: SourceChoice,
    /// Directory of pins in a bpffs.
    pub pin_root: PathBuf,
    /// Path of the admin socket.
    pub socket: PathBuf,
    /// The cgroup whose processes' connections are translated; None: the root of the first cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    /// Uplinks by name; empty: by default routes and the node's InternalIPs.
    pub devices: Vec<String>,
    /// How programs are attached.
    pub attach: Mode,
    /// What ipBlocks match.
    pub ip_block_mode: IpBlockMode,
    /// What holds for pods that no source knows yet.
    pub unknown_pod: UnknownPod,
    /// Between two checks whether everything is still there.
    pub drift_interval: Duration,
    /// How many flows are kept, and for how long.
    pub flows: FlowChoice,
    /// Where metrics are served, if they are.
    pub metrics_address: Option<SocketAddr>,
}

/// Events that may wait for the reconciler: a source that is faster is held back.
const QUEUE: usize = 4_096;

/// Runs the agent until it is told to end. The datapath stays in force.
///
/// # Errors
/// One line that names what is missing and the mend.
pub fn run(config: Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config));
    // A collection of flows under way is not waited for: it may be left at any step.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> Result<()> {
    let started = SystemTime::now();
    host::check()?;
    host::raise_file_limit()?;
    // First: a second agent by mistake must not get as far as the maps.
    let admin = Server::bind(&config.socket)?;
    let endpoint = match config.metrics_address {
        Some(address) => Some(Endpoint::bind(address).await?),
        None => None,
    };
    let cgroup = host::cgroup(config.cgroup.as_deref())?;
    let pins = Arc::new(Pins::open(&config.pin_root)?);
    let mut loaded = load::load(&pins, &config.flows.sizes(), &config.flows.timeouts)?;
    loaded
        .datapath
        .write(&Write::Config(map_config(&config)?))?;
    let attacher = Attacher::new(&pins, &loaded.programs, config.attach)?;
    let attachments = Attachments::new(
        loaded.programs,
        attacher,
        Arc::clone(&pins),
        loaded.maps,
        cgroup,
    );
    let attached = attachments.attached();

    let mut uplinks = UplinkChoice {
        devices: config.devices.iter().cloned().collect(),
        node_addresses: BTreeSet::new(),
    };
    let mut watcher = local::watch(uplinks.clone()).await?;
    let local = shared(watcher.state());

    let source = source(&config).await?;
    let (events, received) = mpsc::channel(QUEUE);
    let compiler = Compiler::new(Options {
        ip_block_mode: config.ip_block_mode,
        unknown_pod: config.unknown_pod,
        ..Options::new(intern(&config.node_name))
    });
    let (reconciler, mut handle) = Reconciler::new(
        Box::new(compiler),
        Box::new(loaded.datapath),
        source.kinds(),
        Box::new(attachments),
        intern(&config.node_name),
    );
    let reconciler = reconciler.with_drift_interval(config.drift_interval);
    let (readiness, metrics, hub) = (
        Readiness::default(),
        Arc::<Metrics>::default(),
        FlowHub::default(),
    );
    let awaited = Awaited::new(&readiness, source.name(), source.kinds());
    let collector = Collector::new(loaded.conntrack, &pins, config.flows.share_percent)?;
    let flow_use = Arc::<FlowUse>::default();
    let observed = Arc::new(Observed {
        config: config.clone(),
        source: source.name(),
        started,
        readiness: readiness.clone(),
        handle: handle.clone(),
        local: local.clone(),
        attached,
        counters: loaded.counters,
        flow_use: Arc::clone(&flow_use),
        capacities: loaded.capacities,
        kept: loaded.kept,
        hub: hub.clone(),
    });
    let switch = Switch::open(&pins)?;
    let mut ended = spawn_reconciler(reconciler, received, local)?;
    // Dropped with this function, which ends them all.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(source.run(events));
    tasks.spawn(observed::look_after(watcher.touched(), handle.clone()));
    tasks.spawn(flows::collect(collector, config.flows, flow_use));
    tasks.spawn(observed::pump(loaded.events.into_events()?, hub.clone()));
    tasks.spawn(observed::switch_allowed(switch, hub));
    if let Some(log) = loaded.log {
        warn!(
            "these programs write a line for each drop: a build for work on them, not for a node in use"
        );
        tasks.spawn(async move {
            if let Err(error) = log.run().await {
                warn!("the programs' lines cannot be read: {error}");
            }
        });
    }
    tasks.spawn(awaited.follow(handle.clone(), readiness, Arc::clone(&metrics)));
    tasks.spawn(admin.run(Arc::clone(&observed) as Arc<_>));
    if let Some(endpoint) = endpoint {
        info!(address = %endpoint.address(), "metrics are served");
        tasks.spawn(endpoint.run(observed, metrics));
    }

    let mut stop = Stop::new()?;
    let result = loop {
        tokio::select! {
            reason = stop.asked() => {
                info!("{reason}: ending; the datapath stays in force");
                break Ok(());
            }
            result = &mut ended => break match result {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("the reconciler ended without a word; its thread panicked")),
            },
            error = watcher.failed() => break Err(error).context("netlink cannot be followed"),
            changed = handle.snapshots.changed() => if changed.is_ok() {
                follow_node(&mut handle, &watcher, &mut uplinks);
            },
        }
    };
    if let Err(error) = readiness::notify(&Notice::Stopping) {
        warn!("the service manager cannot be told: {error}");
    }
    result
}

/// The node's InternalIPs say which interfaces are uplinks.
fn follow_node(handle: &mut Handle, watcher: &local::Watcher, uplinks: &mut UplinkChoice) {
    let addresses: BTreeSet<_> = handle
        .snapshots
        .borrow_and_update()
        .internal_ips
        .iter()
        .copied()
        .collect();
    if uplinks.node_addresses != addresses {
        uplinks.node_addresses = addresses;
        watcher.choose(uplinks.clone());
    }
}

fn map_config(config: &Config) -> Result<MapConfig> {
    let mut features = feature::SOCKET_HOST;
    if config.ip_block_mode == IpBlockMode::Literal {
        features |= feature::LITERAL;
    }
    if config.unknown_pod == UnknownPod::Deny {
        features |= feature::UNKNOWN_DENY;
    }
    Ok(MapConfig {
        netns_cookie: host::netns_cookie()?,
        features,
        layout: u64::from(limits::LAYOUT),
    })
}

async fn source(config: &Config) -> Result<Box<dyn Source>> {
    Ok(match &config.source {
        SourceChoice::Manifests(directory) => Box::new(ManifestSource::new(directory.clone())),
        SourceChoice::Kubernetes(kubeconfig) => {
            Box::new(KubeSource::open(kubeconfig.clone()).await?)
        }
    })
}

/// The node's state, shared: it is whole from the first value on.
fn shared(mut state: watch::Receiver<Local>) -> watch::Receiver<Option<Arc<Local>>> {
    let (sender, receiver) = watch::channel(Some(Arc::new(state.borrow_and_update().clone())));
    tokio::spawn(async move {
        while state.changed().await.is_ok() {
            let now = Arc::new(state.borrow_and_update().clone());
            if sender.send(Some(now)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Starts the reconciler on a thread of its own, in this thread's network namespace: its writes block.
fn spawn_reconciler(
    reconciler: Reconciler,
    events: mpsc::Receiver<source::Event>,
    local: watch::Receiver<Option<Arc<Local>>>,
) -> Result<tokio::sync::oneshot::Receiver<Result<()>>> {
    let (end, ended) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("cannot start the reconciler's runtime")?;
    std::thread::Builder::new()
        .name("reconcile".to_owned())
        .spawn(move || {
            let result = runtime.block_on(reconciler.run(events, local));
            // Nobody may be waiting any more.
            let _ = end.send(result.map_err(anyhow::Error::from));
        })
        .context("cannot start the reconciler's thread")?;
    Ok(ended)
}

/// The signals that end the agent.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot take SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot take SIGINT")?,
        })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv(), if !crate::mutant::removed("deaf-to-sigterm") => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
