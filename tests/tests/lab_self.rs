//! The lab proves itself, without any agent: what it cannot carry, no test on it can show.
//!
//! Needs root; every test has a lab of its own and they run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tests::lab::Lab;
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::host::{HostProcess, hand_binary};
use tests::lab::manifests::{self, Endpoint, ManifestDir, NamedPort, ServicePort};
use tests::lab::node::{Node, NodeOptions, RpFilter};
use tests::lab::pod::{Pod, PodSpec};
use tests::lab::traffic::connects::{ConnectPlan, Connects};
use tests::lab::traffic::counters::Counters;
use tests::lab::traffic::held::{Held, HoldPlan};
use tests::lab::traffic::raw::{RawSocket, arp_request};
use tests::lab::traffic::stream::{Receiver, Sender, StreamPlan};
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};
use tests::lab::wire::Wire;

const PORT: u16 = 8080;
/// A port on which nobody listens.
const CLOSED_PORT: u16 = 8081;
/// For attempts that are to succeed, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(5);

fn pods(node: &Node, names: &[&str]) -> Vec<Pod> {
    node.pods(names.iter().map(|name| PodSpec::new(name)))
        .unwrap()
}

fn serve(pod: &Pod) -> Server {
    Server::on_ports(pod.netns(), &pod.name, &pod.addresses(), &[PORT]).unwrap()
}

/// Probes to `ip:PORT` by both protocols must be answered by `by`, which must have seen `source`.
fn assert_reached(
    from: &std::sync::Arc<tests::lab::netns::Netns>,
    to: IpAddr,
    by: &str,
    source: IpAddr,
) {
    for proto in Proto::ALL {
        let probe = Probe::new(from, proto, SocketAddr::new(to, PORT));
        let outcome = probe::run(std::slice::from_ref(&probe), Patience::deadline(DEADLINE))
            .unwrap()
            .remove(0);
        assert_eq!(outcome.by(), Some(by), "{probe}: {outcome}");
        assert_eq!(
            outcome.peer_seen().map(|peer| peer.ip()),
            Some(source),
            "{probe}: {outcome}"
        );
    }
}

#[test]
fn pods_of_a_node_reach_each_other_in_both_families_and_protocols() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let began = Instant::now();
    let pods = pods(
        &node,
        &["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"],
    );
    println!("ten pods in {:?}", began.elapsed());
    let servers: Vec<Server> = pods.iter().map(serve).collect();
    let mut probes = Vec::new();
    let mut expected = Vec::new();
    for from in &pods {
        for to in &pods {
            for proto in Proto::ALL {
                for (address, source) in to.addresses().into_iter().zip(from.addresses()) {
                    probes.push(Probe::new(
                        from.netns(),
                        proto,
                        SocketAddr::new(address, PORT),
                    ));
                    expected.push((to.name.as_str(), source));
                }
            }
        }
    }
    let began = Instant::now();
    let outcomes = probe::run(&probes, Patience::deadline(DEADLINE)).unwrap();
    println!("{} probes in {:?}", probes.len(), began.elapsed());
    for ((probe, outcome), (by, source)) in probes.iter().zip(&outcomes).zip(expected) {
        assert_eq!(outcome.by(), Some(by), "{probe}: {outcome}");
        assert_eq!(
            outcome.peer_seen().map(|peer| peer.ip()),
            Some(source),
            "{probe}: {outcome}"
        );
    }
    // Ten clients, two families: each server was asked 20 times by each protocol.
    for server in &servers {
        assert_eq!(
            (server.accepted(), server.requests()),
            (20, 40),
            "{}",
            server.name()
        );
    }
}

