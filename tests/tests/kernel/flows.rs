//! The tables of flows: what collection takes and what it leaves, what a pass costs, sizes that pinned tables keep.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Barrier;

use agent_common::{Share, flow_flag};
use aya::maps::{Array, HashMap, Map, MapData};
use sluice::datapath::collector::Collector;
use sluice::datapath::conntrack::Conntrack;

use super::*;

type Flows = HashMap<MapData, Tuple, Flow>;

/// One of the tables of flows, as a program finds it.
fn flows(pins: &Pins, table: Table) -> Flows {
    let data = MapData::from_pin(pins.map(table.name())).unwrap();
    Flows::try_from(Map::LruHashMap(data)).unwrap()
}

/// Both entries of an established TCP flow of the pod in slot 1, by number.
fn halves(number: u32, last_seen: u32) -> [(Tuple, Flow); 2] {
    let [_, a, b, c] = number.to_be_bytes();
    let forward = Tuple {
        source: Address::v4([10, a, b, c]),
        destination: Address::v4([10, 200, 0, 2]),
        source_port_be: 1_000_u16.to_be(),
        destination_port_be: 80_u16.to_be(),
        protocol: protocol::TCP,
        _zero: [0; 3],
    };
    [(forward, 0), (forward.reversed(), flow_flag::REPLY)].map(|(key, flags)| {
        let flow = Flow {
            new_source: key.source,
            new_destination: key.destination,
            new_source_port_be: key.source_port_be,
            new_destination_port_be: key.destination_port_be,
            opener: 1,
            ifindex: 12,
            flags,
            last_seen,
            ..Flow::NONE
        };
        (key, flow)
    })
}

/// Flows of a round of [`collect_while_they_come_back`].
const FLOWS: u32 = 20_000;

// Fails with mutant "gc-without-recheck".
#[test]
fn a_flow_that_comes_back_while_it_is_collected_stays() {
    /// Rounds, until some came back in the very moment: with both threads on one busy CPU, the first may find none.
    const ROUNDS: usize = 10;
    let root = Root::new();
    let (pins, loaded) = root.load();
    let mut moments = 0;
    for _ in 0..ROUNDS {
        moments += collect_while_they_come_back(&pins, &loaded.conntrack);
        if moments > 0 {
            return;
        }
    }
    panic!("no flow came back between the look at it and its end");
}

/// Collects flows that are all old while packets of each arrive. Every flow whose packet found it must be there afterwards.
fn collect_while_they_come_back(pins: &Pins, conntrack: &Conntrack) -> u64 {
    /// `BPF_EXIST`: like a program's touch, it finds an entry or does nothing.
    const EXIST: u64 = 2;
    let mut map = flows(pins, Table::Conntrack);
    let now = conntrack::now();
    // The machine may have started later than that: the clock wraps.
    let old = now.wrapping_sub(clock::ticks(limits::TCP_ESTABLISHED_SECONDS) + 5);
    for (key, flow) in (0..FLOWS).flat_map(|number| halves(number, old)) {
        map.insert(key, flow, 0).unwrap();
    }
    // A packet of every flow, in an order that has nothing to do with the collector's.
    let mut order: Vec<u32> = (0..FLOWS).collect();
    order.sort_by_key(|number| number.wrapping_mul(0x9e37_79b1));
    let begun = Barrier::new(2);
    let (came_back, sweep) = std::thread::scope(|scope| {
        let packets = scope.spawn(|| {
            let mut map = flows(pins, Table::Conntrack);
            let touches = |number: &u32| {
                let [a, b] =
                    halves(*number, now).map(|(key, flow)| map.insert(key, flow, EXIST).is_ok());
                a || b
            };
            begun.wait();
            order.iter().copied().filter(touches).collect::<Vec<u32>>()
        });
        begun.wait();
        let sweep = conntrack.collect(Table::Conntrack, |_| ()).unwrap();
        (packets.join().unwrap(), sweep)
    });
    let is_lost = |number: &&u32| {
        halves(**number, now)
            .iter()
            .any(|(key, _)| map.get(key, 0).is_err())
    };
    let lost = came_back.iter().filter(is_lost).count();
    tests::say(format_args!(
        "{} of {FLOWS} flows came back while they were collected, {} of them in the very moment; {lost} lost",
        came_back.len(),
        sweep.revived
    ));
    assert_eq!(lost, 0, "{sweep:?}");
    sweep.revived
}

