//! The flags of `sluice agent` that say how many flows are kept, and for how long.

use agent_common::{Timeouts, clock::ticks, limits};
use clap::Args;

use super::duration::Seconds;

/// 16 million connections are more than 9 GiB of maps.
const MAX_CONNECTIONS: i64 = 1 << 24;

/// How many flows are kept, and for how long.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConntrackArgs {
    /// Connections that are tracked at a time; as many more may wait for their first answer as half of this. By default as
    /// many as a 256th part of the memory has room for: 131072 to 1048576, less only where the memory or the agent's own limit
    /// is small. A map that is pinned already keeps its size
    #[arg(
        long = "conntrack-max",
        value_name = "CONNECTIONS",
        value_parser = clap::value_parser!(u32).range(i64::from(limits::CONNTRACK_FLOWS_LEAST)..=MAX_CONNECTIONS),
    )]
    pub max: Option<u32>,
    /// Percent of the tracked connections that one pod may hold: those it opened, and those from outside that it accepted. What
    /// is beyond works, on a slower path, among the connections that wait for an answer. 100: no bound
    #[arg(
        long = "conntrack-share",
        value_name = "PERCENT",
        default_value_t = limits::CONNTRACK_SHARE_PERCENT,
        value_parser = clap::value_parser!(u32).range(1..=100),
    )]
    pub share: u32,
    /// How long an open TCP connection may be idle
    #[arg(long = "conntrack-tcp-timeout-established", value_name = "TIME", default_value_t = Seconds(limits::TCP_ESTABLISHED_SECONDS))]
    pub tcp_established: Seconds,
    /// How long a TCP connection is remembered after both sides closed it, or one reset it; and an association of SCTP that ended
    #[arg(long = "conntrack-tcp-timeout-closing", value_name = "TIME", default_value_t = Seconds(limits::TCP_CLOSING_SECONDS))]
    pub tcp_closing: Seconds,
    /// How long a TCP connection may wait for its first answer
    #[arg(long = "conntrack-tcp-timeout-unreplied", value_name = "TIME", default_value_t = Seconds(limits::TCP_UNREPLIED_SECONDS))]
    pub tcp_unreplied: Seconds,
    /// How long a UDP flow that was answered may be idle
    #[arg(long = "conntrack-udp-timeout-stream", value_name = "TIME", default_value_t = Seconds(limits::UDP_SECONDS))]
    pub udp_stream: Seconds,
    /// How long a UDP flow may wait for its first answer
    #[arg(long = "conntrack-udp-timeout", value_name = "TIME", default_value_t = Seconds(limits::UDP_UNREPLIED_SECONDS))]
    pub udp: Seconds,
    /// How long an echo (ping) may be idle
    #[arg(long = "conntrack-icmp-timeout", value_name = "TIME", default_value_t = Seconds(limits::ECHO_SECONDS))]
    pub icmp: Seconds,
    /// How long a flow of any other protocol may be idle
    #[arg(long = "conntrack-generic-timeout", value_name = "TIME", default_value_t = Seconds(limits::OTHER_SECONDS))]
    pub generic: Seconds,
}

impl ConntrackArgs {
    /// How long flows may be idle, in the programs' own clock.
    #[must_use]
    pub const fn timeouts(&self) -> Timeouts {
        Timeouts {
            tcp_established: ticks(self.tcp_established.0),
            tcp_closing: ticks(self.tcp_closing.0),
            tcp_unreplied: ticks(self.tcp_unreplied.0),
            udp: ticks(self.udp_stream.0),
            udp_unreplied: ticks(self.udp.0),
            echo: ticks(self.icmp.0),
            other: ticks(self.generic.0),
        }
    }
}
