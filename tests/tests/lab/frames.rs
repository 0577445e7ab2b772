//! Frames made by hand: spoofed sources, VLAN tags, and the neighbour protocols that must go on under default deny.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use nix::ifaddrs::getifaddrs;
use tests::lab::pod::Pod;
use tests::lab::traffic::raw::{RawSocket, arp_request};

use crate::policies::deny_all;
use crate::scene::{DEADLINE, HTTP, Scene, roles};
use crate::verdict::ensure_unseen;

/// The MAC of every host side.
const HOST_MAC: [u8; 6] = [0xaa; 6];
/// The link-local address that the kernel derives from [`HOST_MAC`] (RFC 4291, appendix A).
const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xa8aa, 0xaaff, 0xfeaa, 0xaaaa);
/// Any port of the sender.
const SOURCE_PORT: u16 = 40_000;
/// Spoofed frames sent.
const FRAMES: u64 = 5;

/// Ethernet types (IANA "IEEE 802 Numbers").
mod ethertype {
    pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
    pub(super) const ARP: [u8; 2] = [0x08, 0x06];
    pub(super) const VLAN: [u8; 2] = [0x81, 0x00];
    pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
}

/// The MAC of a pod's own side.
fn mac(pod: &Pod) -> Result<[u8; 6]> {
    pod.netns().run(|| -> Result<[u8; 6]> {
        getifaddrs()
            .context("listing a pod's interfaces")?
            .filter(|interface| interface.interface_name == Pod::DEVICE)
            .find_map(|interface| interface.address?.as_link_addr()?.addr())
            .context("a pod's interface has no MAC")
    })?
}