#[test]
fn silence_refusal_and_no_route_are_told_apart_and_the_server_saw_nothing() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pods = pods(&node, &["client", "server"]);
    let [client, server] = &pods[..] else {
        panic!("two pods were asked for")
    };
    let running = serve(server);
    let mark = running.mark();
    for to in server.addresses() {
        for proto in Proto::ALL {
            let ask = |port| Probe::new(client.netns(), proto, SocketAddr::new(to, port));
            let refused = probe::run(&[ask(CLOSED_PORT)], Patience::deadline(DEADLINE)).unwrap();
            assert_eq!(refused, [Outcome::Refused], "{proto} {to}");
        }
    }
    // A blackhole on the way drops without a word: what a denied packet meets.
    let [v4, v6] = server.addresses();
    node.netns()
        .ip(&format!(
            "rule add to {v4} blackhole\n-6 rule add to {v6} blackhole"
        ))
        .unwrap();
    let mut probes = Vec::new();
    for to in server.addresses() {
        probes.extend(
            Proto::ALL.map(|proto| Probe::new(client.netns(), proto, SocketAddr::new(to, PORT))),
        );
    }
    let began = Instant::now();
    let outcomes = probe::run(&probes, Patience::MATRIX).unwrap();
    println!("four denied probes in {:?}", began.elapsed());
    assert_eq!(outcomes, vec![Outcome::TimedOut; 4]);
    assert_eq!(running.seen_since(mark), []);
    node.netns()
        .ip(&format!(
            "rule del to {v4} blackhole\n-6 rule del to {v6} blackhole"
        ))
        .unwrap();
    assert_reached(client.netns(), v4, "server", client.ipv4.into());
    // What no route leads to.
    node.netns()
        .ip("route add unreachable 198.51.100.1/32\nroute add unreachable 2001:db8:1::1/128")
        .unwrap();
    for to in ["198.51.100.1:80", "[2001:db8:1::1]:80"] {
        let to = to.parse().unwrap();
        assert_eq!(
            probe::connect(client.netns(), to, DEADLINE).unwrap(),
            Outcome::Unreachable,
            "{to}"
        );
        assert_eq!(
            probe::ask_udp(client.netns(), to, DEADLINE).unwrap(),
            Outcome::Unreachable,
            "{to}"
        );
    }
}

#[test]
fn pods_reach_the_world_and_the_world_reaches_pods() {
    let lab = Lab::new("self").unwrap();
    let options = NodeOptions {
        rp_filter: RpFilter::Loose,
        ..NodeOptions::default()
    };
    let node = lab.node_with("a", options).unwrap();
    let pod = node.pod("pod").unwrap();
    let world = [IpAddr::from(Wire::WORLD_V4), IpAddr::from(Wire::WORLD_V6)];
    let _world = Server::on_ports(lab.wire().netns(), "world", &world, &[PORT]).unwrap();
    let _pod = serve(&pod);
    let routers = [
        IpAddr::from(Wire::GATEWAY_V4),
        IpAddr::from(Wire::GATEWAY_V6),
    ];
    for ((to, own), router) in world.into_iter().zip(pod.addresses()).zip(routers) {
        assert_reached(pod.netns(), to, "world", own);
        assert_reached(lab.wire().netns(), own, "pod", router);
    }
}

#[test]
fn two_nodes_reach_each_others_pods_and_two_labs_do_not_meet() {
    let lab = Lab::new("self").unwrap();
    let other = Lab::new("self").unwrap();
    let (a, b) = (lab.node("a").unwrap(), lab.node("b").unwrap());
    let stranger = other.node("a").unwrap().pod("stranger").unwrap();
    let (on_a, on_b) = (a.pod("on-a").unwrap(), b.pod("on-b").unwrap());
    let (_a, _b) = (serve(&on_a), serve(&on_b));
    for (index, (to_a, to_b)) in on_a
        .addresses()
        .into_iter()
        .zip(on_b.addresses())
        .enumerate()
    {
        assert_reached(on_a.netns(), to_b, "on-b", to_a);
        assert_reached(on_b.netns(), to_a, "on-a", to_b);
        assert_reached(a.netns(), to_b, "on-b", a.addresses()[index]);
    }
    // The stranger has the same address as the pod on a: only the namespace tells them apart.
    assert_eq!(stranger.ipv4, on_a.ipv4);
    let to = SocketAddr::new(on_b.ipv4.into(), PORT);
    assert!(
        !probe::connect(stranger.netns(), to, Patience::MATRIX.quiet)
            .unwrap()
            .is_answered()
    );
}

#[test]
fn a_numbered_stream_arrives_whole_and_comes_back_whole() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pods = pods(&node, &["sender", "receiver"]);
    for address in pods[1].addresses() {
        let to = SocketAddr::new(address, PORT);
        let receiver = Receiver::start(pods[1].netns(), to, None).unwrap();
        let sender = Sender::start(
            pods[0].netns(),
            StreamPlan {
                to,
                rate: 2000,
                cpu: Some(0),
            },
        )
        .unwrap();
        std::thread::sleep(Duration::from_secs(1)); // The stream's length, not a wait for anything.
        let report = sender.stop(DEADLINE).unwrap();
        assert!(report.sent > 1000, "{report:?}");
        assert_eq!(report.errors, 0, "{report:?}");
        assert!(report.echoes.is_perfect(), "{report:?}");
        assert!(receiver.report(report.stream, report.sent).is_perfect());
    }
}

