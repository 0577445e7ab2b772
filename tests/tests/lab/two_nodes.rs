//! Two nodes of one machine, each with its agent: neither touches what is the other's.

use agent_common::Reason;
use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::host::HostProcess;
use tests::lab::manifests::{self, Endpoint};
use tests::lab::pinned::Pinned;
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};

use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, PORTS, SERVICE, Scene, at, roles, service, vip};
use crate::verdict::ensure_unseen;

#[test]
fn two_agents_on_one_machine_do_not_interfere() -> Result<()> {
    assert_no_interference(&[])
}

/// Two nodes whose agents have these arguments.
pub(crate) fn assert_no_interference(arguments: &[&str]) -> Result<()> {
    let mut scene = Scene::with_arguments(&roles(&["client", "stranger"]), arguments)?;
    let node = scene.lab.node("b")?;
    let remote = node.pod("remote")?;
    let server = Server::on_ports(remote.netns(), "remote", &remote.addresses(), &PORTS)?;
    scene.dir.put(&manifests::node(&node, &[]))?;
    scene
        .dir
        .put(&manifests::pod(&remote, &[("app", "remote")], &[]))?;
    scene
        .dir
        .put_all(&service("remote", 10, &[Endpoint::ready(&remote)]))?;
    let only_client = on(
        "remote",
        "only-client",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    scene.apply([&only_client])?;
    let plan = AgentPlan::new(&node, Source::Manifests(scene.dir.path().to_owned()))?;
    let plan = arguments.iter().fold(plan, |plan, more| plan.arg(more));
    let other = Agent::start(&node, plan)?;
    let (here, there) = (scene.pinned(), Pinned::new(&other.plan().pin_root));

    let ask = |from: &str, addresses, port| -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for proto in Proto::ALL {
            for to in at(addresses, port) {
                probes.push(Probe::new(scene.netns(from)?, proto, to));
            }
        }
        Ok(probes)
    };
    let direct = |from: &str| ask(from, remote.addresses(), HTTP);
    let by_service = |from: &str| ask(from, vip(10), SERVICE);
    // Across the nodes: by address and by service, and the stranger by neither. The target's own agent drops it.
    let assert_all = || -> Result<()> {
        let allowed = [direct("client")?, by_service("client")?].concat();
        scene.assert_answered(&allowed, "remote")?;
        for denied in [direct("stranger")?, by_service("stranger")?] {
            let (mark, before) = (server.mark(), there.drops(Reason::PolicyIngress)?);
            let before_here = here.drops(Reason::PolicyIngress)?;
            let outcomes = probe::run(&denied, Patience::MATRIX)?;
            ensure!(
                outcomes.iter().all(|o| *o == Outcome::TimedOut),
                "{outcomes:?}"
            );
            ensure_unseen(&server, mark)?;
            ensure!(there.drops(Reason::PolicyIngress)? - before >= denied.len() as u64);
            ensure!(here.drops(Reason::PolicyIngress)? == before_here);
        }
        scene.assert_answered(&allowed, "remote")
    };
    assert_all()?;
    // Processes of each node, by the cgroup's programs of each agent.
    for of in [&scene.node, &node] {
        let mut host = HostProcess::start(of)?;
        for to in at(vip(10), SERVICE) {
            for proto in Proto::ALL {
                // The remote pod takes its own node always, and nobody else's.
                let own = of.name == node.name;
                let deadline = if own {
                    DEADLINE
                } else {
                    Patience::MATRIX.quiet
                };
                let outcome = host.ask(proto, to, deadline)?;
                let right = match own {
                    true => outcome.by() == Some("remote"),
                    false => outcome == Outcome::TimedOut,
                };
                ensure!(right, "{} {proto} {to}: {outcome}", of.name);
            }
        }
    }
    // One agent dies and comes back; the other's work goes on all the while.
    scene.agent.kill()?;
    let before = there.drops(Reason::PolicyIngress)?;
    let stranger: Vec<Probe> = at(remote.addresses(), HTTP)
        .map(|to| Ok(Probe::new(scene.netns("stranger")?, Proto::Tcp, to)))
        .into_iter()
        .collect::<Result<_>>()?;
    let outcomes = probe::run(&stranger, Patience::MATRIX)?;
    ensure!(
        outcomes.iter().all(|o| *o == Outcome::TimedOut),
        "{outcomes:?}"
    );
    ensure!(there.drops(Reason::PolicyIngress)? > before);
    scene.agent.start_again()?;
    scene.settle()?;
    ensure!(other.status()?["ready"] == true);
    ensure!(other.status()?["node"] == "b" && scene.agent.status()?["node"] == "a");
    ensure!(here.path("services") != there.path("services"));
    Ok(())
}
