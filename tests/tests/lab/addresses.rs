//! Addresses that the node gets and loses decide packets: what comes from outside with an address of the node's own as source is forged,
//! and a pod sends from those that a route gives it.

use std::net::IpAddr;

use agent_common::{Address, AddressEntry, Reason, hook};
use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map};
use tests::lab::node::Node;
use tests::lab::pod::Pod;
use tests::lab::traffic::raw::RawSocket;

use crate::frames::{HOST_MAC, datagram, mac_of};
use crate::node_parts::{Stage, await_that, open};
use crate::scene::{PORTS, Scene};
use crate::services::BACKENDS;

/// Frames sent of each kind.
const FRAMES: usize = 5;
/// Addresses that the host gets on its loopback.
const HOSTS: [&str; 2] = ["10.99.0.1", "fd00:99::1"];
/// Addresses that a pod gets by a route.
const PODS: [&str; 2] = ["10.99.0.2", "fd00:99::2"];

/// What sends frames: a link, the node's MAC there, and the hook that they meet.
struct Sender<'a> {
    scene: &'a Scene,
    raw: RawSocket,
    /// Both MAC addresses: the node's, the sender's.
    link: Vec<u8>,
    hook: u32,
}

impl<'a> Sender<'a> {
    /// At the wire's end of the uplink.
    fn outside(scene: &'a Scene) -> Result<Self> {
        let (wire, port) = (scene.lab.wire().netns(), scene.node.wire_port());
        let macs = [
            mac_of(scene.node.netns(), Node::UPLINK)?,
            mac_of(wire, &port)?,
        ];
        Ok(Self {
            scene,
            raw: RawSocket::open(wire, &port)?,
            link: macs.concat(),
            hook: hook::FROM_UPLINK,
        })
    }

    /// In a pod.
    fn inside(scene: &'a Scene, pod: &Pod) -> Result<Self> {
        let macs = [HOST_MAC, mac_of(pod.netns(), Pod::DEVICE)?];
        Ok(Self {
            scene,
            raw: RawSocket::open(pod.netns(), Pod::DEVICE)?,
            link: macs.concat(),
            hook: hook::FROM_POD,
        })
    }

    /// Frames from these sources to a pod's port: none arrives and each is dropped at the hook for this reason, or, without one, none is
    /// dropped for any of both reasons that sources have, and all arrive.
    fn check(
        &self,
        sources: [IpAddr; 2],
        to: &str,
        port: u16,
        dropped: Option<Reason>,
    ) -> Result<()> {
        let server = self.scene.server(to)?;
        let drops = |reason| self.scene.pinned().drops_at(self.hook, reason);
        let both = [Reason::SourceMartian, Reason::SourceSpoofed];
        let before = [drops(both[0])?, drops(both[1])?];
        for (source, target) in sources.into_iter().zip(self.scene.addresses(to)?) {
            let (mark, token) = (server.mark(), format!("{source}-{port}"));
            let packet = datagram(source, target, port, format!("{token}\n").as_bytes());
            let frame = [self.link.clone(), packet].concat();
            let was = dropped.map(drops).transpose()?;
            for _ in 0..FRAMES {
                self.raw.send(&frame)?;
            }
            let arrived = || {
                let seen = server.seen_since(mark);
                let ours = seen.iter().filter(|s| s.token.as_ref() == Some(&token));
                ours.count()
            };
            let what = format!("{source} to {to}, port {port}");
            match dropped.zip(was) {
                Some((reason, was)) => {
                    await_that("every frame dropped", || {
                        Ok(drops(reason)? - was == FRAMES as u64)
                    })
                    .with_context(|| what.clone())?;
                    ensure!(arrived() == 0, "{what}: {} arrived", arrived());
                }
                None => await_that("every frame there", || Ok(arrived() == FRAMES))
                    .with_context(|| format!("{what}: {:?}", self.scene.pinned().all_drops()))?,
            }
        }
        if dropped.is_none() {
            let after = [drops(both[0])?, drops(both[1])?];
            ensure!(after == before, "{both:?}: {before:?}, then {after:?}");
        }
        Ok(())
    }
}

fn parsed(addresses: [&str; 2]) -> Result<[IpAddr; 2]> {
    let [v4, v6] = addresses.map(str::parse);
    Ok([v4?, v6?])
}

/// Waits until the agent knows all of these addresses, or none.
fn await_known(stage: &Stage, addresses: [IpAddr; 2], known: bool) -> Result<()> {
    await_that(&format!("{addresses:?} known: {known}"), || {
        let map: HashMap<_, Address, AddressEntry> =
            HashMap::try_from(Map::HashMap(open(stage, "addresses")?))?;
        let is_known = |ip: &IpAddr| map.get(&Address::from(*ip), 0).is_ok();
        Ok(addresses.iter().all(|ip| is_known(ip) == known))
    })
}

/// The host's addresses and a pod's come and go. Each time other ports: what stands is not judged by its source again.
pub(crate) fn assert_followed(stage: &Stage) -> Result<()> {
    let scene = &stage.scene;
    let [before, meanwhile, after] = PORTS;
    let (node, outside) = (scene.node.netns(), Sender::outside(scene)?);
    let martian = Some(Reason::SourceMartian);

    let own = parsed(HOSTS)?;
    let [v4, v6] = own;
    await_known(stage, own, false)?;
    outside.check(own, BACKENDS[0], before, None)?;
    node.ip(&format!(
        "addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"
    ))?;
    await_known(stage, own, true)?;
    outside.check(own, BACKENDS[0], meanwhile, martian)?;
    node.ip(&format!(
        "addr del {v4}/32 dev lo\naddr del {v6}/128 dev lo"
    ))?;
    await_known(stage, own, false)?;
    outside.check(own, BACKENDS[0], after, None)?;

    // With the address a pod gets nothing but another source: who it is, its link says.
    let pod = &scene.actor("client")?.pod;
    let (inside, second) = (Sender::inside(scene, pod)?, parsed(PODS)?);
    let [v4, v6] = second;
    let spoofed = Some(Reason::SourceSpoofed);
    let routes = |verb: &str| {
        let device = &pod.device;
        node.ip(&format!(
            "route {verb} {v4}/32 dev {device} scope link\nroute {verb} {v6}/128 dev {device}"
        ))
    };
    inside.check(second, "guarded", before, spoofed)?;
    outside.check(second, BACKENDS[0], before, None)?;
    routes("add")?;
    await_known(stage, second, true)?;
    inside.check(second, "guarded", meanwhile, None)?;
    outside.check(second, BACKENDS[0], meanwhile, martian)?;
    routes("del")?;
    await_known(stage, second, false)?;
    inside.check(second, "guarded", after, spoofed)?;
    outside.check(second, BACKENDS[0], after, None)
}
