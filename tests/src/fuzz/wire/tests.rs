use super::sums::{complement, words};
use super::*;
use crate::packet::address::{Family, at};
use crate::packet::build::Packet;

fn packets(family: Family) -> Vec<Vec<u8>> {
    let (a, b) = (at(family.pod(1), 40_000), at(family.pod(2), 53));
    [
        Packet::syn(a, b).data(b"odd"),
        Packet::udp(a, b).data(b"odd"),
        Packet::sctp(a, b),
        Packet::ping(a.ip(), b.ip(), 7),
        Packet::other(a.ip(), b.ip(), 47),
    ]
    .iter()
    .map(Packet::bytes)
    .collect()
}

#[test]
fn the_sum_is_that_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(words(&bytes), 0xddf2);
    assert_eq!(complement(0xddf2), 0x220d);
}

#[test]
fn what_the_rows_builder_makes_is_right_and_stays_when_it_is_sealed() {
    for family in [Family::V4, Family::V6] {
        for frame in packets(family) {
            let wire = read(&frame);
            let (header, transport) = wrong_by(&frame, &wire);
            assert_eq!((header, transport.unwrap_or(0)), (0, 0), "{wire:?}");
            let mut sealed = frame.clone();
            seal(&mut sealed);
            assert_eq!(sealed, frame, "{wire:?}");
        }
    }
}

#[test]
fn translation_and_a_hop_keep_what_is_wrong_as_wrong_as_it_was() {
    for family in [Family::V4, Family::V6] {
        for mut frame in packets(family).into_iter().take(3) {
            for damage in [0, 1, 0x80] {
                let last = frame.len() - 1;
                frame[last] ^= damage;
                let wire = read(&frame);
                let wrong = wrong_by(&frame, &wire);
                let to = Ends {
                    from: at(family.cluster_ip(9), 65_535),
                    to: at(family.outside(255), 1),
                    protocol: wire.ends.protocol,
                };
                let mut out = frame.clone();
                translate(&mut out, &wire, to);
                hop(&mut out, wire.v4);
                let there = read(&out);
                assert_eq!((there.ends, there.hops), (to, wire.hops - 1));
                assert_eq!(wrong_by(&out, &there), wrong);
            }
        }
    }
}

#[test]
fn an_answer_goes_back_and_its_answer_is_the_packet_again() {
    for family in [Family::V4, Family::V6] {
        for frame in packets(family) {
            let answer = turn(&frame);
            assert_eq!(read(&answer).ends, read(&frame).ends.turned());
            assert_eq!(turn(&answer), frame);
        }
    }
    // The other family's ICMP, with nothing behind the header.
    let family = Family::V6;
    let empty = Packet::other(family.pod(1), family.pod(2), ICMP).data(&[]);
    let frame = empty.bytes();
    assert_eq!(frame.len(), ETHERNET + 40);
    assert_eq!(turn(&turn(&frame)), frame);
}

/// A datagram of 40 bytes in three fragments, behind two extension headers where there can be any.
fn parts(family: Family) -> Vec<Vec<u8>> {
    let packet = Packet::udp(at(family.pod(1), 7), at(family.pod(2), 53)).data(&[9; 40]);
    let packet = match family {
        Family::V4 => packet.ip_options(&[1; 8]),
        Family::V6 => packet.extension(0, &[0; 14]).extension(60, &[0; 6]),
    };
    packet.fragments(16).iter().map(Packet::bytes).collect()
}

#[test]
fn fragments_tell_their_place_and_their_flow_only_in_the_first() {
    for family in [Family::V4, Family::V6] {
        let parts = parts(family);
        for (n, frame) in parts.iter().enumerate() {
            let wire = read(frame);
            let part = wire.part.expect("a fragment");
            assert_eq!((part.at, part.length), (16 * n, 16), "{wire:?}");
            assert_eq!(part.more, n + 1 < parts.len());
            assert_eq!(
                part.id,
                if family == Family::V4 {
                    0x1234 << 16
                } else {
                    0x1234
                }
            );
            let first = n == 0;
            assert_eq!(wire.kind, if first { Kind::Flow } else { Kind::Later });
            assert_eq!(wire.ends.to.port(), if first { 53 } else { 0 });
        }
    }
}

#[test]
fn a_chain_is_walked_to_its_limits() {
    let udp = || Packet::udp(at(Family::V6.pod(1), 7), at(Family::V6.pod(2), 53));
    let kind = |packet: Packet| read(&packet.bytes()).kind;
    let beyond = Kind::Unknown(Reason::ExtensionHeader);
    let six = (0..6).fold(udp(), |packet, _| packet.extension(60, &[0; 6]));
    assert_eq!(kind(six.clone()), Kind::Flow);
    assert_eq!(kind(six.extension(60, &[0; 6])), beyond);
    assert_eq!(kind(udp().extension(60, &[0; 254])), Kind::Flow);
    assert_eq!(kind(udp().extension(60, &[0; 254 + 8])), beyond);
    assert_eq!(
        kind(udp().extension(60, &[0; 254]).fragment(0, false)),
        beyond
    );
    assert_eq!(
        kind(udp().extension(60, &[0; 6]).extension(0, &[0; 6])),
        beyond
    );
    assert_eq!(kind(udp().extension(43, &[2, 1, 0, 0, 0, 0])), beyond);
    assert_eq!(kind(udp().extension(51, &[7; 22])), Kind::Flow);
    let long = udp().extension(60, &[0; 6]).damage(ETHERNET + 41, 9);
    assert_eq!(kind(long), Kind::Unknown(Reason::Malformed));
}

#[test]
fn an_error_written_anew_quotes_the_packet_as_it_was_and_its_sums_stay() {
    for family in [Family::V4, Family::V6] {
        let (client, service, server) = (
            at(family.pod(1), 40_000),
            at(family.cluster_ip(1), 80),
            at(family.pod(2), 8080),
        );
        for (asked, went) in [
            (Packet::udp(client, service), Packet::udp(client, server)),
            (Packet::syn(client, service), Packet::syn(client, server)),
        ] {
            let (asked, went) = (asked.bytes(), went.bytes());
            let code = if family == Family::V4 { [3, 3] } else { [1, 4] };
            for cut in [8, 12, 20] {
                let quote = |frame: &[u8]| {
                    let end = (read(frame).transport() + cut).min(frame.len());
                    frame[ETHERNET..end].to_vec()
                };
                let told =
                    |from, packet: &[u8]| error(&[0; 12], from, client.ip(), code, &quote(packet));
                let mut frame = told(server.ip(), &went);
                let wire = read(&frame);
                let inner = quoted(&frame, &wire).expect("a quote");
                assert_eq!(inner.ends, read(&went).ends);
                let outer = Ends {
                    from: at(service.ip(), 0),
                    ..wire.ends
                };
                rewrite_error(&mut frame, &wire, &inner, outer, read(&asked).ends);
                assert_eq!(frame, told(service.ip(), &asked), "{family:?} {cut}");
                let wire = read(&frame);
                assert_eq!(wrong_by(&frame, &wire), (0, Some(0)));
            }
            let short = error(
                &[0; 12],
                server.ip(),
                client.ip(),
                code,
                &went[ETHERNET..ETHERNET + 27],
            );
            assert!(quoted(&short, &read(&short)).is_none());
        }
    }
}
