//! Packets out, read plainly and held against the RFCs' own arithmetic.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use super::crc32c;

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
    /// Everything behind the IP header and its extensions; of a fragment what it has of that.
    pub transport: Vec<u8>,
    /// What it is of its datagram, where that is not all of it.
    pub fragment: Option<Fragment>,
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset of its bytes.
    pub offset: usize,
    /// Whether more follow.
    pub more: bool,
    /// Identification.
    pub id: u32,
}

impl Seen {
    /// Reads a frame, and fails where a length or a checksum is wrong. Of a fragment only what it has: see [`join`].
    ///
    /// # Errors
    /// What is wrong.
    pub fn read(frame: &[u8]) -> Result<Self> {
        ensure!(frame.len() >= 34, "a frame of {} bytes", frame.len());
        let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
        let ip = &frame[14..];
        let Parts {
            source,
            destination,
            protocol,
            hops,
            transport,
            fragment,
        } = match ether_type {
            0x0800 => v4(ip)?,
            0x86dd => v6(ip)?,
            other => bail!("a frame of type {other:#06x}"),
        };
        if fragment.is_none() {
            check_transport(source, destination, protocol, transport)?;
        }
        let first = fragment.is_none_or(|fragment| fragment.offset == 0);
        let port = |at: usize| match protocol {
            6 | 17 | 132 if first && transport.len() >= 4 => {
                u16::from_be_bytes([transport[at], transport[at + 1]])
            }
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
            fragment,
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

    /// SCTP's checksum as it stands in the header.
    pub fn sctp_checksum(&self) -> [u8; 4] {
        let mut sum = [0; 4];
        sum.copy_from_slice(&self.transport[8..12]);
        sum
    }

    /// UDP's checksum as it stands in the header.
    pub fn udp_checksum(&self) -> u16 {
        u16::from_be_bytes([self.transport[6], self.transport[7]])
    }
}

/// The datagram of frames that are its fragments in order, each beginning where the last ended, with its checksums right.
///
/// # Errors
/// What is wrong.
pub fn join<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Result<Seen> {
    let mut whole: Option<Seen> = None;
    let mut id = None;
    for frame in frames {
        let seen = Seen::read(frame)?;
        let part = seen.fragment.context("no fragment")?;
        ensure!(
            *id.get_or_insert(part.id) == part.id,
            "fragments of two datagrams"
        );
        let Some(whole) = &mut whole else {
            ensure!(part.offset == 0, "no first fragment");
            whole = Some(seen);
            continue;
        };
        ensure!(
            whole.fragment.is_some_and(|last| last.more),
            "a fragment behind the last"
        );
        ensure!(
            part.offset == whole.transport.len(),
            "a gap or an overlap at {}",
            part.offset
        );
        ensure!(
            (whole.source.ip(), whole.destination.ip())
                == (seen.source.ip(), seen.destination.ip()),
            "fragments between other ends: {} to {}",
            seen.source,
            seen.destination
        );
        whole.transport.extend(&seen.transport);
        whole.fragment = Some(part);
    }
    let mut whole = whole.context("no fragments")?;
    ensure!(
        whole.fragment.is_some_and(|last| !last.more),
        "the last fragment is missing"
    );
    whole.fragment = None;
    let (source, destination) = (whole.source.ip(), whole.destination.ip());
    check_transport(source, destination, whole.protocol, &whole.transport)?;
    Ok(whole)
}

/// What an IP packet consists of.
struct Parts<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    hops: u8,
    transport: &'a [u8],
    fragment: Option<Fragment>,
}

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
    let word = u16::from_be_bytes([ip[6], ip[7]]);
    let fragment = Fragment {
        offset: usize::from(word & 0x1fff) * 8,
        more: word & 0x2000 != 0,
        id: u16::from_be_bytes([ip[4], ip[5]]).into(),
    };
    Ok(Parts {
        source: address(12),
        destination: address(16),
        protocol: ip[9],
        hops: ip[8],
        transport: &ip[header..],
        fragment: (word & 0x3fff != 0).then_some(fragment),
    })
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
    let (mut next, mut at, mut fragment) = (ip[6], 40, None);
    loop {
        let rest = ip
            .get(at..)
            .context("a chain of headers that is too long")?;
        match next {
            44 => {
                let &[following, _, high, low, a, b, c, d, ..] = rest else {
                    bail!("no whole fragment header");
                };
                let word = u16::from_be_bytes([high, low]);
                if word & !0b110 != 0 {
                    fragment = Some(Fragment {
                        offset: usize::from(word & !7),
                        more: word & 1 != 0,
                        id: u32::from_be_bytes([a, b, c, d]),
                    });
                }
                (next, at) = (following, at + 8);
                if usize::from(word & !7) != 0 {
                    break;
                }
            }
            0 | 43 | 51 | 60 => {
                let &[following, length, ..] = rest else {
                    bail!("no whole extension header");
                };
                let length = usize::from(length);
                let bytes = if next == 51 {
                    (length + 2) * 4
                } else {
                    (length + 1) * 8
                };
                (next, at) = (following, at + bytes);
            }
            _ => break,
        }
    }
    Ok(Parts {
        source: address(8)?,
        destination: address(24)?,
        protocol: next,
        hops: ip[7],
        transport: ip
            .get(at..)
            .context("a chain of headers that is too long")?,
        fragment,
    })
}

fn check_transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &[u8],
) -> Result<()> {
    let pseudo = match protocol {
        6 => pseudo_header(source, destination, protocol, transport.len()),
        17 if transport.get(6..8) == Some(&[0, 0]) => {
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
        132 => {
            let sum = transport.get(8..12).context("no whole header of SCTP")?;
            // Zero: somebody else will see to it.
            ensure!(
                sum == [0; 4] || sum == crc32c::of_sctp(transport),
                "a wrong checksum of SCTP"
            );
            return Ok(());
        }
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
