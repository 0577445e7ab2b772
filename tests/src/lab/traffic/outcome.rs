//! How one attempt to reach a server ended.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use nix::Error as Errno;
use serde::{Deserialize, Serialize};

/// How an attempt ended. What the network did and what went wrong in the lab itself are never mixed: see
/// [`Outcome::Broken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The request was answered.
    Answered {
        /// The server's name.
        by: String,
        /// The client's address as the server saw it.
        peer_seen: SocketAddr,
        /// The server's address as the server saw it.
        local_seen: SocketAddr,
        /// From the attempt's start to the whole answer.
        latency: Duration,
    },
    /// TCP RST to the SYN, or ICMP port unreachable.
    Refused,
    /// Another ICMP unreachable, or no route.
    Unreachable,
    /// Nothing came before the deadline.
    TimedOut,
    /// TCP RST after the connection stood.
    Reset,
    /// The server closed the connection without an answer.
    Closed,
    /// The kernel forbade the call (EPERM), as a cgroup program may.
    Forbidden,
    /// The lab itself failed: no socket, no port, an answer that is none. Never a verdict of the network.
    Broken(String),
}

impl Outcome {
    /// Whether an answer came.
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered { .. })
    }

    /// The name of the server that answered.
    pub fn by(&self) -> Option<&str> {
        match self {
            Self::Answered { by, .. } => Some(by),
            _ => None,
        }
    }

    /// The client's address as the server that answered saw it.
    pub fn peer_seen(&self) -> Option<SocketAddr> {
        match self {
            Self::Answered { peer_seen, .. } => Some(*peer_seen),
            _ => None,
        }
    }

    /// One word for counting.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Forbidden => "forbidden",
            Self::Broken(_) => "broken",
        }
    }

    /// What an error of the socket means. `doing` names the call for errors that are the lab's own.
    pub(crate) fn from_errno(error: Errno, doing: &str) -> Self {
        match error {
            Errno::ECONNREFUSED => Self::Refused,
            // EACCES: ICMPv6 administratively prohibited (RFC 4443, code 1), as Linux hands it on.
            Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES | Errno::ENOPROTOOPT => {
                Self::Unreachable
            }
            Errno::ETIMEDOUT => Self::TimedOut,
            Errno::ECONNRESET | Errno::EPIPE => Self::Reset,
            Errno::EPERM => Self::Forbidden,
            other => Self::Broken(format!("{doing}: {other}")),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered {
                by,
                peer_seen,
                latency,
                ..
            } => {
                write!(
                    f,
                    "answered by {by}, which saw {peer_seen}, in {latency:.1?}"
                )
            }
            Self::Broken(what) => write!(f, "broken: {what}"),
            other => f.write_str(other.word()),
        }
    }
}
