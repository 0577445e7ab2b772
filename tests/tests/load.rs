//! What changes cost the traffic that stands: the throughput of thousands of connections with many changes a second, against the
//! same without them.
//!
//! Traffic is pinned to one CPU, the agent and whoever makes the changes to another. Windows with and without changes alternate, and each
//! is compared with the quiet ones beside it: what the machine does besides is in both. A target of its own, so that no other test runs
//! beside it.
//!
//! Needs root and two CPUs.

#[path = "lab/scene.rs"]
#[allow(
    dead_code,
    reason = "the stage of the lab tier, of which this needs a part"
)]
mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::lab::manifests::network_policy;
use tests::lab::traffic::Proto;
use tests::lab::traffic::affinity::pin_thread;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::traffic::server::{Keep, Server, ServerOptions};

use crate::scene::{DEADLINE, Scene, roles};

/// Live connections.
const CONNECTIONS: usize = 5_000;
/// Changes a second.
const CHANGES: u32 = 50;
/// So many of them must come to the kernel each for itself: while a grace period passes (10 ms on an idle node, several times that
/// beside a busy CPU), changes gather and are put in force together.
const APPLIED: f64 = 0.2;
/// The length of a window.
const WINDOW: Duration = Duration::from_millis(1_200);
/// Windows of each kind.
const WINDOWS: usize = 7;
/// So often it is measured before it counts as too little: what else the machine does may fall into the windows of one kind. What epochs that
/// rise for nothing cost would be seen each time.
const ROUNDS: u32 = 3;
/// The CPU of the traffic, and that of the agent and the changes.
const TRAFFIC_CPU: usize = 0;
const AGENT_CPU: usize = 1;
/// The port of the traffic.
const PORT: u16 = 7_100;
/// Ports that versions of a policy let in beside it, one after the other.
const OTHER_PORTS: u32 = 1_000;
/// Versions of policies so far.
static VERSION: AtomicU32 = AtomicU32::new(1);
/// What is left of the throughput where changes concern the traffic's pods, and where they concern others, at least.
const OWN: f64 = 0.8;
const OTHERS: f64 = 0.95;

/// Whom the changes of a window concern.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Changes {
    None,
    Own,
    Others,
}

#[test]
fn changes_leave_the_throughput_of_what_stands() -> Result<()> {
    let mut scene = Scene::new(&roles(&["client", "server", "bystander"]))?;
    for pod in ["server", "bystander"] {
        scene.apply([&policy(pod, 0)])?;
    }
    pin_process(scene.agent.process().id())?;
    let to = SocketAddr::new(scene.addresses("server")?[0], PORT);
    let options = ServerOptions {
        keep: Keep::Counts,
        cpu: Some(TRAFFIC_CPU),
    };
    let _server = Server::start_with(scene.netns("server")?, "busy", &[(Proto::Tcp, to)], options)?;
    let held = Held::start(
        scene.netns("client")?,
        HoldPlan {
            to,
            connections: CONNECTIONS,
            pause: Duration::ZERO,
            deadline: 2 * DEADLINE,
            cpu: Some(TRAFFIC_CPU),
            source: None,
        },
    )?;
    let mut left = round(&scene, &held)?;
    for _ in 1..ROUNDS {
        if left.enough() {
            break;
        }
        left = round(&scene, &held)?;
    }
    ensure!(held.failed() == 0, "connections that stand must not end");
    ensure!(
        left.enough(),
        "not enough of the throughput is left: {left:?}"
    );
    Ok(())
}

/// What is left of the throughput.
#[derive(Debug)]
struct Left {
    own: f64,
    others: f64,
}

impl Left {
    fn enough(&self) -> bool {
        self.own >= OWN && self.others >= OTHERS
    }
}

