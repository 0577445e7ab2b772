//! The kernel side of the agent on real maps, programs, links and routes: loading, pins, writes and reading back, attaching by tcx
//! and clsact, the cgroup, collection by age, and following netlink.
//!
//! Needs root; each test has a pin root of its own, and what touches interfaces a lab of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "kernel/attach.rs"]
mod attach;
#[path = "kernel/flows.rs"]
mod flows;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_common::{
    Address, AddressEntry, Backend, BackendWord, Config, Flow, GroupEntry, Head, LinkEntry,
    NO_ADDRESS_SLOT, Pod, Prefix, PrefixEntry, RuleKey, ServiceEntry, ServiceKey, SetWord, Slot,
    Timeouts, Tuple, Verdict, address_kind, backend_state, clock, limits, pod_flag, protocol,
    rule_bits, set_flag,
};
use aya::maps::{Array, Map, MapData};
use sluice::datapath::conntrack::{self, Table};
use sluice::datapath::load::{LoadError, Loaded, load};
use sluice::datapath::object::Sizes;
use sluice::datapath::pins::{PinError, Pins};
use sluice::datapath::{Bits, Datapath, DatapathError, KernelDatapath, Write};
use sluice::local::{Local, UplinkChoice, watch};
use sluice::model::Direction;
use tests::lab::{Lab, bpffs, node::Node};

/// However busy the machine is.
const DEADLINE: Duration = Duration::from_secs(20);

/// A pin root that goes with the test.
struct Root(PathBuf);