/// Ones' complement sum, folded and inverted (RFC 1071).
fn checksum(bytes: impl IntoIterator<Item = u8>) -> [u8; 2] {
    let mut sum: u32 = 0;
    for (index, byte) in bytes.into_iter().enumerate() {
        sum += if index % 2 == 0 {
            u32::from(byte) << 8
        } else {
            u32::from(byte)
        };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

/// A UDP header and payload with its checksum.
fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(8 + payload.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let mut packet = Vec::new();
    packet.extend(SOURCE_PORT.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(length);
    packet.extend([0, 0]);
    packet.extend(payload);
    let mut pseudo = octets(from);
    pseudo.extend(octets(to));
    // Both families' pseudo headers end in the length and the protocol; the zeros between do not change a sum.
    pseudo.extend(length);
    pseudo.extend([0, 17]);
    pseudo.extend(&packet);
    packet[6..8].copy_from_slice(&checksum(pseudo));
    packet
}

/// What is behind the MAC addresses: type, IP header, UDP.
fn datagram(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let udp = udp(from, to, port, payload);
    let length = |header: usize| {
        u16::try_from(header + udp.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes()
    };
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(length(20));
            header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(header.iter().copied());
            header[10..12].copy_from_slice(&sum);
            packet.extend(ethertype::IPV4);
            packet.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend(ethertype::IPV6);
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length(0));
            packet.extend([17, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => unreachable!("one family a packet"),
    }
    packet.extend(udp);
    packet
}

fn frame(pod: &Pod, tag: &[u8], packet: &[u8]) -> Result<Vec<u8>> {
    let mut frame = HOST_MAC.to_vec();
    frame.extend(mac(pod)?);
    frame.extend(tag);
    frame.extend(packet);
    Ok(frame)
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() -> Result<()> {
    let scene = Scene::new(&roles(&["liar", "victim", "server"]))?;
    let (liar, server) = (&scene.actor("liar")?.pod, scene.server("server")?);
    let raw = RawSocket::open(liar.netns(), Pod::DEVICE)?;
    let targets = scene.addresses("server")?;
    // The control: the same frame with the pod's own source arrives.
    for (own, to) in liar.addresses().into_iter().zip(targets) {
        let mark = server.mark();
        raw.send(&frame(liar, &[], &datagram(own, to, HTTP, b"honest\n"))?)?;
        let wanted =
            |frame: &[u8]| frame.windows(6).any(|w| w == b"honest") && frame[..6] != HOST_MAC;
        ensure!(
            raw.receive(DEADLINE, wanted)?.is_some(),
            "no answer from {to}"
        );
        ensure!(server.seen_since(mark).len() == 1);
    }
    let others = [
        scene.addresses("victim")?,
        scene.node.addresses(),
        [
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1).into(),
        ],
    ];
    for other in others {
        for (source, to) in other.into_iter().zip(targets) {
            let (mark, before) = (server.mark(), scene.pinned().drops(Reason::SourceSpoofed)?);
            for _ in 0..FRAMES {
                raw.send(&frame(
                    liar,
                    &[],
                    &datagram(source, to, HTTP, b"spoofed\n"),
                )?)?;
            }
            // A veth delivers on the sender's CPU: what was sent has been judged. An honest request behind it says that the
            // server has had time to see it.
            scene.assert_allowed("liar", "server", HTTP)?;
            let dropped = scene.pinned().drops(Reason::SourceSpoofed)? - before;
            ensure!(
                dropped == FRAMES,
                "{source}: {dropped} of {FRAMES} were dropped as spoofed"
            );
            let seen = server.seen_since(mark);
            ensure!(
                seen.iter().all(
                    |seen| seen.peer.ip() != source && seen.token.as_deref() != Some("spoofed")
                ),
                "{seen:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_vlan_tag_is_no_way_around_policy() -> Result<()> {
    /// VLAN 5, priority 0 (IEEE 802.1Q).
    const TAG: [u8; 2] = [0, 5];
    let scene = Scene::new(&roles(&["client", "server"]))?;
    scene.apply([&deny_all("client")])?;
    let (client, server) = (&scene.actor("client")?.pod, scene.server("server")?);
    let raw = RawSocket::open(client.netns(), Pod::DEVICE)?;
    for (own, to) in client
        .addresses()
        .into_iter()
        .zip(scene.addresses("server")?)
    {
        let (mark, before) = (server.mark(), scene.pinned().drops(Reason::Vlan)?);
        let tag = [ethertype::VLAN, TAG].concat();
        for _ in 0..FRAMES {
            raw.send(&frame(client, &tag, &datagram(own, to, HTTP, b"tagged\n"))?)?;
        }
        let dropped = scene.pinned().drops(Reason::Vlan)? - before;
        ensure!(
            dropped == FRAMES,
            "{dropped} of {FRAMES} were dropped for their tag"
        );
        ensure_unseen(server, mark)?;
        // The control: the server is there.
        scene.assert_allowed("node", "server", HTTP)?;
    }
    Ok(())
}

// Linux takes what is behind a tag of no VLAN for untagged, and so must we: also of a pod that no policy isolates.
#[test]
fn a_priority_tag_hides_nothing() -> Result<()> {
    /// VLAN 0, priority 7 (IEEE 802.1Q).
    const TAG: [u8; 2] = [0xe0, 0];
    let scene = Scene::new(&roles(&["client", "victim", "server"]))?;
    let (client, server) = (&scene.actor("client")?.pod, scene.server("server")?);
    let raw = RawSocket::open(client.netns(), Pod::DEVICE)?;
    let tag = [ethertype::VLAN, TAG].concat();
    let targets = scene.addresses("server")?;
    for (own, to) in client.addresses().into_iter().zip(targets) {
        let mark = server.mark();
        raw.send(&frame(client, &tag, &datagram(own, to, HTTP, b"honest\n"))?)?;
        let wanted =
            |frame: &[u8]| frame.windows(6).any(|w| w == b"honest") && frame[..6] != HOST_MAC;
        ensure!(
            raw.receive(DEADLINE, wanted)?.is_some(),
            "no answer from {to}"
        );
        ensure!(server.seen_since(mark).len() == 1);
    }
    for (other, to) in scene.addresses("victim")?.into_iter().zip(targets) {
        let (mark, before) = (server.mark(), scene.pinned().drops(Reason::SourceSpoofed)?);
        for _ in 0..FRAMES {
            raw.send(&frame(
                client,
                &tag,
                &datagram(other, to, HTTP, b"spoofed\n"),
            )?)?;
        }
        let dropped = scene.pinned().drops(Reason::SourceSpoofed)? - before;
        ensure!(dropped == FRAMES, "{dropped} of {FRAMES} were dropped");
        ensure_unseen(server, mark)?;
    }
    // One in another is dropped before anybody looks behind it.
    let nested = [ethertype::VLAN, TAG, ethertype::VLAN, TAG].concat();
    for (own, to) in client.addresses().into_iter().zip(targets) {
        let (mark, before) = (server.mark(), scene.pinned().drops(Reason::Vlan)?);
        raw.send(&frame(
            client,
            &nested,
            &datagram(own, to, HTTP, b"nested\n"),
        )?)?;
        ensure!(scene.pinned().drops(Reason::Vlan)? - before == 1);
        ensure_unseen(server, mark)?;
    }
    Ok(())
}

#[test]
fn neighbour_protocols_go_on_under_default_deny() -> Result<()> {
    let scene = Scene::new(&roles(&["pod"]))?;
    scene.apply([&deny_all("pod")])?;
    let pod = &scene.actor("pod")?.pod;
    let raw = RawSocket::open(pod.netns(), Pod::DEVICE)?;
    // ARP: the pod asks for its node, which answers.
    let own = mac(pod)?;
    raw.send(&arp_request(own, pod.ipv4, scene.node.ipv4))?;
    let is_answer = |frame: &[u8]| {
        frame[..6] == own
            && frame[12..14] == ethertype::ARP
            && frame[28..32] == scene.node.ipv4.octets()
    };
    ensure!(raw.receive(DEADLINE, is_answer)?.is_some(), "no ARP answer");
    // Neighbour discovery: the pod's stack asks for the node's link-local address before it sends anything there.
    let index = pod
        .netns()
        .run(|| nix::net::if_::if_nametoindex(Pod::DEVICE))??;
    let to = std::net::SocketAddrV6::new(HOST_LINK_LOCAL, HTTP, 0, index);
    pod.netns().run(|| -> Result<()> {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.send_to(b"anybody there?\n", SocketAddr::from(to))?;
        Ok(())
    })??;
    /// Neighbour advertisement (RFC 4861, section 4.4), behind 14 bytes of Ethernet and 40 of IPv6.
    const ADVERTISEMENT: u8 = 136;
    let is_answer = |frame: &[u8]| {
        frame.len() > 78
            && frame[12..14] == ethertype::IPV6
            && frame[54] == ADVERTISEMENT
            && frame[62..78] == HOST_LINK_LOCAL.octets()
    };
    ensure!(
        raw.receive(DEADLINE, is_answer)?.is_some(),
        "no neighbour advertisement"
    );
    // The node asks for the pod anew, in both families.
    scene
        .node
        .netns()
        .ip(&format!("neigh flush dev {}", pod.device))?;
    scene.assert_allowed("node", "pod", HTTP)?;
    ensure!(scene.pinned().drops(Reason::NeighbourSpoofed)? == 0);
    // And nothing else of all this came through: the pod is isolated still.
    scene.assert_denied("world", "pod", HTTP, Reason::PolicyIngress)
}
