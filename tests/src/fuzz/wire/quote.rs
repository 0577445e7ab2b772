//! The packet that an ICMP error is about: where it stands in the error, whose it is, and how it is written anew.

use agent_common::Reason;

use super::sums::{amend, amend_transport, readdress, written};
use super::{
    ETHERNET, Ends, ICMP, ICMPV6, Kind, SCTP, TCP, UDP, Wire, addresses_at, be16, read::ends_v4,
    read::ends_v6,
};

/// ICMP's own header, in both families.
const HEADER: usize = 8;
/// Bytes of the quoted transport that tell anything (RFC 792).
const LEAST: usize = 8;

/// A packet that is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Its ends, as [`super::read()`] has them.
    pub ends: Ends,
    /// Where its IP header begins in the frame.
    pub header: usize,
    /// Where its transport begins.
    pub transport: usize,
    /// Where its transport's checksum stands, if it has one and that is quoted.
    pub checksum: Option<usize>,
}

/// What an ICMP error quotes; `None` where it is about no packet, or about one whose ends cannot be told.
pub fn quoted(frame: &[u8], wire: &Wire) -> Option<Quote> {
    if wire.kind != Kind::Unknown(Reason::IcmpError) {
        return None;
    }
    let message = wire.transport();
    // Unreachable, time exceeded, parameter problem; in IPv6 unreachable, too big, time exceeded, parameter problem.
    let about: &[u8] = if wire.v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
    if !about.contains(&frame[message]) {
        return None;
    }
    // What stands in the frame behind the packet's end is no part of it.
    let end = ETHERNET + wire.said;
    let header = message + HEADER;
    let quote = frame.get(header..end)?;
    let (mut ends, bytes) = if wire.v4 {
        ends_quoted_v4(quote)?
    } else {
        ends_quoted_v6(quote)?
    };
    let transport = quote.get(bytes..).filter(|rest| rest.len() >= LEAST)?;
    let port = |at| be16(transport, at);
    match (ends.protocol, transport[0]) {
        (TCP | UDP | SCTP, _) => {
            ends.from.set_port(port(0));
            ends.to.set_port(port(2));
        }
        (ICMP, 8) if wire.v4 => ends.from.set_port(port(4)),
        (ICMP, 0) if wire.v4 => ends.to.set_port(port(4)),
        // Of an error there is no error (RFC 1122 3.2.2, RFC 4443 2.4 e).
        (ICMP, 3 | 4 | 5 | 11 | 12) if wire.v4 => return None,
        (ICMPV6, 128) if !wire.v4 => ends.from.set_port(port(4)),
        (ICMPV6, 129) if !wire.v4 => ends.to.set_port(port(4)),
        (ICMPV6, 0..=127) if !wire.v4 => return None,
        _ => {}
    }
    let transport = header + bytes;
    let checksum = match ends.protocol {
        TCP => Some(transport + 16),
        UDP if port(6) != 0 => Some(transport + 6),
        _ => None,
    };
    Some(Quote {
        ends,
        header,
        transport,
        checksum: checksum.filter(|at| at + 2 <= end),
    })
}

fn ends_quoted_v4(ip: &[u8]) -> Option<(Ends, usize)> {
    if ip.len() < 20 {
        return None;
    }
    let bytes = usize::from(ip[0] & 15) * 4;
    // Fragments but the first show no ports.
    let whole = ip[0] >> 4 == 4 && bytes >= 20 && be16(ip, 6) & 0x1fff == 0;
    whole.then(|| (ends_v4(ip, ip[9]), bytes))
}

fn ends_quoted_v6(ip: &[u8]) -> Option<(Ends, usize)> {
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return None;
    }
    // What is behind extension headers is not looked for: then this is a protocol that no flow has.
    let (ends, mapped) = ends_v6(ip, ip[6]);
    (!mapped).then_some((ends, 40))
}

/// Writes an error anew: its own addresses to those of `outer`, and the packet that it quotes to `inner`. What any of its sums were wrong by, they
/// stay wrong by.
pub fn rewrite_error(frame: &mut [u8], wire: &Wire, quote: &Quote, outer: Ends, inner: Ends) {
    let message = wire.transport();
    let end = ETHERNET + wire.said;
    let covered = |frame: &[u8]| {
        let (at, size) = addresses_at(wire.v4);
        // RFC 4443 2.3: ICMPv6's covers the addresses too. Its own place counts for nothing.
        let addresses: &[u8] = if wire.v4 {
            &[]
        } else {
            &frame[ETHERNET + at..ETHERNET + at + 2 * size]
        };
        [addresses, &frame[message + 4..end]].concat()
    };
    let old = covered(frame);
    readdress(frame, ETHERNET, wire.v4, wire.ends, outer);
    readdress(frame, quote.header, wire.v4, quote.ends, inner);
    let [_, ports] = written(inner);
    frame[quote.transport..quote.transport + 4].copy_from_slice(&ports);
    if let Some(at) = quote.checksum {
        amend_transport(frame, at, quote.ends, inner);
    }
    let new = covered(frame);
    amend(frame, message + 2, &old, &new);
}
