//! Dice for packets: mostly valid ones of flows that are opened, answered and closed, and some that nobody should send.

mod datagram;
mod shapes;
mod story;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::machine::FAMILIES;
use super::sequence::{Cast, PORTS};
use super::step::{By, Edit, Origin, PacketStep, Place, Step, Teller};
use super::wire;
use crate::dice::Dice;
use crate::packet::address::{Family, at};
use crate::packet::build::Packet;
use shapes::{CALLEES_TAG, CALLERS_TAG, answer_chunk, chain, next_chunk};

/// Packets that others are answers to, or go on from.
const WINDOW: usize = 30;
/// Ports of clients: few, so that flows meet.
const CLIENTS: u16 = 40_000;
const CLIENT_PORTS: usize = 6;

/// What makes packets.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) cast: Cast,
    next: usize,
}

impl Traffic {
    pub(super) fn new(cast: Cast) -> Self {
        Self { cast, next: 0 }
    }

    /// One of the last packets.
    pub(super) fn recent(&self, dice: &mut Dice) -> usize {
        let back = 1 + dice.below(WINDOW.min(self.next).max(1));
        self.next.saturating_sub(back)
    }

    fn step(&mut self, origin: Origin, edits: Vec<Edit>) -> Step {
        let id = self.next;
        self.next += 1;
        Step::Packet(PacketStep { id, origin, edits })
    }

    /// One packet more.
    pub(super) fn packet(&mut self, dice: &mut Dice) -> Step {
        let mut edits = Vec::new();
        let of = self.recent(dice);
        let origin = match dice.weighted(&[30, 24, 16, 14, 14, 18]) {
            0 => {
                let (place, packet) = self.opener(dice);
                Origin::Frame(place, packet.bytes())
            }
            1 => {
                edits.extend(answer_flags(dice));
                edits.extend(answer_chunk(dice));
                Origin::AnswerTo(of)
            }
            2 => {
                edits.extend(next_flags(dice));
                edits.extend(next_chunk(dice));
                Origin::Again(of)
            }
            3 => Origin::Onward(of),
            4 => self.error(dice, of),
            _ => {
                let (place, frame) = self.strange(dice);
                Origin::Frame(place, frame)
            }
        };
        if dice.chance(10) {
            mutate(dice, &mut edits);
        }
        if dice.chance(3) {
            edits.push(Edit::At(self.place(dice)));
        }
        self.step(origin, edits)
    }

    /// An ICMP error about a packet; of few one says too little, and few are made by whom they should not.
    fn error(&self, dice: &mut Dice, of: usize) -> Origin {
        let teller = match dice.weighted(&[4, 3, 3, 2, 1]) {
            0 => Teller::End,
            1 => Teller::Router,
            2 => Teller::Host,
            3 => Teller::Through,
            _ => Teller::Stranger(*dice.pick(&self.cast.pods)),
        };
        let kind = *dice.pick(&[0, 0, 0, 1, 1, 2, 2, 3, 4, 5]);
        let bytes = *dice.pick(&[8, 8, 8, 12, 17, 18, 20, 28, 64, 400, 7, 0]);
        Origin::Error(of, teller, kind, bytes)
    }

    fn place(&self, dice: &mut Dice) -> Place {
        let pod = *dice.pick(&self.cast.pods);
        match dice.below(4) {
            0 => Place::Uplink,
            1 => Place::FromPod(pod),
            _ => Place::ToPod(pod, self.by(dice)),
        }
    }

    fn by(&self, dice: &mut Dice) -> By {
        match dice.below(3) {
            0 => By::Host,
            1 => By::Uplink,
            _ => By::Pod(*dice.pick(&self.cast.pods)),
        }
    }

    /// An address outside of this node.
    fn far(dice: &mut Dice, family: Family) -> IpAddr {
        match dice.below(4) {
            0 => family.remote_pod(1),
            1 => family.node(),
            n => family.outside(u8::try_from(7 + n).unwrap_or(9)),
        }
    }