#[test]
fn a_stream_with_a_hole_in_it_says_so() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pods = pods(&node, &["sender", "receiver"]);
    let to = SocketAddr::new(pods[1].ipv4.into(), PORT);
    let receiver = Receiver::start(pods[1].netns(), to, None).unwrap();
    let sender = Sender::start(
        pods[0].netns(),
        StreamPlan {
            to,
            rate: 2000,
            cpu: None,
        },
    )
    .unwrap();
    let wait_for = |sent: u64| {
        while sender.sent() < sent {
            std::thread::yield_now()
        }
    };
    wait_for(100);
    node.netns()
        .ip(&format!("rule add to {} blackhole", pods[1].ipv4))
        .unwrap();
    wait_for(sender.sent() + 100);
    node.netns()
        .ip(&format!("rule del to {} blackhole", pods[1].ipv4))
        .unwrap();
    wait_for(sender.sent() + 100);
    let report = sender.stop(Duration::from_millis(300)).unwrap();
    let there = receiver.report(report.stream, report.sent);
    assert!(there.missing.len() >= 100, "{there:?}");
    assert_eq!(
        there.received + there.missing.len() as u64,
        report.sent,
        "{there:?}"
    );
    assert!(
        report.echoes.missing.len() >= there.missing.len(),
        "{report:?}"
    );
}

#[test]
fn the_connect_generator_counts_exactly() {
    const COUNT: u64 = 500;
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pods = pods(&node, &["client", "server"]);
    let server = serve(&pods[1]);
    for (round, address) in (1..).zip(pods[1].addresses()) {
        let plan = ConnectPlan::tcp(SocketAddr::new(address, PORT), 500).count(COUNT);
        let report = Connects::start(pods[0].netns(), plan)
            .unwrap()
            .wait()
            .unwrap();
        println!(
            "p50 {:?}, p99 {:?}",
            report.latency(0.5),
            report.latency(0.99)
        );
        assert_eq!(
            (report.started, report.answered(), report.failed()),
            (COUNT, COUNT, 0),
            "{report:?}"
        );
        assert_eq!(
            (report.retransmits, report.namespace_retransmits),
            (0, 0),
            "{:?}",
            report.outcomes
        );
        assert_eq!(
            (server.accepted(), server.requests()),
            (COUNT * round, COUNT * round)
        );
    }
    // Nobody listens: each is counted as refused, none is tried again.
    let plan = ConnectPlan::tcp(SocketAddr::new(pods[1].ipv4.into(), CLOSED_PORT), 500).count(50);
    let report = Connects::start(pods[0].netns(), plan)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(
        (report.started, report.failed(), report.outcomes["refused"]),
        (50, 50, 50)
    );
    // Silence: each times out, and the SYNs sent again meanwhile are seen by both counters.
    let before = Counters::read(pods[0].netns()).unwrap();
    node.netns()
        .ip(&format!("rule add to {} blackhole", pods[1].ipv4))
        .unwrap();
    let mut plan = ConnectPlan::tcp(SocketAddr::new(pods[1].ipv4.into(), PORT), 100).count(10);
    plan.deadline = Duration::from_millis(1500);
    let report = Connects::start(pods[0].netns(), plan)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(
        (
            report.failed(),
            report.outcomes["timed out"],
            report.retransmits
        ),
        (10, 10, 10),
        "{report:?}"
    );
    assert_eq!(
        Counters::read(pods[0].netns())
            .unwrap()
            .retransmits_since(&before),
        10
    );
}

#[test]
fn held_connections_go_on_until_something_cuts_them() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pods = pods(&node, &["client", "server"]);
    let server = serve(&pods[1]);
    let to = SocketAddr::new(pods[1].ipv6.into(), PORT);
    let held = Held::start(pods[0].netns(), HoldPlan::new(to, 20)).unwrap();
    assert_eq!(
        held.wait_for_failures(1, Duration::from_millis(300)),
        0,
        "{:?}",
        held.connections()
    );
    assert!(held.rounds() > 20, "each had more rounds than its first");
    server.stop().unwrap();
    assert_eq!(held.wait_for_failures(20, DEADLINE), 20);
    for connection in held.stop().unwrap() {
        let (_, outcome) = connection.failure.unwrap();
        assert!(
            matches!(outcome, Outcome::Closed | Outcome::Reset),
            "{outcome}"
        );
    }
}

