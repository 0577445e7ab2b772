//! The receiving end of numbered streams.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{DATAGRAM, KEY_SOCKET, KEY_STOP, decode, quick_socket};
use crate::lab::lock;
use crate::lab::netns::Netns;
use crate::lab::traffic::ready::Ready;
use crate::lab::traffic::sequence::{Sequence, SequenceReport};

/// Receives numbered streams and sends every datagram back to where it came from.
#[derive(Debug)]
pub struct Receiver {
    stop: Arc<EventFd>,
    books: Arc<Mutex<HashMap<u64, Sequence>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Receiver {
    /// Starts a receiver on `bind` in a namespace, its thread on CPU `cpu` if one is given.
    ///
    /// # Errors
    /// The address is not there, or the port is taken.
    pub fn start(netns: &Arc<Netns>, bind: SocketAddr, cpu: Option<usize>) -> Result<Self> {
        let socket = netns.run(|| quick_socket(bind))??;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd")?);
        let books = Arc::default();
        let thread = {
            let (stop, books) = (Arc::clone(&stop), Arc::clone(&books));
            netns.thread("receiver", cpu, move || receive(&socket, &stop, &books))?
        };
        Ok(Self {
            stop,
            books,
            thread: Some(thread),
        })
    }

    /// The book of `stream`, of which the numbers below `sent` were sent.
    pub fn report(&self, stream: u64, sent: u64) -> SequenceReport {
        lock(&self.books).get(&stream).map_or_else(
            || Sequence::default().report(sent),
            |book| book.report(sent),
        )
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // If the thread has ended by an error, its book simply lacks what came later.
        let _ = self.stop.write(1);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("a stream's receiver failed: {error:#}");
        }
    }
}

fn receive(
    socket: &UdpSocket,
    stop: &EventFd,
    books: &Mutex<HashMap<u64, Sequence>>,
) -> Result<()> {
    let mut ready = Ready::new()?;
    ready.add_readable(socket, KEY_SOCKET)?;
    ready.add_readable(stop, KEY_STOP)?;
    let mut buffer = [0; DATAGRAM];
    loop {
        if ready.wait(None)?.contains(&KEY_STOP) {
            return Ok(());
        }
        // Would block, or the ICMP echo of an earlier answer: back to waiting either way.
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if let Some((stream, number)) = decode(&buffer[..n]) {
                lock(books).entry(stream).or_default().note(number);
                // If the echo cannot be sent, the sender's book shows it.
                let _ = socket.send_to(&buffer[..n], from);
            }
        }
    }
}