    /// The first packet of a flow, where it enters.
    fn opener(&self, dice: &mut Dice) -> (Place, Packet) {
        let family = *dice.pick(&FAMILIES);
        let pod = *dice.pick(&self.cast.pods);
        let port = CLIENTS + u16::try_from(dice.below(CLIENT_PORTS)).unwrap_or(0);
        let other = family.pod(*dice.pick(&self.cast.pods));
        let (place, from, to, protocol) = match dice.weighted(&[30, 40, 10, 12, 8]) {
            // To a service.
            1 => {
                let (frontend, protocol, _) = *dice.pick(&self.cast.services);
                let family = if frontend.is_ipv4() {
                    Family::V4
                } else {
                    Family::V6
                };
                let to = if dice.chance(8) {
                    at(*dice.pick(&self.cast.bare), *dice.pick(&PORTS))
                } else if dice.chance(5) {
                    at(frontend.ip(), 81)
                } else {
                    frontend
                };
                let to = match (to.is_ipv4(), family) {
                    (true, Family::V4) | (false, Family::V6) => to,
                    _ => frontend,
                };
                (Place::FromPod(pod), family.pod(pod), to, protocol)
            }
            // To this host, or out of the node.
            2 => {
                let to = if dice.chance(40) {
                    family.host()
                } else {
                    Self::far(dice, family)
                };
                let to = at(to, *dice.pick(&PORTS));
                (Place::FromPod(pod), family.pod(pod), to, any(dice))
            }
            // From outside: in by the uplink, or already at the pod.
            3 => {
                let place = if dice.chance(50) {
                    Place::Uplink
                } else {
                    Place::ToPod(pod, By::Uplink)
                };
                let to = at(family.pod(pod), *dice.pick(&PORTS));
                (place, Self::far(dice, family), to, any(dice))
            }
            // From this host.
            4 => {
                // Few of its flows, so that somebody else's packets meet one.
                let by = if dice.chance(75) {
                    By::Host
                } else {
                    self.by(dice)
                };
                let (from, to) = (
                    at(family.host(), CLIENTS),
                    at(family.pod(pod), *dice.pick(&PORTS[..2])),
                );
                let protocol = any(dice);
                return (Place::ToPod(pod, by), packet(dice, from, to, protocol));
            }
            _ => {
                let to = at(other, *dice.pick(&PORTS));
                (Place::FromPod(pod), family.pod(pod), to, any(dice))
            }
        };
        let packet = packet(dice, at(from, port), to, protocol);
        // In IPv4 there are none.
        let packet = if dice.chance(20) {
            chain(dice, packet)
        } else {
            packet
        };
        (place, packet)
    }

    /// What nobody should send, or what is no flow's.
    fn strange(&self, dice: &mut Dice) -> (Place, Vec<u8>) {
        let family = *dice.pick(&FAMILIES);
        let pod = *dice.pick(&self.cast.pods);
        let (place, from, to) = self.ends(dice, family, pod);
        let (s, d) = (
            at(
                from,
                CLIENTS + u16::try_from(dice.below(CLIENT_PORTS)).unwrap_or(0),
            ),
            at(to, *dice.pick(&PORTS)),
        );
        let packet = match dice.weighted(&[16, 12, 10, 26, 10, 8, 8, 12, 10]) {
            0 => {
                let (offset, more) = *dice.pick(&[(0, true), (3, true), (3, false), (185, false)]);
                packet(dice, s, d, wire::UDP).fragment(offset, more)
            }
            1 => {
                let kinds: &[u8] = if from.is_ipv4() {
                    &[3, 4, 5, 11, 12, 13, 9]
                } else {
                    &[1, 2, 3, 4, 100, 127, 139, 144]
                };
                Packet::icmp(from, to, *dice.pick(kinds), 0, [0; 4])
            }
            2 if from.is_ipv4() => {
                let length = *dice.pick(&[4, 8, 40]);
                packet(dice, s, d, wire::TCP).ip_options(&vec![1; length])
            }
            2 => {
                let kind = *dice.pick(&[0, 43, 51, 60, 135, 59, 50]);
                packet(dice, s, d, wire::UDP).extension(kind, &[0; 6])
            }
            // The middle of a connection.
            3 => Packet::tcp(s, d, *dice.pick(&[16, 24, 18, 17, 4, 20, 0, 2])),
            4 => return (self.tagged(dice, pod), frame_of_another_type(dice)),
            5 => return (place, short(dice, from, to)),
            6 => Packet::other(from, to, *dice.pick(&[2, 47, 50, 89, 253])),
            7 => return self.neighbour(dice, pod),
            // From where it cannot come.
            _ => {
                let wrong = *dice.pick(&[
                    family.loopback(),
                    family.multicast(),
                    family.host(),
                    family.cluster_ip(1),
                    family.outside(3),
                    family.pod(1),
                ]);
                packet(dice, at(wrong, 1_000), d, wire::UDP)
            }
        };
        (place, packet.bytes())
    }

