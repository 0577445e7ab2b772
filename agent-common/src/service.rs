//! Services: from an address and port to a backend.
//!
//! `services` (hash) names a pool by number; `heads` (array) says in one word where the pool's backends stand in `slots`
//! (array) and how many they are; `slots` holds backend numbers; `backends` (array) holds what a backend is.
//!
//! Everything that changes while a service lives is a word of an array that is stored atomically. The hash element is
//! written when the address appears and deleted when it goes: the kernel may give a hash element to another key while a
//! program still reads it, so nothing that changes often may stand in one.

use crate::Address;

/// Key of `services`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct ServiceKey {
    /// ClusterIP, node address, external or load-balancer address.
    pub address: Address,
    /// Service port or node port, network order.
    pub port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 5],
}

/// Flags of a service frontend.
pub mod service_flag {
    /// Endpoints exist, but a Local traffic policy leaves none: drop, where [`crate::Head`] without backends would reject.
    pub const DROP_WHEN_EMPTY: u16 = 1 << 0;
    /// The frontend is external (node port, external IP, load balancer): Maglev, source rewriting.
    pub const EXTERNAL: u16 = 1 << 1;
    /// Only sources in `source_ranges` may use the frontend.
    pub const SOURCE_RANGES: u16 = 1 << 2;
    /// A client keeps its backend (`affinity`).
    pub const AFFINITY: u16 = 1 << 3;
    /// The client's source is kept (`externalTrafficPolicy: Local`).
    pub const KEEP_SOURCE: u16 = 1 << 4;
}

/// Value of `services`: which pool answers, in one aligned word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct ServiceEntry {
    /// Number of the pool in `heads`.
    pub pool: u32,
    /// See [`service_flag`].
    pub flags: u16,
    /// [`ServiceKey::check`] of the key: a reader that finds another one looks again.
    pub check: u16,
}

impl ServiceEntry {
    /// The entry in a word that was read from the map at once.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        let b = raw.to_ne_bytes();
        Self {
            pool: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            flags: u16::from_ne_bytes([b[4], b[5]]),
            check: u16::from_ne_bytes([b[6], b[7]]),
        }
    }
}

impl ServiceKey {
    /// The key of `address:port/protocol`, with the port in network order.
    #[inline(always)]
    pub const fn new(address: Address, port_be: u16, protocol: u8) -> Self {
        Self {
            address,
            port_be,
            protocol,
            _zero: [0; 5],
        }
    }

    /// Two bytes derived from the key, see [`ServiceEntry::check`].
    #[inline(always)]
    pub const fn check(&self) -> u16 {
        let w = self.address.words();
        let mut x = w[0] ^ w[1].rotate_left(7) ^ w[2].rotate_left(13) ^ w[3].rotate_left(19);
        x ^= ((self.port_be as u32) << 8) | self.protocol as u32;
        x = x.wrapping_mul(0x9e37_79b1);
        (x >> 16) as u16
    }
}

/// Value of `heads`: a pool's run of slots and its length. Read and stored as one aligned word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Head {
    /// Index of the pool's first slot in `slots`. A pool that outgrows its run moves to another one.
    pub first: u32,
    /// Backends in the run.
    pub count: u32,
}

/// Value of `slots`: a backend's number.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Slot {
    /// Index in `backends`.
    pub backend: u32,
}

/// States of a backend.
pub mod backend_state {
    /// The number is free, or its backend is gone: flows to it end (TCP is answered with RST).
    pub const GONE: u8 = 0;
    /// Serving: new flows and old ones.
    pub const SERVING: u8 = 1;
    /// Terminating, still serving: flows it has; new ones only while its pool has nothing else.
    pub const TERMINATING: u8 = 2;
    /// Not serving (not ready, not terminating): TCP flows stay, datagram flows leave with their next packet.
    pub const NOT_SERVING: u8 = 3;
}

/// Flags of a backend.
pub mod backend_flag {
    /// The backend's address is on this node (a local pod, or the node itself).
    pub const LOCAL: u8 = 1 << 0;
}

/// The part of a backend that changes: one aligned word, stored after the address.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct BackendWord {
    /// Raised each time the number is given to another backend.
    pub generation: u32,
    /// Port, network order.
    pub port_be: u16,
    /// See [`backend_state`].
    pub state: u8,
    /// See [`backend_flag`].
    pub flags: u8,
}

/// Value of `backends`: one endpoint of one service port. The same endpoint behind two services is two backends.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Backend {
    /// The endpoint's address; written before the word, while nothing points here.
    pub address: Address,
    /// Everything else.
    pub word: BackendWord,
}

/// Key of `sock_reverse`: which service address a host process's socket believes it talks to.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SocketReverseKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port, network order.
    pub port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 5],
}

/// Value of `sock_reverse`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SocketReverse {
    /// The service's address.
    pub address: Address,
    /// The service's port, network order.
    pub port_be: u16,
    /// Always zero.
    pub _zero: [u8; 2],
    /// Backend number.
    pub backend: u32,
    /// Generation of the backend number.
    pub backend_generation: u32,
    /// Number of the service pool.
    pub service: u32,
}

/// Key of `affinity` (`sessionAffinity: ClientIP`, per service port).
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct AffinityKey {
    /// The client.
    pub client: Address,
    /// Number of the service pool.
    pub service: u32,
    /// Always zero.
    pub _zero: u32,
}

/// Value of `affinity`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Affinity {
    /// Backend number.
    pub backend: u32,
    /// Generation of the backend number.
    pub backend_generation: u32,
    /// Tick ([`crate::clock`]) of the client's last new flow.
    pub last_used: u32,
    /// Ticks that the choice lasts after it.
    pub timeout: u32,
}

/// Data of `source_ranges`' key, behind the prefix length: 32 bits of pool number, then the prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SourceRangeKey {
    /// Number of the service pool.
    pub service: u32,
    /// Always zero.
    pub _zero: u32,
    /// The prefix, IPv4 mapped.
    pub prefix: [u8; 16],
}

/// Key of `source_ports`: a port of a node address that source rewriting has lent to a flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct SourcePortKey {
    /// The node's address.
    pub address: Address,
    /// Where the flow goes: the same port may serve several destinations.
    pub destination: Address,
    /// The lent port, network order.
    pub port_be: u16,
    /// The destination's port, network order.
    pub destination_port_be: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: [u8; 3],
}

const _: () = {
    assert!(size_of::<ServiceKey>() == 24);
    assert!(size_of::<ServiceEntry>() == 8);
    assert!(size_of::<Head>() == 8);
    assert!(size_of::<Slot>() == 4);
    assert!(size_of::<BackendWord>() == 8);
    assert!(size_of::<Backend>() == 24);
    assert!(size_of::<SocketReverseKey>() == 32);
    assert!(size_of::<SocketReverse>() == 32);
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<Affinity>() == 16);
    assert!(size_of::<SourceRangeKey>() == 24);
    assert!(size_of::<SourcePortKey>() == 40);
};