#[test]
fn a_million_entries_cost_a_known_amount_of_cpu_to_keep() {
    const ENTRIES: u32 = 1_000_000;
    /// A pass every eight seconds at a fiftieth of a CPU would be 160 ms. This leaves room for a busy machine and a build for debugging.
    const MOST: Duration = Duration::from_secs(4);
    let root = Root::new();
    let pins = Pins::open(&root.0).unwrap();
    let sizes = Sizes::of_flows(600_000);
    let mut loaded =
        load(&pins, &sizes, &Timeouts::DEFAULT).unwrap_or_else(|error| panic!("{error}"));
    write_all(&mut loaded.datapath, &[Write::Pod(1, pod(12))]);
    let mut map = flows(&pins, Table::Conntrack);
    let now = conntrack::now();
    for (key, flow) in (0..ENTRIES / 2).flat_map(|number| halves(number, now)) {
        map.insert(key, flow, 0).unwrap();
    }
    let mut collector = Collector::new(loaded.conntrack, &pins, 50).unwrap();
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let passed = collector.pass().unwrap();
        assert_eq!(passed.conntrack.left, u64::from(ENTRIES));
        assert_eq!((passed.conntrack.evicted, passed.conntrack.expired), (0, 0));
        assert_eq!(passed.share, 300_000);
        let held: Vec<_> = passed.held.iter().map(|h| (h.slot, h.flows)).collect();
        assert_eq!(held, [(1, ENTRIES / 2)]);
        least = least.min(passed.cpu);
    }
    let bytes = kernel_bytes(&pins).div_ceil(u64::from(sizes.conntrack));
    assert!(
        bytes <= limits::CONNTRACK_ENTRY_BYTES,
        "{bytes} bytes an entry"
    );
    tests::say(format_args!(
        "a pass through {ENTRIES} entries takes {least:?} of CPU, {} ns an entry; {bytes} bytes of kernel memory an entry",
        least.as_nanos() / u128::from(ENTRIES)
    ));
    assert!(least < MOST, "{least:?}");
    // Programs go by what was counted: the pod may take no more.
    let shares = MapData::from_pin(pins.map("shares")).unwrap();
    let shares: Array<_, Share> = Array::try_from(Map::Array(shares)).unwrap();
    let share = shares.get(&1, 0).unwrap();
    assert_eq!(
        (share.held(), share.limit, share.has_room()),
        (ENTRIES / 2, 300_000, false)
    );
}

/// Bytes that the kernel takes for `conntrack`, by its own word.
fn kernel_bytes(pins: &Pins) -> u64 {
    let map = MapData::from_pin(pins.map("conntrack")).unwrap();
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(path).unwrap();
    let memlock = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    memlock.unwrap().trim().parse().unwrap()
}

#[test]
fn pinned_tables_keep_their_size_and_their_flows() {
    let root = Root::new();
    let (pins, loaded) = root.load();
    assert!(loaded.kept.is_empty());
    let [(key, flow), _] = halves(1, conntrack::now());
    flows(&pins, Table::Conntrack).insert(key, flow, 0).unwrap();
    drop((pins, loaded));
    let pins = Pins::open(&root.0).unwrap();
    let larger = Sizes {
        conntrack: limits::CONNTRACK * 2,
        ..Sizes::default()
    };
    let loaded = load(&pins, &larger, &Timeouts::DEFAULT).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.capacities["conntrack"], limits::CONNTRACK);
    let kept: Vec<_> = loaded
        .kept
        .iter()
        .map(|kept| (kept.map, kept.pinned, kept.wanted))
        .collect();
    let wanted = ("conntrack", limits::CONNTRACK, limits::CONNTRACK * 2);
    assert_eq!(kept, [wanted]);
    assert!(flows(&pins, Table::Conntrack).get(&key, 0).unwrap() == flow);
}

#[test]
fn collection_takes_what_is_old_with_its_partner_and_leaves_what_lives() {
    let root = Root::new();
    let (pins, loaded) = root.load();
    let map =
        aya::maps::Map::LruHashMap(aya::maps::MapData::from_pin(pins.map("unreplied")).unwrap());
    let mut map = aya::maps::HashMap::<_, Tuple, Flow>::try_from(map).unwrap();
    let now = conntrack::now();
    let old = now - clock::ticks(limits::UDP_UNREPLIED_SECONDS) - 5;
    // 3,000 flows of two entries: several batches. Of every third, one half was touched just now.
    for number in 0..3_000u16 {
        let forward = Tuple {
            source: Address::v4([10, 1, 0, 1]),
            destination: Address::v4([10, 2, 0, 2]),
            source_port_be: (1_000 + number).to_be(),
            destination_port_be: 53_u16.to_be(),
            protocol: protocol::UDP,
            _zero: [0; 3],
        };
        for (key, fresh) in [(forward, number % 3 == 0), (forward.reversed(), false)] {
            let flow = Flow {
                new_source: key.source,
                new_destination: key.destination,
                new_source_port_be: key.source_port_be,
                new_destination_port_be: key.destination_port_be,
                last_seen: if fresh { now } else { old },
                ..Flow::NONE
            };
            map.insert(key, flow, 0).unwrap();
        }
    }
    let sweep = loaded.conntrack.collect(Table::Unreplied, |_| ()).unwrap();
    assert_eq!((sweep.expired, sweep.revived), (4_000, 1_000), "{sweep:?}");
    let mut left = 0;
    loaded
        .conntrack
        .for_each(Table::Unreplied, |_, _| {
            left += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(left, 2_000, "halves stay together");
    assert_eq!(
        loaded
            .conntrack
            .collect(Table::Conntrack, |_| ())
            .unwrap()
            .seen,
        0
    );
    let totals = loaded.counters.totals().unwrap();
    assert!(totals.drops.iter().all(|drops| drops.counter.packets == 0));
}
