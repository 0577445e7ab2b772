//! Packets that are answers, and errors about others.

use std::net::IpAddr;

use super::{
    ETHERNET, ICMP, ICMPV6, IPV4, IPV6, Kind, SCTP, TCP, UDP, addresses_at, octets, read, seal,
};

/// The packet as the other side would answer it: ends and MACs swapped, an echo's request turned into its reply, the sums right.
pub fn turn(frame: &[u8]) -> Vec<u8> {
    let wire = read(frame);
    let mut out = frame.to_vec();
    let (to, from) = (frame[..6].to_vec(), frame[6..12].to_vec());
    out[..6].copy_from_slice(&from);
    out[6..12].copy_from_slice(&to);
    if wire.header == 0 {
        return out;
    }
    let (at, size) = addresses_at(wire.v4);
    let at = ETHERNET + at;
    out[at..at + size].copy_from_slice(&frame[at + size..at + 2 * size]);
    out[at + size..at + 2 * size].copy_from_slice(&frame[at..at + size]);
    let transport = wire.transport();
    match wire.ends.protocol {
        _ if wire.kind != Kind::Flow => {}
        TCP | UDP | SCTP => {
            out[transport..transport + 2].copy_from_slice(&frame[transport + 2..transport + 4]);
            out[transport + 2..transport + 4].copy_from_slice(&frame[transport..transport + 2]);
        }
        // The other family's is any protocol, and may have nothing behind its header.
        ICMP | ICMPV6 => {
            if let Some(kind) = out.get_mut(transport) {
                *kind = match (wire.v4, *kind) {
                    (true, 8) => 0,
                    (true, 0) => 8,
                    (false, 128) => 129,
                    (false, 129) => 128,
                    (_, other) => other,
                };
            }
        }
        _ => {}
    }
    seal(&mut out);
    out
}

/// A packet of these ends around a transport, its sums to be sealed: what a host sends as an answer of its own (no options, and in IPv4
/// identification 0 and "don't fragment", RFC 6864 4.1).
pub fn datagram(macs: &[u8], from: IpAddr, to: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    const HOPS: u8 = 64;
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = macs.to_vec();
    if from.is_ipv4() {
        frame.extend(IPV4.to_be_bytes());
        frame.extend([0x45, 0]);
        frame.extend(length(20 + transport.len()));
        frame.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
    } else {
        frame.extend(IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length(transport.len()));
        frame.extend([protocol, HOPS]);
    }
    frame.extend(octets(from));
    frame.extend(octets(to));
    frame.extend(transport);
    frame
}

/// An ICMP error of a family's type and code, with nothing to say but the packet that it quotes.
pub fn error(
    macs: &[u8],
    from: IpAddr,
    to: IpAddr,
    [kind, code]: [u8; 2],
    quote: &[u8],
) -> Vec<u8> {
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    let transport = [&[kind, code, 0, 0, 0, 0, 0, 0][..], quote].concat();
    let mut frame = datagram(macs, from, to, protocol, &transport);
    seal(&mut frame);
    frame
}
