//! ClusterIP services: spread, translation both ways, refusal at once, scaling, the host's own connections, hairpin.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent_common::{Count, Reason, hook};
use anyhow::{Result, ensure};
use serde_json::Value;
use tests::lab::host::HostProcess;
use tests::lab::manifests::Endpoint;
use tests::lab::patience;
use tests::lab::traffic::connects::{ConnectPlan, ConnectReport, Connects};
use tests::lab::traffic::server::Seen;
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, probe};

use crate::scene::{DEADLINE, HTTP, POLL, SERVICE, Scene, at, roles, service, slices, vip};

/// The service of the three backends.
pub(crate) const WEB: u8 = 10;
/// A service that no slice belongs to.
pub(crate) const EMPTY: u8 = 11;
/// A port that no service has.
const UNKNOWN_PORT: u16 = 81;
/// The names of the backends.
pub(crate) const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];
/// A refusal is there at once: far below the second after which a SYN would be sent again.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(500);

/// A client and three backends behind the service `web`.
pub(crate) fn web(arguments: &[&str]) -> Result<Scene> {
    let scene = Scene::with_arguments(
        &roles(&["client", "stranger", BACKENDS[0], BACKENDS[1], BACKENDS[2]]),
        arguments,
    )?;
    scene.apply(&service("web", WEB, &ready(&scene, &BACKENDS)?))?;
    Ok(scene)
}

/// Ready endpoints of these pods.
pub(crate) fn ready<'a>(scene: &'a Scene, names: &[&str]) -> Result<Vec<Endpoint<'a>>> {
    names
        .iter()
        .map(|name| Ok(Endpoint::ready(&scene.actor(name)?.pod)))
        .collect()
}

