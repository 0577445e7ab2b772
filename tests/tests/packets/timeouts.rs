//! The programs take a flow for over after the time that they are told, by protocol and state, and no sooner.

use std::net::SocketAddr;

use agent_common::{Count, Reason, Timeouts, hook, protocol};
use tests::packet::address::{Family, at};
use tests::packet::build::Packet;
use tests::packet::flows::{now, tuple};
use tests::packet::world::{LocalPod, World};

/// In ticks; none like another, and each far from the defaults.
const TOLD: Timeouts = Timeouts {
    tcp_established: 1_000,
    tcp_closing: 1_100,
    tcp_unreplied: 1_200,
    udp: 1_300,
    udp_unreplied: 1_400,
    echo: 1_500,
    other: 1_600,
};
/// Ticks that may pass while a row runs, on a slow machine too.
const SLACK: u32 = 60;

/// A protocol's packet from a client to a server.
struct Kind {
    protocol: u8,
    packet: fn(SocketAddr, SocketAddr) -> Packet,
    /// Idle ticks of flows that were answered, and of those that were not.
    idle: [u32; 2],
}

const TCP: Kind = Kind {
    protocol: protocol::TCP,
    packet: Packet::syn,
    idle: [TOLD.tcp_established, TOLD.tcp_unreplied],
};
const UDP: Kind = Kind {
    protocol: protocol::UDP,
    packet: Packet::udp,
    idle: [TOLD.udp, TOLD.udp_unreplied],
};
const SCTP: Kind = Kind {
    protocol: protocol::SCTP,
    packet: Packet::sctp,
    idle: [TOLD.other; 2],
};

const fn echo(protocol: u8) -> Kind {
    Kind {
        protocol,
        packet: |from, to| Packet::ping(from.ip(), to.ip(), from.port()),
        idle: [TOLD.echo; 2],
    }
}

/// Another flow's reply looks like that of the one that is opened, and has been idle for so long: it is in the way while it lives, and
/// makes room when it is over.
fn clash(
    w: &mut World,
    (a, b): (LocalPod, LocalPod),
    kind: &Kind,
    answered: bool,
    idle: u32,
    over: bool,
) {
    let server = match kind.protocol {
        // An echo's id takes the place of the port at the asking end.
        protocol::ICMP | protocol::ICMPV6 => at(b.address, 0),
        _ => b.at(53),
    };
    let (key, packet) = (
        tuple(kind.protocol, server, a.at(4_000)),
        (kind.packet)(a.at(4_000), server),
    );
    w.from_pod(&a, &packet).delivered_to(&b);
    let mut other = w.waiting(kind.protocol, server, a.at(4_000)).unwrap();
    w.evict_waiting(&tuple(kind.protocol, a.at(4_000), server));
    w.evict_waiting(&key);
    other.new_source_port_be ^= 1;
    other.last_seen = now().wrapping_sub(idle);
    if answered {
        w.plant(key, other);
    } else {
        w.plant_waiting(key, other);
    }
    let out = w.from_pod(&a, &packet);
    let what = format!("{}, answered {answered}, idle {idle}", kind.protocol);
    if over {
        let out = out.delivered_to(&b).counted(Count::Clash, 0);
        assert_eq!(out.seen().source.ip(), a.address, "{what}");
    } else if protocol::has_ports(kind.protocol) {
        let out = out.delivered_to(&b).counted(Count::Clash, 1);
        assert_ne!(out.seen().source, a.at(4_000), "{what}");
    } else {
        out.dropped(hook::FROM_POD, Reason::PortClash);
    }
    w.clear_flows();
}

// Fails with mutant "untold-timeouts".
#[test]
fn the_programs_obey_the_timeouts_that_they_are_told() {
    let families = [
        (Family::V4, vec![TCP, UDP, SCTP, echo(protocol::ICMP)]),
        (Family::V6, vec![echo(protocol::ICMPV6)]),
    ];
    for (family, kinds) in families {
        let mut w = World::told(family, &TOLD).unwrap();
        let ends = (w.pod(1), w.pod(2));
        for kind in &kinds {
            for (answered, idle) in [(true, kind.idle[0]), (false, kind.idle[1])] {
                clash(&mut w, ends, kind, answered, idle - SLACK, false);
                clash(&mut w, ends, kind, answered, idle + 1, true);
            }
        }
    }
}
