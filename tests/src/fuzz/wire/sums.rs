//! Checksums as RFC 1071 has them, and what keeps them: translation (RFC 1624) and a hop.

use super::{
    ETHERNET, Ends, ICMP, ICMPV6, Kind, Quote, SCTP, TCP, UDP, Wire, addresses_at, be16, octets,
    put16, read,
};
use agent_common::Reason;

/// Sum of the sixteen-bit words, as RFC 1071 adds them, modulo what ones' complement takes for zero.
pub(super) fn words(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    let mut at = 0;
    while at + 1 < bytes.len() {
        sum += u64::from(be16(bytes, at));
        at += 2;
    }
    if at < bytes.len() {
        sum += u64::from(bytes[at]) << 8;
    }
    sum % 0xffff
}

/// The checksum that makes the sum of everything what a right packet's is.
pub(super) fn complement(sum: u64) -> u16 {
    let sum = u16::try_from(sum % 0xffff).unwrap_or(0);
    // Of the two zeros ones' complement arithmetic only ever gives the one without a carry left: 0xffff.
    if sum == 0 { 0 } else { !sum }
}

/// What a transport's checksum covers beside it: RFC 9293 3.1, RFC 8200 8.1.
fn pseudo(ends: Ends, length: usize) -> u64 {
    words(&octets(ends.from.ip()))
        + words(&octets(ends.to.ip()))
        + u64::from(ends.protocol)
        + length as u64
}

/// Where a transport's checksum stands, behind the transport's beginning; and whether it covers the pseudo-header.
fn checksum_place(v4: bool, protocol: u8) -> Option<(usize, bool)> {
    match protocol {
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        ICMP if v4 => Some((2, false)),
        ICMPV6 if !v4 => Some((2, true)),
        _ => None,
    }
}

/// SCTP's checksum (RFC 9260 6.8 and appendix A): CRC32c of the packet with zeros in the checksum's place, the lowest byte first. Bit by bit.
fn crc32c(packet: &[u8]) -> u32 {
    /// 0x1EDC6F41, reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let byte = |(at, byte): (usize, &u8)| if (8..12).contains(&at) { 0 } else { *byte };
    let step = |left: u32, _| (left >> 1) ^ (POLYNOMIAL * (left & 1));
    !packet
        .iter()
        .enumerate()
        .map(byte)
        .fold(u32::MAX, |left, byte| {
            (0..8).fold(left ^ u32::from(byte), step)
        })
}

/// What stands in the place of SCTP's checksum.
fn crc_told(packet: &[u8]) -> u32 {
    u32::from_le_bytes([packet[8], packet[9], packet[10], packet[11]])
}

/// By how much a transport's sum is wrong.
fn transport_wrong_by(v4: bool, ends: Ends, transport: &[u8]) -> Option<u64> {
    if ends.protocol == SCTP {
        // Zero says that it is somebody else's to sum.
        let told = crc_told(transport);
        return (told != 0).then(|| u64::from(told ^ crc32c(transport)));
    }
    let (at, over) = checksum_place(v4, ends.protocol)?;
    if ends.protocol == UDP && be16(transport, at) == 0 {
        return None;
    }
    let extra = if over {
        pseudo(ends, transport.len())
    } else {
        0
    };
    Some((words(transport) + extra) % 0xffff)
}

/// By how much the sums of a flow's packet, of a fragment or of an ICMP error are wrong: the header's (IPv4) and the transport's, which only the
/// first fragment has. Zero is right (but for the first fragment of several, of whose datagram there is more); a datagram without a checksum has none
/// to be wrong. Translation and forwarding change neither.
pub fn wrong_by(frame: &[u8], wire: &Wire) -> (u64, Option<u64>) {
    let ip = &frame[ETHERNET..];
    let header = if wire.v4 {
        words(&ip[..wire.header])
    } else {
        0
    };
    if wire.kind == Kind::Later || wire.follows {
        return (header, None);
    }
    let transport = &ip[wire.header..wire.total];
    (header, transport_wrong_by(wire.v4, wire.ends, transport))
}

/// The same of the packet that an error quotes, as far as it is quoted: a sum over what is missing is wrong by the same before and behind translation.
pub fn wrong_by_inside(frame: &[u8], wire: &Wire, quote: &Quote) -> (u64, Option<u64>) {
    let end = ETHERNET + wire.said;
    let header = if wire.v4 {
        words(&frame[quote.header..quote.transport])
    } else {
        0
    };
    if quote.checksum.is_none() {
        return (header, None);
    }
    let transport = &frame[quote.transport..end];
    (header, transport_wrong_by(wire.v4, quote.ends, transport))
}

