//! The admin socket: how the CLI asks a running agent.
//!
//! A unix socket (mode 0600, `/run/sluice/sluice.sock`), one request per connection. The client writes one line of JSON, a
//! [`Request`]; the agent answers with one line, an [`Answer`], and closes. Only a flow request that follows is answered by
//! lines of [`FlowLine`] behind that answer, until either side goes.
//!
//! The server reads what the agent publishes and never holds it up: it has no lock that the reconciler takes, a bounded number of
//! clients, and a deadline for each that is not watching flows.

pub mod client;
pub mod server;
mod socket;
mod watch;

#[cfg(test)]
mod tests;

pub use socket::Leftover;

use serde::{Deserialize, Serialize};

use crate::observe::view::{FlowEvent, FlowMatch};

/// Where the socket is, unless `--socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Answered by [`crate::observe::view::Status`].
    Status,
    /// Answered by [`crate::observe::view::ServiceList`].
    Services {
        /// Of this namespace only.
        #[serde(default)]
        namespace: Option<String>,
    },
    /// Answered by [`crate::observe::view::EndpointList`].
    Endpoints {
        /// Of this namespace only.
        #[serde(default)]
        namespace: Option<String>,
    },
    /// Answered by [`crate::observe::view::PolicyList`].
    Policies {
        /// Of this namespace only.
        #[serde(default)]
        namespace: Option<String>,
    },
    /// Answered by [`crate::observe::view::FlowList`]: the last events, as far as they are kept.
    Flows(FlowRequest),
}

/// Which flows.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FlowRequest {
    /// Allowed flows too. They are reported only while somebody asks for them.
    #[serde(default)]
    pub allowed: bool,
    /// So many events that have happened already.
    #[serde(default)]
    pub last: usize,
    /// And what happens from now on, as lines of [`FlowLine`].
    #[serde(default)]
    pub follow: bool,
    /// Only these.
    #[serde(default)]
    pub only: FlowMatch,
}

/// The first line of every answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// It cannot be had, and why, for people.
    Error(String),
}

/// A line of a flow stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowLine {
    /// An event.
    Event(Box<FlowEvent>),
    /// Events that cannot be shown.
    Lost(Lost),
}

/// Events that were lost, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lost {
    /// How many.
    pub events: u64,
    /// Where.
    pub at: LostAt,
}

/// Where events are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostAt {
    /// The client read more slowly than events came.
    Client,
    /// The agent read the kernel's ring more slowly than events came.
    Ring,
    /// The programs report so many a second and no more; what is beyond is only counted.
    RateLimit,
}
