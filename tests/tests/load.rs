//! What changes cost the traffic that stands: the throughput of thousands of connections with many changes a second, against the
//! same without them.
//!
//! Traffic is pinned to one CPU, the agent and whoever makes the changes to another. Windows with and without changes alternate, and each
//! is compared with the quiet ones beside it: what the machine does besides is in both. It is measured until enough is left, or until
//! it is sure that it is not: the test fails on what is measured, not on the noise of a machine that others share. A target of its
//! own, so that no other test runs beside it.
//!
//! Needs root and two CPUs.

#[path = "lab/scene.rs"]
#[allow(
    dead_code,
    reason = "the stage of the lab tier, of which this needs a part"
)]
mod scene;

#[path = "load/changes.rs"]
mod changes;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tests::lab::pod::Pod;
use tests::lab::traffic::Proto;
use tests::lab::traffic::affinity::pin_thread;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::traffic::server::{Keep, Server, ServerOptions};

use crate::changes::{Changes, Kind};
use crate::scene::{DEADLINE, Scene, roles};

/// Live connections.
const CONNECTIONS: usize = 5_000;
/// Changes a second.
const CHANGES: u32 = 50;
/// So many of them at least must come to the kernel each for itself: while a grace period passes (10 ms on an idle node, several times
/// that beside a busy CPU), changes gather and are put in force together.
const APPLIED: f64 = 0.1;
/// The length of a window.
const WINDOW: Duration = Duration::from_millis(1_200);
/// Changes of each kind whose concern is looked at one by one.
const EACH: u32 = 8;
/// Windows of each kind.
const WINDOWS: usize = 7;
/// So often that many windows are measured at most.
const ROUNDS: u32 = 5;
/// Standard errors of a median by which it must miss its bound before too little is left: one in forty by chance.
const SURE: f64 = 2.0;
/// The CPU of the traffic, and that of the agent and the changes.
const TRAFFIC_CPU: usize = 0;
const AGENT_CPU: usize = 1;
/// The port of the traffic.
const PORT: u16 = 7_100;
/// The pod of the traffic, which is under policy, and another one.
const SERVER: &str = "server";
const BYSTANDER: &str = "bystander";
/// What is left of the throughput where changes concern the traffic's pods, and where they concern others, at least: of the optimised
/// agent (`cargo xtask test load --release`), and of the tests' own build, which needs several times the CPU for each change and so
/// takes from the traffic's CPU where the two share a core.
const OWN: f64 = if cfg!(debug_assertions) { 0.7 } else { 0.8 };
const OTHERS: f64 = if cfg!(debug_assertions) { 0.85 } else { 0.95 };

/// Whom the changes of a window concern.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Concern {
    None,
    Own,
    Others,
}

impl Concern {
    fn pod(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Own => Some(SERVER),
            Self::Others => Some(BYSTANDER),
        }
    }
}

fn stage() -> Result<Scene> {
    let mut all = roles(&["client", SERVER, BYSTANDER]);
    all.extend(changes::peers());
    let mut scene = Scene::new(&all)?;
    pin_process(scene.agent.process().id())?;
    Ok(scene)
}