#[test]
fn a_pod_comes_again_with_its_addresses_and_a_link_goes_down_and_up() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let client = node.pod("client").unwrap();
    let first = node.pod("server").unwrap();
    let (device, uid, spec) = (first.device.clone(), first.uid.clone(), first.spec());
    drop(serve(&first));
    first.delete().unwrap();
    let second = node.pod_with(spec).unwrap();
    assert_eq!(second.device, device);
    assert_ne!(second.uid, uid);
    let _server = serve(&second);
    for (to, own) in second.addresses().into_iter().zip(client.addresses()) {
        assert_reached(client.netns(), to, "server", own);
    }
    second.link_down().unwrap();
    for to in second.addresses() {
        assert!(
            !probe::connect(
                client.netns(),
                SocketAddr::new(to, PORT),
                Patience::MATRIX.quiet
            )
            .unwrap()
            .is_answered()
        );
    }
    second.link_up().unwrap();
    for (to, own) in second.addresses().into_iter().zip(client.addresses()) {
        assert_reached(client.netns(), to, "server", own);
    }
}

#[test]
fn a_host_process_runs_in_the_nodes_namespace_and_cgroup() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pod = node.pod("pod").unwrap();
    let server = serve(&pod);
    let mut host = HostProcess::start(&node).unwrap();
    assert_eq!(node.cgroup().processes().unwrap(), [host.id()]);
    for (to, own) in pod.addresses().into_iter().zip(node.addresses()) {
        for proto in Proto::ALL {
            let outcome = host
                .ask(proto, SocketAddr::new(to, PORT), DEADLINE)
                .unwrap();
            assert_eq!(
                outcome.peer_seen().map(|peer| peer.ip()),
                Some(own),
                "{proto} {to}: {outcome}"
            );
        }
    }
    assert_eq!((server.accepted(), server.requests()), (2, 4));
    let binds = node
        .addresses()
        .map(|ip| (Proto::Tcp, SocketAddr::new(ip, 0)));
    for (_, address) in host.serve("kubelet", &binds).unwrap() {
        let outcome = probe::connect(pod.netns(), address, DEADLINE).unwrap();
        assert_eq!(outcome.by(), Some("kubelet"), "{address}: {outcome}");
    }
    assert_eq!(host.counts().unwrap(), (2, 2));
}

#[test]
fn an_agent_is_awaited_killed_started_again_and_ended() {
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let manifests = ManifestDir::create(lab.dir(), "manifests").unwrap();
    let mut plan = AgentPlan::new(&node, Source::Manifests(manifests.path().to_owned())).unwrap();
    plan.binary = Some(hand_binary().unwrap());
    let mut agent = Agent::start(&node, plan.clone()).unwrap();
    assert!(
        agent.log().starts_with("--node-name a --manifests /"),
        "{}",
        agent.log()
    );
    agent.kill().unwrap();
    assert!(
        agent.kill().is_err(),
        "what has ended cannot be killed again unnoticed"
    );
    agent.start_again().unwrap();
    assert_eq!(
        agent.terminate().unwrap().signal(),
        Some(Signal::SIGTERM as i32)
    );
    let error = Agent::start(&node, plan.arg("--fail")).unwrap_err();
    assert!(
        format!("{error:#}").contains("told to fail"),
        "the log is quoted: {error:#}"
    );
}

#[test]
fn a_frame_made_by_hand_is_answered() {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const ETHERTYPE_ARP: [u8; 2] = [8, 6];
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pod = node.pod("pod").unwrap();
    let raw = RawSocket::open(node.netns(), &pod.device).unwrap();
    raw.send(&arp_request(MAC, node.ipv4, pod.ipv4)).unwrap();
    let answer = raw
        .receive(DEADLINE, |frame| {
            frame[..6] == MAC && frame[12..14] == ETHERTYPE_ARP
        })
        .unwrap()
        .unwrap();
    assert_eq!(answer[28..32], pod.ipv4.octets());
}

