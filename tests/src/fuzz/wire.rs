//! Frames as the RFCs have them, byte by byte: what a header says, and the sums that cover it. Nothing here is shared with the programs or
//! with the rows' builder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_common::Reason;

/// Ethernet's header, untagged.
pub const ETHERNET: usize = 14;
/// EtherTypes (IEEE 802, IANA "IEEE 802 Numbers").
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV6: u16 = 0x86dd;
/// IP protocols.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;
/// See [`ICMP`].
pub const SCTP: u8 = 132;
/// TCP flags, RFC 9293 3.1.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const ACK: u8 = 16;

/// The ends of a packet or of a flow's packets: addresses and ports (an echo's id stands for the port of the end that asks; protocols
/// without ports have 0), and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Where packets come from.
    pub from: SocketAddr,
    /// Where they go.
    pub to: SocketAddr,
    /// IP's protocol number.
    pub protocol: u8,
}

impl Ends {
    /// Those of packets the other way.
    pub fn turned(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            protocol: self.protocol,
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet of a flow.
    Flow,
    /// What only neighbours send each other: ARP, neighbour and router discovery, multicast listeners.
    Link,
    /// Its flow cannot be told, for this reason.
    Unknown(Reason),
}

/// What a frame says.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// See [`Kind`].
    pub kind: Kind,
    /// IPv4, else IPv6 or no IP.
    pub v4: bool,
    /// The ends; `::` where it is no IP packet.
    pub ends: Ends,
    /// Bytes of the IP header.
    pub header: usize,
    /// Bytes of the IP packet, as its header has it.
    pub total: usize,
    /// Time to live or hop limit.
    pub hops: u8,
    /// TCP's flags, else 0.
    pub flags: u8,
    /// The sender that an ARP packet for IPv4 over Ethernet names.
    pub arp_sender: Option<IpAddr>,
}

impl Wire {
    /// A SYN without an ACK: the first segment of a connection.
    pub fn opens(&self) -> bool {
        self.ends.protocol == TCP && self.flags & (SYN | ACK) == SYN
    }

    /// Where the transport begins in the frame.
    pub fn transport(&self) -> usize {
        ETHERNET + self.header
    }
}

/// Sixteen bits in network order.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn v4_at(ip: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]).into()
}

fn v6_at(ip: &[u8], at: usize) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&ip[at..at + 16]);
    bytes.into()
}

/// Reads a frame.
pub fn read(frame: &[u8]) -> Wire {
    let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let mut wire = Wire {
        kind: Kind::Unknown(Reason::Malformed),
        v4: false,
        ends: Ends {
            from: nowhere,
            to: nowhere,
            protocol: 0,
        },
        header: 0,
        total: 0,
        hops: 0,
        flags: 0,
        arp_sender: None,
    };
    let ip = &frame[ETHERNET..];
    wire.kind = match be16(frame, 12) {
        IPV4 if ip.len() >= 20 => read_v4(ip, &mut wire),
        IPV6 if ip.len() >= 40 => read_v6(ip, &mut wire),
        IPV4 | IPV6 => Kind::Unknown(Reason::Malformed),
        ARP => {
            // Sizes of the addresses, then sender's hardware address at 8, its protocol address at 14 (RFC 826).
            if ip.len() >= 18 && ip[4..6] == [6, 4] {
                wire.arp_sender = Some(v4_at(ip, 14));
            }
            Kind::Link
        }
        tag if VLAN.contains(&tag) => Kind::Unknown(Reason::Vlan),
        _ => Kind::Unknown(Reason::Ethertype),
    };
    wire
}

fn read_v4(ip: &[u8], wire: &mut Wire) -> Kind {
    wire.v4 = true;
    wire.ends.from = SocketAddr::new(v4_at(ip, 12), 0);
    wire.ends.to = SocketAddr::new(v4_at(ip, 16), 0);
    wire.ends.protocol = ip[9];
    wire.hops = ip[8];
    wire.header = usize::from(ip[0] & 15) * 4;
    wire.total = usize::from(be16(ip, 2));
    if ip[0] >> 4 != 4 || wire.header < 20 || wire.total < wire.header || wire.total > ip.len() {
        return Kind::Unknown(Reason::Malformed);
    }
    // More fragments, or an offset (RFC 791 3.1).
    if be16(ip, 6) & 0x3fff != 0 {
        return Kind::Unknown(Reason::Fragment);
    }
    let transport = &ip[wire.header..wire.total];
    match ip[9] {
        ICMP => icmp(transport, wire, [8, 0], |kind| {
            if matches!(kind, 3 | 4 | 5 | 11 | 12) {
                Kind::Unknown(Reason::IcmpError)
            } else {
                Kind::Flow
            }
        }),
        protocol => ported(protocol, transport, wire),
    }
}

