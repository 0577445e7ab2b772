//! What a change takes away ends with the next packet of every connection that stands, whichever end sends it; what is still allowed
//! notices nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::lab::traffic::Proto;
use tests::lab::traffic::counters::Counters;
use tests::lab::traffic::stream::{Receiver, Sender, StreamPlan};
use tests::lab::{manifests, patience};

use crate::policies::on;
use crate::scene::{DEADLINE, POLL, Role, Scene};

/// What one end sends to the other.
const WORD: &[u8; 8] = b"in-force";
/// Datagrams a second of each stream of the friend's.
const RATE: u32 = 300;
/// The port of the streams' receivers.
const STREAM_PORT: u16 = 7_000;

/// A connection with both of its ends in this process.
struct Pair {
    /// For people.
    name: String,
    ends: [End; 2],
}

enum End {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl End {
    fn send(&mut self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(WORD)?,
            Self::Udp(socket) => ensure!(socket.send(WORD)? == WORD.len()),
        }
        Ok(())
    }

    /// The other end's word; None where nothing is there in time.
    fn receive(&mut self) -> Result<Option<()>> {
        let mut word = [0; WORD.len()];
        let result = match self {
            Self::Tcp(stream) => stream.read_exact(&mut word),
            Self::Udp(socket) => socket.recv(&mut word).map(|_| ()),
        };
        match result {
            Ok(()) => {
                ensure!(word == *WORD, "a word that nobody sent: {word:?}");
                Ok(Some(()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("receiving"),
        }
    }

    /// Whether to wait for words that are still to come, or only to look.
    fn patient(&self, patient: bool) -> Result<()> {
        let timeout = Some(if patient { DEADLINE } else { POLL });
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout)?,
            Self::Udp(socket) => socket.set_read_timeout(timeout)?,
        }
        Ok(())
    }
}

impl Pair {
    /// A connection that `opener` makes to `responder`, and that has carried a word each way.
    fn open(scene: &Scene, opener: &str, responder: &str, proto: Proto, at: usize) -> Result<Self> {
        let (from, to) = (scene.netns(opener)?, scene.netns(responder)?);
        let any = |name: &str| -> Result<(IpAddr, u16)> { Ok((scene.addresses(name)?[at], 0)) };
        let (here, there) = (any(opener)?, any(responder)?);
        let ends = match proto {
            Proto::Tcp => {
                let listener = to.run(|| TcpListener::bind(there))??;
                let address = listener.local_addr()?;
                let near = from.run(|| TcpStream::connect_timeout(&address, DEADLINE))??;
                near.set_nodelay(true)?;
                let (far, _) = listener.accept()?;
                far.set_nodelay(true)?;
                [End::Tcp(near), End::Tcp(far)]
            }
            Proto::Udp => {
                let near = from.run(|| UdpSocket::bind(here))??;
                let far = to.run(|| UdpSocket::bind(there))??;
                let connect = |socket: &UdpSocket, to: SocketAddr| socket.connect(to);
                connect(&near, far.local_addr()?)?;
                connect(&far, near.local_addr()?)?;
                [End::Udp(near), End::Udp(far)]
            }
        };
        let mut pair = Self {
            name: format!("{proto} from {opener} to {responder} at {}", there.0),
            ends,
        };
        pair.ensure_passes()?;
        Ok(pair)
    }

    /// Connections that one opened to the other, and the other way round: both protocols, both families.
    fn all(scene: &Scene, one: &str, other: &str) -> Result<Vec<Self>> {
        let mut pairs = Vec::new();
        for (opener, responder) in [(one, other), (other, one)] {
            for proto in Proto::ALL {
                for at in 0..2 {
                    pairs.push(Self::open(scene, opener, responder, proto, at)?);
                }
            }
        }
        Ok(pairs)
    }

    /// A word each way arrives.
    fn ensure_passes(&mut self) -> Result<()> {
        for (from, to) in [(0, 1), (1, 0)] {
            self.ends[to].patient(true)?;
            self.ends[from].send()?;
            let arrived = self.ends[to].receive()?;
            ensure!(arrived.is_some(), "{}: nothing arrived", self.name);
        }
        Ok(())
    }
}

/// One packet in each direction of each connection, none of which arrives: each is dropped for one of the policy's reasons.
fn ensure_cut(scene: &Scene, pairs: &mut [Pair]) -> Result<()> {
    let drops = || -> Result<u64> {
        let pinned = scene.pinned();
        Ok(pinned.drops(Reason::PolicyIngress)? + pinned.drops(Reason::PolicyEgress)?)
    };
    let before = drops()?;
    let sent = 2 * pairs.len() as u64;
    for pair in pairs.iter_mut() {
        for end in &mut pair.ends {
            end.send()?;
        }
    }
    let end = Instant::now() + DEADLINE * patience();
    while drops()? - before < sent {
        ensure!(
            Instant::now() < end,
            "of {sent} packets {} were dropped: {:?}",
            drops()? - before,
            scene.pinned().all_drops()?
        );
        std::thread::sleep(POLL);
    }
    for pair in pairs {
        for end in &mut pair.ends {
            end.patient(false)?;
            ensure!(
                end.receive()?.is_none(),
                "{}: a word arrived that nothing allows",
                pair.name
            );
        }
    }
    Ok(())
}

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
            pairs: Pair::all(scene, "friend", "server")?,
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
    let scene = Scene::with_arguments(&roles, arguments)?;
    let trusted = |team: &str| manifests::namespace("guests", &[("team", team)]);
    let all = only(&json!([
        app("friend"),
        app("subject"),
        { "namespaceSelector": { "matchLabels": { "team": "guests" } } },
    ]));
    scene.apply([&all])?;
    let mut friend = Friend::start(&scene)?;

    let mut cut = |what: &str,
                   whose: &str,
                   change: &dyn Fn() -> Result<()>,
                   back: &dyn Fn() -> Result<()>| {
        let mut pairs = Pair::all(&scene, whose, "server").context("before")?;
        change()?;
        ensure_cut(&scene, &mut pairs).context("after")?;
        friend.ensure_passes().context("the friend's")?;
        drop(pairs);
        back()?;
        // The control: it was the change.
        for mut pair in Pair::all(&scene, whose, "server").context("and back")? {
            pair.ensure_passes()?;
        }
        tests::say(format_args!(
            "{what}: every live connection is cut with its next packet, in both directions"
        ));
        Ok::<(), anyhow::Error>(())
    };

    cut(
        "a relabel",
        "subject",
        &|| scene.relabel("subject", &[("app", "stranger")]),
        &|| scene.relabel("subject", &[("app", "subject")]),
    )
    .context("a relabel")?;
    let fewer = only(&json!([
        app("friend"),
        { "namespaceSelector": { "matchLabels": { "team": "guests" } } },
    ]));
    cut(
        "a policy change",
        "subject",
        &|| scene.apply([&fewer]),
        &|| scene.apply([&all]),
    )
    .context("a policy change")?;
    cut(
        "a namespace relabel",
        "guest",
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
        "an address that goes to another pod",
        "subject",
        &|| moves(&own, &heir),
        &|| moves(&heir, &own),
    )
    .context("an address that goes to another pod")?;

    let sent = friend.ensure_lost_nothing(&scene)?;
    tests::say(format_args!(
        "a friend's {sent} datagrams through all of it, both ways: none lost, no segment sent again"
    ));
    Ok(())
}
