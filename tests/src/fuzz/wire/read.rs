//! What a frame is (ARCHITECTURE.md, "What is parsed, and how far").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_common::{Reason, limits};

use super::{
    ARP, AUTHENTICATION, Chunk, DESTINATION, ETHERNET, Ends, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6,
    IPV4, IPV6, Kind, Part, ROUTING, SCTP, TCP, UDP, VLAN, Wire, be16, be32,
};

/// IPv6's header, without extensions.
const V6: usize = 40;
/// A datagram's longest (RFC 791 3.1, RFC 8200 4.5).
const LONGEST: usize = 65_535;

fn v4_at(ip: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]).into()
}

fn v6_at(ip: &[u8], at: usize) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&ip[at..at + 16]);
    bytes.into()
}

/// An IPv4 header's addresses.
pub(super) fn ends_v4(ip: &[u8], protocol: u8) -> Ends {
    Ends {
        from: SocketAddr::new(v4_at(ip, 12), 0),
        to: SocketAddr::new(v4_at(ip, 16), 0),
        protocol,
    }
}

/// An IPv6 header's addresses, and whether one of them would be taken for IPv4's (RFC 4291 2.5.5.2).
pub(super) fn ends_v6(ip: &[u8], protocol: u8) -> (Ends, bool) {
    let (source, destination) = (v6_at(ip, 8), v6_at(ip, 24));
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped().is_some();
    let ends = Ends {
        from: SocketAddr::new(source.into(), 0),
        to: SocketAddr::new(destination.into(), 0),
        protocol,
    };
    (ends, mapped(source) || mapped(destination))
}

/// Reads a frame.
pub fn read(frame: &[u8]) -> Wire {
    let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let mut wire = Wire {
        kind: Kind::Unknown(Reason::Malformed),
        v4: false,
        addressed: false,
        ends: Ends {
            from: nowhere,
            to: nowhere,
            protocol: 0,
        },
        header: 0,
        total: 0,
        said: 0,
        hops: 0,
        flags: 0,
        chunk: None,
        tag: 0,
        asked: 0,
        arp_sender: None,
        walked: false,
        visits: false,
        part: None,
        follows: false,
    };
    let ip = &frame[ETHERNET..];
    wire.kind = match be16(frame, 12) {
        IPV4 if ip.len() >= 20 => read_v4(ip, &mut wire),
        IPV6 if ip.len() >= V6 => read_v6(ip, &mut wire),
        IPV4 | IPV6 => Kind::Unknown(Reason::Malformed),
        ARP => {
            // Sizes of the addresses, then sender's hardware address at 8, its protocol address at 14 (RFC 826).
            if ip.len() >= 18 && ip[4..6] == [6, 4] {
                wire.arp_sender = Some(v4_at(ip, 14));
            }
            Kind::Link
        }
        // The kernel takes a frame's tag out of it: this is one behind another. Of no VLAN (802.1Q 9.6) it hides what the stack would find.
        tag if VLAN.contains(&tag) && ip.len() >= 2 && be16(ip, 0) & 0x0fff == 0 => {
            Kind::Never(Reason::Vlan)
        }
        tag if VLAN.contains(&tag) => Kind::Unknown(Reason::Vlan),
        _ => Kind::Unknown(Reason::Ethertype),
    };
    wire
}

fn read_v4(ip: &[u8], wire: &mut Wire) -> Kind {
    wire.v4 = true;
    wire.addressed = true;
    wire.ends = ends_v4(ip, ip[9]);
    wire.hops = ip[8];
    wire.header = usize::from(ip[0] & 15) * 4;
    wire.total = usize::from(be16(ip, 2));
    wire.said = wire.total;
    if ip[0] >> 4 != 4 || wire.header < 20 || wire.total < wire.header || wire.total > ip.len() {
        return Kind::Unknown(Reason::Malformed);
    }
    // More fragments, or an offset (RFC 791 3.1).
    let word = be16(ip, 6);
    if word & 0x3fff == 0 {
        return transport(ip, wire);
    }
    wire.walked = true;
    let part = Part {
        id: u32::from(be16(ip, 4)) << 16,
        shared: ip[9],
        at: usize::from(word & 0x1fff) * 8,
        length: wire.total - wire.header,
        more: word & 0x2000 != 0,
    };
    match belongs(part, wire) {
        Some(kind) => kind,
        None => whole(part, transport(ip, wire)),
    }
}

/// What a fragment is, unless it begins its datagram.
fn belongs(part: Part, wire: &mut Wire) -> Option<Kind> {
    wire.part = Some(part);
    // All but the last have whole units of eight bytes, and one at least; none ends behind the longest datagram.
    let uneven = part.more && (part.length == 0 || !part.length.is_multiple_of(8));
    if uneven || part.at + part.length > LONGEST {
        return Some(Kind::Never(Reason::Fragment));
    }
    (part.at != 0).then_some(Kind::Later)
}

/// What the first fragment of several is must stand in it whole (RFC 1858, RFC 7112); neighbours never speak in any (RFC 6980).
fn whole(part: Part, kind: Kind) -> Kind {
    match kind {
        Kind::Flow => kind,
        Kind::Link => Kind::Never(Reason::Fragment),
        _ if part.more => Kind::Never(Reason::Fragment),
        _ => kind,
    }
}

