//! A server that answers with its own name and the client's address as it saw it, and keeps a record of all it saw.
//!
//! One thread serves any number of sockets. A request and its record come before the answer, so once a client has its
//! answer the record is there; and a client without an answer was either never seen or stands in the record.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use super::Proto;
use super::affinity::pin_thread;
use super::answer::{Answer, MAX_LINE};
use crate::lab::lock;
use crate::lab::netns::Netns;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// A datagram server's receive buffer in bytes: seconds of a fast stream, so that a busy machine loses nothing here.
pub(super) const RECEIVE_BUFFER: usize = 16 << 20;

/// What a server saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The protocol.
    pub proto: Proto,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that it came to.
    pub local: SocketAddr,
    /// The request's token; nothing for a TCP connection that was accepted and has said nothing yet.
    pub token: Option<String>,
}

/// What a server keeps of what it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Everything.
    #[default]
    All,
    /// Only the counts: for long runs and for benchmarks.
    Counts,
}

/// How to run a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerOptions {
    /// What it records.
    pub keep: Keep,
    /// The CPU for its thread.
    pub cpu: Option<usize>,
}

#[derive(Debug, Default)]
struct Record {
    keep: Keep,
    seen: Mutex<Vec<Seen>>,
    accepted: AtomicU64,
    requests: AtomicU64,
}

impl Record {
    fn note(&self, proto: Proto, peer: SocketAddr, local: SocketAddr, token: Option<&str>) {
        let counter = if token.is_some() {
            &self.requests
        } else {
            &self.accepted
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if self.keep == Keep::All {
            lock(&self.seen).push(Seen {
                proto,
                peer,
                local,
                token: token.map(str::to_owned),
            });
        }
    }
}

/// A running server. Dropping it closes its sockets and every connection.
#[derive(Debug)]
pub struct Server {
    name: Arc<str>,
    addresses: Vec<(Proto, SocketAddr)>,
    record: Arc<Record>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a server called `name` (no blanks) on `binds` in a namespace; it answers when this returns. Port 0 takes a
    /// free one, see [`Server::addresses`]. Bind addresses, not wildcards, where the host has several: the answer to a
    /// datagram then comes from the address that was asked.
    ///
    /// # Errors
    /// An address is not there, or a port is taken.
    pub fn start(netns: &Arc<Netns>, name: &str, binds: &[(Proto, SocketAddr)]) -> Result<Self> {
        Self::start_with(netns, name, binds, ServerOptions::default())
    }

    /// The same on one port of each of `addresses`, TCP and UDP: what a pod usually wants.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn on_ports(
        netns: &Arc<Netns>,
        name: &str,
        addresses: &[std::net::IpAddr],
        ports: &[u16],
    ) -> Result<Self> {
        let mut binds = Vec::new();
        for proto in Proto::ALL {
            for address in addresses {
                binds.extend(
                    ports
                        .iter()
                        .map(|port| (proto, SocketAddr::new(*address, *port))),
                );
            }
        }
        Self::start(netns, name, &binds)
    }

    /// [`Server::start`] with options.
    ///
    /// # Errors
    /// As [`Server::start`], or the CPU does not exist.
    pub fn start_with(
        netns: &Arc<Netns>,
        name: &str,
        binds: &[(Proto, SocketAddr)],
        options: ServerOptions,
    ) -> Result<Self> {
        Self::spawn(Some(netns), name, binds, options)
    }

