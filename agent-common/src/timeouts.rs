//! How long a flow may be idle.

use crate::{Flow, clock::ticks, flow_flag, limits, protocol};

/// Ticks ([`crate::clock`]) that a flow may be idle before it is over, by protocol and state. The programs take a clashing
/// flow for dead after it, the agent collects by it; both are told by the agent's flags.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Timeouts {
    /// TCP, answered, no FIN or RST seen.
    pub tcp_established: u32,
    /// TCP after an RST, or a FIN from each side; SCTP after an ABORT or a SHUTDOWN COMPLETE.
    pub tcp_closing: u32,
    /// TCP, not answered.
    pub tcp_unreplied: u32,
    /// UDP, answered.
    pub udp: u32,
    /// UDP, not answered.
    pub udp_unreplied: u32,
    /// Echoes, answered or not.
    pub echo: u32,
    /// Every other protocol.
    pub other: u32,
}

impl Timeouts {
    /// Those of [`limits`].
    pub const DEFAULT: Self = Self {
        tcp_established: ticks(limits::TCP_ESTABLISHED_SECONDS),
        tcp_closing: ticks(limits::TCP_CLOSING_SECONDS),
        tcp_unreplied: ticks(limits::TCP_UNREPLIED_SECONDS),
        udp: ticks(limits::UDP_SECONDS),
        udp_unreplied: ticks(limits::UDP_UNREPLIED_SECONDS),
        echo: ticks(limits::ECHO_SECONDS),
        other: ticks(limits::OTHER_SECONDS),
    };

    /// The one that holds for a flow: `kind` is IP's protocol number.
    #[inline(always)]
    pub const fn of(&self, kind: u8, closing: bool, answered: bool) -> &u32 {
        match kind {
            protocol::TCP | protocol::SCTP if closing => &self.tcp_closing,
            protocol::TCP if answered => &self.tcp_established,
            protocol::TCP => &self.tcp_unreplied,
            protocol::UDP if answered => &self.udp,
            protocol::UDP => &self.udp_unreplied,
            protocol::ICMP | protocol::ICMPV6 => &self.echo,
            _ => &self.other,
        }
    }

    /// The shortest: how soon what is over can be told.
    pub fn shortest(&self) -> u32 {
        [
            self.tcp_closing,
            self.tcp_unreplied,
            self.udp,
            self.udp_unreplied,
            self.echo,
            self.other,
        ]
        .into_iter()
        .fold(self.tcp_established, u32::min)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Flow {
    /// Whether an entry of `unreplied` was answered all the same: it stays there because its pod holds its share of `conntrack`.
    #[inline(always)]
    pub const fn answered(&self) -> bool {
        self.flags & flow_flag::ANSWERED != 0
    }
}

const _: () = assert!(size_of::<Timeouts>() == 28);

#[cfg(test)]
mod tests {
    use super::Timeouts;
    use crate::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};

    /// None like another.
    const ALL: Timeouts = Timeouts {
        tcp_established: 7,
        tcp_closing: 6,
        tcp_unreplied: 5,
        udp: 4,
        udp_unreplied: 3,
        echo: 2,
        other: 1,
    };
    /// A protocol that nothing here knows: GRE.
    const GRE: u8 = 47;

    #[test]
    fn each_protocol_and_state_has_its_own() {
        // Of each protocol: answered; not answered; closing, answered and not.
        let table = [
            (TCP, [7, 5, 6, 6]),
            (UDP, [4, 3, 4, 3]),
            (ICMP, [2; 4]),
            (ICMPV6, [2; 4]),
            (SCTP, [1, 1, 6, 6]),
            (GRE, [1; 4]),
        ];
        for (kind, wanted) in table {
            let states = [(false, true), (false, false), (true, true), (true, false)];
            let told = states.map(|(closing, answered)| *ALL.of(kind, closing, answered));
            assert_eq!(told, wanted, "protocol {kind}");
        }
    }

    #[test]
    fn the_shortest_is_found_wherever_it_stands() {
        let with = |change: fn(&mut Timeouts)| {
            let mut timeouts = Timeouts { other: 8, ..ALL };
            change(&mut timeouts);
            timeouts.shortest()
        };
        assert_eq!(with(|_| ()), 2);
        assert_eq!(with(|t| t.tcp_established = 1), 1);
        assert_eq!(with(|t| t.tcp_closing = 1), 1);
        assert_eq!(with(|t| t.tcp_unreplied = 1), 1);
        assert_eq!(with(|t| t.udp = 1), 1);
        assert_eq!(with(|t| t.udp_unreplied = 1), 1);
        assert_eq!(with(|t| t.other = 1), 1);
    }
}
