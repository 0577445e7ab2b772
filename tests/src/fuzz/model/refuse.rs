//! The answer to a packet that is refused: RST (RFC 9293 3.10.7.1), or ICMP port unreachable (RFC 792, RFC 4443 3.1).

use agent_common::{Reason, event_kind, hook};

use super::super::wire::{self, ETHERNET};
use super::hooks::is_multicast;
use super::{Arrival, Expected, Model, Told, Verdict};
use crate::packet::build::DESTINATION_MAC;

/// The longest error, from its IP header on: RFC 1812 4.3.2.3, and IPv6's least MTU (RFC 4443 2.4 c).
const LONGEST_V4: usize = 576;
/// See [`LONGEST_V4`].
const LONGEST_V6: usize = 1280;

impl Model {
    /// Refuses a packet: answers it where the client should learn of the reason at once, else drops it.
    pub(super) fn refuses(&mut self, at: &Arrival<'_>, reason: Reason) -> Expected {
        let dropped = self.drops(at, reason);
        // To the pod that asked, and to the outside: nobody learns of what the stack brings.
        let answered = matches!(
            reason,
            Reason::NoEndpoint
                | Reason::NoServicePort
                | Reason::BackendGone
                | Reason::ClusterIpFromOutside
                | Reason::Midstream
        );
        if !answered || !answerable(at) {
            return dropped;
        }
        let frame = if at.wire.ends.protocol == wire::TCP {
            reset(at)
        } else {
            unreachable(at)
        };
        Expected {
            verdict: Verdict::Redirect,
            frame,
            told: Some(Told {
                kind: event_kind::REJECT,
                reason: Some(reason),
            }),
            limited: true,
        }
    }
}

/// Whether anybody may be told (RFC 1122 3.2.2, RFC 4443 2.4 e, RFC 9293 3.5.2): no reset, no fragment but the first, nobody's and no group's
/// source, no frame to a group or to another station.
fn answerable(at: &Arrival<'_>) -> bool {
    let source = at.wire.ends.from.ip();
    let reset = at.wire.ends.protocol == wire::TCP && at.wire.flags & wire::RST != 0;
    let nobody = source.is_unspecified() || source.is_loopback() || is_multicast(source);
    let another = at.hook == hook::FROM_UPLINK && at.frame[..6] != DESTINATION_MAC;
    !(reset || at.wire.follows || nobody || another || at.frame[0] & 1 != 0)
}

/// Ethernet addresses of an answer.
fn macs(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6]].concat()
}

/// A segment gets the reset that a closed port would send.
fn reset(at: &Arrival<'_>) -> Vec<u8> {
    let (wire, ends) = (&at.wire, at.wire.ends);
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
    frame
}

/// Anything else gets an error that quotes it, as much as an error may.
fn unreachable(at: &Arrival<'_>) -> Vec<u8> {
    let (wire, ends) = (&at.wire, at.wire.ends);
    let (code, room) = if wire.v4 {
        ([3, 3], LONGEST_V4 - 28)
    } else {
        ([1, 4], LONGEST_V6 - 48)
    };
    let quote = &at.frame[ETHERNET..ETHERNET + wire.said.min(room)];
    wire::error(&macs(at.frame), ends.to.ip(), ends.from.ip(), code, quote)
}
