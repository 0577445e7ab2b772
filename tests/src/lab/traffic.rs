//! Traffic with exact counts: servers that tell who asked, and generators that lose nothing in silence.
//!
//! | module | what it answers |
//! | --- | --- |
//! | [`server`] | who answers a request, and what a server saw |
//! | [`probe`] | which of many connections are let through, in one go |
//! | [`connects`] | do N new connections a second all succeed, with no retry and no retransmission |
//! | [`held`] | does a connection that is open stay open, and when did it first fail |
//! | [`stream`] | is any number of a UDP stream lost, doubled or overtaken |
//! | [`unconnected`] | does a datagram from an unconnected socket get its answer |
//! | [`optioned`] | what becomes of a connection whose packets bear options of IP |
//! | [`raw`] | what happens to a frame made by hand |
//! | [`counters`] | what the kernel counted in a namespace |
//!
//! Nothing sleeps to wait: a clock is used for deadlines and for a generator's pace only.

pub mod affinity;
pub mod answer;
pub mod attempt;
pub mod connects;
pub mod counters;
pub mod held;
pub mod optioned;
pub mod outcome;
pub mod probe;
pub mod raw;
mod ready;
pub mod sequence;
pub mod server;
pub mod stream;
pub mod unconnected;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::outcome::Outcome;
pub use self::probe::{Patience, Probe};
pub use self::server::Server;

/// A transport protocol that sockets here speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    /// Both, for loops over all traffic.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Proto {
    /// As Kubernetes writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}