/// Requests of one protocol and family spread over three backends as a fair die's throws would.
pub(crate) fn assert_spread(scene: &Scene) -> Result<()> {
    const REQUESTS: usize = 300;
    /// Five standard deviations of a binomial with 300 throws and a third: one run in a million is beyond.
    const FAR: usize = 41;
    let client = scene.netns("client")?;
    let own = scene.addresses("client")?;
    for proto in Proto::ALL {
        for (to, own) in at(vip(WEB), SERVICE).into_iter().zip(own) {
            let probes = vec![Probe::new(client, proto, to); REQUESTS];
            // Sockets are connected: an answer from another address than the service's would never reach them.
            let outcomes = probe::run(&probes, Patience::deadline(DEADLINE))?;
            let mut by: BTreeMap<&str, usize> = BTreeMap::new();
            for outcome in &outcomes {
                ensure!(
                    outcome.peer_seen().map(|peer| peer.ip()) == Some(own),
                    "{proto} {to}: {outcome}; drops: {:?}",
                    scene.pinned().all_drops()?
                );
                *by.entry(outcome.by().unwrap_or_default()).or_default() += 1;
            }
            let third = REQUESTS / BACKENDS.len();
            ensure!(
                by.len() == BACKENDS.len() && by.values().all(|n| n.abs_diff(third) <= FAR),
                "{proto} {to}: not fair: {by:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn requests_spread_over_three_backends_and_answers_come_from_the_service() -> Result<()> {
    assert_spread(&web(&[])?)
}

#[test]
fn a_backend_is_scaled_away_and_back_and_no_request_fails() -> Result<()> {
    /// New connections a second, with no retry.
    const RATE: u32 = 300;
    let scene = web(&[])?;
    for to in at(vip(WEB), SERVICE) {
        let connects = Connects::start(scene.netns("client")?, ConnectPlan::tcp(to, RATE))?;
        let away = scene.server(BACKENDS[2])?;
        let more = |count: u64| wait_for(&connects, connects.so_far().1 + count);
        let put = |endpoints: &[Endpoint<'_>]| scene.apply(&slices("web", endpoints));
        more(100)?;
        ensure!(away.accepted() > 0, "it had its share before");
        // As Kubernetes does: it serves what it has while it ends, then it is gone.
        let mut endpoints = ready(&scene, &BACKENDS[..2])?;
        let leaving = Endpoint::terminating(&scene.actor(BACKENDS[2])?.pod);
        endpoints.push(leaving);
        put(&endpoints)?;
        // Those that were begun before may still say what they have to say.
        let begun = connects.so_far().0;
        let mark = away.mark();
        let late = || -> Vec<_> {
            let seen = away.seen_since(mark).into_iter();
            let number = |seen: &Seen| seen.token.as_ref()?.parse::<u64>().ok();
            seen.filter(|seen| number(seen).is_some_and(|number| number >= begun))
                .collect()
        };
        more(200)?;
        ensure!(
            late().is_empty(),
            "a backend that is ending got new connections: {:?}",
            late()
        );
        put(&ready(&scene, &BACKENDS[..2])?)?;
        more(200)?;
        ensure!(
            late().is_empty(),
            "a backend that is gone got connections: {:?}",
            late()
        );
        put(&ready(&scene, &BACKENDS)?)?;
        let mark = away.mark();
        more(200)?;
        ensure!(
            !away.seen_since(mark).is_empty(),
            "a backend that is back gets connections"
        );
        let report = connects.stop()?;
        ensure!(
            report.failed() == 0 && report.retransmits == 0 && report.namespace_retransmits == 0,
            "{report:?}; drops: {:?}",
            scene.pinned().all_drops()?
        );
    }
    Ok(())
}

/// Waits until the generator has had so many answers.
pub(crate) fn wait_for(connects: &Connects, answered: u64) -> Result<()> {
    let end = Instant::now() + DEADLINE * patience();
    loop {
        let (started, now, failed) = connects.so_far();
        if now >= answered {
            return Ok(());
        }
        ensure!(
            failed == 0,
            "{failed} of {started} connections have failed, {now} were answered"
        );
        ensure!(
            Instant::now() < end,
            "{now} answers of {started} connections, {answered} were waited for"
        );
        std::thread::sleep(POLL);
    }
}

/// New connections from the client to the service `web` all the while, in both families.
pub(crate) struct Load([Connects; 2]);

impl Load {
    /// So many connections a second, without retry, half of them in each family.
    pub(crate) fn start(scene: &Scene, rate: u32) -> Result<Self> {
        let client = scene.netns("client")?;
        let [v4, v6] = at(vip(WEB), SERVICE).map(|to| ConnectPlan::tcp(to, rate / 2));
        Ok(Self([
            Connects::start(client, v4)?,
            Connects::start(client, v6)?,
        ]))
    }

    /// Waits for so many more answers, half of them in each family.
    pub(crate) fn more(&self, answers: u64) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|connects| wait_for(connects, connects.so_far().1 + answers / 2))
    }

    /// Ends it: no connection failed, and none had to send anything again.
    pub(crate) fn stop(self) -> Result<[ConnectReport; 2]> {
        let [v4, v6] = self.0;
        let reports = [v4.stop()?, v6.stop()?];
        for report in &reports {
            ensure!(
                report.failed() == 0 && report.retransmits == 0,
                "{report:?}"
            );
        }
        Ok(reports)
    }
}

#[test]
fn a_service_without_endpoints_and_an_unknown_port_refuse_at_once() -> Result<()> {
    let scene = web(&[])?;
    let [empty, ..] = service("empty", EMPTY, &[]);
    scene.apply([&empty])?;
    assert_refusals(&scene)?;
    // Slices that are there and empty are no endpoints either; one that is neither ready nor serving is none.
    let nobody = Endpoint {
        pod: &scene.actor(BACKENDS[0])?.pod,
        ready: false,
        serving: false,
        terminating: false,
    };
    scene.apply(&slices("empty", &[]))?;
    assert_refusals(&scene)?;
    scene.apply(&slices("empty", &[nobody]))?;
    assert_refusals(&scene)?;
    // Where nobody is ready, those who still serve while they end are better than none.
    let ending = Endpoint::terminating(&scene.actor(BACKENDS[0])?.pod);
    scene.apply(&slices("empty", &[ending]))?;
    let probes = service_probes(&scene, EMPTY, SERVICE)?;
    scene.assert_answered(&probes, BACKENDS[0])
}

fn assert_refusals(scene: &Scene) -> Result<()> {
    for (number, port, reason) in [
        (EMPTY, SERVICE, Reason::NoEndpoint),
        (WEB, UNKNOWN_PORT, Reason::NoServicePort),
    ] {
        let probes = service_probes(scene, number, port)?;
        let before = scene.pinned().drops(reason)?;
        let outcomes = probe::run(&probes, Patience::deadline(AT_ONCE * patience()))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                *outcome == Outcome::Refused,
                "{probe}: {outcome}, but it should be refused at once; drops: {:?}",
                scene.pinned().all_drops()?
            );
        }
        let counted = scene.pinned().drops(reason)? - before;
        ensure!(
            counted == probes.len() as u64,
            "{} refusals, {counted} counted for {}",
            probes.len(),
            reason.name()
        );
    }
    Ok(())
}

/// Probes from the client to a port of service `number`.
pub(crate) fn service_probes(scene: &Scene, number: u8, port: u16) -> Result<Vec<Probe>> {
    let client = scene.netns("client")?;
    let mut probes = Vec::new();
    for proto in Proto::ALL {
        probes.extend(at(vip(number), port).map(|to| Probe::new(client, proto, to)));
    }
    Ok(probes)
}

