//! NetworkPolicy by real packets: what isolates, what allows, and that changes reach connections that stand.

use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::lab::manifests::{self, network_policy};
use tests::lab::patience;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};

use crate::scene::{DEADLINE, DNS, HTTP, OTHER, POLL, PORTS, Role, SERVICE, Scene, at, roles, vip};
use crate::services::{BACKENDS, WEB, web};
use crate::verdict::ensure_unseen;

/// A policy of the namespace `default` on the pods with this label `app`.
pub(crate) fn on(app: &str, name: &str, mut spec: Value) -> Value {
    spec["podSelector"] = json!({ "matchLabels": { "app": app } });
    network_policy("default", name, spec)
}

/// Nothing in and nothing out.
pub(crate) fn deny_all(app: &str) -> Value {
    on(
        app,
        "deny-all",
        json!({ "policyTypes": ["Ingress", "Egress"] }),
    )
}

fn from(app: &str, name: &str, peers: Value) -> Value {
    on(app, name, json!({ "ingress": [{ "from": peers }] }))
}

#[test]
fn default_deny_isolates_each_direction_for_itself() -> Result<()> {
    let scene = Scene::new(&roles(&["client", "server"]))?;
    scene.assert_allowed("client", "server", HTTP)?;
    let ingress = on(
        "server",
        "no-ingress",
        json!({ "policyTypes": ["Ingress"] }),
    );
    scene.apply([&ingress])?;
    for port in PORTS {
        scene.assert_denied("client", "server", port, Reason::PolicyIngress)?;
    }
    scene.assert_denied("world", "server", HTTP, Reason::PolicyIngress)?;
    // What it opens itself is not ingress, and replies to that pass.
    scene.assert_allowed("server", "client", HTTP)?;
    scene.assert_allowed("server", "world", HTTP)?;
    scene.remove([&ingress])?;
    scene.assert_allowed("client", "server", HTTP)?;
    let egress = on("client", "no-egress", json!({ "policyTypes": ["Egress"] }));
    scene.apply([&egress])?;
    scene.assert_denied("client", "server", HTTP, Reason::PolicyEgress)?;
    scene.assert_denied("client", "world", HTTP, Reason::PolicyEgress)?;
    scene.assert_allowed("server", "client", HTTP)?;
    scene.assert_allowed("world", "client", HTTP)?;
    scene.remove([&egress])?;
    scene.assert_allowed("client", "server", HTTP)?;
    scene.assert_allowed("client", "world", HTTP)
}

#[test]
fn the_node_reaches_its_isolated_pods_and_they_do_not_reach_it() -> Result<()> {
    let scene = Scene::new(&roles(&["server"]))?;
    scene.apply([&deny_all("server")])?;
    scene.assert_allowed("node", "server", HTTP)?;
    let host = Server::on_ports(scene.node.netns(), "host", &scene.node.addresses(), &[HTTP])?;
    let mark = host.mark();
    let before = scene.pinned().drops(Reason::PolicyEgress)?;
    let probes = scene.probes("server", "node", HTTP)?;
    let outcomes = probe::run(&probes, Patience::MATRIX)?;
    ensure!(
        outcomes.iter().all(|outcome| !outcome.is_answered()),
        "{outcomes:?}"
    );
    ensure_unseen(&host, mark)?;
    ensure!(scene.pinned().drops(Reason::PolicyEgress)? - before >= probes.len() as u64);
    // The control: the host's server is there.
    let control = scene.probes("world", "node", HTTP)?;
    scene.assert_answered(&control, "host")
}

#[test]
fn labels_and_namespaces_decide() -> Result<()> {
    let scene = Scene::new(&[
        Role::new("server"),
        Role::new("friend"),
        Role::new("stranger"),
        Role::new("guest").in_namespace("guests"),
        Role::new("waiter")
            .in_namespace("guests")
            .labelled(&[("app", "waiter"), ("tier", "staff")]),
    ])?;
    let others = ["friend", "stranger", "guest", "waiter"];
    let only = |allowed: &[&str]| -> Result<()> {
        for name in others {
            if allowed.contains(&name) {
                scene.assert_allowed(name, "server", HTTP)?;
            } else {
                scene.assert_denied(name, "server", HTTP, Reason::PolicyIngress)?;
            }
        }
        Ok(())
    };
    let policy = |peers: Value| from("server", "who", peers);
    scene.apply([&policy(
        json!([{ "podSelector": { "matchLabels": { "app": "friend" } } }]),
    )])?;
    only(&["friend"])?;
    // A pod selector alone is of the policy's own namespace.
    scene.apply([&policy(json!([{ "podSelector": {} }]))])?;
    only(&["friend", "stranger"])?;
    let guests = json!({ "matchLabels": { "team": "guests" } });
    scene.apply([&policy(json!([{ "namespaceSelector": guests }]))])?;
    only(&["guest", "waiter"])?;
    // Both in one peer: and.
    let staff = json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] });
    scene.apply([&policy(
        json!([{ "namespaceSelector": guests, "podSelector": staff }]),
    )])?;
    only(&["waiter"])?;
    // Two peers: or.
    scene.apply([&policy(
        json!([{ "namespaceSelector": guests }, { "podSelector": { "matchLabels": { "app": "friend" } } }]),
    )])?;
    only(&["friend", "guest", "waiter"])?;
    // A namespace's labels are its own: another label, other verdicts.
    scene.apply([&manifests::namespace("guests", &[("team", "nobody")])])?;
    only(&["friend"])
}

