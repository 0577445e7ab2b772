//! What a change takes away ends with the next packet of every connection that stands, whichever end sends it; what is still allowed
//! notices nothing.

mod pair;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::lab::manifests::{self, Endpoint};
use tests::lab::pod::Pod;
use tests::lab::traffic::Proto;
use tests::lab::traffic::counters::Counters;
use tests::lab::traffic::stream::{Receiver, Sender, StreamPlan};

use self::pair::{FIXED, Pair, Place, ensure_cut};
use crate::node_parts::await_programs;
use crate::policies::on;
use crate::scene::{DEADLINE, Role, Scene, port, vip};

/// Datagrams a second of each stream of the friend's.
const RATE: u32 = 300;
/// The port of the streams' receivers.
const STREAM_PORT: u16 = 7_000;
/// The services of the server and of the subject.
const SERVICES: [(&str, u8); 2] = [("server", 30), ("subject", 31)];

/// A friend of the server's, who is allowed all the while.
struct Friend {
    pairs: Vec<Pair>,
    streams: Vec<(Sender, Receiver)>,
    before: Counters,
}

impl Friend {
    fn start(scene: &Scene) -> Result<Self> {
        let mut streams = Vec::new();
        for (from, to) in [("friend", "server"), ("server", "friend")] {
            for ip in scene.addresses(to)? {
                let bind = SocketAddr::new(ip, STREAM_PORT);
                let receiver = Receiver::start(scene.netns(to)?, bind, None)?;
                let plan = StreamPlan {
                    to: bind,
                    rate: RATE,
                    cpu: None,
                };
                streams.push((Sender::start(scene.netns(from)?, plan)?, receiver));
            }
        }
        Ok(Self {
            pairs: Pair::all(&Place::of(scene, "friend")?, &Place::of(scene, "server")?)?,
            before: Counters::read(scene.netns("friend")?)?,
            streams,
        })
    }

    fn ensure_passes(&mut self) -> Result<()> {
        self.pairs.iter_mut().try_for_each(Pair::ensure_passes)
    }

    /// Nothing was lost, doubled or sent again. Answers how many datagrams there were.
    fn ensure_lost_nothing(self, scene: &Scene) -> Result<u64> {
        let mut sent = 0;
        for (sender, receiver) in self.streams {
            let report = sender.stop(DEADLINE)?;
            let there = receiver.report(report.stream, report.sent);
            ensure!(
                report.errors == 0 && report.echoes.is_perfect() && there.is_perfect(),
                "{report:?}, {there:?}; drops: {:?}",
                scene.pinned().all_drops()?
            );
            sent += report.sent;
        }
        let again = Counters::read(scene.netns("friend")?)?.retransmits_since(&self.before);
        ensure!(again == 0, "the friend sent {again} segments again");
        Ok(sent)
    }
}

/// On the server: in from these peers, and out to them.
fn only(peers: &Value) -> Value {
    on(
        "server",
        "only",
        json!({
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": peers }],
            "egress": [{ "to": peers }],
        }),
    )
}

fn app(name: &str) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": name } } })
}

fn block(ipv6: bool) -> Value {
    json!({ "ipBlock": { "cidr": manifests::world_cidr(ipv6) } })
}

/// A service that leads to a pod's [`FIXED`] port.
fn fixed_service(name: &str, number: u8, pod: &Pod) -> [Value; 3] {
    let ports = Proto::ALL.map(|proto| port(FIXED, proto));
    let [v4, v6] = manifests::endpoint_slices("default", name, &ports, &[Endpoint::ready(pod)]);
    let service = manifests::service("default", name, &vip(number), &ports);
    [service, v4, v6]
}

// Fails with mutant "no-epoch".
#[test]
fn what_a_change_takes_away_ends_with_the_next_packet_either_way() -> Result<()> {
    assert_changes_cut(&[])
}