    /// A place, and ends that a packet may have there.
    fn ends(&self, dice: &mut Dice, family: Family, pod: u8) -> (Place, IpAddr, IpAddr) {
        let own = family.pod(pod);
        let other = family.pod(*dice.pick(&self.cast.pods));
        match dice.below(10) {
            0..=4 => {
                let to = match dice.below(9) {
                    0 => family.cluster_ip(1),
                    1 => family.cluster_ip(99),
                    2 => family.host(),
                    3 => Self::far(dice, family),
                    4 => family.loopback(),
                    _ => other,
                };
                (Place::FromPod(pod), own, to)
            }
            5..=7 => {
                let (by, from) = match dice.below(5) {
                    0 => (By::Host, family.host()),
                    1 => (By::Pod(pod), other),
                    _ => (By::Uplink, Self::far(dice, family)),
                };
                let to = match dice.below(10) {
                    0 => family.cluster_ip(1),
                    _ => own,
                };
                (Place::ToPod(pod, by), from, to)
            }
            _ => {
                let to = match dice.below(5) {
                    0 => family.cluster_ip(1),
                    1 => family.host(),
                    2 => family.loopback(),
                    _ => own,
                };
                (Place::Uplink, Self::far(dice, family), to)
            }
        }
    }

    fn tagged(&self, dice: &mut Dice, pod: u8) -> Place {
        match dice.below(5) {
            0 => Place::Uplink,
            1 | 2 => Place::ToPod(pod, By::Uplink),
            _ => Place::FromPod(pod),
        }
    }

    /// ARP, neighbour discovery, multicast listeners.
    fn neighbour(&self, dice: &mut Dice, pod: u8) -> (Place, Vec<u8>) {
        let other = *dice.pick(&self.cast.pods);
        let speaker = if dice.chance(70) { pod } else { other };
        let place = match dice.below(6) {
            0 => Place::Uplink,
            1 => Place::ToPod(pod, By::Host),
            _ => Place::FromPod(pod),
        };
        let four = |address: IpAddr| match address {
            IpAddr::V4(a) => a.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let six = |address: IpAddr| match address {
            IpAddr::V6(a) => a,
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        };
        let (v4, v6) = (Family::V4, Family::V6);
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, pod.into());
        let source = *dice.pick(&[six(v6.pod(speaker)), link_local, Ipv6Addr::UNSPECIFIED]);
        let packet = match dice.below(4) {
            0 => Packet::arp(four(v4.pod(speaker)), [169, 254, 1, 1]),
            1 => Packet::listener_report(source),
            _ => {
                let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let target = *dice.pick(&[
                    all_nodes,
                    six(v6.host()),
                    six(v6.pod(other)),
                    six(v6.outside(1)),
                    link_local,
                ]);
                let hops = *dice.pick(&[255, 255, 255, 254, 64]);
                Packet::neighbour_solicitation(source, target, target).hops(hops)
            }
        };
        (place, packet.bytes())
    }
}

fn any(dice: &mut Dice) -> u8 {
    const ECHO: u8 = 0;
    *dice.pick(&[
        wire::TCP,
        wire::TCP,
        wire::UDP,
        wire::UDP,
        wire::SCTP,
        ECHO,
        47,
    ])
}

