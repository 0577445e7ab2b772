//! Connections with both of their ends in this process.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tests::lab::netns::Netns;
use tests::lab::patience;
use tests::lab::pod::Pod;
use tests::lab::traffic::Proto;

use crate::scene::{DEADLINE, POLL, SERVICE, Scene};

/// What one end sends to the other.
const WORD: &[u8; 8] = b"in-force";
/// Where a responder listens that is asked by a service.
pub(super) const FIXED: u16 = 7_400;

/// Where an end is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// For people.
    pub(super) name: String,
    netns: Arc<Netns>,
    addresses: [IpAddr; 2],
}

impl Place {
    /// A pod of the scene, or `world`.
    pub(super) fn of(scene: &Scene, name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            netns: Arc::clone(scene.netns(name)?),
            addresses: scene.addresses(name)?,
        })
    }

    /// Any pod.
    pub(super) fn of_pod(pod: &Pod) -> Self {
        Self {
            name: format!("{} of node {}", pod.name, pod.node),
            netns: Arc::clone(pod.netns()),
            addresses: pod.addresses(),
        }
    }
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

/// A connection; its opener's end first.
pub(super) struct Pair {
    name: String,
    ends: Vec<End>,
    places: [String; 2],
}

/// A connection from an address of the opener's own, whatever the route says.
fn connect_from(here: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let opening = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // It bounds connect(2) as well.
    let bound = TimeVal::milliseconds(DEADLINE.as_millis().try_into()?);
    setsockopt(&opening, sockopt::SendTimeout, &bound)?;
    bind(
        opening.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(here, 0)),
    )?;
    connect(opening.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(opening);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Binds a socket to an address that another had. A process that some test starts holds a copy of what is closed here until it is another program.
fn bound<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        match make() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(POLL);
            }
            result => return result,
        }
    }
}

impl Pair {
    /// A connection that `opener` makes to `responder`, by a service's address or by the responder's own, and that has carried a word
    /// each way.
    fn open(
        opener: &Place,
        responder: &Place,
        proto: Proto,
        at: usize,
        by: Option<SocketAddr>,
    ) -> Result<Self> {
        let (from, to) = (&opener.netns, &responder.netns);
        let here = opener.addresses[at];
        let listens = (responder.addresses[at], by.map_or(0, |_| FIXED));
        let name = format!(
            "{proto} from {} to {} at {}",
            opener.name,
            responder.name,
            by.map_or(listens.0, |service| service.ip())
        );
        let make = || -> Result<Vec<End>> {
            Ok(match proto {
                Proto::Tcp => {
                    let listener = to.run(|| bound(|| TcpListener::bind(listens)))??;
                    let address = by.map_or_else(|| listener.local_addr(), Ok)?;
                    let near = from.run(|| connect_from(here, address))??;
                    let (far, _) = listener.accept()?;
                    far.set_nodelay(true)?;
                    vec![End::Tcp(near), End::Tcp(far)]
                }
                Proto::Udp => {
                    let near = from.run(|| UdpSocket::bind((here, 0)))??;
                    let far = to.run(|| bound(|| UdpSocket::bind(listens)))??;
                    near.connect(by.map_or_else(|| far.local_addr(), Ok)?)?;
                    far.connect(near.local_addr()?)?;
                    vec![End::Udp(near), End::Udp(far)]
                }
            })
        };
        let mut pair = Self {
            ends: make().with_context(|| name.clone())?,
            name,
            places: [opener.name.clone(), responder.name.clone()],
        };
        pair.ensure_passes()?;
        Ok(pair)
    }

    fn each(
        opener: &Place,
        responder: &Place,
        by: Option<[IpAddr; 2]>,
        pairs: &mut Vec<Self>,
    ) -> Result<()> {
        for proto in Proto::ALL {
            for at in 0..2 {
                let by = by.map(|addresses| SocketAddr::new(addresses[at], SERVICE));
                pairs.push(Self::open(opener, responder, proto, at, by)?);
            }
        }
        Ok(())
    }

    /// Connections that one opened to the other, and the other way round: both protocols, both families.
    pub(super) fn all(one: &Place, other: &Place) -> Result<Vec<Self>> {
        let mut pairs = Vec::new();
        Self::each(one, other, None, &mut pairs)?;
        Self::each(other, one, None, &mut pairs)?;
        Ok(pairs)
    }

    /// Connections that one opened to the other by a service's addresses.
    pub(super) fn by_service(
        opener: &Place,
        responder: &Place,
        service: [IpAddr; 2],
    ) -> Result<Vec<Self>> {
        let mut pairs = Vec::new();
        Self::each(opener, responder, Some(service), &mut pairs)?;
        Ok(pairs)
    }

    /// A word each way arrives.
    pub(super) fn ensure_passes(&mut self) -> Result<()> {
        for (from, to) in [(0, 1), (1, 0)] {
            self.ends[to].patient(true)?;
            self.ends[from].send()?;
            let arrived = self.ends[to].receive()?;
            ensure!(arrived.is_some(), "{}: nothing arrived", self.name);
        }
        Ok(())
    }

    /// The end of a place whose link is gone goes to its heir: a socket for datagrams with the same addresses and ports. A TCP stream's
    /// end cannot be made a second time; the other one remains.
    pub(super) fn inherit(&mut self, from: &Place, heir: &Place) -> Result<()> {
        let at = self.places.iter().position(|name| *name == from.name);
        let at = at.with_context(|| format!("{}: not of {}", self.name, from.name))?;
        let heirs = match self.ends.remove(at) {
            End::Tcp(_) => return Ok(()),
            End::Udp(gone) => {
                let (own, peer) = (gone.local_addr()?, gone.peer_addr()?);
                heir.netns.run(|| -> Result<UdpSocket> {
                    let socket = bound(|| UdpSocket::bind(own))?;
                    socket.connect(peer)?;
                    Ok(socket)
                })??
            }
        };
        self.ends.insert(at, End::Udp(heirs));
        Ok(())
    }
}

/// One packet in each direction of each connection, none of which arrives: each is dropped for one of the policy's reasons.
pub(super) fn ensure_cut(scene: &Scene, pairs: &mut [Pair]) -> Result<()> {
    let drops = || -> Result<u64> {
        let pinned = scene.pinned();
        Ok(pinned.drops(Reason::PolicyIngress)? + pinned.drops(Reason::PolicyEgress)?)
    };
    let (before, mut sent) = (drops()?, 0);
    for pair in pairs.iter_mut() {
        for end in &mut pair.ends {
            end.send()?;
            sent += 1;
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
