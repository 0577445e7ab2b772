//! Packets in. Every checksum and length is right unless a row damages it.

pub mod sctp;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::crc32c;
use super::seen::{checksum, pseudo_header};

/// Ethernet header.
pub const ETHERNET: usize = 14;
/// The MAC that packets in come from, in rows that do not care.
pub const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
/// The MAC that packets in go to.
pub const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

/// TCP flags.
pub mod tcp {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// PSH.
    pub const PSH: u8 = 8;
    /// ACK.
    pub const ACK: u8 = 16;
}

#[derive(Clone, Debug)]
enum Body {
    Tcp {
        from: u16,
        to: u16,
        sequence: u32,
        acknowledgement: u32,
        flags: u8,
        options: Vec<u8>,
    },
    Udp {
        from: u16,
        to: u16,
        checksum: bool,
    },
    Sctp {
        from: u16,
        to: u16,
        tag: u32,
        summed: bool,
    },
    /// ICMP of the packet's family: type, code, and the four bytes behind the checksum.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Other,
    /// A whole frame behind its Ethernet header, which is of this type.
    Frame {
        ether_type: u16,
    },
}

/// A packet to be made.
#[derive(Clone, Debug)]
pub struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    hops: u8,
    body: Body,
    data: Vec<u8>,
    options: Vec<u8>,
    id: u32,
    fragment: Option<(u16, bool)>,
    extensions: Vec<(u8, Vec<u8>)>,
    damage: Vec<(usize, u8)>,
    cut: Option<usize>,
    padding: usize,
}

