//! Two nodes of one machine whose agents have the same cgroup, as they do where each is told of its root: a process is served by the agent of
//! its network namespace.

use anyhow::{Result, ensure};
use serde_json::json;
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::host::HostProcess;
use tests::lab::manifests::{self, Endpoint};
use tests::lab::traffic::{Proto, Server};

use crate::scene::{DEADLINE, PORTS, SERVICE, Scene, at, roles, service, vip};

/// The service that leads to the endpoint of the client's own node.
const LOCAL: u8 = 10;
/// So often each is asked: one of two endpoints may be the right one by chance.
const ASKED: usize = 5;

// Fails with mutant "any-netns".
#[test]
fn agents_with_one_cgroup_serve_each_the_processes_of_its_own_node() -> Result<()> {
    let mut scene = Scene::new(&roles(&["here"]))?;
    let node = scene.lab.node("b")?;
    let there = node.pod("there")?;
    let _server = Server::on_ports(there.netns(), "there", &there.addresses(), &PORTS)?;
    let here = Endpoint::ready(&scene.actor("here")?.pod);
    let [mut local, v4, v6] = service("local", LOCAL, &[here, Endpoint::ready(&there)]);
    local["spec"]["internalTrafficPolicy"] = json!("Local");
    let (other, pod) = (
        manifests::node(&node, &[]),
        manifests::pod(&there, &[("app", "there")], &[]),
    );
    scene.apply([&other, &pod, &v4, &v6, &local])?;

    // The one that both nodes' cgroups are in.
    let common = scene.lab.cgroup().path().to_owned();
    let mut plan = scene.agent.plan().clone();
    plan.cgroup.clone_from(&common);
    ensure!(scene.agent.terminate()?.success());
    scene.agent.start_again_as(plan)?;
    let mut plan = AgentPlan::new(&node, Source::Manifests(scene.dir.path().to_owned()))?;
    plan.cgroup = common;
    let _other = Agent::start(&node, plan)?;

    for (of, by) in [(&scene.node, "here"), (&node, "there")] {
        let mut process = HostProcess::start(of)?;
        for proto in Proto::ALL {
            for to in at(vip(LOCAL), SERVICE).repeat(ASKED) {
                let outcome = process.ask(proto, to, DEADLINE)?;
                ensure!(
                    outcome.by() == Some(by),
                    "{} {proto} {to}: {outcome}",
                    of.name
                );
            }
        }
    }
    Ok(())
}