fn read_v6(ip: &[u8], wire: &mut Wire) -> Kind {
    let (source, destination) = (v6_at(ip, 8), v6_at(ip, 24));
    wire.ends.from = SocketAddr::new(source.into(), 0);
    wire.ends.to = SocketAddr::new(destination.into(), 0);
    wire.ends.protocol = ip[6];
    wire.hops = ip[7];
    wire.header = 40;
    wire.total = 40 + usize::from(be16(ip, 4));
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped().is_some();
    if ip[0] >> 4 != 6 || wire.total > ip.len() || mapped(source) || mapped(destination) {
        return Kind::Unknown(Reason::Malformed);
    }
    let hops = wire.hops;
    // RFC 2710 3, RFC 3810 5.
    let listener = |kind: u8| hops == 1 && matches!(kind, 130..=132 | 143);
    let transport = &ip[40..wire.total];
    match ip[6] {
        // A router alert before a listener's message is the one extension header that is looked through. Today's rule reads it where
        // the frame has it, be it behind the packet's own end.
        0 => match ip.get(40..50) {
            None => Kind::Unknown(Reason::Malformed),
            Some(next) if next[0] == ICMPV6 && next[1] == 0 && listener(next[8]) => Kind::Link,
            Some(_) => Kind::Unknown(Reason::ExtensionHeader),
        },
        44 => Kind::Unknown(Reason::Fragment),
        43 | 51 | 60 | 135 => Kind::Unknown(Reason::ExtensionHeader),
        ICMPV6 => icmp(transport, wire, [128, 129], |kind| match kind {
            // RFC 4443 2.1: errors.
            0..=127 => Kind::Unknown(Reason::IcmpError),
            // RFC 4861 7.1: with another hop limit it is none.
            133..=137 if hops == 255 => Kind::Link,
            _ if listener(kind) => Kind::Link,
            _ => Kind::Flow,
        }),
        protocol => ported(protocol, transport, wire),
    }
}

fn ported(protocol: u8, transport: &[u8], wire: &mut Wire) -> Kind {
    let least = match protocol {
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        _ => return Kind::Flow,
    };
    if transport.len() < least {
        return Kind::Unknown(Reason::Malformed);
    }
    wire.ends.from.set_port(be16(transport, 0));
    wire.ends.to.set_port(be16(transport, 2));
    if protocol == TCP {
        wire.flags = transport[13];
    }
    Kind::Flow
}

fn icmp(
    transport: &[u8],
    wire: &mut Wire,
    [request, reply]: [u8; 2],
    otherwise: impl Fn(u8) -> Kind,
) -> Kind {
    if transport.len() < 8 {
        return Kind::Unknown(Reason::Malformed);
    }
    let kind = transport[0];
    if kind == request {
        wire.ends.from.set_port(be16(transport, 4));
        Kind::Flow
    } else if kind == reply {
        wire.ends.to.set_port(be16(transport, 4));
        Kind::Flow
    } else {
        otherwise(kind)
    }
}

