//! Random policies against the oracle, by real packets: ten pods, the node and the world, each way, both protocols, both
//! families, several ports.
//!
//! `SLUICE_LAB_SETS` says how many sets in a row (20 unless it does), `SLUICE_LAB_SEED` repeats a run.

mod generate;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent_common::Reason;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice::compile::Options;
use sluice::local::{Local, PodLink};
use sluice::model::{Cluster, Kind, Protocol, intern};
use sluice::oracle::policy::{Flow, Verdicts, verdict};
use sluice::source::{Event, ManifestSource, Source};
use tests::lab::manifests;
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};
use tests::lab::wire::Wire;

use self::generate::{NAMESPACES, Range, labels, named_ports, namespace_labels, policies};
use crate::scene::{NODE, PORTS, Role, Scene, at};
use tests::dice::Dice;

/// Says how many sets.
const SETS_VARIABLE: &str = "SLUICE_LAB_SETS";
/// Sets unless the variable says otherwise.
const SETS: usize = 20;
/// Repeats a run.
const SEED_VARIABLE: &str = "SLUICE_LAB_SEED";
/// Pods.
const PODS: [&str; 10] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"];
/// Of the connections between pods, in hundredths: a run with fewer or more allowed says little.
const ALLOWED: std::ops::RangeInclusive<usize> = 20..=80;
/// For a connection that should pass and did not at the first try.
const SECOND_TRY: Duration = Duration::from_secs(3);
/// Mismatches that a failure tells of.
const TOLD: usize = 10;

/// A connection to try, and what the oracle says of it.
struct Case {
    from: &'static str,
    to: &'static str,
    probe: Probe,
    verdicts: Verdicts,
    /// Source address as the server sees it.
    source: IpAddr,
}

#[test]
fn random_policies_decide_as_the_oracle_does() -> Result<()> {
    let sets = number(SETS_VARIABLE)?.map_or(Ok(SETS), usize::try_from)?;
    let seed = match number(SEED_VARIABLE)? {
        Some(seed) => seed,
        None => u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_nanos() & u128::from(u32::MAX))?,
    };
    tests::say(format_args!("{sets} sets, {SEED_VARIABLE}={seed}"));
    let mut dice = Dice::new(seed);
    let named: Vec<_> = (0..PODS.len()).map(named_ports).collect();
    let roles: Vec<Role<'_>> = PODS
        .iter()
        .enumerate()
        .map(|(index, name)| {
            Role::new(name)
                .in_namespace(home(index))
                .labelled(&labels(&mut dice))
                .with_ports(&named[index])
        })
        .collect();
    let scene = Scene::new(&roles)?;
    let host = Server::on_ports(scene.node.netns(), "node", &scene.node.addresses(), &PORTS)?;
    let range = Range::of(&scene)?;
    let (mut allowed, mut judged) = (0, 0);
    let mut before: Vec<Value> = Vec::new();
    for set in 0..sets {
        let now = policies(&mut dice, &range);
        for old in before
            .iter()
            .filter(|old| now.iter().all(|new| new["metadata"] != old["metadata"]))
        {
            scene.dir.remove(old)?;
        }
        scene.dir.put_all(&now)?;
        // Labels change too: of a pod, and of a namespace.
        let index = dice.below(PODS.len());
        let pod = &scene.actor(PODS[index])?.pod;
        scene
            .dir
            .put(&manifests::pod(pod, &labels(&mut dice), &named[index]))?;
        let namespace = NAMESPACES[dice.below(NAMESPACES.len())];
        scene.dir.put(&manifests::namespace(
            namespace,
            &namespace_labels(&mut dice, namespace),
        ))?;
        scene.settle()?;
        let (passed, all) = compare(&scene, &host).with_context(|| {
            let text: String = now
                .iter()
                .map(|policy| serde_yaml_ng::to_string(policy).unwrap_or_default() + "---\n")
                .collect();
            format!("set {set} of {SEED_VARIABLE}={seed}:\n{text}")
        })?;
        (allowed, judged) = (allowed + passed, judged + all);
        before = now;
    }
    let share = allowed * 100 / judged.max(1);
    tests::say(format_args!(
        "{judged} connections between pods, {share} % of them allowed"
    ));
    ensure!(
        ALLOWED.contains(&share),
        "the run does not count: {share} % of the connections were allowed, {ALLOWED:?} are wanted"
    );
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => {
            let number = text.parse();
            Ok(Some(number.with_context(|| {
                format!("{variable}={text} is no number")
            })?))
        }
        Err(_) => Ok(None),
    }
}

/// The Kubernetes namespace of a pod.
fn home(index: usize) -> &'static str {
    NAMESPACES[index % NAMESPACES.len()]
}