/// Each kind of change that takes something away, and back.
pub(crate) fn assert_changes_cut(arguments: &[&str]) -> Result<()> {
    let roles = [
        Role::new("server"),
        Role::new("friend"),
        Role::new("subject"),
        Role::new("guest").in_namespace("guests"),
    ];
    let mut scene = Scene::with_arguments(&roles, arguments)?;
    // A pod that is like the subject, of a node that has no agent: both ends of its connections are judged here, or not at all.
    let node = scene.lab.node("b")?;
    let remote = node.pod("remote")?;
    let far = |app: &str| manifests::pod(&remote, &[("app", app)], &[]);
    scene.dir.put(&manifests::node(&node, &[]))?;
    scene.dir.put(&far("subject"))?;
    for (name, number) in SERVICES {
        let pod = &scene.actor(name)?.pod;
        scene.dir.put_all(&fixed_service(name, number, pod))?;
    }
    let trusted = |team: &str| manifests::namespace("guests", &[("team", team)]);
    let guests = json!({ "namespaceSelector": { "matchLabels": { "team": "guests" } } });
    let everyone = [
        app("friend"),
        app("subject"),
        guests.clone(),
        block(false),
        block(true),
    ];
    let all = only(&json!(everyone));
    scene.apply([&all])?;
    let place = |name: &str| Place::of(&scene, name);
    let (server, subject, guest) = (place("server")?, place("subject")?, place("guest")?);
    let (world, elsewhere) = (place("world")?, Place::of_pod(&remote));
    let mut friend = Friend::start(&scene)?;

    // Every connection of one with the server that a change is to end.
    let pairs = |whose: &[&Place]| -> Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        for place in whose {
            pairs.extend(Pair::all(place, &server)?);
            if place.name == subject.name {
                let [(_, of_server), (_, of_subject)] = SERVICES;
                pairs.extend(Pair::by_service(place, &server, vip(of_server))?);
                pairs.extend(Pair::by_service(&server, place, vip(of_subject))?);
            }
        }
        Ok(pairs)
    };
    let mut cut = |what: &str,
                   whose: &[&Place],
                   change: &dyn Fn() -> Result<()>,
                   back: &dyn Fn() -> Result<()>| {
        let mut standing = pairs(whose).context("before")?;
        let count = standing.len();
        change()?;
        ensure_cut(&scene, &mut standing).context("after")?;
        friend.ensure_passes().context("the friend's")?;
        drop(standing);
        back()?;
        // The control: it was the change.
        for mut pair in pairs(whose).context("and back")? {
            pair.ensure_passes()?;
        }
        tests::say(format_args!(
            "{what}: {count} live connections are cut with their next packet, in both directions"
        ));
        Ok::<(), anyhow::Error>(())
    };

    let relabel = |app: &str| {
        let near = manifests::pod(&scene.actor("subject")?.pod, &[("app", app)], &[]);
        scene.apply([&near, &far(app)])
    };
    cut(
        "a relabel",
        &[&subject, &elsewhere],
        &|| relabel("stranger"),
        &|| relabel("subject"),
    )
    .context("a relabel")?;
    let fewer = only(&json!([app("friend"), guests]));
    cut(
        "a policy change",
        &[&subject, &elsewhere, &world],
        &|| scene.apply([&fewer]),
        &|| scene.apply([&all]),
    )
    .context("a policy change")?;
    cut(
        "a namespace relabel",
        &[&guest],
        &|| scene.apply([&trusted("nobody")]),
        &|| scene.apply([&trusted("guests")]),
    )
    .context("a namespace relabel")?;
    let own = manifests::pod(&scene.actor("subject")?.pod, &[("app", "subject")], &[]);
    let mut heir = manifests::pod(&scene.actor("subject")?.pod, &[("app", "heir")], &[]);
    heir["metadata"]["name"] = json!("heir");
    heir["metadata"]["uid"] = json!("00000000-0000-4000-8000-00000000000e");
    let moves = |from: &Value, to: &Value| -> Result<()> {
        scene.dir.remove(from)?;
        scene.apply([to])
    };
    cut(
        "an address that goes to another pod of its link",
        &[&subject],
        &|| moves(&own, &heir),
        &|| moves(&heir, &own),
    )
    .context("an address that goes to another pod of its link")?;

    // The link goes too. What the server sends on the connections that stand would reach the heir, and what the heir sends from the
    // same ports is not its predecessor's.
    let mut standing = pairs(&[&subject]).context("before the heir")?;
    scene.dir.remove(&own)?;
    scene.make_heir("subject", "heir", None)?;
    let labelled = |app: &str| -> Result<Value> {
        Ok(manifests::pod(
            &scene.actor("heir")?.pod,
            &[("app", app)],
            &[],
        ))
    };
    scene.apply([&labelled("heir")?])?;
    await_programs(&scene, "heir")?;
    let heir = Place::of(&scene, "heir")?;
    for pair in &mut standing {
        pair.inherit(&subject, &heir)?;
    }
    ensure_cut(&scene, &mut standing).context("after the heir came")?;
    friend.ensure_passes().context("the friend's")?;
    let count = standing.len();
    drop(standing);
    scene.apply([&labelled("subject")?])?;
    for mut pair in Pair::all(&heir, &server).context("an heir that may")? {
        pair.ensure_passes()?;
    }
    tests::say(format_args!(
        "an address that goes to another pod on another link: {count} live connections are cut with their next packet"
    ));

    let sent = friend.ensure_lost_nothing(&scene)?;
    tests::say(format_args!(
        "a friend's {sent} datagrams through all of it, both ways: none lost, no segment sent again"
    ));
    Ok(())
}
