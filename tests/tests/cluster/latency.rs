//! The time from the API server's answer to a change to the first packet that the new state judges.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tests::lab::pod::Pod;
use tests::lab::traffic::{Patience, Probe, Proto, probe};

use crate::prober::{Fate, Prober, Shot};
use crate::world::{NAMESPACE, PORT, TARGET_PORT, World};

/// Fewer changes than this are no measurement.
pub(crate) const LEAST: usize = 200;
/// Rounds of each part; each round is two changes, there and back.
const ENDPOINT_ROUNDS: usize = 50;
const POLICY_ROUNDS: usize = 30;
const LABEL_ROUNDS: usize = 30;
/// Rounds more of a part while a busy machine held the prober up too often.
const MORE: usize = 100;
/// Probes around a change must be this close, or it does not count as measured.
const GAP: Duration = Duration::from_millis(1);
/// Probes in a row that make a state.
const ROW: usize = 10;
/// How long silence lasts before the control is asked whether it means anything.
const SILENCE: Duration = Duration::from_millis(15);
/// However busy the machine is.
const DEADLINE: Duration = Duration::from_secs(30);
/// Source ports of the probers, half of all each: at two thousand probes a second it takes longer than a part until one comes again.
const LOW_PORTS: std::ops::Range<u16> = 1_024..33_000;
/// See [`LOW_PORTS`].
const HIGH_PORTS: std::ops::Range<u16> = 33_000..65_000;

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    endpoints: Vec<Duration>,
    policies: Vec<Duration>,
    labels: Vec<Duration>,
    /// Those whose probes were too far apart: shown, so that leaving them out hides nothing, but not counted.
    coarse: Vec<Duration>,
}

impl Latencies {
    /// Changes that were measured.
    pub(crate) fn count(&self) -> usize {
        self.endpoints.len() + self.policies.len() + self.labels.len()
    }

    /// The report: one line of all, and one of each part.
    pub(crate) fn print(&self) {
        let mut all = [&self.endpoints[..], &self.policies, &self.labels].concat();
        line("change to packet", &mut all);
        for (name, times) in [
            ("  endpoint changes", &self.endpoints),
            ("  policy changes", &self.policies),
            ("  label changes", &self.labels),
        ] {
            line(name, &mut times.clone());
        }
        tests::say(format_args!(
            "  not measured, because the probes around them were more than {GAP:?} apart: {} changes",
            self.coarse.len()
        ));
        if !self.coarse.is_empty() {
            all.extend(&self.coarse);
            line("  with those", &mut all);
        }
    }
}

fn line(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    // The nearest rank.
    let percentile = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times
            .get(rank - 1)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    tests::say(format_args!(
        "{name}: p50 {:.2} ms, p99 {:.2} ms, n={}",
        percentile(50),
        percentile(99),
        times.len()
    ));
}

/// Makes the changes and measures each.
pub(crate) async fn measure(world: &World) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    endpoints(world, &mut latencies).await?;
    policies(world, &mut latencies).await?;
    labels(world, &mut latencies).await?;
    Ok(latencies)
}

/// The one endpoint of a service is another: first one server answers, then the other.
async fn endpoints(world: &World, latencies: &mut Latencies) -> Result<()> {
    let service = "
apiVersion: v1
kind: Service
metadata: { name: switch, namespace: shop }
spec: { ports: [{ name: udp, protocol: UDP, port: 80 }] }
";
    let (first, second) = (&world.backends[0], &world.backends[1]);
    let slice = |pod: &Pod| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "switch-by-hand", "namespace": NAMESPACE,
                "labels": { "kubernetes.io/service-name": "switch", "endpointslice.kubernetes.io/managed-by": "tests" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [pod.ipv4], "conditions": { "ready": true } }],
            "ports": [{ "name": "udp", "protocol": "UDP", "port": TARGET_PORT }],
        })
    };
    let cluster = world.cluster.clone();
    cluster.apply(service).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), NAMESPACE);
    let made = serde_json::from_value(slice(&first.pod))?;
    slices.create(&PostParams::default(), &made).await?;
    let vip = world.addresses("switch").await?[0];
    let prober = Prober::start(&world.client, SocketAddr::new(vip, PORT), LOW_PORTS)?;
    let mut rounds = 0;
    while latencies.endpoints.len() < 2 * ENDPOINT_ROUNDS && rounds < ENDPOINT_ROUNDS + MORE {
        for (from, to) in [(first, second), (second, first)] {
            let change = async {
                let patch = json!({ "endpoints": slice(&to.pod)["endpoints"] });
                slices
                    .patch(
                        "switch-by-hand",
                        &PatchParams::default(),
                        &Patch::Merge(&patch),
                    )
                    .await?;
                Ok(())
            };
            let [before, after] = [from, to].map(|backend| Fate::By(backend.name().to_owned()));
            let measured = one(&prober, &before, &after, change, || Ok(())).await?;
            latencies.take(measured, |l| &mut l.endpoints);
        }
        rounds += 1;
    }
    Ok(())
}