impl Root {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "loading programs needs root: run it through sudo"
        );
        bpffs::ensure_mounted().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Path::new("/sys/fs/bpf").join(format!("sluice-test-{}-{number}", std::process::id())))
    }

    fn load(&self) -> (Pins, Loaded) {
        let pins = Pins::open(&self.0).unwrap();
        let loaded = load(&pins, &Sizes::default(), &Timeouts::DEFAULT)
            .unwrap_or_else(|error| panic!("{error}"));
        (pins, loaded)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A test that failed early may have made nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_all(datapath: &mut KernelDatapath, writes: &[Write]) {
    for write in writes {
        datapath
            .write(write)
            .unwrap_or_else(|error| panic!("{write:?}: {error}"));
    }
}

const V4: Address = Address::v4([10, 96, 0, 1]);
const SERVICE: ServiceKey = ServiceKey::new(V4, 80_u16.to_be(), protocol::TCP);

fn rule(length: u32) -> Bits<RuleKey> {
    Bits {
        length,
        data: RuleKey {
            port_be: 0,
            protocol: 0,
            ..RuleKey::packet(7, 3, 0, 0)
        },
    }
}

fn backend(port: u16) -> Backend {
    Backend {
        address: Address::v4([10, 244, 1, 9]),
        word: BackendWord {
            generation: 4,
            port_be: port.to_be(),
            state: backend_state::SERVING,
            flags: 0,
        },
    }
}

fn pod(ifindex: u32) -> Pod {
    Pod {
        ifindex,
        flags: pod_flag::USED,
        mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        ..Pod::default()
    }
}

#[test]
fn what_is_written_is_read_back_and_survives_a_restart() {
    let root = Root::new();
    let (pins, mut loaded) = root.load();
    assert!(!loaded.adopted);
    let datapath = &mut loaded.datapath;
    let entry = AddressEntry {
        identity: 5,
        slot: NO_ADDRESS_SLOT,
        kind: address_kind::CLUSTER_IP,
        check: V4.check(),
    };
    let prefix = Bits {
        length: 96 + 8,
        data: Prefix {
            bytes: Address::v4([10, 0, 0, 0]).bytes,
        },
    };
    let set = SetWord {
        set: 7,
        flags: set_flag::ISOLATED,
    };
    let config = Config {
        netns_cookie: 1,
        features: 2,
        layout: u64::from(limits::LAYOUT),
    };
    write_all(
        datapath,
        &[
            Write::Backend(limits::BACKENDS - 1, backend(8080)),
            Write::Slot(
                3,
                Slot {
                    backend: limits::BACKENDS - 1,
                },
            ),
            Write::Slot(4, Slot { backend: 17 }),
            Write::Head(2, Head { first: 3, count: 2 }),
            Write::Service(
                SERVICE,
                Some(ServiceEntry {
                    pool: 2,
                    flags: 0,
                    check: SERVICE.check(),
                }),
            ),
            Write::Address(V4, Some(entry)),
            Write::Prefix(
                prefix,
                Some(PrefixEntry {
                    identity: 6,
                    _zero: 0,
                }),
            ),
            Write::Group(6, GroupEntry { group: 3, _zero: 0 }),
            Write::Rule(rule(rule_bits::GROUP), Some(Verdict::OPEN)),
            Write::Epoch(1, 9),
            Write::Pod(1, pod(12)),
            Write::PodSet(1, Direction::Ingress, set),
            Write::Link(12, Some(LinkEntry { slot: 1, _zero: 0 })),
            Write::Config(config),
        ],
    );
    datapath.grace().unwrap();
    let before = datapath.contents().unwrap();
    let last = limits::BACKENDS - 1;
    assert_eq!(before.backends.get(&last), Some(&backend(8080)));
    assert_eq!(before.slots.len(), 2);
    assert_eq!(
        before.slots.get(&4).unwrap().backend,
        17,
        "elements of four bytes are eight apart"
    );
    assert_eq!(before.heads[&2], Head { first: 3, count: 2 });
    assert_eq!(before.addresses[&V4], entry);
    assert_eq!(before.prefixes[&prefix].identity, 6);
    assert_eq!(before.rules[&rule(rule_bits::GROUP)], Verdict::OPEN);
    assert_eq!(before.config, config);
    assert_eq!(
        before.pods[&1],
        Pod {
            ingress: set,
            epoch: 9,
            ..pod(12)
        },
        "a slot keeps its epoch"
    );

    drop((pins, loaded));
    let (_pins, mut loaded) = root.load();
    assert!(loaded.adopted);
    let datapath = &mut loaded.datapath;
    let after = datapath.contents().unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    // The MAC changes while redirects use it, and everything goes again; deleting twice is no error.
    let redirected = Pod {
        flags: pod_flag::USED | pod_flag::REDIRECT,
        ..pod(12)
    };
    let moved = Pod {
        mac: [6; 6],
        host_mac: [8; 6],
        ..redirected
    };
    write_all(
        datapath,
        &[Write::PodFacts(1, redirected), Write::PodFacts(1, moved)],
    );
    let read = datapath.contents().unwrap().pods[&1];
    assert_eq!(
        read,
        Pod {
            ingress: set,
            epoch: 9,
            ..moved
        }
    );
    for _ in 0..2 {
        write_all(
            datapath,
            &[
                Write::Service(SERVICE, None),
                Write::Address(V4, None),
                Write::Prefix(prefix, None),
                Write::Rule(rule(rule_bits::GROUP), None),
                Write::Link(12, None),
                Write::BackendWord(limits::BACKENDS - 1, BackendWord::default()),
            ],
        );
    }
    let end = datapath.contents().unwrap();
    assert!(end.services.is_empty() && end.addresses.is_empty() && end.links.is_empty());
    assert!(end.prefixes.is_empty() && end.rules.is_empty());
}

#[test]
fn beyond_capacity_is_an_error_that_names_the_map() {
    let root = Root::new();
    let (_pins, mut loaded) = root.load();
    let beyond = loaded
        .datapath
        .write(&Write::Head(limits::HEADS, Head::default()));
    assert!(
        matches!(
            beyond,
            Err(DatapathError::Range {
                map: "heads",
                index: limits::HEADS,
                ..
            })
        ),
        "{beyond:?}"
    );
    let entry = LinkEntry { slot: 0, _zero: 0 };
    let full = (1..=limits::LINKS + 1)
        .find_map(|i| loaded.datapath.write(&Write::Link(i, Some(entry))).err());
    assert_eq!(
        full.unwrap().to_string(),
        format!("map links is full at {} entries", limits::LINKS)
    );
    // What is there can still be replaced.
    loaded
        .datapath
        .write(&Write::Link(1, Some(LinkEntry { slot: 5, _zero: 0 })))
        .unwrap();
}

#[test]
fn pins_that_differ_are_refused_and_left_alone() {
    let root = Root::new();
    drop(root.load());
    let pins = Pins::open(&root.0).unwrap();
    assert!(
        matches!(Pins::open(&root.0), Err(PinError::Busy(_))),
        "one agent a pin root"
    );
    // Something else entirely under a map's name.
    fs::remove_file(pins.map("services")).unwrap();
    fs::rename(pins.map("programs"), pins.map("services")).unwrap();
    let error = load(&pins, &Sizes::default(), &Timeouts::DEFAULT)
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, LoadError::Pins(PinError::Differs { .. })));
    let error = error.to_string();
    assert!(
        error.contains("map type") && error.contains("value size: 4 pinned, 8 wanted"),
        "{error}"
    );
    assert!(!error.contains('\n'));
    drop(pins);
}