#[test]
fn ip_blocks_with_exceptions_decide() -> Result<()> {
    let scene = Scene::new(&roles(&["client", "server", "other"]))?;
    let [client_v4, client_v6] = scene.addresses("client")?;
    let (pods_v4, pods_v6) = (scene.node.pod_range_v4(), scene.node.pod_range_v6());
    let blocks = on(
        "server",
        "blocks",
        json!({ "ingress": [{ "from": [
            { "ipBlock": { "cidr": pods_v4, "except": [format!("{client_v4}/32")] } },
            { "ipBlock": { "cidr": pods_v6, "except": [format!("{client_v6}/128")] } },
        ] }] }),
    );
    scene.apply([&blocks])?;
    scene.assert_allowed("other", "server", HTTP)?;
    scene.assert_denied("client", "server", HTTP, Reason::PolicyIngress)?;
    scene.assert_denied("world", "server", HTTP, Reason::PolicyIngress)?;
    // An exception takes away from its own rule only.
    let again = from(
        "server",
        "again",
        json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]),
    );
    scene.apply([&again])?;
    scene.assert_allowed("client", "server", HTTP)?;
    // Egress to the world alone, in one family.
    let out = on(
        "client",
        "out",
        json!({ "policyTypes": ["Egress"], "egress": [{ "to": [{ "ipBlock": { "cidr": manifests::world_cidr(true) } }] }] }),
    );
    scene.apply([&out])?;
    let probes = scene.probes("client", "world", HTTP)?;
    let controls = scene.probes("node", "world", HTTP)?;
    let (v6, v4): (Vec<Probe>, Vec<Probe>) = probes.into_iter().partition(|p| p.to.is_ipv6());
    scene.assert_answered(&v6, "world")?;
    scene.assert_all_denied(&v4, "world", &controls, Reason::PolicyEgress)?;
    scene.assert_denied("client", "server", HTTP, Reason::PolicyEgress)
}

#[test]
fn ports_decide_by_number_name_range_and_protocol() -> Result<()> {
    let scene = Scene::new(&roles(&["client", "server"]))?;
    let tcp = |port: u16| (Proto::Tcp, port);
    let udp = |port: u16| (Proto::Udp, port);
    let cases = [
        (json!([{ "port": HTTP }]), vec![tcp(HTTP)]),
        (
            json!([{ "protocol": "UDP", "port": HTTP }]),
            vec![udp(HTTP)],
        ),
        (
            json!([{ "port": "http" }, { "protocol": "UDP", "port": "dns" }]),
            vec![tcp(HTTP), udp(DNS)],
        ),
        // The name is there, but for the other protocol.
        (json!([{ "protocol": "UDP", "port": "http" }]), vec![]),
        (
            json!([{ "protocol": "TCP", "port": HTTP, "endPort": DNS }]),
            vec![tcp(HTTP), tcp(DNS)],
        ),
        (
            json!([{ "protocol": "UDP" }]),
            vec![udp(HTTP), udp(DNS), udp(OTHER)],
        ),
        (
            json!([{ "protocol": "TCP" }, { "protocol": "UDP", "port": OTHER }]),
            vec![tcp(HTTP), tcp(DNS), tcp(OTHER), udp(OTHER)],
        ),
    ];
    for (ports, allowed) in cases {
        // Once at the server, once at the client: a name is the destination's in both directions.
        for (app, direction, reason) in [
            ("server", "Ingress", Reason::PolicyIngress),
            ("client", "Egress", Reason::PolicyEgress),
        ] {
            let mut spec = json!({ "policyTypes": [direction] });
            spec[direction.to_lowercase()] = json!([{ "ports": ports }]);
            let policy = on(app, "ports", spec);
            scene.apply([&policy])?;
            let mut open = Vec::new();
            let mut shut = Vec::new();
            for port in PORTS {
                for probe in scene.probes("client", "server", port)? {
                    let passes = allowed.contains(&(probe.proto, port));
                    if passes { &mut open } else { &mut shut }.push(probe);
                }
            }
            scene.assert_answered(&open, "server")?;
            let controls = scene.probes("node", "server", HTTP)?;
            scene.assert_all_denied(&shut, "server", &controls, reason)?;
            scene.dir.remove(&policy)?;
        }
    }
    Ok(())
}

