//! The end: SIGTERM leaves the datapath in force, `sluice cleanup` takes all of Sluice's away and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::{Value, json};
use tests::lab::agent::{Agent, AgentPlan, Source, sluice_binary};
use tests::lab::foreign::{Counting, Side, tc};
use tests::lab::node::Node;
use tests::lab::patience;

use crate::drift::pins;
use crate::policies::on;
use crate::scene::{HTTP, SERVICE, Scene, roles};
use crate::services::{Load, WEB, service_probes, web};

/// What an agent may take from SIGTERM to its end.
const END: Duration = Duration::from_secs(1);
/// New connections a second, and how many must have been answered before and after.
const RATE: u32 = 200;
const PHASE: u64 = 200;

/// What a cleanup said and its exit code.
#[derive(Debug)]
struct Cleanup {
    code: Option<i32>,
    removed: Vec<String>,
    left: Vec<String>,
    failed: Vec<String>,
    error: String,
}

impl Cleanup {
    fn run(scene: &Scene, more: &[&str]) -> Result<Self> {
        let plan = scene.agent.plan();
        let mut command = Command::new(sluice_binary()?);
        command
            .args(["cleanup", "-o", "json"])
            .arg("--pin-root")
            .arg(&plan.pin_root)
            .arg("--socket")
            .arg(&plan.socket)
            .args(more);
        let output = scene.node.netns().run(|| command.output())??;
        let said: Value = match output.stdout.is_empty() {
            true => json!({}),
            false => serde_json::from_slice(&output.stdout).context("what cleanup printed")?,
        };
        let list = |name: &str| -> Vec<String> {
            let lines = said[name].as_array().into_iter().flatten();
            lines.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Ok(Self {
            code: output.status.code(),
            removed: list("removed"),
            left: list("left"),
            failed: list("failed"),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn removed(&self, part: &str) -> usize {
        self.removed
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }
}

/// Everything of Sluice's that the kernel shows on the node: programs by tcx, filters, qdiscs.
pub(crate) fn attached(node: &Node) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let names: Vec<String> = node.netns().run(|| -> Result<Vec<String>> {
        let interfaces = nix::net::if_::if_nameindex()?;
        Ok(interfaces
            .iter()
            .map(|i| i.name().to_string_lossy().into_owned())
            .collect())
    })??;
    for name in names {
        for (side, kind) in [
            ("ingress", TcAttachType::Ingress),
            ("egress", TcAttachType::Egress),
        ] {
            let filters = tc(node.netns(), &format!("filter show dev {name} {side}"))?;
            let ours = filters.lines().filter(|line| line.contains("sluice_"));
            all.extend(ours.map(|line| format!("{name} {side}: {line}")));
            // Without tcx there is nothing to ask for.
            let query = node
                .netns()
                .run(|| SchedClassifier::query_tcx(&name, kind))?;
            for program in query.map(|(_, programs)| programs).unwrap_or_default() {
                let program = program.name_as_str().unwrap_or_default().to_owned();
                if program.starts_with("stub_") {
                    all.push(format!("{name} {side}: {program} by tcx"));
                }
            }
        }
    }
    Ok(all)
}

fn qdiscs(node: &Node) -> Result<Vec<String>> {
    let shown = tc(node.netns(), "qdisc show")?;
    let clsact = shown.lines().filter(|line| line.contains("clsact"));
    Ok(clsact.map(str::to_owned).collect())
}

fn guarded(arguments: &[&str]) -> Result<Scene> {
    let scene = Scene::with_arguments(&roles(&["client", "stranger", "server"]), arguments)?;
    let guard = on(
        "server",
        "guard",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    scene.apply([&guard])?;
    scene.assert_denied("stranger", "server", HTTP, Reason::PolicyIngress)?;
    Ok(scene)
}

/// Nothing is left, and the node is as if Sluice had never been there.
fn assert_gone(scene: &Scene, cleanup: &Cleanup) -> Result<()> {
    ensure!(
        cleanup.code == Some(0) && cleanup.failed.is_empty(),
        "{cleanup:?}"
    );
    let attached = attached(&scene.node)?;
    ensure!(attached.is_empty(), "{attached:?} is left; {cleanup:?}");
    let plan = scene.agent.plan();
    let left = match plan.pin_root.exists() {
        true => pins(&plan.pin_root)?,
        false => Vec::new(),
    };
    ensure!(left.is_empty(), "{left:?}");
    ensure!(
        !plan.socket.exists() && !lock(&plan.socket).exists(),
        "the socket is left"
    );
    scene.assert_allowed("stranger", "server", HTTP)
}

fn lock(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

#[test]
fn an_agent_ends_within_a_second_of_sigterm_and_the_datapath_stays_in_force() -> Result<()> {
    assert_ends_at_sigterm(&[], 3)
}

/// So many times the agent is told to end, under load, and started again.
pub(crate) fn assert_ends_at_sigterm(arguments: &[&str], times: usize) -> Result<()> {
    let mut scene = web(arguments)?;
    let guard = on(
        "stranger",
        "guard",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "nobody" } } }] }] }),
    );
    scene.apply([&guard])?;
    let load = Load::start(&scene, RATE)?;
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        load.more(PHASE)?;
        let started = Instant::now();
        let status = scene.agent.terminate()?;
        slowest = slowest.max(started.elapsed());
        ensure!(status.success(), "{status}");
        ensure!(
            !scene.agent.plan().socket.exists(),
            "it takes its socket with it"
        );
        load.more(PHASE)?;
        scene.assert_denied("client", "stranger", HTTP, Reason::PolicyIngress)?;
        scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)?;
        scene.agent.start_again()?;
    }
    // The client's namespace has sent segments again to where it is denied; its connections to the service have not.
    load.stop()?;
    tests::say(format!("the slowest of {times} ends took {slowest:?}"));
    ensure!(slowest < END * patience(), "{slowest:?}");
    Ok(())
}

