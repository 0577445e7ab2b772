//! The packet: parsing, and the only raw access to its bytes.

use agent_common::{Address, Reason, Tuple, hook::slot, limits, protocol};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, bpf_skb_pull_data},
    programs::TcContext,
};
use network_types::{
    arp::ArpHdr,
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::sctp;

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
/// Offset of what follows an IPv6 header.
pub const V6_NEXT: u32 = L3 + Ipv6Hdr::LEN as u32;
/// In place of the transport header's offset: the packet has none, as fragments but the first.
pub const NO_TRANSPORT: u32 = 0;
/// The longest headers that are parsed at a first look: Ethernet, IPv4 with options (or IPv6), TCP without options.
pub const HEADERS: u32 = L3 + 60 + 20;
/// The longest headers that a walker leads to: Ethernet, IPv6 with extension headers, TCP without options.
pub const WALKED_HEADERS: u32 = V6_NEXT + limits::EXTENSION_BYTES + 20;

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

/// Whether a packet with these flags ([`Header::tcp_flags`]) is the first of a connection: TCP's SYN without an ACK, SCTP's INIT.
#[inline(always)]
pub fn begins(flags: u32) -> bool {
    flags & (tcp::SYN | tcp::ACK) == tcp::SYN
        || (flags & sctp::flag::INIT != 0 && !crate::mutant::removed!("sctp-init"))
}

/// Next headers of IPv6 that are no transport (IANA "IPv6 Extension Header Types").
pub mod next {
    /// Hop-by-hop options, RFC 8200 4.3.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing, RFC 8200 4.4.
    pub const ROUTING: u8 = 43;
    /// Fragment, RFC 8200 4.5.
    pub const FRAGMENT: u8 = 44;
    /// Authentication, RFC 4302: its length counts in words of four bytes.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options, RFC 8200 4.6.
    pub const DESTINATION: u8 = 60;
}

/// What parsing made of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A flow's packet: the tuple stands.
    Flow,
    /// ARP, neighbour discovery, router discovery, multicast listener: local to the link.
    Neighbour,
    /// Its addresses stand (unspecified, where it is no IP packet), but its flow cannot be known.
    Unjudged(Reason),
    /// Nobody may send it, whatever policy says: what the stack would make of it is not what was judged.
    Refused(Reason),
    /// Not all headers are in the packet's first piece.
    Short,
    /// The walker in this slot of the program array must look: [`Header::l4`] and the tuple's protocol say where it begins, and with what.
    Walk(u32),
}

impl Parsed {
    const FLOW: u32 = 1;
    const NEIGHBOUR: u32 = 2;
    const SHORT: u32 = 3;
    /// Bases, each with room for what is added.
    const WALK: u32 = 0x100;
    const UNJUDGED: u32 = 0x200;
    const REFUSED: u32 = 0x300;
    const BASE: u32 = 0xff00;

    /// As a word of the working memory; never 0.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::Flow => Self::FLOW,
            Self::Neighbour => Self::NEIGHBOUR,
            Self::Short => Self::SHORT,
            Self::Walk(slot) => Self::WALK | slot,
            Self::Unjudged(reason) => Self::UNJUDGED | reason as u32,
            Self::Refused(reason) => Self::REFUSED | reason as u32,
        }
    }

    /// What a word stands for; what stands for nothing cannot be judged.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        if number == Self::FLOW {
            return Self::Flow;
        }
        if number == Self::NEIGHBOUR {
            return Self::Neighbour;
        }
        let low = number & !Self::BASE;
        if number & Self::BASE == Self::WALK {
            return Self::Walk(low);
        }
        let Some(reason) = Reason::from_number(low as u8) else {
            return Self::Short;
        };
        if number & Self::BASE == Self::UNJUDGED {
            Self::Unjudged(reason)
        } else if number & Self::BASE == Self::REFUSED {
            Self::Refused(reason)
        } else {
            Self::Short
        }
    }
}

/// What is parsed.
pub struct Header {
    /// The tuple as the packet shows it.
    pub tuple: Tuple,
    /// Offset of the transport header.
    pub l4: u32,
    /// IPv4, else IPv6.
    pub v4: bool,
    /// TCP flags; of SCTP what its first chunk is, see [`crate::sctp::flag`]; 0 for other protocols.
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

/// Every offset of a transport header fits in here: 14 for Ethernet, then 60 at most for IPv4, or 40 and as much as is walked for IPv6.
pub const TRANSPORT_MASK: u32 = 0x1ff;
const _: () = assert!(WALKED_HEADERS < TRANSPORT_MASK);

/// What stands at an offset of the packet, if that lies within its first piece.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, offset: u32) -> Option<T> {
    let pointer = at::<T>(ctx, offset)?;
    // SAFETY: `at` has checked the bounds; see there for alignment.
    Some(unsafe { *pointer })
}

/// Copies the bytes at any offset of the packet, wherever they lie: slower than [`load`], and the verifier asks nothing of the offset.
///
/// False where they are not there. (No option: the compiler would copy an absent one's bytes unset, which the verifier does not let it.)
#[inline(always)]
pub fn copy<const N: usize>(ctx: &TcContext, offset: u32, bytes: &mut [u8; N]) -> bool {
    // SAFETY: the context is the kernel's own, and the helper writes as many bytes as it is told.
    let failed = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast_const().cast(),
            offset,
            core::ptr::from_mut(bytes).cast(),
            N as u32,
        )
    };
    failed == 0
}