// Fails with mutant "every-epoch".
#[test]
fn changes_of_each_kind_concern_whom_they_take_something_from_and_nobody_else() -> Result<()> {
    let scene = stage()?;
    let changes = Changes::begin(&scene, &[SERVER, BYSTANDER])?;
    for kind in Kind::ALL {
        for pod in [SERVER, BYSTANDER] {
            let before = epochs(&scene)?;
            // Each is in force before the next: two of a kind together may come to nothing.
            for _ in 0..EACH {
                changes.make(pod, kind)?;
                scene.settle()?;
            }
            for (name, after) in epochs(&scene)? {
                let raised = after.wrapping_sub(before[&name]);
                let fits = if name == pod {
                    raised >= EACH
                } else {
                    raised == 0
                };
                ensure!(
                    fits,
                    "{EACH} changes of {kind:?} concerned {pod}, and the epoch of {name} rose by {raised}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn changes_leave_the_throughput_of_what_stands() -> Result<()> {
    let scene = stage()?;
    let changes = Changes::begin(&scene, &[SERVER, BYSTANDER])?;
    let to = SocketAddr::new(scene.addresses(SERVER)?[0], PORT);
    let options = ServerOptions {
        keep: Keep::Counts,
        cpu: Some(TRAFFIC_CPU),
    };
    let _server = Server::start_with(scene.netns(SERVER)?, "busy", &[(Proto::Tcp, to)], options)?;
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
    let mut left = Left::default();
    for _ in 0..ROUNDS {
        round(&scene, &changes, &held, &mut left)?;
        if left.enough(0.0) {
            break;
        }
    }
    ensure!(held.failed() == 0, "connections that stand must not end");
    ensure!(
        left.enough(SURE),
        "not enough of the throughput is left: {left:?}"
    );
    Ok(())
}

/// What is left of the throughput, by window, of that of the quiet ones beside it.
#[derive(Default, Debug)]
struct Left {
    own: Vec<f64>,
    others: Vec<f64>,
}

impl Left {
    /// Whether it is as much as it should be, or less by no more than these standard errors.
    fn enough(&self, errors: f64) -> bool {
        [(&self.own, OWN), (&self.others, OTHERS)]
            .into_iter()
            .all(|(left, least)| median(left) + errors * error_of_median(left) >= least)
    }
}

/// Measures once more.
fn round(scene: &Scene, changes: &Changes<'_>, held: &Held, left: &mut Left) -> Result<()> {
    let mut rates = Vec::new();
    let (mut applied, mut least) = (0, 1.0);
    let rate = |concern| {
        let answers = || held.rounds();
        Window::open(scene, changes, concern, answers)
    };
    let mut quiet = rate(Concern::None)?.rate;
    for _ in 0..WINDOWS {
        for (concern, left) in [
            (Concern::Own, &mut left.own),
            (Concern::Others, &mut left.others),
        ] {
            let window = rate(concern)?;
            let after = rate(Concern::None)?.rate;
            applied += window.raised;
            least = f64::min(least, f64::from(window.raised) / f64::from(window.made));
            left.push(window.rate / f64::midpoint(quiet, after));
            rates.push(after);
            quiet = after;
        }
    }
    tests::say(format_args!(
        "{CONNECTIONS} connections, {:.0} requests a second; of that with {CHANGES} changes a second, put in force {:.0} times a second (at least {least:.2} of those of a window), {:.3} (error {:.3}) where they concern the traffic's pods, {:.3} (error {:.3}) where others: {left:.2?}, quiet: {rates:.0?}",
        median(&rates),
        f64::from(applied) / (WINDOW.as_secs_f64() * 2.0 * WINDOWS as f64),
        median(&left.own),
        error_of_median(&left.own),
        median(&left.others),
        error_of_median(&left.others),
    ));
    Ok(())
}

/// What a stretch of time came to.
struct Window {
    /// Requests a second.
    rate: f64,
    /// Changes made.
    made: u32,
    /// How often the epoch of the pod that they concern rose.
    raised: u32,
}

impl Window {
    /// Makes changes of all kinds in turn, if they concern anybody, while `answers` are counted.
    fn open(
        scene: &Scene,
        changes: &Changes<'_>,
        concern: Concern,
        answers: impl Fn() -> u64,
    ) -> Result<Self> {
        let pod = concern.pod();
        let stop = &AtomicBool::new(false);
        let before = epochs(scene)?;
        let (rate, made) = std::thread::scope(|scope| {
            let changer = pod.map(|pod| scope.spawn(move || change(changes, pod, stop)));
            let (begun, first) = (Instant::now(), answers());
            // The window: nothing happens at its end but that it is over.
            std::thread::sleep(WINDOW);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let rate = (answers() - first) as f64 / begun.elapsed().as_secs_f64();
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
        let mut own = 0;
        for (name, after) in epochs(scene)? {
            let raised = after.wrapping_sub(before[&name]);
            let fits = if pod == Some(name.as_str()) {
                own = raised;
                f64::from(raised) >= f64::from(made) * APPLIED
            } else {
                raised == 0
            };
            ensure!(
                fits,
                "{made} changes concerned {pod:?}, and the epoch of {name} rose by {raised}"
            );
        }
        Ok(Self {
            rate,
            made,
            raised: own,
        })
    }
}

/// Makes changes at their pace until told to stop; answers how many.
fn change(changes: &Changes<'_>, pod: &'static str, stop: &AtomicBool) -> Result<u32> {
    pin_thread(Some(AGENT_CPU))?;
    let begun = Instant::now();
    let mut made = 0;
    for kind in Kind::ALL.into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        made += 1;
        changes.make(pod, kind)?;
        let due = begun + Duration::from_secs(1) * made / CHANGES;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(made)
}

/// The epochs of all pods.
fn epochs(scene: &Scene) -> Result<BTreeMap<String, u32>> {
    let by_link = scene.pinned().epochs()?;
    let epoch = |pod: &Pod| {
        let device = pod.device.clone();
        let index = scene
            .node
            .netns()
            .run(move || nix::net::if_::if_nametoindex(device.as_str()))??;
        let epoch = by_link.get(&index).context("a pod without a slot")?;
        Ok((pod.name.clone(), *epoch))
    };
    scene.actors().map(|actor| epoch(&actor.pod)).collect()
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

/// The standard error of their median: 1.253 times that of a mean, with the deviation taken from the median's own (1.483 times the median
/// distance from it, for values that are normal), so that one window in which the machine stood still does not widen it.
#[expect(clippy::cast_precision_loss, reason = "some dozens")]
fn error_of_median(values: &[f64]) -> f64 {
    let middle = median(values);
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    1.253 * 1.483 * median(&distances) / (values.len() as f64).sqrt()
}

/// The one in the middle.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
