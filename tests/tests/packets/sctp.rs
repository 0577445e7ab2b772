//! SCTP: services, whose checksum is no sum and covers the ports; and what begins and ends an association. Every packet that comes out is held
//! against the checksum of RFC 9260, computed anew over all of it.

use std::net::SocketAddr;

use agent_common::{Count, GROUP_ANY, Reason, backend_state, hook};
use tests::packet::address::at;
use tests::packet::build::sctp::chunk;
use tests::packet::build::{ETHERNET, Packet};
use tests::packet::outcome::{Outcome, Via};
use tests::packet::rules::Ports;
use tests::packet::seen::{Seen, join};
use tests::packet::world::{LocalPod, World};

use super::reject::port_unreachable;

const SCTP: u8 = 132;
const SET: u32 = 11;
/// What the client asks to have in all that comes to it, and the server.
const CLIENT: u32 = 0x0102_0304;
const SERVER: u32 = 0xfffe_fdfc;
/// What neither asked for.
const FORGED: u32 = 0x0bad_c0de;
/// Bytes of a fragment, a multiple of eight, and of a packet that takes three.
const PART: usize = 1_440;
const LARGE: usize = 4_000;

/// Two pods, and a service of the second's port 9090 at port 80.
fn service(w: &mut World) -> (LocalPod, LocalPod, SocketAddr) {
    let (a, b) = (w.pod(1), w.pod(2));
    let vip = at(w.family.cluster_ip(1), 80);
    w.service(vip, SCTP, &[b.at(9090)]);
    (a, b, vip)
}

/// It has a checksum, which reading it has found right.
fn summed(out: Outcome) -> Outcome {
    assert_ne!(out.seen().sctp_checksum(), [0; 4]);
    out
}

/// The beginning of an association: `client` asks at `asked`, where `server` answers as `is`.
fn begin(
    w: &mut World,
    (a, client): (&LocalPod, SocketAddr),
    asked: SocketAddr,
    (b, is): (&LocalPod, SocketAddr),
) {
    let out = w
        .from_pod(a, &Packet::sctp_init(client, asked, CLIENT))
        .delivered_to(b);
    let shown = summed(out).seen();
    assert_eq!(shown.destination, is);
    let out = w
        .from_pod(b, &Packet::sctp_init_ack(is, shown.source, CLIENT, SERVER))
        .delivered_to(a);
    summed(out)
        .shows(asked, client)
        .counted(Count::FlowReplied, 1);
}

/// Whether both entries of an association say that it is over.
fn over(w: &World, client: SocketAddr, asked: SocketAddr, is: SocketAddr) -> bool {
    let ended = [
        w.answered(SCTP, client, asked),
        w.answered(SCTP, is, client),
    ]
    .map(|entry| entry.unwrap().closing);
    assert_eq!(ended[0], ended[1], "both say the same");
    ended[0] != 0
}

/// Bytes that begin as a chunk of data does.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| {
            if n == 0 {
                chunk::DATA
            } else {
                u8::try_from(n * 7 % 251).unwrap()
            }
        })
        .collect()
}