#[test]
fn cleanup_refuses_while_an_agent_runs() -> Result<()> {
    let scene = guarded(&[])?;
    let before = attached(&scene.node)?;
    ensure!(
        before.len() == 7,
        "three pods both ways and an uplink: {before:?}"
    );
    let refused = Cleanup::run(&scene, &[])?;
    ensure!(
        refused.code == Some(1) && refused.error.contains("stop it first"),
        "{refused:?}"
    );
    ensure!(refused.removed.is_empty() && attached(&scene.node)? == before);
    scene.assert_denied("stranger", "server", HTTP, Reason::PolicyIngress)?;
    ensure!(scene.agent.status()?["ready"] == true);
    Ok(())
}

#[test]
fn cleanup_removes_what_is_ours_by_tcx_and_nothing_else() -> Result<()> {
    let mut scene = guarded(&[])?;
    // Another agent, of another node: nobody touches it. And somebody's own program beside ours.
    let node = scene.lab.node("b")?;
    let plan = AgentPlan::new(&node, Source::Manifests(scene.dir.path().to_owned()))?;
    let other = Agent::start(&node, plan)?;
    let there = attached(&node)?;
    let pins = scene.pins_of_lab()?;
    let mut theirs = Counting::load(&pins.join("theirs"))?;
    let pod = scene.actor("server")?.pod.ifindex()?;
    theirs.attach_tcx(scene.node.netns(), pod, Side::Egress)?;

    ensure!(scene.agent.terminate()?.success());
    scene.assert_denied("stranger", "server", HTTP, Reason::PolicyIngress)?;
    let first = Cleanup::run(&scene, &[])?;
    assert_gone(&scene, &first)?;
    ensure!(
        first.removed("tcx link") == 7 && first.removed("cgroup link") == 8,
        "{first:?}"
    );
    ensure!(
        !scene.agent.plan().pin_root.exists(),
        "an empty root goes too"
    );
    ensure!(
        first.removed(&scene.agent.plan().pin_root.display().to_string()) > 30,
        "{first:?}"
    );
    tests::say(format!("cleanup told of {} things", first.removed.len()));

    let seen = theirs.packets()?;
    scene.assert_allowed("stranger", "server", HTTP)?;
    ensure!(
        theirs.packets()? > seen,
        "somebody else's program still runs"
    );
    ensure!(attached(&node)? == there && other.status()?["ready"] == true);

    // There is nothing more to remove, and a new agent finds a clean node.
    let second = Cleanup::run(&scene, &[])?;
    ensure!(
        second.code == Some(0) && second.removed.is_empty(),
        "{second:?}"
    );
    scene.agent.start_again()?;
    scene.settle()?;
    scene.assert_denied("stranger", "server", HTTP, Reason::PolicyIngress)
}