/// Measures once.
fn round(scene: &Scene, held: &Held) -> Result<Left> {
    let mut rates: BTreeMap<Changes, Vec<f64>> = BTreeMap::new();
    let mut applied = 0;
    let mut quiet = window(scene, held, Changes::None, &mut applied)?;
    for _ in 0..WINDOWS {
        for changes in [Changes::Own, Changes::Others] {
            let rate = window(scene, held, changes, &mut applied)?;
            let after = window(scene, held, Changes::None, &mut applied)?;
            rates.entry(Changes::None).or_default().push(after);
            rates
                .entry(changes)
                .or_default()
                .push(rate / f64::midpoint(quiet, after));
            quiet = after;
        }
    }
    let [quiet, own, others] = [Changes::None, Changes::Own, Changes::Others]
        .map(|changes| median(rates.get(&changes).map_or(&[], Vec::as_slice)));
    tests::say(format_args!(
        "{CONNECTIONS} connections, {quiet:.0} requests a second; of that with {CHANGES} changes a second, put in force {:.0} times a second, {own:.3} where they concern the traffic's pods, {others:.3} where others: {rates:.2?}",
        f64::from(applied) / (WINDOW.as_secs_f64() * 2.0 * WINDOWS as f64)
    ));
    Ok(Left { own, others })
}

/// A policy that lets the traffic in, and something else that the next version takes away: whoever was let in must be judged again. Whom
/// it speaks of is another list of peers each time, which concerns no other pod either.
fn policy(pod: &str, version: u32) -> Value {
    let peer = |app: String| json!({ "podSelector": { "matchLabels": { "app": app } } });
    let other = u32::from(PORT) + 1 + version % OTHER_PORTS;
    network_policy(
        "default",
        &format!("changing-{pod}"),
        json!({
            "podSelector": { "matchLabels": { "app": pod } },
            "ingress": [{
                "from": [peer("client".to_owned()), peer(format!("nobody-{version}"))],
                "ports": [{ "port": PORT }, { "port": other }],
            }],
        }),
    )
}

/// Requests a second of one window.
fn window(scene: &Scene, held: &Held, changes: Changes, applied: &mut u32) -> Result<f64> {
    let pod = match changes {
        Changes::None => None,
        Changes::Own => Some("server"),
        Changes::Others => Some("bystander"),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let before = epochs(scene)?;
    let (rate, made) = std::thread::scope(|scope| {
        let changer = pod.map(|pod| {
            let stop = Arc::clone(&stop);
            scope.spawn(move || change(scene, pod, &stop))
        });
        let (begun, rounds) = (Instant::now(), held.rounds());
        // The window: nothing happens at its end but that it is over.
        std::thread::sleep(WINDOW);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rate = (held.rounds() - rounds) as f64 / begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let made = changer.map(std::thread::ScopedJoinHandle::join);
        (rate, made)
    });
    let made = match made {
        None => 0,
        Some(Ok(made)) => made?,
        Some(Err(_)) => anyhow::bail!("whoever makes the changes panicked"),
    };
    scene.settle()?;
    let after = epochs(scene)?;
    let raised = |pod: &str| after[pod].wrapping_sub(before[pod]);
    *applied += raised("server") + raised("bystander");
    for name in ["server", "bystander"] {
        let raised = raised(name);
        let fits = if pod == Some(name) {
            f64::from(raised) >= f64::from(made) * APPLIED
        } else {
            raised == 0
        };
        ensure!(
            fits,
            "{made} changes concerned {pod:?}, and the epoch of {name} rose by {raised}"
        );
    }
    Ok(rate)
}

/// Makes changes at their pace until told to stop; answers how many.
fn change(scene: &Scene, pod: &str, stop: &AtomicBool) -> Result<u32> {
    pin_thread(Some(AGENT_CPU))?;
    let begun = Instant::now();
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        made += 1;
        let version = VERSION.fetch_add(1, Ordering::Relaxed);
        scene.dir.put(&policy(pod, version))?;
        let due = begun + Duration::from_secs(1) * made / CHANGES;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(made)
}

/// The epochs of the pods that changes concern.
fn epochs(scene: &Scene) -> Result<BTreeMap<&'static str, u32>> {
    let by_link = scene.pinned().epochs()?;
    ["server", "bystander"]
        .into_iter()
        .map(|name| {
            let device = scene.actor(name)?.pod.device.clone();
            let index = scene
                .node
                .netns()
                .run(move || nix::net::if_::if_nametoindex(device.as_str()))??;
            let epoch = by_link.get(&index).context("a pod without a slot")?;
            Ok((name, *epoch))
        })
        .collect()
}

/// Pins every thread of a process to the agent's CPU.
fn pin_process(process: u32) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(AGENT_CPU)?;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let id: i32 = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &set).context("pinning the agent")?;
    }
    Ok(())
}

/// The one in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
