//! Addresses and CIDRs, as strictly as the API server reads them since 1.36 (KEP-4858: no leading zeros, no IPv4-mapped IPv6).

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Fault;

/// An address.
pub(super) fn ip(field: impl Display, text: &str) -> Result<IpAddr, Fault> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return Err(Fault::new(
            field,
            format_args!(
                "{text:?} is no IP address; write it like 10.0.0.1 (no leading zeros, no zone) or fd00::1"
            ),
        ));
    };
    if let IpAddr::V6(v6) = ip
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Fault::new(
            field,
            format_args!("{text:?} is an IPv4-mapped IPv6 address; write {v4}"),
        ));
    }
    Ok(ip)
}

/// An address that one host can have: not unspecified, loopback or multicast.
pub(super) fn unicast(field: impl Display, text: &str) -> Result<IpAddr, Fault> {
    let ip = ip(&field, text)?;
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
        return Err(Fault::new(
            field,
            format_args!(
                "{ip} is an unspecified, loopback, multicast or broadcast address; write the address of one host"
            ),
        ));
    }
    Ok(ip)
}

/// An address that is reached through the network: [`unicast`], and not link-local (`ValidateNonSpecialIP` of Kubernetes).
pub(super) fn routed(field: impl Display, text: &str) -> Result<IpAddr, Fault> {
    let ip = unicast(&field, text)?;
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        return Err(Fault::new(
            field,
            format_args!(
                "{ip} is a link-local address, which is not routed; write an address that other nodes reach"
            ),
        ));
    }
    Ok(ip)
}

/// Bits of an address.
const fn width(ip: &IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::BITS as u8,
        IpAddr::V6(_) => Ipv6Addr::BITS as u8,
    }
}

/// The address with its host bits zero. `length` is at most the address' width.
fn mask(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !host))
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !host))
        }
    }
}

/// A CIDR: its address with host bits zero, and its prefix length.
pub(super) fn cidr(field: impl Display, text: &str) -> Result<(IpAddr, u8), Fault> {
    let invalid = |field: &dyn Display| {
        Fault::new(
            field,
            format_args!("{text:?} is no CIDR; write it like 10.0.0.0/8 or fd00::/64"),
        )
    };
    let Some((address, length)) = text.split_once('/') else {
        return Err(invalid(&field));
    };
    let address = ip(&field, address)?;
    // `u8::from_str` would take "+8" and "08".
    let canonical =
        length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    match length.parse::<u8>() {
        Ok(length) if canonical && length <= width(&address) => Ok((mask(address, length), length)),
        _ => Err(invalid(&field)),
    }
}

/// Whether `inner` lies in `outer` and is smaller.
pub(super) fn is_strictly_inside(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    inner.0.is_ipv4() == outer.0.is_ipv4() && inner.1 > outer.1 && mask(inner.0, outer.1) == outer.0
}