rows! {
    BOTH an_association_with_a_service_is_one_with_its_backend(w) {
        let (a, b, vip) = service(w);
        let client = a.at(4000);
        begin(w, (&a, client), vip, (&b, b.at(9090)));
        for data in [&b"a"[..], b"some", b"an odd number of bytes."] {
            let out = w.from_pod(&a, &Packet::sctp_data(client, vip, SERVER, data)).delivered_to(&b);
            summed(out).shows(client, b.at(9090));
            let out = w.from_pod(&b, &Packet::sctp_data(b.at(9090), client, CLIENT, data)).delivered_to(&a);
            summed(out).shows(vip, client);
        }
        assert_eq!(w.entries(), 2);
    }

    // Every port carries into every bit of the checksum, at every length.
    BOTH checksums_stay_right_whatever_the_ports_and_the_length(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        for (n, port) in [1u16, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff].into_iter().enumerate() {
            let vip = at(w.family.cluster_ip(u8::try_from(n).unwrap() + 1), port);
            let backend = b.at(!port | 1);
            w.service(vip, SCTP, &[backend]);
            for length in (0..=20).chain([31, 32, 33, 255, 256, 1_023, 1_439, 1_452, 3_000]) {
                let out = w.from_pod(&a, &Packet::sctp(a.at(port), vip).tag(SERVER).data(&content(length))).delivered_to(&b);
                summed(out).shows(a.at(port), backend);
                let out = w.from_pod(&b, &Packet::sctp(backend, a.at(port)).tag(CLIENT).data(&content(length))).delivered_to(&a);
                summed(out).shows(vip, a.at(port));
            }
        }
    }

    BOTH new_addresses_alone_leave_the_checksum_as_it_is(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[b.at(80)]);
        let packet = Packet::sctp_init(a.at(4000), vip, CLIENT);
        let out = summed(w.from_pod(&a, &packet).delivered_to(&b)).shows(a.at(4000), b.at(80));
        let sent = Seen::read(&out.sent).unwrap();
        assert_eq!(out.seen().sctp_checksum(), sent.sctp_checksum());
    }

    BOTH what_stands_behind_the_packet_in_its_frame_is_not_summed(w) {
        let (a, b, vip) = service(w);
        for padding in [1, 6, 20] {
            let packet = Packet::sctp_data(a.at(4000), vip, SERVER, b"short").padded(padding);
            let out = w.run("stub_from_pod", a.ifindex, a.ifindex, packet.bytes());
            assert_eq!(out.verdict, 7, "redirected");
            let seen = Seen::read(&out.frame[..out.frame.len() - padding]).unwrap();
            assert_eq!((seen.source, seen.destination), (a.at(4000), b.at(9090)));
            assert_ne!(seen.sctp_checksum(), [0; 4]);
        }
    }

    V4 options_of_the_ip_header_are_not_summed(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::sctp_data(a.at(4000), vip, SERVER, b"data").ip_options(&[1; 8]);
        for _ in 0..2 {
            summed(w.from_pod(&a, &packet).delivered_to(&b)).shows(a.at(4000), b.at(9090));
        }
    }

    V6 extension_headers_are_not_summed(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::sctp_data(a.at(4000), vip, SERVER, b"data").extension(60, &[1, 4, 0, 0, 0, 0]);
        for _ in 0..2 {
            summed(w.from_pod(&a, &packet).delivered_to(&b)).shows(a.at(4000), b.at(9090));
        }
    }

    // What is there by then is summed by the device, or by the kernel before it: a field that is not zero would be summed too.
    BOTH a_checksum_that_is_left_to_the_device_stays_so(w) {
        let (a, b, vip) = service(w);
        for _ in 0..2 {
            let out = w.from_pod(&a, &Packet::sctp_data(a.at(4000), vip, SERVER, b"data").unsummed()).delivered_to(&b);
            assert_eq!(out.shows(a.at(4000), b.at(9090)).seen().sctp_checksum(), [0; 4]);
        }
    }

    BOTH a_wrong_checksum_stays_wrong(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::sctp_data(a.at(4000), vip, SERVER, b"data");
        let last = packet.bytes().len() - 1;
        let damaged = packet.damage(last, 0xee);
        let out = w.from_pod(&a, &damaged).redirected();
        let read = Seen::read(&out.frame).unwrap_err().to_string();
        assert!(read.contains("a wrong checksum of SCTP"), "{read}");
        w.from_pod(&b, &Packet::sctp_data(b.at(9090), a.at(4000), CLIENT, b"data")).delivered_to(&a).shows(vip, a.at(4000));
    }

    BOTH two_services_with_one_backend_get_two_flows_from_one_client_port(w) {
        let (a, b, first) = service(w);
        let second = at(w.family.cluster_ip(2), 80);
        w.service(second, SCTP, &[b.at(9090)]);
        begin(w, (&a, a.at(4000)), first, (&b, b.at(9090)));
        let out = w.from_pod(&a, &Packet::sctp_init(a.at(4000), second, CLIENT)).delivered_to(&b);
        assert!(out.counts[&Count::Clash] >= 1);
        let seen = summed(out).seen();
        assert_eq!((seen.source.ip(), seen.destination), (a.address, b.at(9090)));
        assert!(seen.source.port() >= 61_000, "another port for the client: {}", seen.source);
        let out = w.from_pod(&b, &Packet::sctp_init_ack(b.at(9090), seen.source, CLIENT, SERVER)).delivered_to(&a);
        summed(out).shows(second, a.at(4000));
        let out = w.from_pod(&b, &Packet::sctp_data(b.at(9090), a.at(4000), CLIENT, b"first")).delivered_to(&a);
        summed(out).shows(first, a.at(4000));
        let out = w.from_pod(&a, &Packet::sctp_data(a.at(4000), second, SERVER, b"second")).delivered_to(&b);
        summed(out).shows(seen.source, b.at(9090));
        assert_eq!(w.entries(), 4);
    }

    BOTH a_pod_reaches_itself_through_its_service(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[a.at(9090)]);
        w.isolate_ingress(&a, SET);
        let hairpin = at(vip.ip(), 4000);
        let out = w.from_pod(&a, &Packet::sctp_init(a.at(4000), vip, CLIENT)).delivered_to(&a);
        summed(out).shows(hairpin, a.at(9090));
        let out = w.from_pod(&a, &Packet::sctp_init_ack(a.at(9090), hairpin, CLIENT, SERVER)).delivered_to(&a);
        summed(out).shows(vip, a.at(4000));
        let out = w.from_pod(&a, &Packet::sctp_data(a.at(4000), vip, SERVER, b"me")).delivered_to(&a);
        summed(out).shows(hairpin, a.at(9090));
    }

    BOTH policy_speaks_of_the_backends_port_and_of_sctp(w) {
        let (a, b, vip) = service(w);
        let other = at(w.family.cluster_ip(2), 9090);
        w.service(other, SCTP, &[b.at(80)]);
        w.isolate_egress(&a, SET);
        w.allow(SET, GROUP_ANY, Ports::One(SCTP, 9090));
        w.isolate_ingress(&b, SET + 1);
        w.allow(SET + 1, GROUP_ANY, Ports::Prefix(SCTP, 9088, 14));
        begin(w, (&a, a.at(4000)), vip, (&b, b.at(9090)));
        w.from_pod(&a, &Packet::sctp_init(a.at(4001), other, CLIENT)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &Packet::sctp_init(a.at(4001), b.at(9091), CLIENT)).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.from_pod(&a, &Packet::syn(a.at(4001), b.at(9090))).dropped(hook::FROM_POD, Reason::PolicyEgress);
        w.allow(SET, GROUP_ANY, Ports::Protocol(SCTP));
        w.from_pod(&a, &Packet::sctp_init(a.at(4002), b.at(9091), CLIENT)).delivered_to(&b);
        w.from_pod(&a, &Packet::sctp_init(a.at(4002), b.at(9092), CLIENT)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        w.from_pod(&a, &Packet::sctp_init(a.at(4003), other, CLIENT)).dropped(hook::FROM_POD, Reason::PolicyIngress);
        // What the server may answer it may not begin.
        w.isolate_egress(&b, SET + 2);
        w.raise_epoch(&b);
        w.from_pod(&b, &Packet::sctp_data(b.at(9090), a.at(4000), CLIENT, b"answer")).delivered_to(&a).shows(vip, a.at(4000));
        w.from_pod(&b, &Packet::sctp_init(b.at(9090), a.at(5000), SERVER)).dropped(hook::FROM_POD, Reason::PolicyEgress);
    }

    BOTH a_service_without_endpoints_and_one_that_is_not_there_are_unreachable(w) {
        let a = w.pod(1);
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[]);
        for tag in [0, SERVER] {
            let packet = Packet::sctp_init(a.at(4000), vip, CLIENT).tag(tag);
            port_unreachable(&w.from_pod(&a, &packet).rejected(Reason::NoEndpoint));
        }
        let nobody = Packet::sctp_init(a.at(4000), at(vip.ip(), 81), CLIENT);
        port_unreachable(&w.from_pod(&a, &nobody).rejected(Reason::NoServicePort));
        let far = Packet::sctp_init(at(w.family.outside(1), 4000), vip, CLIENT);
        port_unreachable(&w.from_uplink(&far).rejected_at(hook::FROM_UPLINK, Reason::ClusterIpFromOutside));
        assert_eq!(w.entries(), 0);
    }

    BOTH a_backend_elsewhere_is_reached_through_the_stack_and_ends_there_too(w) {
        let a = w.pod(1);
        let (far, _) = w.remote_pod(1);
        let (client, far) = (a.at(4000), at(far, 9090));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[far]);
        summed(w.from_pod(&a, &Packet::sctp_init(client, vip, CLIENT)).passes()).shows(client, far);
        let out = w.from_uplink(&Packet::sctp_init_ack(far, client, CLIENT, SERVER)).passes();
        summed(out).shows(vip, client).counted(Count::FlowReplied, 1);
        w.to_pod(&a, Via::Uplink, &Packet::sctp_init_ack(vip, client, CLIENT, SERVER)).passes_untouched();
        summed(w.from_pod(&a, &Packet::sctp_data(client, vip, SERVER, b"ask")).passes()).shows(client, far);
        summed(w.from_uplink(&Packet::sctp_data(far, client, CLIENT, b"tell")).passes()).shows(vip, client);
        for (tag, ends) in [(FORGED, false), (SERVER, false), (CLIENT, true)] {
            let out = w.from_uplink(&Packet::sctp_end(far, client, tag, chunk::ABORT, 0)).passes();
            summed(out).shows(vip, client);
            assert_eq!(over(w, client, vip, far), ends, "by tag {tag:#010x}");
        }
    }

    // A host-network pod of this node: its answers enter by no hook.
    BOTH a_backend_on_this_host_answers_from_the_service(w) {
        let a = w.pod(1);
        let (client, host) = (a.at(4000), at(w.family.host(), 9090));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[host]);
        summed(w.from_pod(&a, &Packet::sctp_init(client, vip, CLIENT)).passes()).shows(client, host);
        let out = w.to_pod(&a, Via::Host, &Packet::sctp_init_ack(host, client, CLIENT, SERVER)).passes();
        summed(out).shows(vip, client).counted(Count::FlowReplied, 1);
        let out = w.to_pod(&a, Via::Host, &Packet::sctp_end(host, client, CLIENT, chunk::ABORT, 0)).passes();
        summed(out).shows(vip, client);
        assert!(over(w, client, vip, host));
    }

    // Its quote shows what the client sent; but for the checksum of SCTP in it, which nobody reads there.
    BOTH an_error_about_an_association_comes_to_the_client_from_the_service(w) {
        let (a, b, vip) = service(w);
        let packet = Packet::sctp_init(a.at(4000), vip, CLIENT);
        let came = w.from_pod(&a, &packet).delivered_to(&b).frame[ETHERNET..].to_vec();
        let (kind, header, ends) = if a.address.is_ipv4() { ([3, 3], 20, 12..24) } else { ([1, 4], 40, 8..44) };
        for quoted in [header + 8, header + 12, came.len()] {
            let error = Packet::icmp(b.address, a.address, kind[0], kind[1], [0; 4]).data(&came[..quoted]);
            let seen = w.from_pod(&b, &error).delivered_to(&a).shows(at(vip.ip(), 0), a.at(0)).seen();
            assert_eq!(seen.transport[8..][ends.clone()], packet.bytes()[ETHERNET..][ends.clone()], "addresses and ports");
        }
        assert_eq!(w.entries(), 2);
    }

    BOTH an_association_stays_with_a_backend_that_stops_serving(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let vip = at(w.family.cluster_ip(1), 80);
        let service = w.service(vip, SCTP, &[b.at(9090), c.at(9090)]);
        w.resize(&service, 1);
        begin(w, (&a, a.at(4000)), vip, (&b, b.at(9090)));
        for state in [backend_state::TERMINATING, backend_state::NOT_SERVING] {
            w.backend(service.backends[0], |word| word.state = state);
            w.slot(&service, 0, service.backends[1]);
            w.from_pod(&a, &Packet::sctp_data(a.at(4000), vip, SERVER, b"more")).delivered_to(&b).counted(Count::FlowCreated, 0);
        }
        w.from_pod(&a, &Packet::sctp_init(a.at(4001), vip, CLIENT)).delivered_to(&c);
    }

    // The one that takes its place knows nothing of the association, and says so: with the tag that it was sent.
    BOTH an_association_whose_backend_is_gone_ends_by_the_word_of_another(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let (client, vip) = (a.at(4000), at(w.family.cluster_ip(1), 80));
        let service = w.service(vip, SCTP, &[b.at(9090), c.at(9090)]);
        w.resize(&service, 1);
        begin(w, (&a, client), vip, (&b, b.at(9090)));
        w.backend(service.backends[0], |word| word.state = backend_state::GONE);
        w.slot(&service, 0, service.backends[1]);
        w.from_pod(&a, &Packet::sctp_data(client, vip, SERVER, b"more")).delivered_to(&c).counted(Count::BackendChosen, 1);
        let abort = Packet::sctp_end(c.at(9090), client, SERVER, chunk::ABORT, chunk::T);
        summed(w.from_pod(&c, &abort).delivered_to(&a)).shows(vip, client);
        assert!(over(w, client, vip, c.at(9090)));
        w.from_pod(&a, &Packet::sctp_init(client, vip, CLIENT)).delivered_to(&c).counted(Count::FlowCreated, 1);
        // And where nobody takes it, the client is told.
        w.backend(service.backends[1], |word| word.state = backend_state::GONE);
        w.resize(&service, 0);
        let packet = Packet::sctp_data(client, vip, SERVER, b"more");
        port_unreachable(&w.from_pod(&a, &packet).rejected(Reason::NoEndpoint));
        assert_eq!(w.entries(), 0);
    }

    BOTH what_ends_an_association_bears_its_tag(w) {
        let (a, b, vip) = service(w);
        let client = a.at(4000);
        for kind in [chunk::ABORT, chunk::SHUTDOWN_COMPLETE] {
            // From the server its client's tag, and its own where it reflects; from the client the other way round.
            for (from_server, right, flags) in [(true, CLIENT, 0), (true, SERVER, chunk::T), (false, SERVER, 0), (false, CLIENT, chunk::T)] {
                begin(w, (&a, client), vip, (&b, b.at(9090)));
                let wrong = CLIENT ^ SERVER ^ right;
                for (tag, ends) in [(FORGED, false), (0, false), (wrong, false), (right, true)] {
                    let out = if from_server {
                        w.from_pod(&b, &Packet::sctp_end(b.at(9090), client, tag, kind, flags)).delivered_to(&a)
                    } else {
                        w.from_pod(&a, &Packet::sctp_end(client, vip, tag, kind, flags)).delivered_to(&b)
                    };
                    summed(out);
                    assert_eq!(over(w, client, vip, b.at(9090)), ends, "by chunk {kind}, flags {flags}, tag {tag:#010x}");
                }
                w.clear_flows();
            }
        }
    }

    BOTH an_init_begins_anew_where_an_association_ended_and_nowhere_else(w) {
        let (a, b, c) = (w.pod(1), w.pod(2), w.pod(3));
        let (client, vip) = (a.at(4000), at(w.family.cluster_ip(1), 80));
        let service = w.service(vip, SCTP, &[b.at(9090), c.at(9090)]);
        w.resize(&service, 1);
        begin(w, (&a, client), vip, (&b, b.at(9090)));
        w.slot(&service, 0, service.backends[1]);
        let init = Packet::sctp_init(client, vip, CLIENT);
        // It restarts, and its backend knows what to make of that (RFC 9260 5.2).
        w.from_pod(&a, &init).delivered_to(&b).counted(Count::FlowCreated, 0);
        w.from_pod(&a, &Packet::sctp_end(client, vip, SERVER, chunk::ABORT, 0)).delivered_to(&b);
        w.from_pod(&a, &Packet::sctp_data(client, vip, SERVER, b"late")).delivered_to(&b).counted(Count::FlowCreated, 0);
        // RFC 9260 8.5.1: with another tag than zero it is none.
        w.from_pod(&a, &init.clone().tag(SERVER)).delivered_to(&b).counted(Count::FlowCreated, 0);
        w.from_pod(&a, &init).delivered_to(&c).counted(Count::FlowCreated, 1);
        let new = w.waiting(SCTP, client, vip).unwrap();
        assert_eq!((new.closing, new.backend), (0, service.backends[1]));
    }

    BOTH a_server_that_takes_nobody_ends_what_was_asked(w) {
        let (a, b, vip) = service(w);
        let client = a.at(4000);
        w.from_pod(&a, &Packet::sctp_init(client, vip, CLIENT)).delivered_to(&b);
        w.from_pod(&b, &Packet::sctp_end(b.at(9090), client, CLIENT, chunk::ABORT, 0)).delivered_to(&a).shows(vip, client);
        assert!(over(w, client, vip, b.at(9090)));
    }

    BOTH what_comes_through_the_stack_ends_too(w) {
        let b = w.pod(2);
        let far = at(w.family.outside(1), 4000);
        w.to_pod(&b, Via::Uplink, &Packet::sctp_init(far, b.at(9090), CLIENT)).passes_untouched();
        w.from_pod(&b, &Packet::sctp_init_ack(b.at(9090), far, CLIENT, SERVER)).passes_untouched().counted(Count::FlowReplied, 1);
        for (tag, ends) in [(CLIENT, false), (SERVER, true)] {
            w.to_pod(&b, Via::Uplink, &Packet::sctp_end(far, b.at(9090), tag, chunk::SHUTDOWN_COMPLETE, 0)).passes_untouched();
            assert_eq!(over(w, far, b.at(9090), b.at(9090)), ends);
        }
        w.to_pod(&b, Via::Uplink, &Packet::sctp_init(far, b.at(9090), CLIENT)).passes_untouched().counted(Count::FlowCreated, 1);
    }

    BOTH a_fragment_does_not_tell_what_its_packets_checksum_becomes(w) {
        let (a, b, vip) = service(w);
        let large = |packet: Packet| packet.data(&content(LARGE)).fragments(PART);
        let parts = large(Packet::sctp(a.at(4000), vip).tag(SERVER));
        for part in &parts {
            w.from_pod(&a, part).dropped(hook::FROM_POD, Reason::Fragment);
        }
        assert_eq!((w.entries(), w.datagrams()), (0, 0));
        // The same of an association that is there, both ways.
        begin(w, (&a, a.at(4000)), vip, (&b, b.at(9090)));
        for part in &parts {
            w.from_pod(&a, part).dropped(hook::FROM_POD, Reason::Fragment);
        }
        for part in &large(Packet::sctp(b.at(9090), a.at(4000)).tag(CLIENT)) {
            w.from_pod(&b, part).dropped(hook::FROM_POD, Reason::Fragment);
        }
        assert_eq!(w.datagrams(), 0);
    }

    BOTH a_fragment_from_outside_or_from_this_host_does_not_either(w) {
        let a = w.pod(1);
        let (client, far, host) = (a.at(4000), at(w.family.outside(9), 9090), at(w.family.host(), 9090));
        let first = |from| Packet::sctp(from, client).tag(CLIENT).data(&content(LARGE)).fragments(PART).remove(0);
        for (n, backend) in [(1, far), (2, host)] {
            let vip = at(w.family.cluster_ip(n), 80);
            w.service(vip, SCTP, &[backend]);
            w.from_pod(&a, &Packet::sctp_init(client, vip, CLIENT)).passes().shows(client, backend);
        }
        w.from_uplink(&first(far)).dropped(hook::FROM_UPLINK, Reason::Fragment);
        w.to_pod(&a, Via::Host, &first(host)).dropped(hook::TO_POD, Reason::Fragment);
        assert_eq!(w.datagrams(), 0);
    }

    BOTH fragments_whose_ports_stay_are_translated_in_their_addresses(w) {
        let (a, b) = (w.pod(1), w.pod(2));
        let vip = at(w.family.cluster_ip(1), 80);
        w.service(vip, SCTP, &[b.at(80)]);
        for (from, to, client, shown) in [(&a, &b, (a.at(4000), vip), (a.at(4000), b.at(80))), (&b, &a, (b.at(80), a.at(4000)), (vip, a.at(4000)))] {
            let parts: Vec<_> = Packet::sctp(client.0, client.1)
                .tag(SERVER)
                .data(&content(LARGE))
                .fragments(PART)
                .iter()
                .map(|part| w.from_pod(from, part).delivered_to(to))
                .collect();
            let seen = join(parts.iter().map(|out| out.frame.as_slice())).unwrap();
            assert_eq!((seen.source, seen.destination), shown);
            assert_ne!(seen.sctp_checksum(), [0; 4]);
        }
        assert_eq!((w.entries(), w.datagrams()), (2, 0));
    }
}