/// A checksum after words that it covers went from `old` to `new`.
pub(super) fn amend(frame: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let was = u64::from(!be16(frame, at));
    let sum = was + words(new) + 0xffff - words(old);
    put16(frame, at, complement(sum));
}

/// The addresses of some ends, and then their ports, as they stand in packets.
pub(super) fn written(ends: Ends) -> [Vec<u8>; 2] {
    [
        [octets(ends.from.ip()), octets(ends.to.ip())].concat(),
        [ends.from.port().to_be_bytes(), ends.to.port().to_be_bytes()].concat(),
    ]
}

/// Writes other addresses into an IP header at an offset of the frame.
pub(super) fn readdress(frame: &mut [u8], ip: usize, v4: bool, from: Ends, to: Ends) {
    let ([old, _], [new, _]) = (written(from), written(to));
    let at = ip + addresses_at(v4).0;
    frame[at..at + new.len()].copy_from_slice(&new);
    if v4 {
        amend(frame, ip + 10, &old, &new);
    }
}

/// Amends the checksum of TCP or UDP that stands at an offset of the frame, for other ends.
pub(super) fn amend_transport(frame: &mut [u8], at: usize, from: Ends, to: Ends) {
    let (old, new) = (written(from).concat(), written(to).concat());
    if from.protocol != UDP {
        amend(frame, at, &old, &new);
    } else if be16(frame, at) != 0 {
        amend(frame, at, &old, &new);
        // RFC 768: a sum of zero is sent as all ones; zero says that there is none.
        if be16(frame, at) == 0 {
            put16(frame, at, 0xffff);
        }
    }
}

/// Rewrites a packet of TCP, UDP or SCTP to other ends; of a fragment that follows the addresses alone. What its sums were wrong by, they stay wrong by.
pub fn translate(frame: &mut [u8], wire: &Wire, to: Ends) {
    readdress(frame, ETHERNET, wire.v4, wire.ends, to);
    if wire.follows {
        return;
    }
    let transport = wire.transport();
    let [_, ports] = written(to);
    if wire.ends.protocol == SCTP {
        let packet = &mut frame[transport..ETHERNET + wire.total];
        let (told, was) = (crc_told(packet), crc32c(packet));
        packet[..4].copy_from_slice(&ports);
        if told != 0 {
            let new = told ^ was ^ crc32c(packet);
            packet[8..12].copy_from_slice(&new.to_le_bytes());
        }
        return;
    }
    frame[transport..transport + 4].copy_from_slice(&ports);
    let at = if wire.ends.protocol == TCP { 16 } else { 6 };
    amend_transport(frame, transport + at, wire.ends, to);
}

/// What forwarding does to an IP packet.
pub fn hop(frame: &mut [u8], v4: bool) {
    if v4 {
        let old = frame[ETHERNET + 8..ETHERNET + 10].to_vec();
        frame[ETHERNET + 8] = frame[ETHERNET + 8].wrapping_sub(1);
        let new = frame[ETHERNET + 8..ETHERNET + 10].to_vec();
        amend(frame, ETHERNET + 10, &old, &new);
    } else {
        frame[ETHERNET + 7] = frame[ETHERNET + 7].wrapping_sub(1);
    }
}

/// Makes every sum of a packet right, where its headers are whole.
pub fn seal(frame: &mut [u8]) {
    let wire = read(frame);
    if wire.header == 0 || wire.total < wire.header || ETHERNET + wire.total > frame.len() {
        return;
    }
    if wire.v4 {
        put16(frame, ETHERNET + 10, 0);
        let sum = complement(words(&frame[ETHERNET..ETHERNET + wire.header]));
        put16(frame, ETHERNET + 10, sum);
    }
    let whole = match wire.kind {
        Kind::Flow | Kind::Link => !wire.part.is_some_and(|part| part.more),
        Kind::Unknown(reason) => reason == Reason::IcmpError,
        Kind::Later | Kind::Never(_) => false,
    };
    let (start, end) = (wire.transport(), ETHERNET + wire.total);
    if wire.ends.protocol == SCTP && whole {
        let packet = &mut frame[start..end];
        if packet.len() >= 12 && crc_told(packet) != 0 {
            let sum = crc32c(packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
        }
        return;
    }
    let Some((at, over)) = checksum_place(wire.v4, wire.ends.protocol).filter(|_| whole) else {
        return;
    };
    if end - start < at + 2 {
        return;
    }
    put16(frame, start + at, 0);
    let extra = if over {
        pseudo(wire.ends, end - start)
    } else {
        0
    };
    let mut sum = complement(words(&frame[start..end]) + extra);
    if wire.ends.protocol == UDP && sum == 0 {
        sum = 0xffff;
    }
    put16(frame, start + at, sum);
}
