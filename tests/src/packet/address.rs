//! The addresses of the rows, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Address `n` of a network: 10.`net`.0.`n` or fd00:`net`::`n`.
    fn address(self, net: u8, n: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, net, 0, n).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, n.into()).into(),
        }
    }

    /// Local pod `n`'s address.
    pub fn pod(self, n: u8) -> IpAddr {
        self.address(1, n)
    }

    /// The address of pod `n` on another node.
    pub fn remote_pod(self, n: u8) -> IpAddr {
        self.address(2, n)
    }

    /// ClusterIP `n`.
    pub fn cluster_ip(self, n: u8) -> IpAddr {
        self.address(96, n)
    }

    /// This node's address.
    pub fn host(self) -> IpAddr {
        self.address(64, 1)
    }

    /// Another node's address.
    pub fn node(self) -> IpAddr {
        self.address(64, 2)
    }

    /// An address that the cluster does not know.
    pub fn outside(self, n: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
        }
    }

    /// A loopback address.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// A multicast address.
    pub fn multicast(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(224, 0, 0, 251).into(),
            Self::V6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
        }
    }

    /// The family's ICMP, as IP numbers it.
    pub fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

/// An address with a port.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
