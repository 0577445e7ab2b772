//! Frames as the RFCs have them, byte by byte: what headers say, and the sums that cover them. Nothing here is shared with the programs or
//! with the rows' builder.
//!
//! - `read`: what a frame is: a flow's packet, a fragment, or none whose flow can be told.
//! - `quote`: the packet that an ICMP error is about.
//! - `sums`: checksums, and what translation does to a packet.
//! - `make`: answers and errors.

mod make;
mod quote;
mod read;
mod sums;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use agent_common::Reason;

pub use make::{datagram, error, turn};
pub use quote::{Quote, quoted, rewrite_error};
pub use read::read;
pub use sums::{hop, seal, translate, wrong_by, wrong_by_inside};

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
/// Extension headers of IPv6 (RFC 8200 4): what may stand between its header and the transport.
pub const HOP_BY_HOP: u8 = 0;
/// See [`HOP_BY_HOP`].
pub const ROUTING: u8 = 43;
/// See [`HOP_BY_HOP`].
pub const FRAGMENT: u8 = 44;
/// See [`HOP_BY_HOP`]. RFC 4302: its length counts in words of four bytes.
pub const AUTHENTICATION: u8 = 51;
/// See [`HOP_BY_HOP`].
pub const DESTINATION: u8 = 60;
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
    /// A fragment that is not its datagram's first: its flow is the first one's.
    Later,
    /// Its flow cannot be told, for this reason.
    Unknown(Reason),
    /// Nobody may send it, whatever policy says, for this reason.
    Never(Reason),
}

/// What the first chunk of an SCTP packet says of its association (RFC 9260 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// INIT, which bears no tag: an association begins.
    Init,
    /// INIT ACK.
    InitAck,
    /// ABORT or SHUTDOWN COMPLETE: it is over.
    End {
        /// The packet bears the tag of those that go the other way.
        reflected: bool,
    },
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Identification (of IPv4's 16 bits, the upper half).
    pub id: u32,
    /// What fragments of one datagram share beside addresses and identification: in IPv4 the protocol (RFC 791 3.2), in IPv6 nothing.
    pub shared: u8,
    /// Bytes of the datagram before it.
    pub at: usize,
    /// Bytes of the datagram in it.
    pub length: usize,
    /// Another one follows.
    pub more: bool,
}

/// What a frame says.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// See [`Kind`].
    pub kind: Kind,
    /// IPv4, else IPv6 or no IP.
    pub v4: bool,
    /// It has a whole IP header, so its addresses are known.
    pub addressed: bool,
    /// The ends; `::` where it is no IP packet.
    pub ends: Ends,
    /// Bytes of the IP header, with options and extension headers.
    pub header: usize,
    /// Bytes of the IP packet: as its header has it, or, where that leaves it open (RFC 2675), as many as there are.
    pub total: usize,
    /// Bytes of the IP packet as its header has it.
    pub said: usize,
    /// Time to live or hop limit.
    pub hops: u8,
    /// TCP's flags, else 0.
    pub flags: u8,
    /// SCTP's first chunk, where it says something of the association.
    pub chunk: Option<Chunk>,
    /// SCTP's verification tag, else 0.
    pub tag: u32,
    /// The tag that an INIT or INIT ACK asks for, else 0.
    pub asked: u32,
    /// The sender that an ARP packet for IPv4 over Ethernet names.
    pub arp_sender: Option<IpAddr>,
    /// It has extension headers, or is a fragment.
    pub walked: bool,
    /// It has a routing header of type 0 (RFC 5095).
    pub visits: bool,
    /// What it says of itself as a fragment.
    pub part: Option<Part>,
    /// It has no transport of its own, and its ends are those of the fragment that it follows.
    pub follows: bool,
}

impl Wire {
    /// A SYN without an ACK, or an INIT: the first packet of a connection.
    pub fn opens(&self) -> bool {
        let syn = self.ends.protocol == TCP && self.flags & (SYN | ACK) == SYN;
        syn || self.chunk == Some(Chunk::Init)
    }

    /// It ends an association, if it bears the right tag.
    pub fn ends_association(&self) -> bool {
        matches!(self.chunk, Some(Chunk::End { .. }))
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

/// Thirty-two bits in network order.
fn be32(bytes: &[u8], at: usize) -> u32 {
    (u32::from(be16(bytes, at)) << 16) | u32::from(be16(bytes, at + 2))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// An address's bytes as they stand in its header.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Where the addresses stand in an IP header, and how long each is.
fn addresses_at(v4: bool) -> (usize, usize) {
    if v4 { (12, 4) } else { (8, 16) }
}
