//! Packets out, read plainly and held against the RFCs' own arithmetic.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

/// The Internet checksum (RFC 1071) over the concatenation of parts; every part but the last has an even length. Over data that
/// includes a right checksum it is 0.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A folded sum fits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            [&s.octets()[..], &d.octets(), &[0, protocol], &length[2..]].concat()
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            [&s.octets()[..], &d.octets(), &length, &[0, 0, 0, protocol]].concat()
        }
        _ => Vec::new(),
    }
}

/// A packet that came out.
#[derive(Clone, Debug)]
pub struct Seen {
    /// MAC it goes to.
    pub to_mac: [u8; 6],
    /// MAC it comes from.
    pub from_mac: [u8; 6],
    /// Source address, with the port where the protocol has one.
    pub source: SocketAddr,
    /// Destination address, with the port where the protocol has one.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub hops: u8,
    /// Everything behind the IP header.
    pub transport: Vec<u8>,
}

impl Seen {
    /// Reads a frame, and fails where a length or a checksum is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub fn read(frame: &[u8]) -> Result<Self> {
        ensure!(frame.len() >= 34, "a frame of {} bytes", frame.len());
        let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
        let ip = &frame[14..];
        let (source, destination, protocol, hops, transport) = match ether_type {
            0x0800 => v4(ip)?,
            0x86dd => v6(ip)?,
            other => bail!("a frame of type {other:#06x}"),
        };
        check_transport(source, destination, protocol, transport)?;
        let port = |at: usize| match protocol {
            6 | 17 | 132 => u16::from_be_bytes([transport[at], transport[at + 1]]),
            _ => 0,
        };
        Ok(Self {
            to_mac: mac(&frame[..6]),
            from_mac: mac(&frame[6..12]),
            source: SocketAddr::new(source, port(0)),
            destination: SocketAddr::new(destination, port(2)),
            protocol,
            hops,
            transport: transport.to_vec(),
        })
    }

    /// TCP's sequence number, acknowledgement number and flags.
    ///
    /// # Errors
    /// It is no TCP segment without options or data.
    pub fn bare_segment(&self) -> Result<(u32, u32, u8)> {
        ensure!(self.protocol == 6, "protocol {} is not TCP", self.protocol);
        ensure!(
            self.transport.len() == 20,
            "a segment of {} bytes",
            self.transport.len()
        );
        ensure!(
            self.transport[12] >> 4 == 5,
            "a data offset of {}",
            self.transport[12] >> 4
        );
        let word = |at: usize| {
            let t = &self.transport;
            u32::from_be_bytes([t[at], t[at + 1], t[at + 2], t[at + 3]])
        };
        Ok((word(4), word(8), self.transport[13]))
    }

    /// UDP's checksum as it stands in the header.
    pub fn udp_checksum(&self) -> u16 {
        u16::from_be_bytes([self.transport[6], self.transport[7]])
    }
}

type Parts<'a> = (IpAddr, IpAddr, u8, u8, &'a [u8]);

fn v4(ip: &[u8]) -> Result<Parts<'_>> {
    ensure!(ip[0] >> 4 == 4, "version {}", ip[0] >> 4);
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    ensure!(
        total == ip.len(),
        "total length {total} in {} bytes",
        ip.len()
    );
    ensure!(
        checksum(&[&ip[..header]]) == 0,
        "a wrong IPv4 header checksum"
    );
    let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    Ok((address(12), address(16), ip[9], ip[8], &ip[header..]))
}

fn v6(ip: &[u8]) -> Result<Parts<'_>> {
    ensure!(ip.len() >= 40 && ip[0] >> 4 == 6, "no whole IPv6 header");
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    ensure!(
        payload + 40 == ip.len(),
        "payload length {payload} in {} bytes",
        ip.len()
    );
    let address = |at: usize| -> Result<IpAddr> {
        let bytes: [u8; 16] = ip[at..at + 16].try_into().context("an address")?;
        Ok(IpAddr::from(bytes))
    };
    Ok((address(8)?, address(24)?, ip[6], ip[7], &ip[40..]))
}

fn check_transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &[u8],
) -> Result<()> {
    let pseudo = match protocol {
        6 => pseudo_header(source, destination, protocol, transport.len()),
        17 if transport[6..8] == [0, 0] => {
            ensure!(source.is_ipv4(), "a UDP checksum of zero in IPv6");
            return Ok(());
        }
        17 => {
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            ensure!(
                length == transport.len(),
                "UDP length {length} of {}",
                transport.len()
            );
            pseudo_header(source, destination, protocol, transport.len())
        }
        1 => Vec::new(),
        58 => pseudo_header(source, destination, protocol, transport.len()),
        _ => return Ok(()),
    };
    ensure!(
        checksum(&[&pseudo, transport]) == 0,
        "a wrong checksum of protocol {protocol}"
    );
    Ok(())
}

fn mac(bytes: &[u8]) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(bytes);
    mac
}