#[test]
fn a_process_of_the_host_reaches_services_and_is_refused_where_there_is_nobody() -> Result<()> {
    let scene = web(&[])?;
    let [empty, ..] = service("empty", EMPTY, &[]);
    scene.apply([&empty])?;
    assert_host(&scene)
}

/// The cgroup's programs: connect and sendmsg.
pub(crate) fn assert_host(scene: &Scene) -> Result<()> {
    /// Rounds, each of three calls to each family's address.
    const ROUNDS: u64 = 20;
    let mut host = HostProcess::start(&scene.node)?;
    let node = scene.node.addresses();
    let pinned = scene.pinned();
    let translated = pinned.counted(Count::SocketTranslated)?;
    let refused = |reason| pinned.drops_at(hook::SOCKET, reason);
    let reasons = [Reason::NoEndpoint, Reason::NoServicePort];
    let before = [refused(reasons[0])?, refused(reasons[1])?];
    for (to, own) in at(vip(WEB), SERVICE).into_iter().zip(node) {
        for _ in 0..ROUNDS {
            for outcome in [
                host.ask(Proto::Tcp, to, DEADLINE)?,
                host.ask(Proto::Udp, to, DEADLINE)?,
                // Unconnected: the answer must come from the service's address, as recvmsg shows it.
                host.send_to(to, DEADLINE)?,
            ] {
                ensure!(
                    outcome.by().is_some_and(|by| BACKENDS.contains(&by))
                        && outcome.peer_seen().map(|peer| peer.ip()) == Some(own),
                    "{to}: {outcome}"
                );
            }
        }
    }
    let nobody = at(vip(EMPTY), SERVICE)
        .into_iter()
        .chain(at(vip(WEB), UNKNOWN_PORT));
    for to in nobody {
        for outcome in [
            host.ask(Proto::Tcp, to, AT_ONCE * patience())?,
            host.ask(Proto::Udp, to, AT_ONCE * patience())?,
            host.send_to(to, AT_ONCE * patience())?,
        ] {
            ensure!(outcome == Outcome::Refused, "{to}: {outcome}");
        }
    }
    // No packet is counted by the sockets' programs but these: what they did stands there, by its reason.
    let translated = pinned.counted(Count::SocketTranslated)? - translated;
    ensure!(
        translated >= 2 * 3 * ROUNDS,
        "{translated} calls translated of {}",
        2 * 3 * ROUNDS
    );
    for (reason, before) in reasons.into_iter().zip(before) {
        let counted = refused(reason)? - before;
        ensure!(
            counted >= 2 * 3,
            "{}: {counted} calls refused of {}",
            reason.name(),
            2 * 3
        );
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() -> Result<()> {
    let scene = Scene::new(&roles(&["client"]))?;
    let own = ready(&scene, &["client"])?;
    scene.apply(&service("own", WEB, &own))?;
    // A default deny, too: policy does not apply to a pod that talks to itself.
    for policy in [None, Some(crate::policies::deny_all("client"))] {
        scene.apply(&policy)?;
        let probes = service_probes(&scene, WEB, SERVICE)?;
        let outcomes = probe::run(&probes, Patience::deadline(DEADLINE))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                outcome.by() == Some("client")
                    && outcome.peer_seen().map(|peer| peer.ip()) == Some(probe.to.ip()),
                "{probe}: {outcome}; its server must see the service as its client"
            );
        }
    }
    // Directly, on its own loopback, packets never leave the pod.
    scene.assert_allowed("client", "client", HTTP)
}

#[test]
fn a_service_that_is_deleted_is_no_service() -> Result<()> {
    let scene = web(&[])?;
    let objects: Vec<Value> = service("web", WEB, &[]).into();
    scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)?;
    scene.remove(&objects)?;
    let outcomes = probe::run(
        &service_probes(&scene, WEB, SERVICE)?,
        Patience::deadline(AT_ONCE * patience()),
    )?;
    ensure!(
        outcomes.iter().all(|outcome| !outcome.is_answered()),
        "{outcomes:?}"
    );
    // It comes again under its old address.
    scene.apply(&service("web", WEB, &ready(&scene, &BACKENDS)?))?;
    scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)
}

impl Scene {
    /// All of these probes are answered by backends of `web`.
    pub(crate) fn assert_answered_by_any(&self, probes: &[Probe]) -> Result<()> {
        let outcomes = probe::run(probes, Patience::deadline(DEADLINE))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                outcome.by().is_some_and(|by| BACKENDS.contains(&by)),
                "{probe}: {outcome}; drops: {:?}",
                self.pinned().all_drops()?
            );
        }
        Ok(())
    }
}