/// A valid packet of a protocol, echo for those without a builder of their own.
fn packet(dice: &mut Dice, from: SocketAddr, to: SocketAddr, protocol: u8) -> Packet {
    let data = vec![0x5a; *dice.pick(&[8, 9, 16, 40, 61])];
    let hops = *dice.pick(&[64, 64, 64, 64, 64, 255, 2, 1, 0]);
    let packet = match protocol {
        wire::TCP => {
            let flags = *dice.pick(&[2, 2, 2, 2, 2, 2, 2, 3, 0xc2, 16]);
            let packet = Packet::tcp(from, to, flags).numbers(
                u32::try_from(dice.below(usize::MAX) % (1 << 32)).unwrap_or(7),
                u32::try_from(dice.below(1 << 20)).unwrap_or(7),
            );
            if dice.chance(20) {
                packet.tcp_options(&[2, 4, 5, 180, 1, 1, 1, 0]).data(&data)
            } else {
                packet
            }
        }
        wire::UDP if dice.chance(12) && from.is_ipv4() => {
            Packet::udp(from, to).data(&data).without_checksum()
        }
        wire::UDP => Packet::udp(from, to).data(&data),
        wire::SCTP => {
            let packet = match dice.below(10) {
                0..=5 => Packet::sctp_init(from, to, CALLERS_TAG),
                6 => Packet::sctp_data(from, to, CALLEES_TAG, &data),
                _ => Packet::sctp(from, to).data(&data),
            };
            if dice.chance(10) {
                packet.unsummed()
            } else {
                packet
            }
        }
        0 => Packet::ping(from.ip(), to.ip(), from.port()),
        other => Packet::other(from.ip(), to.ip(), other),
    };
    if dice.chance(8) {
        packet.padded(1 + dice.below(20)).hops(hops)
    } else {
        packet.hops(hops)
    }
}

fn answer_flags(dice: &mut Dice) -> Option<Edit> {
    let flags = *dice.pick(&[18, 18, 18, 16, 16, 24, 17, 17, 4, 20, 2]);
    dice.chance(80).then_some(Edit::Flags(flags))
}

fn next_flags(dice: &mut Dice) -> Option<Edit> {
    let flags = *dice.pick(&[16, 16, 16, 24, 17, 17, 20, 4, 2, 2, 18, 0]);
    dice.chance(80).then_some(Edit::Flags(flags))
}

/// Changes that make a packet wrong, or another one.
fn mutate(dice: &mut Dice, edits: &mut Vec<Edit>) {
    // Behind the MACs, and mostly within the headers.
    let place = |dice: &mut Dice| 12 + dice.below(70);
    for _ in 0..=dice.below(2) {
        edits.push(match dice.below(8) {
            0 => Edit::Cut(wire::ETHERNET + 20 + dice.below(80)),
            1 => Edit::Pad(1 + dice.below(30)),
            2 => Edit::Turn,
            3 => Edit::Flags(u8::try_from(dice.below(256)).unwrap_or(0)),
            4 | 5 => Edit::Flip(place(dice), 1 << dice.below(8)),
            _ => Edit::Set(place(dice), u8::try_from(dice.below(256)).unwrap_or(0)),
        });
    }
    if dice.chance(40) {
        edits.push(Edit::Seal);
    }
}

fn frame_of_another_type(dice: &mut Dice) -> Vec<u8> {
    let kind = *dice.pick(&[0x8100, 0x8100, 0x88a8, 0x88cc, 0x8847, 0x0027, 0x9100]);
    // A priority alone, or a VLAN.
    let first = if dice.chance(50) {
        [0xe0, 0]
    } else {
        [0x42; 2]
    };
    Packet::frame(kind, &[&first[..], &[0x42; 58]].concat()).bytes()
}

/// Headers that are cut short, or say more than there is.
fn short(dice: &mut Dice, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (protocol, most) = *dice.pick(&[(6, 19), (17, 7), (132, 11), (1, 7), (58, 7)]);
    let data = vec![0; dice.below(most + 1)];
    let mut frame = Packet::other(from, to, protocol)
        .data(&data)
        .padded(12)
        .bytes();
    if dice.chance(30) {
        let length = if from.is_ipv4() { 2 } else { 4 };
        frame[wire::ETHERNET + length] = 0x7f;
    }
    if dice.chance(20) {
        frame[wire::ETHERNET] = *dice.pick(&[0x44, 0x4f, 0x55, 0x60, 0x45]);
    }
    frame
}
