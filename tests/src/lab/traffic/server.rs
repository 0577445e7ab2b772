//! A server that answers with its own name and the client's address as it saw it, and keeps a record of all it saw.
//!
//! One thread serves any number of sockets. A request and its record come before the answer, so once a client has its
//! answer the record is there; and a client without an answer was either never seen or stands in the record.

mod record;
mod serve;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::sync::oneshot;

use self::record::Record;
pub use self::record::{Keep, Seen};
use self::serve::{Job, Socket};
use super::Proto;
use super::affinity::pin_thread;
use crate::lab::lock;
use crate::lab::netns::Netns;

/// A datagram server's receive buffer in bytes: seconds of a fast stream, so that a busy machine loses nothing here.
pub(super) const RECEIVE_BUFFER: usize = 16 << 20;

/// How to run a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerOptions {
    /// What it records.
    pub keep: Keep,
    /// The CPU for its thread.
    pub cpu: Option<usize>,
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

    /// What it saw since this was last asked. It is then no longer in the record, and marks mean nothing: for long runs.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.record.seen))
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