/// Tries every connection and holds it against the oracle; answers how many between pods passed, and of how many.
fn compare(scene: &Scene, host: &Server) -> Result<(usize, usize)> {
    let cases = cases(scene, &read_cluster(scene)?)?;
    let servers: BTreeMap<&str, &Server> = scene
        .actors()
        .map(|actor| (actor.server.name(), &actor.server))
        .chain([("world", &scene.world), ("node", host)])
        .collect();
    let marks: BTreeMap<&str, usize> = servers.iter().map(|(name, s)| (*name, s.mark())).collect();
    let drops = || -> Result<u64> {
        let pinned = scene.pinned();
        Ok(pinned.drops(Reason::PolicyEgress)? + pinned.drops(Reason::PolicyIngress)?)
    };
    let drops_before = drops()?;
    let probes: Vec<Probe> = cases.iter().map(|case| case.probe.clone()).collect();
    let mut outcomes = probe::run(&probes, Patience::MATRIX)?;

    // A machine that stalls may let a connection that passes look like one that does not: those are tried once more.
    let slow: Vec<usize> = (0..cases.len())
        .filter(|i| cases[*i].verdicts.allowed() && !outcomes[*i].is_answered())
        .collect();
    let again: Vec<Probe> = slow.iter().map(|i| probes[*i].clone()).collect();
    for (index, outcome) in slow
        .into_iter()
        .zip(probe::run(&again, Patience::deadline(SECOND_TRY))?)
    {
        outcomes[index] = outcome;
    }

    let mut wrong = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let right = match case.verdicts.allowed() {
            true => outcome.by() == Some(case.to),
            false => *outcome == Outcome::TimedOut,
        };
        if !right {
            wrong.push(format!(
                "{} -> {} {} {}: {outcome}; the oracle: {:?}",
                case.from, case.to, case.probe.proto, case.probe.to, case.verdicts
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} connections differ from the oracle; drops: {:?}\n{}",
        wrong.len(),
        cases.len(),
        scene.pinned().all_drops()?,
        wrong[..wrong.len().min(TOLD)].join("\n")
    );

    // What is denied no server saw, and it was policy that dropped it. The node's own connections are the control: they pass always.
    let open: HashSet<(&str, Proto, IpAddr, SocketAddr)> = cases
        .iter()
        .filter(|case| case.verdicts.allowed())
        .map(|case| (case.to, case.probe.proto, case.source, case.probe.to))
        .collect();
    for (name, server) in servers {
        for seen in server.seen_since(marks[name]) {
            ensure!(
                open.contains(&(name, seen.proto, seen.peer.ip(), seen.local)),
                "{name} saw what is denied: {seen:?}"
            );
        }
    }
    let denied = cases.iter().filter(|case| !case.verdicts.allowed()).count();
    let dropped = drops()? - drops_before;
    ensure!(
        dropped >= denied as u64,
        "{denied} connections met silence, but policy dropped {dropped} packets: {:?}",
        scene.pinned().all_drops()?
    );
    let between = cases
        .iter()
        .filter(|case| case.from.starts_with('p') && case.to.starts_with('p'));
    let passed = between.clone().filter(|case| case.verdicts.allowed());
    Ok((passed.count(), between.count()))
}

/// The cluster as the manifests say, by the source that the agent reads them with: what is held against the packets is
/// what comes after it.
fn read_cluster(scene: &Scene) -> Result<Cluster> {
    let source = Box::new(ManifestSource::new(scene.dir.path()));
    let (events, mut told) = tokio::sync::mpsc::channel(1024);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let running = tokio::spawn(source.run(events));
        let mut cluster = Cluster::default();
        let mut synced = BTreeSet::new();
        while synced.len() < Kind::ALL.len() {
            match told.recv().await.context("the source ended")? {
                Event::Upsert(object) => drop(cluster.upsert(object)),
                Event::Delete(id) => drop(cluster.delete(&id)),
                Event::Synced(kind) => drop(synced.insert(kind)),
                Event::Rejected(rejected) => bail!("a bad manifest was made: {rejected}"),
                Event::Stale { reason, .. } => bail!("the manifests cannot be read: {reason}"),
                Event::Notice(_) | Event::Mended(_) => {}
            }
        }
        running.abort();
        Ok(cluster)
    })
}

/// What the node knows of itself.
fn local(scene: &Scene) -> Local {
    let mut local = Local {
        addresses: BTreeSet::from(scene.node.addresses()),
        ..Local::default()
    };
    for (ifindex, actor) in (1..).zip(scene.actors()) {
        local.pods.insert(
            ifindex,
            PodLink {
                ifindex,
                name: actor.pod.device.clone(),
                host_mac: [0; 6],
                pod_mac: None,
                addresses: BTreeSet::from(actor.pod.addresses()),
                peer_namespace: Some(0),
            },
        );
    }
    local
}

/// Every connection: between pods, and between each pod and the world and the node.
fn cases(scene: &Scene, cluster: &Cluster) -> Result<Vec<Case>> {
    let (local, options) = (local(scene), Options::new(intern(NODE)));
    let outside = ["world", "node"];
    let mut cases = Vec::new();
    for from in PODS.into_iter().chain(outside) {
        for to in PODS.into_iter().chain(outside) {
            if from == to || (outside.contains(&from) && outside.contains(&to)) {
                continue;
            }
            let sources = match from {
                // The world is behind the router, which asks with its own address.
                "world" => [Wire::GATEWAY_V4.into(), Wire::GATEWAY_V6.into()],
                other => scene.addresses(other)?,
            };
            for port in PORTS {
                for proto in Proto::ALL {
                    for (to_address, source) in
                        at(scene.addresses(to)?, port).into_iter().zip(sources)
                    {
                        let protocol = match proto {
                            Proto::Tcp => Protocol::Tcp,
                            Proto::Udp => Protocol::Udp,
                        };
                        let flow = Flow {
                            source,
                            destination: to_address.ip(),
                            protocol: protocol.number(),
                            port,
                            from_host: from == "node",
                        };
                        cases.push(Case {
                            from,
                            to,
                            probe: Probe::new(scene.netns(from)?, proto, to_address),
                            verdicts: verdict(cluster, &local, &options, &flow),
                            source,
                        });
                    }
                }
            }
        }
    }
    Ok(cases)
}
