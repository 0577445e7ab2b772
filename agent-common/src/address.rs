//! Addresses and transport protocols, as maps hold them.

/// An IP address in network order; IPv4 is mapped into IPv6 (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2), so that
/// both families share one set of maps and one code path.
///
/// Aligned to eight bytes so that the programs compare and copy it in words.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Address {
    /// The sixteen bytes, in network order.
    pub bytes: [u8; 16],
}

impl Address {
    /// The unspecified IPv6 address, `::`; stands for "no address" in values.
    pub const NONE: Self = Self { bytes: [0; 16] };

    /// An IPv4 address, from its four bytes in network order.
    #[inline(always)]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self::from_words([0, 0, V4_MAPPED_WORD, u32::from_ne_bytes(b)])
    }

    /// An IPv6 address, from its sixteen bytes in network order.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// The address as four 32-bit words in memory order (each word's bytes are in network order).
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        bytemuck::must_cast(self.bytes)
    }

    /// Builds an address from four 32-bit words in memory order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // Not byte by byte: the compiler would make a call to memset of it, which libbpf's loader does not take.
        Self {
            bytes: bytemuck::must_cast(words),
        }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = self.words();
        w[0] == 0 && w[1] == 0 && w[2] == V4_MAPPED_WORD
    }

    /// Whether two addresses are the same, compared in words.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    /// A byte derived from the address. [`crate::AddressEntry`] carries it, so that a reader notices an entry that
    /// the kernel gave to another address while it was being read (hash elements are reused at once).
    #[inline(always)]
    pub const fn check(&self) -> u8 {
        let w = self.words();
        let mut x = w[0] ^ w[1].rotate_left(7) ^ w[2].rotate_left(13) ^ w[3].rotate_left(19);
        x = x.wrapping_mul(0x9e37_79b1);
        (x >> 24) as u8
    }

    /// Whether the address is in IPv4's or IPv6's loopback range (127.0.0.0/8, `::1`).
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.bytes[12] == 127
        } else {
            let w = self.words();
            w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 1u32.to_be()
        }
    }

    /// Whether the address is multicast (224.0.0.0/4, `ff00::/8`) or IPv4's limited broadcast.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            self.bytes[12] & 0xf0 == 0xe0 || self.words()[3] == u32::MAX
        } else {
            self.bytes[0] == 0xff
        }
    }

    /// Whether the address is link-local (169.254.0.0/16, `fe80::/10`).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.bytes[12] == 169 && self.bytes[13] == 254
        } else {
            self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
        }
    }

    /// Whether the address is unspecified (`0.0.0.0`, `::`).
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let w = self.words();
        w[0] == 0 && w[1] == 0 && (w[2] == 0 || w[2] == V4_MAPPED_WORD) && w[3] == 0
    }

    /// Whether no packet that is forwarded may have the address as its source: unspecified, loopback, multicast, limited broadcast
    /// (RFC 1122 3.2.1.3, RFC 4291 2.5.2, 2.5.3 and 2.7).
    #[inline(always)]
    pub const fn is_no_source(&self) -> bool {
        self.is_unspecified() || self.is_loopback() || self.is_multicast()
    }
}

/// The third word of every mapped IPv4 address.
const V4_MAPPED_WORD: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// IP protocol numbers that the datapath knows by name (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;

    /// Whether the protocol's header begins with a source and a destination port.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        protocol == TCP || protocol == UDP || protocol == SCTP
    }
}

#[cfg(feature = "user")]
mod user {
    use super::Address;
    use core::fmt;
    use core::net::IpAddr;

    impl From<IpAddr> for Address {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(a) => Self::v4(a.octets()),
                IpAddr::V6(a) => Self::v6(a.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        fn from(a: Address) -> Self {
            if a.is_v4() {
                Self::from([a.bytes[12], a.bytes[13], a.bytes[14], a.bytes[15]])
            } else {
                Self::from(a.bytes)
            }
        }
    }

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    impl fmt::Debug for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }
}