/// An address's bytes as they stand in its header.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Sum of the sixteen-bit words, as RFC 1071 adds them, modulo what ones' complement takes for zero.
fn words(bytes: &[u8]) -> u64 {
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
fn complement(sum: u64) -> u16 {
    let sum = u16::try_from(sum % 0xffff).unwrap_or(0);
    // Of the two zeros ones' complement arithmetic only ever gives the one without a carry left: 0xffff.
    if sum == 0 { 0 } else { !sum }
}

fn pseudo(wire: &Wire, length: usize) -> u64 {
    words(&octets(wire.ends.from.ip()))
        + words(&octets(wire.ends.to.ip()))
        + u64::from(wire.ends.protocol)
        + length as u64
}

/// Where the transport's checksum stands, behind the transport's beginning; and whether it covers the pseudo-header.
fn checksum_place(wire: &Wire) -> Option<(usize, bool)> {
    match wire.ends.protocol {
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        ICMP if wire.v4 => Some((2, false)),
        ICMPV6 if !wire.v4 => Some((2, true)),
        _ => None,
    }
}

/// By how much the sums of a flow's packet are wrong: the header's (IPv4) and the transport's. Zero is right; a datagram without a checksum
/// has none to be wrong. Translation and forwarding change neither.
pub fn wrong_by(frame: &[u8], wire: &Wire) -> (u64, Option<u64>) {
    let ip = &frame[ETHERNET..];
    let header = if wire.v4 {
        words(&ip[..wire.header])
    } else {
        0
    };
    let transport = &ip[wire.header..wire.total];
    let Some((at, over)) = checksum_place(wire) else {
        return (header, None);
    };
    if wire.ends.protocol == UDP && be16(transport, at) == 0 {
        return (header, None);
    }
    let extra = if over {
        pseudo(wire, transport.len())
    } else {
        0
    };
    (header, Some((words(transport) + extra) % 0xffff))
}

/// A checksum after words that it covers went from `old` to `new`.
fn amend(frame: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let was = u64::from(!be16(frame, at));
    let sum = was + words(new) + 0xffff - words(old);
    put16(frame, at, complement(sum));
}

/// Rewrites a packet of TCP or UDP to other ends. What its sums were wrong by, they stay wrong by.
pub fn translate(frame: &mut [u8], wire: &Wire, to: Ends) {
    let transport = wire.transport();
    let (addresses, ports) = (
        |ends: Ends| [octets(ends.from.ip()), octets(ends.to.ip())].concat(),
        |ends: Ends| [ends.from.port().to_be_bytes(), ends.to.port().to_be_bytes()].concat(),
    );
    let (old, new) = (addresses(wire.ends), addresses(to));
    let at = ETHERNET + if wire.v4 { 12 } else { 8 };
    frame[at..at + new.len()].copy_from_slice(&new);
    if wire.v4 {
        amend(frame, ETHERNET + 10, &old, &new);
    }
    let (old, new) = ([old, ports(wire.ends)].concat(), [new, ports(to)].concat());
    frame[transport..transport + 4].copy_from_slice(&ports(to));
    let at = transport + if wire.ends.protocol == TCP { 16 } else { 6 };
    if wire.ends.protocol != UDP {
        amend(frame, at, &old, &new);
    } else if be16(frame, at) != 0 {
        amend(frame, at, &old, &new);
        // RFC 768: a sum of zero is sent as all ones; zero says that there is none.
        if be16(frame, at) == 0 {
            put16(frame, at, 0xffff);
        }
    }
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
    let (start, end) = (wire.transport(), ETHERNET + wire.total);
    let Some((at, over)) = checksum_place(&wire) else {
        return;
    };
    let whole = match wire.kind {
        Kind::Flow | Kind::Link => true,
        Kind::Unknown(reason) => reason == Reason::IcmpError,
    };
    if end - start < at + 2 || !whole {
        return;
    }
    put16(frame, start + at, 0);
    let extra = if over { pseudo(&wire, end - start) } else { 0 };
    let mut sum = complement(words(&frame[start..end]) + extra);
    if wire.ends.protocol == UDP && sum == 0 {
        sum = 0xffff;
    }
    put16(frame, start + at, sum);
}

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
    let (at, size) = if wire.v4 { (12, 4) } else { (8, 16) };
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
        ICMP | ICMPV6 => {
            out[transport] = match (wire.v4, frame[transport]) {
                (true, 8) => 0,
                (true, 0) => 8,
                (false, 128) => 129,
                (false, 129) => 128,
                (_, other) => other,
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::address::{Family, at};
    use crate::packet::build::Packet;

    fn packets(family: Family) -> Vec<Vec<u8>> {
        let (a, b) = (at(family.pod(1), 40_000), at(family.pod(2), 53));
        [
            Packet::syn(a, b).data(b"odd"),
            Packet::udp(a, b).data(b"odd"),
            Packet::sctp(a, b),
            Packet::ping(a.ip(), b.ip(), 7),
            Packet::other(a.ip(), b.ip(), 47),
        ]
        .iter()
        .map(Packet::bytes)
        .collect()
    }

    #[test]
    fn the_sum_is_that_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(words(&bytes), 0xddf2);
        assert_eq!(complement(0xddf2), 0x220d);
    }

    #[test]
    fn what_the_rows_builder_makes_is_right_and_stays_when_it_is_sealed() {
        for family in [Family::V4, Family::V6] {
            for frame in packets(family) {
                let wire = read(&frame);
                let (header, transport) = wrong_by(&frame, &wire);
                assert_eq!((header, transport.unwrap_or(0)), (0, 0), "{wire:?}");
                let mut sealed = frame.clone();
                seal(&mut sealed);
                assert_eq!(sealed, frame, "{wire:?}");
            }
        }
    }

    #[test]
    fn translation_and_a_hop_keep_what_is_wrong_as_wrong_as_it_was() {
        for family in [Family::V4, Family::V6] {
            for mut frame in packets(family).into_iter().take(2) {
                for damage in [0, 1, 0x80] {
                    let last = frame.len() - 1;
                    frame[last] ^= damage;
                    let wire = read(&frame);
                    let wrong = wrong_by(&frame, &wire);
                    let to = Ends {
                        from: at(family.cluster_ip(9), 65_535),
                        to: at(family.outside(255), 1),
                        protocol: wire.ends.protocol,
                    };
                    let mut out = frame.clone();
                    translate(&mut out, &wire, to);
                    hop(&mut out, wire.v4);
                    let there = read(&out);
                    assert_eq!((there.ends, there.hops), (to, wire.hops - 1));
                    assert_eq!(wrong_by(&out, &there), wrong);
                }
            }
        }
    }

    #[test]
    fn an_answer_goes_back_and_its_answer_is_the_packet_again() {
        for family in [Family::V4, Family::V6] {
            for frame in packets(family) {
                let answer = turn(&frame);
                assert_eq!(read(&answer).ends, read(&frame).ends.turned());
                assert_eq!(turn(&answer), frame);
            }
        }
    }
}
