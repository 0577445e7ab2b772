//! The packet: parsing, and the only raw access to its bytes.

use agent_common::{Address, Reason, Tuple, protocol};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_pull_data, programs::TcContext};
use network_types::{
    arp::ArpHdr,
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
};

/// Offset of the network header: Ethernet II, untagged.
pub const L3: u32 = EthHdr::LEN as u32;
/// Offset of the time to live (hop limit) in an IPv4 header.
pub const V4_TTL: u32 = 8;
/// Offset of the header checksum in an IPv4 header.
pub const V4_CHECKSUM: u32 = 10;
/// Offset of the source address in an IPv4 header.
pub const V4_SOURCE: u32 = 12;
/// Offset of the hop limit in an IPv6 header.
pub const V6_HOP_LIMIT: u32 = 7;
/// Offset of the source address in an IPv6 header.
pub const V6_SOURCE: u32 = 8;
/// The longest headers that are parsed: Ethernet, IPv4 with options (or IPv6 with one short header), TCP without options.
const HEADERS: u32 = L3 + 60 + 20;

/// TCP flags, RFC 9293 3.1.
pub mod tcp {
    /// FIN.
    pub const FIN: u32 = 0x01;
    /// SYN.
    pub const SYN: u32 = 0x02;
    /// RST.
    pub const RST: u32 = 0x04;
    /// ACK.
    pub const ACK: u32 = 0x10;
}

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_MOBILITY: u8 = 135;

/// What parsing made of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A flow's packet: the tuple stands.
    Flow,
    /// ARP, neighbour discovery, router discovery, multicast listener: local to the link.
    Neighbour,
    /// Its addresses stand (unspecified, where it is no IP packet), but its flow cannot be known.
    Unjudged(Reason),
    /// Not all headers are in the packet's first piece.
    Short,
}

/// What is parsed.
pub struct Header {
    /// The tuple as the packet shows it.
    pub tuple: Tuple,
    /// Offset of the transport header.
    pub l4: u32,
    /// IPv4, else IPv6.
    pub v4: bool,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u32,
}

impl Header {
    /// Nothing parsed yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Self {
            tuple: Tuple {
                source: Address::NONE,
                destination: Address::NONE,
                source_port_be: 0,
                destination_port_be: 0,
                protocol: 0,
                _zero: [0; 3],
            },
            l4: 0,
            v4: false,
            tcp_flags: 0,
        }
    }
}

/// The kernel's context.
#[inline(always)]
pub fn skb(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a valid context for the program's whole run.
    unsafe { &*ctx.skb.skb }
}