#[test]
fn policy_is_judged_behind_the_service() -> Result<()> {
    let scene = web(&[])?;
    // The service's port is 80, the backends' own is what a policy names.
    for name in BACKENDS {
        let only = on(
            name,
            &format!("only-client-{name}"),
            json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }], "ports": [{ "port": HTTP }] }] }),
        );
        scene.dir.put(&only)?;
    }
    scene.settle()?;
    let probes = |from: &str| -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for proto in Proto::ALL {
            for to in at(vip(WEB), SERVICE) {
                probes.push(Probe::new(scene.netns(from)?, proto, to));
            }
        }
        Ok(probes)
    };
    let (tcp, udp): (Vec<Probe>, Vec<Probe>) = probes("client")?
        .into_iter()
        .partition(|probe| probe.proto == Proto::Tcp);
    scene.assert_answered_by_any(&tcp)?;
    // One server at a time is what a denial is about; here each of three may have been chosen.
    let marks = BACKENDS.map(|name| scene.server(name).map(Server::mark));
    for shut in [udp, probes("stranger")?] {
        let before = scene.pinned().drops(Reason::PolicyIngress)?;
        let outcomes = probe::run(&shut, Patience::MATRIX)?;
        ensure!(
            outcomes.iter().all(|o| *o == Outcome::TimedOut),
            "{outcomes:?}"
        );
        ensure!(scene.pinned().drops(Reason::PolicyIngress)? - before >= shut.len() as u64);
    }
    for (name, mark) in BACKENDS.iter().zip(marks) {
        ensure_unseen(scene.server(name)?, mark?)?;
    }
    // The control.
    scene.assert_answered_by_any(&tcp)
}

#[test]
fn a_policy_cuts_connections_that_stand_at_once_and_its_end_lets_them_go_on() -> Result<()> {
    let scene = Scene::new(&roles(&["client", "server", "friend"]))?;
    assert_live_policy(&scene)
}

/// Held connections meet a policy, its end, and a relabel.
pub(crate) fn assert_live_policy(scene: &Scene) -> Result<()> {
    /// Held connections of each client.
    const HELD: usize = 5;
    /// From the policy's being in force to the last connection's silence being noticed.
    const CUT: Duration = Duration::from_secs(5);
    for (to, other) in at(scene.addresses("server")?, HTTP)
        .into_iter()
        .zip(at(scene.addresses("server")?, OTHER))
    {
        let hold = |name: &str| Held::start(scene.netns(name)?, HoldPlan::new(to, HELD));
        // These wait long enough to live through a policy.
        let patient = {
            let mut plan = HoldPlan::new(other, HELD);
            plan.deadline = Duration::from_secs(20) * patience();
            Held::start(scene.netns("client")?, plan)?
        };
        let (client, friend) = (hold("client")?, hold("friend")?);
        let only = from(
            "server",
            "only-friend",
            json!([{ "podSelector": { "matchLabels": { "app": "friend" } } }]),
        );
        let server = scene.server("server")?;
        let before = scene.pinned().drops(Reason::PolicyIngress)?;
        scene.apply([&only])?;
        // What the server had not read yet it has, once it answers this.
        scene.assert_allowed("friend", "server", HTTP)?;
        let mark = server.mark();
        let cut = client.wait_for_failures(HELD, CUT * patience());
        ensure!(
            cut == HELD,
            "{to}: {cut} of {HELD} held connections were cut: {:?}",
            client.connections()
        );
        ensure!(
            scene.pinned().drops(Reason::PolicyIngress)? - before >= HELD as u64,
            "and not by the policy: {:?}",
            scene.pinned().all_drops()?
        );
        let own = scene.addresses("client")?;
        let late: Vec<_> = server
            .seen_since(mark)
            .into_iter()
            .filter(|seen| own.contains(&seen.peer.ip()))
            .collect();
        ensure!(
            late.is_empty(),
            "the server saw requests after the policy was in force: {late:?}"
        );
        ensure!(
            friend.failed() == 0,
            "the policy allows it: {:?}",
            friend.connections()
        );
        let rounds = patient.rounds();
        scene.remove([&only])?;
        // TCP sends again what the policy swallowed.
        let end = Instant::now() + DEADLINE * patience();
        while patient.rounds() < rounds + HELD as u64 {
            ensure!(
                Instant::now() < end && patient.failed() == 0,
                "{:?}",
                patient.connections()
            );
            std::thread::sleep(POLL);
        }
        patient.stop()?;
        // A relabel takes away what a label gave.
        scene.apply([&only])?;
        let rounds = friend.rounds();
        let end = Instant::now() + DEADLINE * patience();
        while friend.rounds() < rounds + HELD as u64 {
            ensure!(
                Instant::now() < end && friend.failed() == 0,
                "{:?}",
                friend.connections()
            );
            std::thread::sleep(POLL);
        }
        scene.relabel("friend", &[("app", "foe")])?;
        ensure!(
            friend.wait_for_failures(HELD, CUT * patience()) == HELD,
            "{:?}",
            friend.connections()
        );
        scene.assert_denied("friend", "server", HTTP, Reason::PolicyIngress)?;
        scene.relabel("friend", &[("app", "friend")])?;
        scene.assert_allowed("friend", "server", HTTP)?;
        scene.remove([&only])?;
    }
    Ok(())
}