/// Brings the packet's headers, `headers` bytes at most, into its first piece.
#[inline(always)]
pub fn pull(ctx: &TcContext, headers: u32) {
    let length = ctx.len();
    let wanted = if length < headers { length } else { headers };
    // SAFETY: the context is the kernel's own. A failure shows as a short packet when it is parsed.
    unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
}

/// The VLAN that a tag names, in its last twelve bits (IEEE 802.1Q 9.6). 0: none, the tag is for its priority alone.
const VLAN_ID: u32 = 0x0fff;

/// Parses a packet's headers.
///
/// **Frames that are no plain IP.** Ethernet II only. ARP is local to the link. Any other type, and every tag of a VLAN, is unjudged: dropped
/// where policy is in force at the pod's link, and left to the stack elsewhere, which has no use for it but where somebody made an interface
/// for it (and IP that comes out of that one is then not seen here). A tag without a VLAN is only a priority: Linux takes what is
/// behind it for untagged, and so do we; it does so with one in another as well, which nobody sends but to be misread: refused.
#[inline(always)]
pub fn parse(ctx: &TcContext, header: &mut Header) -> Parsed {
    let raw = skb(ctx);
    if raw.vlan_present != 0
        && (raw.vlan_tci & VLAN_ID != 0 || crate::mutant::removed!("priority-tag"))
    {
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
        // The kernel has taken the outer tag out of the frame: this is one behind it.
        match load::<[u8; 2]>(ctx, L3) {
            Some(tag) if u16::from_be_bytes(tag) as u32 & VLAN_ID == 0 => {
                Parsed::Refused(Reason::Vlan)
            }
            _ => Parsed::Unjudged(Reason::Vlan),
        }
    } else {
        Parsed::Unjudged(Reason::Ethertype)
    }
}

/// Whether the packet is several that the kernel carries as one. Of TCP they may be more than 64 KiB since Linux 6.3 (`gso_ipv4_max_size`,
/// `gro_ipv4_max_size`): the total length in an IPv4 header is zero then, and the kernel believes the frame (`skb_ip_totlen` in linux/ip.h). In IPv6 they are
/// jumbograms, see [`crate::extension::end_of`].
#[inline(always)]
fn is_carried_together(ctx: &TcContext) -> bool {
    skb(ctx).gso_size != 0
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
    // More fragments, or an offset: everything of the word but "don't fragment" and the reserved bit.
    let fragment = words[1].to_ne_bytes();
    let whole = (fragment[2] & 0x3f) | fragment[3] == 0;
    let mut total = u16::from_be_bytes([first[2], first[3]]) as u32;
    if total == 0 {
        if !whole || kind != protocol::TCP || !is_carried_together(ctx) {
            // Here, and not by the comparison below: 6.1 would follow a header that is longer than 20 bytes and no longer than none.
            return Parsed::Unjudged(Reason::Malformed);
        }
        total = ctx.len() - L3;
    }
    if first[0] >> 4 != 4 || ihl < Ipv4Hdr::LEN as u32 || total < ihl || total + L3 > ctx.len() {
        return Parsed::Unjudged(Reason::Malformed);
    }
    // Options lie between, and nothing is asked of them: a source route (RFC 791 3.1) is judged by the destination that the packet shows,
    // and neither this host nor a pod follows it unless somebody sets `accept_source_route`; a pod that did would send from a source not its own.
    header.l4 = L3 + ihl;
    if !whole {
        return Parsed::Walk(slot::FRAGMENT);
    }
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
    header.l4 = V6_NEXT;
    match kind {
        next::FRAGMENT => Parsed::Walk(slot::FRAGMENT),
        next::HOP_BY_HOP | next::ROUTING | next::AUTHENTICATION | next::DESTINATION => {
            Parsed::Walk(slot::EXTENSION)
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

/// Parses the transport header at [`Header::l4`]: of protocol `kind`, in a packet that has `length` bytes from there, with `hops` to live.
#[inline(always)]
pub fn transport(ctx: &TcContext, header: &mut Header, kind: u8, length: u32, hops: u8) -> Parsed {
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
        protocol::UDP => {
            if length < 8 {
                return Parsed::Unjudged(Reason::Malformed);
            }
            let Some(ports) = load::<[u16; 2]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            header.tuple.source_port_be = ports[0];
            header.tuple.destination_port_be = ports[1];
            Parsed::Flow
        }
        protocol::SCTP => {
            if length < sctp::COMMON_HEADER {
                return Parsed::Unjudged(Reason::Malformed);
            }
            // The common header: ports, verification tag, checksum.
            let Some(words) = load::<[u16; 6]>(ctx, header.l4) else {
                return Parsed::Short;
            };
            header.tuple.source_port_be = words[0];
            header.tuple.destination_port_be = words[1];
            if length >= sctp::COMMON_HEADER + sctp::CHUNK_HEADER {
                let Some([chunk, flags]) = load::<[u8; 2]>(ctx, header.l4 + sctp::COMMON_HEADER)
                else {
                    return Parsed::Short;
                };
                header.tcp_flags = sctp::flags(chunk, flags, words[2] | words[3] != 0);
            }
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
