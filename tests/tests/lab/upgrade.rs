//! Another binary takes over under load: of the next layout, of the same, and an older one that cannot.
//!
//! The next layout is a second build, whose numbers, entries of flows and entries of groups differ: what one of them writes, the other
//! would misread.

mod host;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_common::{Reason, limits::LAYOUT};
use anyhow::{Context, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::json;
use tests::lab::agent::{Agent, AgentPlan, next_binary};
use tests::lab::host::HostProcess;
use tests::lab::manifests::{self, Endpoint};
use tests::lab::netns::Netns;
use tests::lab::patience;
use tests::lab::pinned::Pinned;
use tests::lab::traffic::Proto;
use tests::lab::traffic::connects::{ConnectPlan, Connects};
use tests::lab::traffic::counters::Counters;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::traffic::stream::{Receiver, Sender, StreamPlan};

use self::host::{Asking, Late};
use crate::policies::{deny_all, on};
use crate::scene::{DEADLINE, HTTP, POLL, SERVICE, Scene, at, port, roles, service, vip};
use crate::services::{BACKENDS, WEB, ready, service_probes, wait_for};

/// New connections a second of each generator: by service and direct, in two families.
const RATE: u32 = 80;
/// Connections of each generator to see in each phase.
const PHASE: u64 = 60;
/// Denied connections a second, in each family.
const DENIED_RATE: u32 = 20;
/// Held connections of each kind.
const HELD: usize = 5;
/// Datagrams a second of each stream.
const DATAGRAMS: u32 = 250;
/// The service of the streams, and the port that only their receiver has.
const STREAM: u8 = 20;
const STREAM_PORT: u16 = 7000;
/// The pod that `client` may reach and `stranger` may not.
const GUARDED: &str = "guarded";
/// The pod that nobody may reach.
const CLOSED: &str = "closed";
/// TC hooks and socket hooks, each with a program on the side in force.
const HOOKS: usize = 3 + 8;
/// So often an upgrade is killed before it must have been in time.
const TRIES: u32 = 3;
/// A service that comes after the upgrade.
const YOUNG: u8 = 21;

/// Everything that must not notice.
struct Load {
    connects: Vec<(ConnectPlan, Connects)>,
    held: Vec<Held>,
    streams: Vec<(Sender, Receiver)>,
    denied: Vec<Connects>,
    host: Asking,
    before: Vec<(&'static str, Counters)>,
    pinned: Pinned,
}

impl Load {
    fn start(scene: &Scene) -> Result<Self> {
        let client = scene.netns("client")?;
        let service = at(vip(WEB), SERVICE);
        let direct = at(scene.addresses(GUARDED)?, HTTP);
        let mut load = Self {
            connects: Vec::new(),
            held: Vec::new(),
            streams: Vec::new(),
            denied: Vec::new(),
            host: Asking::start(&scene.node)?,
            before: Vec::new(),
            pinned: scene.pinned(),
        };
        let ends = [GUARDED, "client", "node", "world"];
        for name in BACKENDS.into_iter().chain(ends) {
            let counters = Counters::read(scene.netns(name)?)?;
            load.before.push((name, counters));
        }
        for to in service.into_iter().chain(direct) {
            load.held
                .push(Held::start(client, HoldPlan::new(to, HELD))?);
            load.connect(client, ConnectPlan::tcp(to, RATE))?;
        }
        // From outside into an isolated pod, and from that pod to the outside.
        let (world, guarded) = (scene.netns("world")?, scene.netns(GUARDED)?);
        for (to, source) in direct.into_iter().zip(scene.addresses("world")?) {
            let plan = HoldPlan::new(to, HELD).source(source);
            load.held.push(Held::start(world, plan)?);
        }
        for to in at(scene.addresses("world")?, HTTP) {
            load.held
                .push(Held::start(guarded, HoldPlan::new(to, HELD))?);
        }
        // As resolvers do: a datagram each way, from a fresh port each time.
        for to in service {
            let proto = Proto::Udp;
            let plan = ConnectPlan {
                proto,
                ..ConnectPlan::tcp(to, RATE)
            };
            load.connect(client, plan)?;
        }
        let receiver = &scene.actor(BACKENDS[0])?.pod;
        let ends = at(receiver.addresses(), STREAM_PORT);
        for (bind, service) in ends.into_iter().zip(at(vip(STREAM), SERVICE)) {
            let receiver = Receiver::start(receiver.netns(), bind, None)?;
            let plan = StreamPlan {
                to: service,
                rate: DATAGRAMS,
                cpu: None,
            };
            load.streams.push((Sender::start(client, plan)?, receiver));
        }
        for to in direct {
            let plan = ConnectPlan {
                deadline: Duration::from_millis(500) * patience(),
                ..ConnectPlan::tcp(to, DENIED_RATE)
            };
            load.denied
                .push(Connects::start(scene.netns("stranger")?, plan)?);
        }
        Ok(load)
    }

    fn connect(&mut self, client: &Arc<Netns>, plan: ConnectPlan) -> Result<()> {
        self.connects.push((plan, Connects::start(client, plan)?));
        Ok(())
    }

    /// Waits until every generator has had its share of another phase.
    fn more(&self) -> Result<()> {
        let rounds: u64 = self.held.iter().map(Held::rounds).sum();
        let wanted: Vec<u64> = self
            .connects
            .iter()
            .map(|(_, load)| load.so_far().1 + PHASE)
            .collect();
        for ((plan, load), wanted) in self.connects.iter().zip(wanted) {
            wait_for(load, wanted).with_context(|| format!("{} to {}", plan.proto, plan.to))?;
        }
        for held in &self.held {
            ensure!(held.failed() == 0, "{:?}", held.connections());
        }
        let now: u64 = self.held.iter().map(Held::rounds).sum();
        ensure!(now > rounds, "held connections stand still");
        self.host
            .more()
            .with_context(|| format!("drops: {:?}", self.pinned.all_drops()))
    }

    /// Ends it: nothing failed, nothing is missing, nothing was sent again, and nothing that is denied was let through.
    fn stop(self, scene: &Scene) -> Result<()> {
        let drops = scene.pinned().all_drops()?;
        let mut made = 0;
        for (_, load) in self.connects {
            let report = load.stop()?;
            ensure!(
                report.failed() == 0 && report.retransmits == 0,
                "{report:?}; drops: {drops:?}"
            );
            made += report.started;
        }
        let asked = self.host.stop()?;
        for held in self.held {
            for connection in held.stop()? {
                ensure!(connection.failure.is_none(), "{connection:?}");
            }
        }
        for (sender, receiver) in self.streams {
            let report = sender.stop(DEADLINE)?;
            let there = receiver.report(report.stream, report.sent);
            ensure!(
                report.errors == 0 && report.echoes.is_perfect() && there.is_perfect(),
                "{report:?}, {there:?}"
            );
        }
        for load in self.denied {
            let report = load.stop()?;
            ensure!(
                report.answered() == 0 && report.started > 0,
                "denied, and let through: {report:?}"
            );
        }
        for (name, before) in &self.before {
            let again = Counters::read(scene.netns(name)?)?.retransmits_since(before);
            ensure!(again == 0, "{name} sent {again} segments again");
        }
        tests::say(format_args!(
            "{made} connections made and {asked} questions of the host asked, none failed"
        ));
        Ok(())
    }
}

/// Three backends behind a service, a stream's service, and a pod under a policy.
fn scene(arguments: &[&str]) -> Result<Scene> {
    let [one, two, three] = BACKENDS;
    let names = ["client", "stranger", GUARDED, CLOSED, one, two, three];
    let scene = Scene::with_arguments(&roles(&names), arguments)?;
    scene
        .dir
        .put_all(&service("web", WEB, &ready(&scene, &BACKENDS)?))?;
    let stream_port = port(STREAM_PORT, Proto::Udp);
    let receiver = [Endpoint::ready(&scene.actor(BACKENDS[0])?.pod)];
    scene.dir.put_all(&manifests::endpoint_slices(
        "default",
        "stream",
        &[stream_port],
        &receiver,
    ))?;
    scene.dir.put_all(&host::late_service(&scene)?)?;
    let block = |ipv6| json!({ "ipBlock": { "cidr": manifests::world_cidr(ipv6) } });
    let client = json!({ "podSelector": { "matchLabels": { "app": "client" } } });
    let these = json!({ "ingress": [{ "from": [client, block(false), block(true)] }] });
    scene.apply([
        &manifests::service("default", "stream", &vip(STREAM), &[stream_port]),
        &on(GUARDED, "only-these", these),
        &deny_all(CLOSED),
    ])?;
    Ok(scene)
}

fn plan(scene: &Scene, binary: Option<PathBuf>) -> AgentPlan {
    AgentPlan {
        binary,
        ..scene.agent.plan().clone()
    }
}

/// What is in force and by which programs.
#[derive(Debug, PartialEq)]
struct InForce {
    layout: u32,
    moving: bool,
    programs: Vec<u32>,
    stubs: BTreeSet<(String, u64)>,
}

fn in_force(scene: &Scene) -> Result<InForce> {
    let pinned = scene.pinned();
    let word = pinned.in_force()?;
    let [programs, other] = pinned.gate_programs()?;
    ensure!(
        programs.len() == HOOKS && other.is_empty(),
        "{HOOKS} hooks on one side of the gate: {programs:?}, {other:?}"
    );
    Ok(InForce {
        layout: word.layout(),
        moving: word.handover(),
        programs,
        stubs: attached(scene)?,
    })
}

/// The numbers of the programs on each pod's link, by tcx and clsact.
fn attached(scene: &Scene) -> Result<BTreeSet<(String, u64)>> {
    let mut attached = BTreeSet::new();
    for ((device, side), programs) in crate::clsact::filters(scene)? {
        let place = format!("{device} {side} clsact");
        attached.extend(programs.into_iter().map(|id| (place.clone(), id)));
    }
    for actor in scene.actors() {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let device = &actor.pod.device;
            let query = || SchedClassifier::query_tcx(device.as_str(), side);
            // Without tcx there is nothing to ask for.
            let found = scene.node.netns().run(query)?;
            let programs = found.map(|(_, programs)| programs).unwrap_or_default();
            let place = format!("{device} {side:?} tcx");
            attached.extend(programs.iter().map(|p| (place.clone(), u64::from(p.id()))));
        }
    }
    ensure!(
        attached.len() == 2 * scene.actors().count(),
        "one program each way on every pod's link: {attached:?}"
    );
    Ok(attached)
}

/// Ends the agent as a rolling update does, starts another and waits until the maps say what the manifests do. Nothing that is
/// attached changes, and everything that runs does.
fn replace(scene: &mut Scene, load: &Load, next: Option<PathBuf>, layout: u32) -> Result<()> {
    let before = in_force(scene)?;
    let plan = plan(scene, next);
    let status = scene.agent.terminate()?;
    ensure!(status.success(), "{status}");
    load.more()?;
    scene.agent.start_again_as(plan)?;
    load.more()?;
    scene.settle()?;
    let after = in_force(scene)?;
    ensure!(
        after.layout == layout && !after.moving,
        "it has taken over: {after:?}\n{}",
        scene.agent.log_tail()
    );
    let old: BTreeSet<_> = before.programs.iter().collect();
    ensure!(
        after.programs.iter().all(|id| !old.contains(id)),
        "each program is another: {before:?}, {after:?}"
    );
    ensure!(
        after.stubs == before.stubs,
        "what is attached is the same: {before:?}, {after:?}"
    );
    let maps = layouts(scene)?;
    ensure!(
        maps == [format!("v{layout}")],
        "the maps of the other layout are gone: {maps:?}"
    );
    Ok(())
}

/// The layouts that have maps under the pin root.
fn layouts(scene: &Scene) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&scene.agent.plan().pin_root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('v') {
            names.push(name);
        }
    }
    Ok(names)
}