#[test]
fn cleanup_removes_filters_and_the_qdiscs_that_sluice_made() -> Result<()> {
    let mut scene = guarded(&["--attach=clsact"])?;
    ensure!(attached(&scene.node)?.len() == 7 && qdiscs(&scene.node)?.len() == 4);
    ensure!(scene.agent.terminate()?.success());
    let first = Cleanup::run(&scene, &[])?;
    assert_gone(&scene, &first)?;
    ensure!(
        first.removed("clsact filter") == 7 && first.removed("clsact qdisc") == 4,
        "{first:?}"
    );
    ensure!(
        qdiscs(&scene.node)?.is_empty(),
        "{:?}",
        qdiscs(&scene.node)?
    );

    // Somebody made the uplink's qdisc before the agent came, and has a filter on a qdisc that the agent made.
    tc(
        scene.node.netns(),
        &format!("qdisc add dev {} clsact", Node::UPLINK),
    )?;
    scene.agent.start_again()?;
    scene.settle()?;
    let pins = scene.pins_of_lab()?;
    let theirs = Counting::load(&pins.join("theirs"))?;
    let device = scene.actor("server")?.pod.device.clone();
    theirs.attach_clsact(scene.node.netns(), &device, Side::Egress)?;
    // Not only an end in good order: killed, and started and killed once more.
    scene.agent.kill()?;
    scene.agent.start_again()?;
    scene.agent.kill()?;
    let second = Cleanup::run(&scene, &[])?;
    assert_gone(&scene, &second)?;
    ensure!(
        second.removed("clsact qdisc") == 2 && second.left.len() == 2,
        "{second:?}"
    );
    let left = qdiscs(&scene.node)?;
    ensure!(
        left.len() == 2 && left.iter().any(|q| q.contains(&device)),
        "the uplink's and the one with another's filter: {left:?}"
    );
    let seen = theirs.packets()?;
    scene.assert_allowed("stranger", "server", HTTP)?;
    ensure!(
        theirs.packets()? > seen,
        "somebody else's filter still runs"
    );
    Ok(())
}

#[test]
fn by_tcx_cleanup_works_on_a_node_that_is_half_broken() -> Result<()> {
    assert_cleanup_of_half_a_node("--attach=tcx")
}

#[test]
fn by_clsact_cleanup_works_on_a_node_that_is_half_broken() -> Result<()> {
    assert_cleanup_of_half_a_node("--attach=clsact")
}

fn assert_cleanup_of_half_a_node(attach: &str) -> Result<()> {
    let mut scene = guarded(&[attach])?;
    let root = scene.agent.plan().pin_root.clone();
    scene.agent.kill()?;
    // Pins of programs gone, maps half gone, a link and a filter gone, what does not belong there, an older layout's rest.
    let gone = |path: &PathBuf| {
        let names = ["services", "programs", "config", "cgroup-connect4"];
        let stub = path.to_string_lossy().contains("/programs/");
        stub || names.iter().any(|name| path.ends_with(name))
    };
    for path in pins(&root)?.iter().filter(|path| gone(path)) {
        fs::remove_file(path)?;
    }
    if attach.ends_with("clsact") {
        let device = scene.actor("server")?.pod.device.clone();
        tc(
            scene.node.netns(),
            &format!("filter del dev {device} egress"),
        )?;
    }
    fs::create_dir_all(root.join("v0").join("maps"))?;
    fs::create_dir(root.join("notes"))?;
    let cleanup = Cleanup::run(&scene, &[])?;
    assert_gone(&scene, &cleanup)?;
    ensure!(
        !root.join("v0").exists() && root.join("notes").is_dir(),
        "{cleanup:?}"
    );
    ensure!(
        cleanup.left.iter().any(|line| line.contains("notes")),
        "{cleanup:?}"
    );
    ensure!(
        qdiscs(&scene.node)?.is_empty(),
        "{:?}",
        qdiscs(&scene.node)?
    );
    fs::remove_dir(root.join("notes"))?;
    Ok(())
}

#[test]
fn what_cannot_be_removed_is_named_and_the_exit_code_says_so() -> Result<()> {
    let mut scene = guarded(&[])?;
    ensure!(scene.agent.terminate()?.success());
    // A mount in a directory of pins: nobody can remove that.
    let maps = scene.pinned().path("services");
    let maps = maps.parent().context("a directory of maps")?;
    let inner = maps.join("held");
    fs::create_dir(&inner)?;
    nix::mount::mount(
        Some("bpf"),
        &inner,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )?;
    let cleanup = Cleanup::run(&scene, &[]);
    nix::mount::umount(&inner)?;
    let cleanup = cleanup?;
    ensure!(cleanup.code == Some(1), "{cleanup:?}");
    ensure!(
        cleanup.failed.iter().any(|line| line.contains("held"))
            && cleanup.error.contains("could not be removed"),
        "{cleanup:?}"
    );
    // All the rest went, and the second time so does this.
    ensure!(attached(&scene.node)?.is_empty());
    assert_gone(&scene, &Cleanup::run(&scene, &[])?)
}