/// A pointer to `T` at an offset of the packet, if it lies within its first piece.
///
/// The compiler is told of natural alignment, although IP headers stand at offset 14: the machines that this runs on load and
/// store at any address, the verifier checks for those that do not, and byte-wise access would double the packet path.
///
/// `T` has two bytes at least: of a comparison for one byte behind a variable offset the verifier learns nothing.
#[inline(always)]
pub fn at<T>(ctx: &TcContext, offset: u32) -> Option<*mut T> {
    let start = ctx.data() + offset as usize;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

/// [`at`] for an offset of the transport header or within its first bytes, that has been kept since parsing.
///
/// The verifier has forgotten its bounds where the compiler spilled it, and the compiler, which has not, would leave out a mask.
#[inline(always)]
pub fn at_transport<T>(ctx: &TcContext, offset: u32) -> Option<*mut T> {
    at(ctx, core::hint::black_box(offset) & TRANSPORT_MASK)
}

/// Every offset of a transport header fits in here: 14 for Ethernet, 60 at most for IPv4.
const TRANSPORT_MASK: u32 = 0x7f;

#[inline(always)]
fn load<T: Copy>(ctx: &TcContext, offset: u32) -> Option<T> {
    let pointer = at::<T>(ctx, offset)?;
    // SAFETY: `at` has checked the bounds; see there for alignment.
    Some(unsafe { *pointer })
}

/// Brings all headers into the packet's first piece.
#[inline(always)]
pub fn pull(ctx: &TcContext) {
    let length = ctx.len();
    let wanted = if length < HEADERS { length } else { HEADERS };
    // SAFETY: the context is the kernel's own. A failure shows as a short packet when it is parsed.
    unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
}

/// Parses a packet's headers.
#[inline(always)]
pub fn parse(ctx: &TcContext, header: &mut Header) -> Parsed {
    let raw = skb(ctx);
    if raw.vlan_present != 0 {
        return Parsed::Unjudged(Reason::Vlan);
    }
    let Some(ether_type) = load::<u16>(ctx, 12) else {
        return Parsed::Short;
    };
    if ether_type == EtherType::Ipv4 as u16 {
        parse_v4(ctx, header)
    } else if ether_type == EtherType::Ipv6 as u16 {
        parse_v6(ctx, header)
    } else if ether_type == EtherType::Arp as u16 {
        Parsed::Neighbour
    } else if ether_type == EtherType::Ieee8021q as u16
        || ether_type == EtherType::Ieee8021ad as u16
    {
        Parsed::Unjudged(Reason::Vlan)
    } else {
        Parsed::Unjudged(Reason::Ethertype)
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, header: &mut Header) -> Parsed {
    // Version, header length, total length; then fragment word; then time to live and protocol; then addresses.
    let Some(ip) = at::<[u32; 5]>(ctx, L3) else {
        return Parsed::Short;
    };
    // SAFETY: `at` has checked the bounds.
    let words = unsafe { *ip };
    let first = words[0].to_ne_bytes();
    let ihl = ((first[0] & 0x0f) as u32) * 4;
    header.v4 = true;
    header.tuple.source =
        Address::from_words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), words[3]]);
    header.tuple.destination =
        Address::from_words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), words[4]]);
    let kind = words[2].to_ne_bytes()[1];
    header.tuple.protocol = kind;
    let total = u16::from_be_bytes([first[2], first[3]]) as u32;
    if first[0] >> 4 != 4 || ihl < Ipv4Hdr::LEN as u32 || total < ihl || total + L3 > ctx.len() {
        return Parsed::Unjudged(Reason::Malformed);
    }
    // More fragments, or an offset: everything of the word but "don't fragment" and the reserved bit.
    let fragment = words[1].to_ne_bytes();
    if (fragment[2] & 0x3f) | fragment[3] != 0 {
        return Parsed::Unjudged(Reason::Fragment);
    }
    header.l4 = L3 + ihl;
    transport(ctx, header, kind, total - ihl, words[2].to_ne_bytes()[0])
}

