//! Shapes of packets: chains of extension headers, and what ends of associations say.

use super::super::step::Edit;
use crate::dice::Dice;
use crate::packet::build::Packet;

/// The verification tags that packets to who begins an association bear, and to who is asked; and one that nobody has.
pub(super) const CALLERS_TAG: u32 = 0x0a0b_0c0d;
/// See [`CALLERS_TAG`].
pub(super) const CALLEES_TAG: u32 = 0x5060_7080;
/// See [`CALLERS_TAG`].
const NOBODYS_TAG: u32 = 9;

/// Extension headers before a packet's transport, mostly such as are walked to their end.
pub(super) fn chain(dice: &mut Dice, packet: Packet) -> Packet {
    /// Options that say nothing: padding of six bytes (RFC 8200 4.2).
    const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
    let headers = *dice.pick(&[1, 1, 1, 1, 2, 2, 2, 3, 5, 6, 7, 7]);
    let packet = (0..headers).fold(packet, |packet, n| match dice.below(20) {
        0..=2 if n == 0 => packet.extension(0, &PADDING),
        0 if headers > 2 => packet.extension(0, &PADDING),
        // A routing header whose stops lie behind, one with a stop left, and one that RFC 5095 forbids.
        3 | 4 => packet.extension(43, &[2, 0, 0, 0, 0, 0]),
        5 => packet.extension(43, &[2, 1, 0, 0, 0, 0]),
        6 if dice.chance(50) => packet.extension(43, &[0; 6]),
        7 | 8 => packet.extension(51, &[7; 10]),
        9 => packet.extension(60, &[0; 126]),
        _ => packet.extension(60, &PADDING),
    });
    if dice.chance(15) {
        packet.fragment(0, false)
    } else {
        packet
    }
}

/// What answers SCTP: INIT ACK, DATA, ABORT and SHUTDOWN COMPLETE with its own tag, reflected or with a wrong one, and another INIT.
pub(super) fn answer_chunk(dice: &mut Dice) -> Option<Edit> {
    let chunk = *dice.pick(&[
        Edit::Chunk(2, 0, CALLERS_TAG, CALLEES_TAG),
        Edit::Chunk(2, 0, CALLERS_TAG, CALLEES_TAG),
        Edit::Chunk(0, 3, CALLERS_TAG, 1),
        Edit::Chunk(6, 0, CALLERS_TAG, 0),
        Edit::Chunk(6, 1, CALLEES_TAG, 0),
        Edit::Chunk(14, 0, CALLERS_TAG, 0),
        Edit::Chunk(6, 0, NOBODYS_TAG, 0),
        Edit::Chunk(1, 0, 0, CALLEES_TAG),
    ]);
    dice.chance(80).then_some(chunk)
}

/// What follows in an association, likewise.
pub(super) fn next_chunk(dice: &mut Dice) -> Option<Edit> {
    let chunk = *dice.pick(&[
        Edit::Chunk(10, 0, CALLEES_TAG, 1),
        Edit::Chunk(0, 3, CALLEES_TAG, 1),
        Edit::Chunk(6, 0, CALLEES_TAG, 0),
        Edit::Chunk(14, 1, CALLERS_TAG, 0),
        Edit::Chunk(6, 0, NOBODYS_TAG, 0),
        Edit::Chunk(1, 0, 0, CALLERS_TAG),
        Edit::Chunk(1, 0, 0, CALLERS_TAG),
        Edit::Chunk(1, 0, NOBODYS_TAG, CALLERS_TAG),
    ]);
    dice.chance(80).then_some(chunk)
}
