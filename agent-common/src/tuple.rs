//! A flow's key.

use crate::Address;

/// The five-tuple **as the packet shows it** where it enters the node (or where a pod sends it), before translation.
///
/// ICMP and ICMPv6 echo: a request has its id as source port and 0 as destination port, a reply the other way round, so that
/// reversing works as for ports. Protocols without ports have 0 in both.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Tuple {
    /// As below: the tests' next layout has the addresses the other way round.
    #[cfg(feature = "layout-next")]
    pub destination: Address,
    /// Source address.
    pub source: Address,
    /// Destination address.
    #[cfg(not(feature = "layout-next"))]
    pub destination: Address,
    /// Source port, network order.
    pub source_port_be: u16,
    /// Destination port, network order.
    pub destination_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 3],
}

impl Tuple {
    /// The tuple of a packet that goes the other way.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port_be: self.destination_port_be,
            destination_port_be: self.source_port_be,
            protocol: self.protocol,
            _zero: [0; 3],
        }
    }
}

const _: () = assert!(size_of::<Tuple>() == 40);
