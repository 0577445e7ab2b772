//! A connection that was tried, and what became of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::lab::netns::Netns;
use crate::lab::traffic::{Outcome, Proto};

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a pod of this node.
    Pod(usize),
    /// A process of this node.
    Host(usize),
    /// Outside of both nodes.
    World,
}

/// Who opens connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// A pod's server has the same name, unique for each time that a pod is made.
    pub(super) name: Arc<str>,
    /// Where it is.
    pub(super) place: Place,
    /// Its addresses, IPv4 first.
    pub(super) addresses: [IpAddr; 2],
    /// Its namespace.
    pub(super) netns: Arc<Netns>,
}

impl Client {
    /// Its address of a family.
    pub(super) fn address(&self, ipv6: bool) -> IpAddr {
        self.addresses[usize::from(ipv6)]
    }
}

/// A connection to open.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    /// Who opens it.
    pub(super) client: Client,
    /// TCP or UDP.
    pub(super) proto: Proto,
    /// Whom to: a service, a pod or the world.
    pub(super) to: SocketAddr,
}

impl Flow {
    /// The client's own address.
    pub(super) fn source(&self) -> IpAddr {
        self.client.address(self.to.is_ipv6())
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, source) = (&self.client.name, self.source());
        write!(f, "{name} ({source}) -> {} {}", self.proto, self.to)
    }
}

/// What was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A connection with one request, or one datagram from a new port.
    Request,
    /// A numbered datagram of a stream.
    Datagram,
    /// A request in a TCP connection that stands; it began with the answer before. Its server is here.
    Round {
        /// The server's own address and port.
        backend: SocketAddr,
        /// The server's name.
        server: String,
        /// When the connection was opened.
        opened: Instant,
    },
}

/// What became of it.
#[derive(Debug, Clone)]
pub(super) struct Done {
    /// The connection.
    pub(super) flow: Flow,
    /// What was tried.
    pub(super) kind: Kind,
    /// What it said; servers record it.
    pub(super) token: String,
    /// When it was begun.
    pub(super) began: Instant,
    /// When it was answered or given up.
    pub(super) ended: Instant,
    /// How it ended.
    pub(super) outcome: Outcome,
}
