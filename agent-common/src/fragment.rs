//! Fragments under way: which flow the rest of a datagram belongs to, and where it must begin.
//!
//! An element of `fragments` is the place of **one fragment that is to come**: its key holds the offset. The first fragment puts the place
//! behind it into the map once it has passed; the fragment that begins there takes it out again and puts in the next. So a gap, an overlap
//! and a fragment that comes before its first find nothing, the last one leaves nothing behind, and of two CPUs with the same fragment only
//! one gets past the kernel's own removal of the element: no word needs to be compared and swapped.

use crate::{Address, Tuple};

/// Key of `fragments`: what the fragments of one datagram share (RFC 791 3.2, RFC 8200 4.5), where they are seen, and where the next begins.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct FragmentKey {
    /// Source address as the packet shows it.
    pub source: Address,
    /// Destination address as the packet shows it.
    pub destination: Address,
    /// Identification, network order (in IPv4 its 16 bits, in memory order before two zero bytes).
    pub id_be: u32,
    /// Offset at which the fragment begins, in units of eight bytes, as IP counts them.
    pub offset: u16,
    /// IP protocol number in IPv4. Zero in IPv6, where only the first fragment's counts (RFC 8200 4.5) and receivers compare none.
    pub protocol: u8,
    /// See [`crate::hook`]: one datagram may pass several, and each has a place of its own.
    pub hook: u8,
}

/// Value of `fragments`: the flow that the first fragment showed.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Fragment {
    /// Source port of the first fragment as the packet shows it, network order; an echo's id as in [`Tuple`].
    pub source_port_be: u16,
    /// Destination port, likewise.
    pub destination_port_be: u16,
    /// Tick ([`crate::clock`]) of the first fragment.
    pub begun: u32,
    /// IP protocol number of what the first fragment carries.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 7],
}

impl FragmentKey {
    /// No fragment's.
    pub const NONE: Self = Self {
        source: Address::NONE,
        destination: Address::NONE,
        id_be: 0,
        offset: 0,
        protocol: 0,
        hook: 0,
    };
}

impl Fragment {
    /// What a first fragment with this tuple leaves for those behind it.
    #[inline(always)]
    pub const fn of(tuple: &Tuple, begun: u32) -> Self {
        Self {
            source_port_be: tuple.source_port_be,
            destination_port_be: tuple.destination_port_be,
            begun,
            protocol: tuple.protocol,
            _zero: [0; 7],
        }
    }
}

const _: () = {
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Fragment>() == 16);
};
