//! The answer to a packet that is refused: RST (RFC 9293 3.10.7.1), or ICMP port unreachable (RFC 792, RFC 4443 3.1).

use agent_common::{Reason, event_kind, hook};

use super::super::wire::{self, ETHERNET};
use super::{Arrival, Expected, Model, Told, Verdict};

/// Bytes of the transport that an error quotes (RFC 792).
const QUOTE: usize = 8;

impl Model {
    /// Refuses a packet: answers it where the client should learn of the reason at once, else drops it.
    pub(super) fn refuses(&mut self, at: &Arrival<'_>, reason: Reason) -> Expected {
        let dropped = self.drops(at, reason);
        let answered = matches!(
            reason,
            Reason::NoEndpoint | Reason::NoServicePort | Reason::BackendGone
        ) || (reason == Reason::Midstream
            && at.hook == hook::FROM_POD
            && self.cluster.is_cluster_ip(at.wire.ends.to.ip()));
        if !answered {
            return dropped;
        }
        let refused = Expected {
            told: Some(Told {
                kind: event_kind::REJECT,
                reason: Some(reason),
            }),
            limited: true,
            ..dropped
        };
        let answer = if at.wire.ends.protocol == wire::TCP {
            reset(at)
        } else {
            unreachable(at)
        };
        match answer {
            Some(frame) => Expected {
                verdict: Verdict::Redirect,
                frame,
                ..refused
            },
            None => refused,
        }
    }
}

/// Ethernet addresses of an answer.
fn macs(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6]].concat()
}

/// A segment gets the reset that a closed port would send; a reset gets none.
fn reset(at: &Arrival<'_>) -> Option<Vec<u8>> {
    let (wire, ends) = (&at.wire, at.wire.ends);
    if wire.flags & wire::RST != 0 {
        return None;
    }
    let segment = &at.frame[wire.transport()..];
    let number = |at: usize| {
        u32::from_be_bytes([
            segment[at],
            segment[at + 1],
            segment[at + 2],
            segment[at + 3],
        ])
    };
    let headers = wire.header + usize::from(segment[12] >> 4) * 4;
    let data = u32::try_from(wire.total.saturating_sub(headers)).unwrap_or(0);
    let occupied =
        data + u32::from(wire.flags & wire::SYN != 0) + u32::from(wire.flags & wire::FIN != 0);
    let (sequence, acknowledgement, flags) = if wire.flags & wire::ACK != 0 {
        (number(8), 0, wire::RST)
    } else {
        (0, number(4).wrapping_add(occupied), wire::RST | wire::ACK)
    };
    let transport = [
        &ends.to.port().to_be_bytes()[..],
        &ends.from.port().to_be_bytes(),
        &sequence.to_be_bytes(),
        &acknowledgement.to_be_bytes(),
        &[0x50, flags, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut frame = wire::datagram(
        &macs(at.frame),
        ends.to.ip(),
        ends.from.ip(),
        wire::TCP,
        &transport,
    );
    wire::seal(&mut frame);
    Some(frame)
}

/// Anything else gets an error that quotes its headers; what is too short to quote, or has IP options, gets nothing.
fn unreachable(at: &Arrival<'_>) -> Option<Vec<u8>> {
    let wire = &at.wire;
    let quoted = ETHERNET + wire.header + QUOTE;
    if at.frame.len() < quoted || (wire.v4 && wire.header != 20) {
        return None;
    }
    let (protocol, kind, code) = if wire.v4 {
        (wire::ICMP, 3, 3)
    } else {
        (wire::ICMPV6, 1, 4)
    };
    let mut transport = vec![kind, code, 0, 0, 0, 0, 0, 0];
    transport.extend(&at.frame[ETHERNET..quoted]);
    let mut frame = wire::datagram(
        &macs(at.frame),
        wire.ends.to.ip(),
        wire.ends.from.ip(),
        protocol,
        &transport,
    );
    wire::seal(&mut frame);
    Some(frame)
}