#[test]
fn a_lab_removes_itself_and_a_crashed_one_is_swept() {
    let left = |id: &str| {
        let list = |dir: &Path| {
            fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name())
                .collect::<Vec<_>>()
        };
        let cgroups = tests::lab::cgroup::mount().unwrap();
        let places = [
            Path::new("/run/netns"),
            Path::new("/run/sluice-lab"),
            &cgroups,
            Path::new("/sys/fs/bpf"),
        ];
        let all = places.map(list).concat();
        all.into_iter()
            .filter(|name| name.to_string_lossy().contains(id))
            .collect::<Vec<_>>()
    };
    let lab = Lab::new("self").unwrap();
    let id = lab.id();
    let _pod = lab.node("a").unwrap().pod("pod").unwrap();
    assert!(!left(&id).is_empty());
    drop(lab);
    assert_eq!(left(&id), Vec::<std::ffi::OsString>::new());

    let mut command = Command::new(hand_binary().unwrap());
    let mut child = command
        .args(["hold", "crashed"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut id = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut id)
        .unwrap();
    let id = id.trim();
    assert!(id.starts_with("crashed-"), "{id:?}");
    // Its owner lives: a sweep leaves it alone.
    assert_eq!(Lab::sweep("crashed").unwrap(), Vec::<String>::new());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(left(id).len() > 3, "{:?}", left(id));
    assert_eq!(Lab::sweep("crashed").unwrap(), [id]);
    assert_eq!(left(id), Vec::<std::ffi::OsString>::new());
}

#[test]
fn manifests_are_kubernetes_objects() {
    use k8s_openapi::api::{core::v1, discovery::v1::EndpointSlice, networking::v1::NetworkPolicy};
    let lab = Lab::new("self").unwrap();
    let node = lab.node("a").unwrap();
    let pod = node.pod("web").unwrap();
    let dir = ManifestDir::create(lab.dir(), "manifests").unwrap();
    let named = [NamedPort {
        name: "http",
        port: PORT,
        proto: Proto::Tcp,
    }];
    let ports = [ServicePort {
        name: "",
        port: 80,
        target: PORT,
        proto: Proto::Tcp,
    }];
    let cluster_ips = [
        "10.96.0.10".parse().unwrap(),
        "fd00:96::10".parse().unwrap(),
    ];
    let pod_object = manifests::pod(&pod, &[("app", "web")], &named);
    let slices = manifests::endpoint_slices("default", "web", &ports, &[Endpoint::ready(&pod)]);
    let policy = json!({ "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": { "cidr": manifests::world_cidr(false) } }] }] });
    dir.put_all(&slices).unwrap();
    dir.put_all([
        &pod_object,
        &manifests::namespace("default", &[]),
        &manifests::node(&node, &[("zone", "1")]),
        &manifests::service("default", "web", &cluster_ips, &ports),
        &manifests::network_policy("default", "only-world", policy),
    ])
    .unwrap();
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let web: v1::Pod = serde_yaml_ng::from_str(&read("Pod.default.web.yaml")).unwrap();
    assert_eq!(web.status.unwrap().pod_ips.unwrap().len(), 2);
    let service: v1::Service = serde_yaml_ng::from_str(&read("Service.default.web.yaml")).unwrap();
    assert_eq!(service.spec.unwrap().cluster_ips.unwrap().len(), 2);
    let slice: EndpointSlice =
        serde_yaml_ng::from_str(&read("EndpointSlice.default.web-ipv6.yaml")).unwrap();
    assert_eq!(
        slice.endpoints.unwrap()[0].addresses,
        [pod.ipv6.to_string()]
    );
    let policy: NetworkPolicy =
        serde_yaml_ng::from_str(&read("NetworkPolicy.default.only-world.yaml")).unwrap();
    assert!(policy.spec.is_some());
    let namespace: v1::Namespace =
        serde_yaml_ng::from_str(&read("Namespace.cluster.default.yaml")).unwrap();
    assert_eq!(namespace.metadata.name.as_deref(), Some("default"));
    let object: v1::Node = serde_yaml_ng::from_str(&read("Node.cluster.a.yaml")).unwrap();
    assert_eq!(object.status.unwrap().addresses.unwrap().len(), 2);
    dir.remove(&pod_object).unwrap();
    assert!(!dir.path().join("Pod.default.web.yaml").exists());
}