fn read_v6(ip: &[u8], wire: &mut Wire) -> Kind {
    let (ends, mapped) = ends_v6(ip, ip[6]);
    wire.addressed = true;
    wire.ends = ends;
    wire.hops = ip[7];
    wire.header = V6;
    wire.said = V6 + usize::from(be16(ip, 4));
    wire.total = wire.said;
    if ip[0] >> 4 != 6 || wire.total > ip.len() || mapped {
        return Kind::Unknown(Reason::Malformed);
    }
    if !extends(ip[6]) {
        return transport(ip, wire);
    }
    wire.walked = true;
    if ip[6] == HOP_BY_HOP && wire.said == V6 {
        // RFC 2675: how long it is stands in the options, and Linux believes the frame.
        wire.total = ip.len();
    }
    let kind = walk(ip, wire);
    match wire.part {
        Some(part) if kind != Kind::Later => whole(part, kind),
        _ => kind,
    }
}

/// Whether something may stand behind a header of this kind.
fn extends(kind: u8) -> bool {
    matches!(
        kind,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Walks the extension headers, and reads what they lead to.
fn walk(ip: &[u8], wire: &mut Wire) -> Kind {
    const BEYOND: Kind = Kind::Unknown(Reason::ExtensionHeader);
    const MALFORMED: Kind = Kind::Unknown(Reason::Malformed);
    let most = V6 + limits::EXTENSION_BYTES as usize;
    let mut kind = ip[6];
    let mut walked = 0;
    while extends(kind) {
        if walked == limits::EXTENSION_HEADERS {
            return BEYOND;
        }
        walked += 1;
        if kind == FRAGMENT && wire.part.is_some() {
            return Kind::Unknown(Reason::Fragment);
        }
        let at = wire.header;
        let Some(header) = ip.get(at..wire.total).filter(|rest| rest.len() >= 8) else {
            return MALFORMED;
        };
        let bytes = match kind {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if bytes > header.len() {
            return MALFORMED;
        }
        if kind == HOP_BY_HOP && at != V6 {
            return BEYOND;
        }
        if kind == ROUTING {
            wire.visits |= header[2] == 0;
            // What it shows as its destination is a stop on its way.
            if header[3] != 0 {
                return BEYOND;
            }
        }
        wire.header += bytes;
        if kind == FRAGMENT {
            let word = be16(header, 2);
            let part = Part {
                id: be32(header, 4),
                shared: 0,
                at: usize::from(word & !7),
                length: wire.total - wire.header,
                more: word & 1 != 0,
            };
            if let Some(kind) = belongs(part, wire) {
                return kind;
            }
        }
        if wire.header > most {
            return BEYOND;
        }
        kind = header[0];
    }
    wire.ends.protocol = kind;
    transport(ip, wire)
}

/// Reads the transport of protocol `wire.ends.protocol` behind the IP header.
fn transport(ip: &[u8], wire: &mut Wire) -> Kind {
    let transport = &ip[wire.header..wire.total];
    let hops = wire.hops;
    match wire.ends.protocol {
        ICMP if wire.v4 => icmp(transport, wire, [8, 0], |kind| {
            if matches!(kind, 3 | 4 | 5 | 11 | 12) {
                Kind::Unknown(Reason::IcmpError)
            } else {
                Kind::Flow
            }
        }),
        ICMPV6 if !wire.v4 => icmp(transport, wire, [128, 129], |kind| match kind {
            // RFC 4443 2.1: errors.
            0..=127 => Kind::Unknown(Reason::IcmpError),
            // RFC 4861 7.1: with another hop limit it is none.
            133..=137 if hops == 255 => Kind::Link,
            // RFC 2710 3, RFC 3810 5.
            130..=132 | 143 if hops == 1 => Kind::Link,
            _ => Kind::Flow,
        }),
        protocol => {
            let kind = ported(protocol, transport, wire);
            if kind == Kind::Flow && protocol == SCTP {
                association(ip, wire);
            }
            kind
        }
    }
}

/// What an SCTP packet says of its association: its tag, and what its first chunk is.
fn association(ip: &[u8], wire: &mut Wire) {
    let at = wire.header;
    wire.tag = be32(ip, at + 4);
    // The common header has 12 bytes, a chunk's own 4 (RFC 9260 3.1, 3.2).
    if wire.total - at < 16 {
        return;
    }
    wire.chunk = match (ip[at + 12], ip[at + 13]) {
        // RFC 9260 8.5.1: with a tag it is none.
        (1, _) if wire.tag == 0 => Some(Chunk::Init),
        (2, _) => Some(Chunk::InitAck),
        (6 | 14, flags) => Some(Chunk::End {
            reflected: flags & 1 != 0,
        }),
        _ => None,
    };
    let asks = matches!(wire.chunk, Some(Chunk::Init | Chunk::InitAck));
    if asks && ip.len() >= at + 20 {
        wire.asked = be32(ip, at + 16);
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