/// Services and policies are what they were, and changes reach them.
fn assert_works(scene: &Scene, host: &mut HostProcess) -> Result<()> {
    scene.assert_denied("stranger", CLOSED, HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed("client", GUARDED, HTTP)?;
    for proto in Proto::ALL {
        for to in at(vip(WEB), SERVICE) {
            let outcome = host.ask(proto, to, DEADLINE)?;
            ensure!(
                outcome.is_answered(),
                "the host by {proto} at {to}: {outcome}"
            );
        }
    }
    for to in at(vip(WEB), SERVICE) {
        let outcome = host.send_to(to, DEADLINE)?;
        ensure!(
            outcome.is_answered(),
            "a datagram of the host at {to}: {outcome}"
        );
    }
    scene.assert_answered_by_any(&service_probes(scene, WEB, SERVICE)?)
}

/// Entries of the host's sockets that the agent took over, as its log says.
fn sockets_moved(log: &str) -> Result<u64> {
    let said = log
        .lines()
        .rfind(|line| line.contains("connections of another layout taken over"));
    let said = said.with_context(|| format!("not a word of it:\n{log}"))?;
    let moved = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix("sockets="));
    Ok(moved.with_context(|| said.to_owned())?.parse()?)
}

fn assert_upgrade(arguments: &[&str]) -> Result<()> {
    let next = next_binary()?;
    let mut scene = scene(arguments)?;
    let mut host = HostProcess::start(&scene.node)?;
    let late = Late::new(&scene)?;
    let load = Load::start(&scene)?;
    load.more()?;
    assert_works(&scene, &mut host)?;
    let asked = late.ask(&mut host)?;

    // Up: other entries, other maps; held flows are of before.
    replace(&mut scene, &load, Some(next.clone()), LAYOUT + 1)?;
    late.answer(&mut host, asked)?;
    let moved = sockets_moved(&scene.agent.log())?;
    ensure!(moved > 0, "no socket of the host was moved");
    assert_works(&scene, &mut host)?;

    // The same layout once more.
    replace(&mut scene, &load, Some(next.clone()), LAYOUT + 1)?;

    // Down: the older one knows no way from there, says so in one line, and leaves everything as it is.
    let before = in_force(&scene)?;
    scene.agent.terminate()?;
    let mut older = Agent::launch(&scene.node, plan(&scene, None))?;
    let status = older
        .process()
        .wait(DEADLINE * patience())?
        .context("the older one was to end")?;
    let log = older.log();
    let last = log.lines().last().unwrap_or_default().to_owned();
    ensure!(
        !status.success()
            && last.contains(&format!("layout v{}", LAYOUT + 1))
            && last.contains(&format!("layout v{LAYOUT}")),
        "{status}: {last}"
    );
    load.more()?;
    ensure!(
        in_force(&scene)? == before,
        "the refusal changed something: {before:?}, {:?}",
        in_force(&scene)?
    );
    drop(older);
    let plan = plan(&scene, Some(next));
    scene.agent.start_again_as(plan)?;
    let young = service("young", YOUNG, &ready(&scene, &BACKENDS[..1])?);
    scene.apply(&young)?;
    scene.assert_answered(&service_probes(&scene, YOUNG, SERVICE)?, BACKENDS[0])?;
    load.more()?;
    assert_works(&scene, &mut host)?;
    load.stop(&scene)
}