#[inline(always)]
fn parse_v6(ctx: &TcContext, header: &mut Header) -> Parsed {
    let Some(ip) = at::<[u32; 10]>(ctx, L3) else {
        return Parsed::Short;
    };
    // SAFETY: `at` has checked the bounds.
    let words = unsafe { *ip };
    header.v4 = false;
    header.tuple.source = Address::from_words([words[2], words[3], words[4], words[5]]);
    header.tuple.destination = Address::from_words([words[6], words[7], words[8], words[9]]);
    let second = words[1].to_ne_bytes();
    let kind = second[2];
    header.tuple.protocol = kind;
    let payload = u16::from_be_bytes([second[0], second[1]]) as u32;
    if words[0].to_ne_bytes()[0] >> 4 != 6
        || payload + L3 + Ipv6Hdr::LEN as u32 > ctx.len()
        // A mapped or unspecified-but-for-the-mapping address on the wire would be mistaken for IPv4.
        || header.tuple.source.is_v4()
        || header.tuple.destination.is_v4()
    {
        return Parsed::Unjudged(Reason::Malformed);
    }
    header.l4 = L3 + Ipv6Hdr::LEN as u32;
    match kind {
        IPPROTO_FRAGMENT => Parsed::Unjudged(Reason::Fragment),
        IPPROTO_HOPOPTS => {
            // Multicast listener reports carry a router alert (RFC 3810 5): one header of eight bytes.
            let Some(next) = load::<[u8; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            let Some([message, _]) = load::<[u8; 2]>(ctx, header.l4 + 8) else {
                return Parsed::Short;
            };
            if next[0] == protocol::ICMPV6 && next[1] == 0 && listener(message, second[3]) {
                return Parsed::Neighbour;
            }
            Parsed::Unjudged(Reason::ExtensionHeader)
        }
        IPPROTO_ROUTING | IPPROTO_AH | IPPROTO_DSTOPTS | IPPROTO_MOBILITY => {
            Parsed::Unjudged(Reason::ExtensionHeader)
        }
        _ => transport(ctx, header, kind, payload, second[3]),
    }
}

/// Hop limit of every neighbour and router discovery message: one that was forwarded shows it (RFC 4861 7.1).
const ND_HOPS: u8 = 255;
/// Hop limit of every multicast listener message (RFC 2710 3, RFC 3810 5).
const MLD_HOPS: u8 = 1;

/// Multicast listener discovery: query, report, done (RFC 2710), report version 2 (RFC 3810).
#[inline(always)]
fn listener(message: u8, hops: u8) -> bool {
    hops == MLD_HOPS && (matches!(message, 130..=132 | 143))
}

#[inline(always)]
fn transport(ctx: &TcContext, header: &mut Header, kind: u8, length: u32, hops: u8) -> Parsed {
    match kind {
        protocol::TCP => {
            if length < 20 {
                return Parsed::Unjudged(Reason::Malformed);
            }
            let Some(ports) = load::<[u16; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            let Some(flags) = load::<[u8; 2]>(ctx, header.l4 + 12) else {
                return Parsed::Short;
            };
            header.tuple.source_port_be = ports[0];
            header.tuple.destination_port_be = ports[1];
            header.tcp_flags = flags[1] as u32;
            Parsed::Flow
        }
        protocol::UDP | protocol::SCTP => {
            // UDP's header has 8 bytes, SCTP's common header 12.
            if length < if kind == protocol::UDP { 8 } else { 12 } {
                return Parsed::Unjudged(Reason::Malformed);
            }
            let Some(ports) = load::<[u16; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            header.tuple.source_port_be = ports[0];
            header.tuple.destination_port_be = ports[1];
            Parsed::Flow
        }
        protocol::ICMP if header.v4 => {
            if length < 8 {
                return Parsed::Unjudged(Reason::Malformed);
            }
            let Some([message, _]) = load::<[u8; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            match message {
                8 => echo(ctx, header, true),
                0 => echo(ctx, header, false),
                // Unreachable, source quench, redirect, time exceeded, parameter problem: about another flow.
                3 | 4 | 5 | 11 | 12 => Parsed::Unjudged(Reason::IcmpError),
                _ => Parsed::Flow,
            }
        }
        protocol::ICMPV6 if !header.v4 => {
            if length < 8 {
                return Parsed::Unjudged(Reason::Malformed);
            }
            let Some([message, _]) = load::<[u8; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            match message {
                128 => echo(ctx, header, true),
                129 => echo(ctx, header, false),
                // RFC 4443: types below 128 are errors.
                0..=127 => Parsed::Unjudged(Reason::IcmpError),
                // Router and neighbour solicitation and advertisement, redirect (RFC 4861). With another hop limit they are
                // none, and policy judges them like anything else.
                133..=137 if hops == ND_HOPS => Parsed::Neighbour,
                _ if listener(message, hops) => Parsed::Neighbour,
                _ => Parsed::Flow,
            }
        }
        _ => Parsed::Flow,
    }
}

/// An echo's id takes the place of the port at the asking end.
#[inline(always)]
fn echo(ctx: &TcContext, header: &mut Header, request: bool) -> Parsed {
    let Some(id) = load::<u16>(ctx, header.l4 + 4) else {
        return Parsed::Short;
    };
    if request {
        header.tuple.source_port_be = id;
    } else {
        header.tuple.destination_port_be = id;
    }
    Parsed::Flow
}

/// Sender's address of an ARP packet for IPv4 over Ethernet; None for any other.
#[inline(always)]
pub fn arp_sender(ctx: &TcContext) -> Option<Address> {
    let kind = load::<u16>(ctx, 12)?;
    if kind != EtherType::Arp as u16 {
        return None;
    }
    // Hardware and protocol address sizes stand at 4 and 5 of the ARP header, the sender's protocol address at 14.
    let sizes = load::<[u8; 2]>(ctx, L3 + 4)?;
    if sizes[0] != 6 || sizes[1] != 4 {
        return None;
    }
    const _: () = assert!(ArpHdr::LEN == 28);
    let sender = load::<[u8; 4]>(ctx, L3 + 14)?;
    Some(Address::v4(sender))
}