    /// Starts a server in the namespace of the calling thread, for processes that are already in their place.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_here(name: &str, binds: &[(Proto, SocketAddr)]) -> Result<Self> {
        Self::spawn(None, name, binds, ServerOptions::default())
    }

    fn spawn(
        netns: Option<&Arc<Netns>>,
        name: &str,
        binds: &[(Proto, SocketAddr)],
        options: ServerOptions,
    ) -> Result<Self> {
        let record = Arc::new(Record {
            keep: options.keep,
            ..Record::default()
        });
        let (stop, stopped) = oneshot::channel();
        let (bound, addresses) = mpsc::channel();
        let job = Job {
            name: name.into(),
            binds: binds.to_vec(),
            record: Arc::clone(&record),
        };
        let run = {
            let netns = netns.map(Arc::clone);
            move || -> Result<()> {
                let ready = || -> Result<_> {
                    netns.map_or(Ok(()), |netns| netns.enter())?;
                    pin_thread(options.cpu)?;
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_io()
                        .build()?;
                    let sockets = runtime.block_on(async { job.bind() })?;
                    Ok((runtime, sockets))
                };
                let (runtime, sockets) = match ready() {
                    Ok(ready) => ready,
                    Err(error) => {
                        // The starter waits for just this, and reports it.
                        let _ = bound.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = bound.send(Ok(sockets
                    .iter()
                    .map(Socket::address)
                    .collect::<Result<Vec<_>>>()?));
                runtime.block_on(async {
                    sockets.into_iter().for_each(|socket| job.serve(socket));
                    // Either way, told to stop or forgotten, it is over.
                    let _ = stopped.await;
                });
                Ok(())
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("srv-{name}"))
            .spawn(run)
            .context("starting a server")?;
        let addresses = addresses
            .recv()
            .map_err(|_| anyhow!("the server {name} died at its start"))?;
        let addresses = addresses.with_context(|| format!("starting the server {name}"))?;
        Ok(Self {
            name: name.into(),
            addresses,
            record,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Its name, as answers carry it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens, in the order of the binds, with the real ports.
    pub fn addresses(&self) -> &[(Proto, SocketAddr)] {
        &self.addresses
    }

    /// TCP connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.record.accepted.load(Ordering::Relaxed)
    }

    /// Requests read so far, of both protocols.
    pub fn requests(&self) -> u64 {
        self.record.requests.load(Ordering::Relaxed)
    }

    /// A place in the record, for [`Server::seen_since`].
    pub fn mark(&self) -> usize {
        lock(&self.record.seen).len()
    }

    /// What it saw after `mark`: accepted connections and requests, each on its own. Empty is "the server saw nothing".
    pub fn seen_since(&self, mark: usize) -> Vec<Seen> {
        lock(&self.record.seen)
            .get(mark..)
            .unwrap_or_default()
            .to_vec()
    }

    /// Everything it saw.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen_since(0)
    }

    /// Stops it; its ports are free when this returns. Open connections are closed.
    ///
    /// # Errors
    /// The server's thread had failed.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the server {} panicked", self.name)),
            Some(Ok(result)) => result,
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{error:#}");
        }
    }
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Socket {
    fn address(&self) -> Result<(Proto, SocketAddr)> {
        Ok(match self {
            Self::Tcp(listener) => (Proto::Tcp, listener.local_addr()?),
            Self::Udp(socket) => (Proto::Udp, socket.local_addr()?),
        })
    }
}

struct Job {
    name: Arc<str>,
    binds: Vec<(Proto, SocketAddr)>,
    record: Arc<Record>,
}

impl Job {
    fn bind(&self) -> Result<Vec<Socket>> {
        let bind = |&(proto, address): &(Proto, SocketAddr)| {
            let socket = match proto {
                Proto::Tcp => listen(address).map(Socket::Tcp),
                Proto::Udp => datagrams(address).map(Socket::Udp),
            };
            socket.with_context(|| format!("binding {proto} {address}"))
        };
        self.binds.iter().map(bind).collect()
    }

    /// Serves one socket on the current runtime. An error of one client ends that client's connection only: what it
    /// means is the client's to say.
    fn serve(&self, socket: Socket) {
        let (name, record) = (Arc::clone(&self.name), Arc::clone(&self.record));
        match socket {
            Socket::Tcp(listener) => tokio::spawn(async move {
                loop {
                    let Ok((stream, peer)) = listener.accept().await else {
                        continue;
                    };
                    tokio::spawn(converse(
                        stream,
                        peer,
                        Arc::clone(&name),
                        Arc::clone(&record),
                    ));
                }
            }),
            Socket::Udp(socket) => tokio::spawn(async move {
                let mut buffer = [0; MAX_LINE];
                loop {
                    // An error is the ICMP echo of an earlier answer; the socket goes on.
                    let Ok((n, peer)) = socket.recv_from(&mut buffer).await else {
                        continue;
                    };
                    let Ok(local) = socket.local_addr() else {
                        continue;
                    };
                    let token = String::from_utf8_lossy(&buffer[..n]).trim_end().to_owned();
                    record.note(Proto::Udp, peer, local, Some(&token));
                    let answer = Answer {
                        by: name.to_string(),
                        peer,
                        local,
                        token,
                    };
                    let _ = socket.send_to(answer.encode().as_bytes(), peer).await;
                }
            }),
        };
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    name: Arc<str>,
    record: Arc<Record>,
) -> Result<()> {
    let local = stream.local_addr()?;
    record.note(Proto::Tcp, peer, local, None);
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut read)
            .take(MAX_LINE as u64)
            .read_line(&mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        let token = line.trim_end();
        record.note(Proto::Tcp, peer, local, Some(token));
        let answer = Answer {
            by: name.to_string(),
            peer,
            local,
            token: token.to_owned(),
        };
        write.write_all(answer.encode().as_bytes()).await?;
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    if address.is_ipv6() {
        setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &true)?;
    }
    // A server started again takes its port although old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

fn datagrams(address: SocketAddr) -> Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(UdpSocket::from_std(socket)?)
}