/// The next start goes on where a kill fell into the middle of the move: new programs in force, flows still on their way.
#[test]
fn killed_while_flows_move_the_next_start_goes_on() -> Result<()> {
    assert_killed_the_next_goes_on(&[])
}

/// An upgrade that is killed while flows move to the new layout.
pub(crate) fn assert_killed_the_next_goes_on(arguments: &[&str]) -> Result<()> {
    for _ in 0..TRIES {
        if killed_the_next_goes_on(arguments)? {
            return Ok(());
        }
    }
    bail!("{TRIES} times killed too late to show anything")
}

/// The same once; false where flows had moved before the kill.
fn killed_the_next_goes_on(arguments: &[&str]) -> Result<bool> {
    let next = next_binary()?;
    let mut scene = scene(arguments)?;
    let mut host = HostProcess::start(&scene.node)?;
    let late = Late::new(&scene)?;
    let load = Load::start(&scene)?;
    load.more()?;
    let [between, after] = [late.ask(&mut host)?, late.ask(&mut host)?];
    let plan = plan(&scene, Some(next));
    scene.agent.terminate()?;
    let mut killed = Agent::launch(&scene.node, plan.clone())?;
    let end = Instant::now() + DEADLINE * patience();
    while scene.pinned().in_force()?.layout() == LAYOUT {
        ensure!(
            Instant::now() < end,
            "it does not take over:\n{}",
            killed.log_tail()
        );
        // Another process's map tells nobody that it changed.
        std::thread::sleep(POLL);
    }
    killed.kill()?;
    let word = scene.pinned().in_force()?;
    if !(word.handover() && word.from() == LAYOUT) {
        return Ok(false);
    }
    load.more()?;
    // The new programs ask the old ones for whom this socket asked.
    late.answer(&mut host, between)?;
    scene.agent.start_again_as(plan)?;
    scene.settle()?;
    load.more()?;
    late.answer(&mut host, after)?;
    let now = in_force(&scene)?;
    ensure!(
        now.layout == LAYOUT + 1 && !now.moving,
        "{now:?}\n{}",
        scene.agent.log_tail()
    );
    let maps = layouts(&scene)?;
    ensure!(maps.len() == 1, "{maps:?}");
    load.stop(&scene)?;
    Ok(true)
}

#[test]
fn an_agent_of_another_layout_takes_over_and_an_older_one_refuses() -> Result<()> {
    assert_upgrade(&[])
}

#[test]
fn by_clsact_an_agent_of_another_layout_takes_over_and_an_older_one_refuses() -> Result<()> {
    assert_upgrade(&["--attach=clsact"])
}