/// A pin root where a layout is in force that this agent does not know, or one from before there was a gate.
#[test]
fn layouts_without_a_way_from_them_are_refused_in_one_line_and_left_alone() {
    let root = Root::new();
    let (pins, loaded) = root.load();
    let word = pins.map("gate_word");
    drop((pins, loaded));
    let mut word: Array<_, u64> =
        Array::try_from(Map::Array(MapData::from_pin(word).unwrap())).unwrap();
    word.set(0, 999 << 32, 0).unwrap();
    let refused = |root: &Root, layout: &str| {
        let error = Pins::open(&root.0).unwrap_err();
        assert!(
            matches!(error, PinError::OtherLayout { ref found, .. } if found == layout),
            "{error}"
        );
        assert!(!error.to_string().contains('\n'), "{error}");
    };
    refused(&root, "v999");
    let own = root.0.join(format!("v{}/maps/services", limits::LAYOUT));
    assert!(own.exists(), "what is there stays");

    let before = Root::new();
    fs::create_dir_all(before.0.join("v1/links")).unwrap();
    refused(&before, "v1");
    // Left by an agent that never got as far as its links: nothing is in force.
    fs::remove_dir(before.0.join("v1/links")).unwrap();
    before.load();
}

#[test]
fn a_grace_period_is_waited_for() {
    let root = Root::new();
    let (_pins, mut loaded) = root.load();
    let start = std::time::Instant::now();
    for _ in 0..10 {
        loaded.datapath.grace().unwrap();
    }
    println!("a grace period takes {:?}", start.elapsed() / 10);
}

fn ifindex(node: &Node, device: &str) -> u32 {
    let device = device.to_owned();
    node.netns()
        .run(move || nix::net::if_::if_nametoindex(device.as_str()).unwrap())
        .unwrap()
}

#[test]
fn netlink_tells_pods_and_uplinks_as_they_come_and_go() {
    let lab = Lab::new("kernel").unwrap();
    let node = lab.node("a").unwrap();
    let early = node.pod("early").unwrap();
    let uplink = ifindex(&node, Node::UPLINK);
    node.netns()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let watcher = watch(UplinkChoice::default()).await.unwrap();
                let mut state = watcher.state();
                let first = state.borrow_and_update().clone();
                assert_eq!(first.pods.len(), 1, "{first:?}");
                let pod = first.pods.values().next().unwrap();
                assert_eq!(pod.name, early.device);
                assert_eq!(pod.addresses, early.addresses().into());
                assert!(pod.peer_namespace.is_some());
                assert_eq!(
                    first.uplinks.get(&uplink).map(String::as_str),
                    Some(Node::UPLINK)
                );
                assert!(first.addresses.is_superset(&node.addresses().into()));

                let late = node.pod("late").unwrap();
                await_local(&mut state, |local| {
                    local
                        .pods
                        .values()
                        .any(|pod| pod.addresses == late.addresses().into())
                })
                .await;
                early.link_down().unwrap();
                await_local(&mut state, |local| local.pods.len() == 1).await;
                early.link_up().unwrap();
                await_local(&mut state, |local| local.pods.len() == 2).await;
                let mac = [2, 0, 0, 0, 0, 9];
                node.netns()
                    .ip(&format!(
                        "neigh replace {} lladdr 02:00:00:00:00:09 dev {}",
                        late.ipv4, late.device
                    ))
                    .unwrap();
                await_local(&mut state, |local| {
                    local
                        .pods
                        .values()
                        .any(|pod| pod.name == late.device && pod.pod_mac == Some(mac))
                })
                .await;
                late.delete().unwrap();
                await_local(&mut state, |local| local.pods.len() == 1).await;
                watcher.choose(UplinkChoice {
                    devices: BTreeSet::from(["nothing".to_owned()]),
                    ..UplinkChoice::default()
                });
                await_local(&mut state, |local| local.uplinks.is_empty()).await;
            });
        })
        .unwrap();
}

async fn await_local(
    state: &mut tokio::sync::watch::Receiver<Local>,
    wanted: impl Fn(&Local) -> bool,
) {
    let found = tokio::time::timeout(DEADLINE, state.wait_for(|local| wanted(local)))
        .await
        .is_ok_and(|found| found.is_ok());
    assert!(found, "not in time; last: {:?}", *state.borrow());
}