/// A policy that allows the stranger comes and goes.
async fn policies(world: &World, latencies: &mut Latencies) -> Result<()> {
    let policies: Api<NetworkPolicy> = Api::namespaced(world.cluster.client(), NAMESPACE);
    let extra: NetworkPolicy = serde_json::from_value(json!({
        "metadata": { "name": "strangers-too", "namespace": NAMESPACE },
        "spec": {
            "podSelector": { "matchLabels": { "app": "target" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": "stranger" } } }] }],
        },
    }))?;
    let guarded = Guarded::new(world, LOW_PORTS).await?;
    let mut rounds = 0;
    while latencies.policies.len() < 2 * POLICY_ROUNDS && rounds < POLICY_ROUNDS + MORE {
        let change = async {
            policies.create(&PostParams::default(), &extra).await?;
            Ok(())
        };
        let measured = guarded.opens(change).await?;
        latencies.take(measured, |l| &mut l.policies);
        let change = async {
            policies
                .delete("strangers-too", &DeleteParams::default())
                .await?;
            Ok(())
        };
        let measured = guarded.closes(change).await?;
        latencies.take(measured, |l| &mut l.policies);
        rounds += 1;
    }
    Ok(())
}

/// The stranger's label makes it a client, and a stranger again.
async fn labels(world: &World, latencies: &mut Latencies) -> Result<()> {
    let pods: Api<PodObject> = Api::namespaced(world.cluster.client(), NAMESPACE);
    let label = async |role: &str| -> Result<()> {
        let patch = json!({ "metadata": { "labels": { "role": role } } });
        pods.patch("stranger", &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    };
    let guarded = Guarded::new(world, HIGH_PORTS).await?;
    let mut rounds = 0;
    while latencies.labels.len() < 2 * LABEL_ROUNDS && rounds < LABEL_ROUNDS + MORE {
        let measured = guarded.opens(label("client")).await?;
        latencies.take(measured, |l| &mut l.labels);
        let measured = guarded.closes(label("stranger")).await?;
        latencies.take(measured, |l| &mut l.labels);
        rounds += 1;
    }
    Ok(())
}

impl Latencies {
    fn take(&mut self, measured: Measured, part: impl FnOnce(&mut Self) -> &mut Vec<Duration>) {
        if measured.gap <= GAP {
            part(self).push(measured.time);
        } else {
            self.coarse.push(measured.time);
        }
    }
}

/// The stranger before a service that a policy guards.
struct Guarded<'a> {
    world: &'a World,
    prober: Prober,
    /// The client, which may ask, asks the same server.
    control: Probe,
}

impl<'a> Guarded<'a> {
    async fn new(world: &'a World, ports: std::ops::Range<u16>) -> Result<Self> {
        let vip = SocketAddr::new(world.addresses("target").await?[0], PORT);
        Ok(Self {
            world,
            prober: Prober::start(&world.stranger, vip, ports)?,
            control: Probe::new(world.client.netns(), Proto::Udp, vip).saying("control"),
        })
    }

    fn target(&self) -> Fate {
        Fate::By(self.world.target.name().to_owned())
    }

    async fn opens(&self, change: impl Future<Output = Result<()>>) -> Result<Measured> {
        one(&self.prober, &Fate::Silence, &self.target(), change, || {
            Ok(())
        })
        .await
    }

    /// Silence counts only when the control passes after it (the server's queue is one, so that it has answered by then
    /// whatever it got), and the drop counter rose.
    async fn closes(&self, change: impl Future<Output = Result<()>>) -> Result<Measured> {
        let dropped = self.world.drops(Reason::PolicyIngress)?;
        let control = || {
            let outcome = probe::run(
                std::slice::from_ref(&self.control),
                Patience::deadline(DEADLINE),
            )?;
            ensure!(
                outcome[0].is_answered(),
                "the control probe was {}",
                outcome[0]
            );
            Ok(())
        };
        let measured = one(
            &self.prober,
            &self.target(),
            &Fate::Silence,
            change,
            control,
        )
        .await?;
        let rose = self.world.drops(Reason::PolicyIngress)? - dropped;
        ensure!(
            rose >= ROW as u64,
            "{} is silent, but policy-ingress rose by {rose} only",
            self.world.target.name()
        );
        Ok(measured)
    }
}

#[derive(Debug)]
struct Measured {
    /// From the answer to the sending of the first probe that met the new state, and never the old one after it.
    time: Duration,
    /// From the last probe that met the old state to that one.
    gap: Duration,
}

/// One change: makes it while the prober sends, and finds the first probe of the new state.
async fn one(
    prober: &Prober,
    before: &Fate,
    after: &Fate,
    change: impl Future<Output = Result<()>>,
    control: impl Fn() -> Result<()>,
) -> Result<Measured> {
    prober.begin();
    let ready = |shots: &[Shot]| steady(shots, before, None).then_some(());
    prober
        .wait(DEADLINE, ready)?
        .with_context(|| format!("the probes do not begin with {before:?}"))?;
    change.await?;
    let answered = Instant::now();
    loop {
        let seen = |shots: &[Shot]| steady(shots, after, Some(answered)).then_some(shots.len());
        let Some(length) = prober.wait(DEADLINE, seen)? else {
            let last = prober.wait(Duration::ZERO, |shots| shots.last().map(|s| s.fate.clone()))?;
            anyhow::bail!(
                "{DEADLINE:?} after the change from {before:?} to {after:?}, the last probe met {last:?}"
            );
        };
        control()?;
        prober.settle();
        let measured = prober.wait(Duration::ZERO, |shots| {
            steady(&shots[..length], after, Some(answered))
                .then(|| first(&shots[..length], after, answered))
        })?;
        if let Some(measured) = measured {
            return measured.context("no probe met the old state");
        }
    }
}

/// Whether the last probes (those that may be decided) all met `state`.
fn steady(shots: &[Shot], state: &Fate, since: Option<Instant>) -> bool {
    let after = |shot: &&Shot| since.is_none_or(|since| shot.sent > since);
    if *state == Fate::Silence {
        // Long enough that an answer would have come, if nothing is amiss; the control tells the rest.
        let silent = shots.iter().rev().take_while(|s| s.fate == *state);
        let silent: Vec<&Shot> = silent.filter(after).collect();
        return silent.len() >= ROW
            && silent
                .last()
                .is_some_and(|oldest| oldest.sent.elapsed() >= SILENCE);
    }
    let decided = shots
        .iter()
        .rev()
        .skip_while(|shot| shot.fate == Fate::Silence);
    decided
        .take_while(|shot| shot.fate == *state)
        .filter(after)
        .count()
        >= ROW
}

/// The first of the last row of probes that all met `state`.
fn first(shots: &[Shot], state: &Fate, answered: Instant) -> Option<Measured> {
    let mut end = shots.len();
    if *state != Fate::Silence {
        // Those at the end may not be answered yet.
        while end > 0 && shots[end - 1].fate == Fate::Silence {
            end -= 1;
        }
    }
    let last_old = shots[..end].iter().rposition(|shot| shot.fate != *state)?;
    let (old, new) = (&shots[last_old], shots.get(last_old + 1)?);
    Some(Measured {
        time: new.sent.saturating_duration_since(answered),
        gap: new.sent.duration_since(old.sent),
    })
}