impl Packet {
    fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: Body) -> Self {
        Self {
            source,
            destination,
            protocol,
            hops: 64,
            body,
            data: Vec::new(),
            options: Vec::new(),
            id: 0x1234,
            fragment: None,
            extensions: Vec::new(),
            damage: Vec::new(),
            cut: None,
            padding: 0,
        }
    }

    /// A TCP segment with these flags.
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        let body = Body::Tcp {
            from: from.port(),
            to: to.port(),
            sequence: 0x1000_0000,
            acknowledgement: if flags & tcp::ACK != 0 {
                0x2000_0000
            } else {
                0
            },
            flags,
            options: Vec::new(),
        };
        Self::new(from.ip(), to.ip(), 6, body)
    }

    /// The first segment of a connection.
    pub fn syn(from: SocketAddr, to: SocketAddr) -> Self {
        Self::tcp(from, to, tcp::SYN)
    }

    /// The answer to the first.
    pub fn syn_ack(from: SocketAddr, to: SocketAddr) -> Self {
        Self::tcp(from, to, tcp::SYN | tcp::ACK)
    }

    /// A segment of an established connection.
    pub fn ack(from: SocketAddr, to: SocketAddr) -> Self {
        Self::tcp(from, to, tcp::ACK)
    }

    /// A UDP datagram.
    pub fn udp(from: SocketAddr, to: SocketAddr) -> Self {
        let body = Body::Udp {
            from: from.port(),
            to: to.port(),
            checksum: true,
        };
        Self::new(from.ip(), to.ip(), 17, body).data(b"datagram")
    }

    /// An SCTP packet without chunks.
    pub fn sctp(from: SocketAddr, to: SocketAddr) -> Self {
        let body = Body::Sctp {
            from: from.port(),
            to: to.port(),
            tag: 0,
            summed: true,
        };
        Self::new(from.ip(), to.ip(), 132, body)
    }

    /// ICMP (of the addresses' family) with a type, a code and the four bytes that follow the checksum.
    pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        let protocol = if from.is_ipv4() { 1 } else { 58 };
        Self::new(from, to, protocol, Body::Icmp { kind, code, rest }).data(b"eight by")
    }

    /// An echo request.
    pub fn ping(from: IpAddr, to: IpAddr, id: u16) -> Self {
        let [a, b] = id.to_be_bytes();
        Self::icmp(
            from,
            to,
            if from.is_ipv4() { 8 } else { 128 },
            0,
            [a, b, 0, 1],
        )
    }

    /// An echo reply.
    pub fn pong(from: IpAddr, to: IpAddr, id: u16) -> Self {
        let [a, b] = id.to_be_bytes();
        Self::icmp(
            from,
            to,
            if from.is_ipv4() { 0 } else { 129 },
            0,
            [a, b, 0, 1],
        )
    }

    /// A packet of a protocol that nothing here knows.
    pub fn other(from: IpAddr, to: IpAddr, protocol: u8) -> Self {
        Self::new(from, to, protocol, Body::Other).data(&[0; 16])
    }

    /// An ARP request of `sender` for `target`.
    pub fn arp(sender: [u8; 4], target: [u8; 4]) -> Self {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(SOURCE_MAC);
        arp.extend(sender);
        arp.extend([0; 6]);
        arp.extend(target);
        Self::frame(0x0806, &arp)
    }

    /// A neighbour solicitation, with the hop limit that RFC 4861 asks for.
    pub fn neighbour_solicitation(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Self {
        Self::icmp(from.into(), to.into(), 135, 0, [0; 4])
            .data(&target.octets())
            .hops(255)
    }

    /// A version 2 multicast listener report behind its router alert.
    pub fn listener_report(from: Ipv6Addr) -> Self {
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
        Self::icmp(from.into(), routers.into(), 143, 0, [0; 4])
            .hops(1)
            .extension(0, &[5, 2, 0, 0, 1, 0])
    }

    /// A frame of another type.
    pub fn frame(ether_type: u16, content: &[u8]) -> Self {
        let none = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        Self::new(none, none, 0, Body::Frame { ether_type }).data(content)
    }

    /// Replaces the data behind the transport header.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    /// Sets the time to live or hop limit.
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// Sets TCP's sequence and acknowledgement numbers.
    pub fn numbers(mut self, seq: u32, ack: u32) -> Self {
        if let Body::Tcp {
            sequence,
            acknowledgement,
            ..
        } = &mut self.body
        {
            (*sequence, *acknowledgement) = (seq, ack);
        }
        self
    }

    /// Adds TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = bytes.to_vec();
        }
        self
    }

    /// Leaves out UDP's checksum (RFC 768: zero says there is none).
    pub fn without_checksum(mut self) -> Self {
        if let Body::Udp { checksum, .. } = &mut self.body {
            *checksum = false;
        }
        self
    }

    /// Adds IPv4 options, a multiple of four bytes.
    pub fn ip_options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self
    }

    /// Makes it a fragment: offset in units of eight bytes, and whether more follow. For IPv6 with a fragment header.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Sets the identification, of which IPv4 has 16 bits.
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// The packet in fragments whose bytes of it are so many at most, a multiple of eight. Extension headers stand before the fragment header
    /// of each.
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        let whole = self.transport();
        let count = whole.len().div_ceil(size);
        let part = |(n, bytes): (usize, &[u8])| Self {
            body: Body::Other,
            data: bytes.to_vec(),
            fragment: Some((
                u16::try_from(n * size / 8).unwrap_or(u16::MAX),
                n + 1 < count,
            )),
            ..self.clone()
        };
        whole.chunks(size).enumerate().map(part).collect()
    }

    /// Adds an IPv6 extension header of `kind` behind those that are there already; `content` is what follows its first two bytes. Its length
    /// counts in eight bytes, of an authentication header (51) in four.
    pub fn extension(mut self, kind: u8, content: &[u8]) -> Self {
        self.extensions.push((kind, content.to_vec()));
        self
    }

    /// Overwrites the byte at an offset of the frame, checksums left as they are.
    pub fn damage(mut self, offset: usize, value: u8) -> Self {
        self.damage.push((offset, value));
        self
    }

    /// Cuts the frame to so many bytes.
    pub fn cut(mut self, length: usize) -> Self {
        self.cut = Some(length);
        self
    }

    /// Appends bytes behind the IP packet, as Ethernet does with short frames.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = [DESTINATION_MAC, SOURCE_MAC].concat();
        match (&self.body, self.source) {
            (Body::Frame { ether_type }, _) => {
                frame.extend(ether_type.to_be_bytes());
                frame.extend(&self.data);
            }
            (_, IpAddr::V4(_)) => {
                frame.extend([8, 0]);
                frame.extend(self.v4());
            }
            (_, IpAddr::V6(_)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.v6());
            }
        }
        frame.extend(vec![0; self.padding]);
        for (offset, value) in &self.damage {
            frame[*offset] = *value;
        }
        if let Some(length) = self.cut {
            frame.truncate(length);
        }
        frame
    }

    fn v4(&self) -> Vec<u8> {
        let transport = self.transport();
        let header = 20 + self.options.len();
        let total = u16::try_from(header + transport.len()).unwrap_or(u16::MAX);
        let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap_or(15), 0];
        ip.extend(total.to_be_bytes());
        ip.extend(&self.id.to_be_bytes()[2..]);
        let word = match self.fragment {
            Some((offset, more)) => offset | (u16::from(more) << 13),
            None => 1 << 14,
        };
        ip.extend(word.to_be_bytes());
        ip.extend([self.hops, self.protocol, 0, 0]);
        ip.extend(octets(self.source));
        ip.extend(octets(self.destination));
        ip.extend(&self.options);
        let check = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        ip.extend(transport);
        ip
    }

    fn v6(&self) -> Vec<u8> {
        let mut payload = self.transport();
        let mut next = self.protocol;
        if let Some((offset, more)) = self.fragment {
            let [a, b] = ((offset << 3) | u16::from(more)).to_be_bytes();
            payload = [vec![next, 0, a, b], self.id.to_be_bytes().to_vec(), payload].concat();
            next = 44;
        }
        for (kind, content) in self.extensions.iter().rev() {
            payload = [extension(next, *kind, content), payload].concat();
            next = *kind;
        }
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([next, self.hops]);
        ip.extend(octets(self.source));
        ip.extend(octets(self.destination));
        ip.extend(payload);
        ip
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let check_at = match &self.body {
            Body::Tcp {
                from,
                to,
                sequence,
                acknowledgement,
                flags,
                options,
            } => {
                out.extend(from.to_be_bytes());
                out.extend(to.to_be_bytes());
                out.extend(sequence.to_be_bytes());
                out.extend(acknowledgement.to_be_bytes());
                let words = u8::try_from(5 + options.len() / 4).unwrap_or(15);
                out.extend([words << 4, *flags, 0x20, 0, 0, 0, 0, 0]);
                out.extend(options);
                Some(16)
            }
            Body::Udp { from, to, checksum } => {
                out.extend(from.to_be_bytes());
                out.extend(to.to_be_bytes());
                let length = u16::try_from(8 + self.data.len()).unwrap_or(u16::MAX);
                out.extend(length.to_be_bytes());
                out.extend([0, 0]);
                checksum.then_some(6)
            }
            Body::Sctp { from, to, tag, .. } => {
                out.extend(from.to_be_bytes());
                out.extend(to.to_be_bytes());
                out.extend(tag.to_be_bytes());
                out.extend([0; 4]);
                None
            }
            Body::Icmp { kind, code, rest } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                Some(2)
            }
            Body::Other | Body::Frame { .. } => None,
        };
        out.extend(&self.data);
        if let Body::Sctp { summed: true, .. } = self.body {
            let sum = crc32c::of_sctp(&out);
            out[8..12].copy_from_slice(&sum);
        }
        if let Some(at) = check_at {
            let pseudo = if self.protocol == 1 {
                Vec::new()
            } else {
                pseudo_header(self.source, self.destination, self.protocol, out.len())
            };
            let mut check = checksum(&[&pseudo, &out]);
            if self.protocol == 17 && check == 0 {
                check = 0xffff;
            }
            out[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        out
    }
}

/// An IPv6 extension header of `kind` before a header of kind `next`.
pub fn extension(next: u8, kind: u8, content: &[u8]) -> Vec<u8> {
    let bytes = 2 + content.len();
    let length = if kind == 51 {
        bytes / 4 - 2
    } else {
        bytes / 8 - 1
    };
    [
        &[next, u8::try_from(length).unwrap_or(u8::MAX)][..],
        content,
    ]
    .concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
