//! A server's record of what it saw.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lab::lock;
use crate::lab::traffic::Proto;

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

/// What a server has seen, shared between its thread and its owner.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) keep: Keep,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) accepted: AtomicU64,
    pub(super) requests: AtomicU64,
}

impl Record {
    pub(super) fn note(
        &self,
        proto: Proto,
        peer: SocketAddr,
        local: SocketAddr,
        token: Option<&str>,
    ) {
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
