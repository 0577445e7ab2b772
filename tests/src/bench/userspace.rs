//! What the agent's own work costs: changes put in force, starts, memory. By the library, with objects in memory: no API server, no YAML.
//!
//! Each change runs on maps in memory, which shows compile and plan alone, and on the kernel's. *Live* is the last write before the first
//! grace period: what comes behind it collects what nobody uses any more. Starts run in a process of their own each
//! ([`cold`]), whose memory is told by the kernel.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sluice::datapath::Datapath;
use sluice::datapath::memory::Memory;
use sluice::model::{EndpointSlice, Object, Selector};

use super::bars;
use super::node::Node;
use super::offline::{self, Offline, Took};
use super::population::{
    OWN_NAMESPACE, Own, Size, alone, namespace, others, pod_in, policy_with, slices, spare_endpoint,
};
use super::report::{Bar, Row};
use super::stats::{Summary, quantile};

const GROUP: &str = "the agent's own work";
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3));
/// The index of its link: maps take any.
const LINK: u32 = 7;
/// The namespace whose labels change, and the first of its pods.
const CROWD: &str = "crowd";
const CROWD_FIRST: u32 = 10_000;
const CROWD_PODS: u32 = 4_000;
const MILLISECONDS: f64 = 1_000.0;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Changes of one kind.
    pub changes: u32,
    /// Relabels of the crowded namespace.
    pub relabels: u32,
    /// Starts of one kind.
    pub starts: u32,
}

impl Effort {
    /// Enough for a developer's look.
    pub const QUICK: Self = Self {
        changes: 60,
        relabels: 6,
        starts: 1,
    };
    /// Enough to be written down.
    pub const WHOLE: Self = Self {
        changes: 400,
        relabels: 30,
        starts: 5,
    };
}

/// Where a change is put in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum On {
    Memory,
    Kernel,
}

/// Measures all of it.
///
/// # Errors
/// Not root, or something was not put in force.
pub fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for on in [On::Kernel, On::Memory] {
        rows.extend(changes(on, effort)?);
    }
    rows.extend(largest(effort)?);
    let starts = [
        (
            Size {
                policies: 0,
                pods: 0,
                ..Size::FULL
            },
            bars::START,
            None,
        ),
        (Size::LARGEST, bars::LARGEST_START, bars::LARGEST_MEMORY),
    ];
    for (size, time, memory) in starts {
        rows.extend(cold_starts(&size, time, memory, effort)?);
    }
    Ok(rows)
}

/// A started agent with something in force. The programs live as long as this.
struct Started {
    agent: Offline,
    _node: Option<Node>,
}

fn start(on: On, objects: Vec<Object>) -> Result<(Started, Took)> {
    let (node, datapath): (_, Box<dyn Datapath>) = match on {
        On::Memory => (None, Box::new(Memory::new())),
        On::Kernel => {
            let (node, datapath) = Node::load()?;
            (Some(node), Box::new(datapath))
        }
    };
    let mut agent = Offline::new(datapath, offline::local(&[(LINK, POD)]));
    let took = agent.start(objects)?;
    Ok((Started { agent, _node: node }, took))
}

fn own_objects(size: &Size) -> Vec<Object> {
    let server = Own {
        name: "server".to_owned(),
        node: offline::NODE.to_owned(),
        addresses: vec![POD],
    };
    alone(size, &server)
}

/// One endpoint, one policy, one namespace, with 10,000 services and 1,000 policies in force.
fn changes(on: On, effort: &Effort) -> Result<Vec<Row>> {
    let size = Size::FULL;
    let pods = (CROWD_FIRST..CROWD_FIRST + CROWD_PODS).map(|n| pod_in(CROWD, n));
    let objects = others(&size)
        .chain(own_objects(&size))
        .chain([crowd(0)])
        .chain(pods);
    let (mut started, _) = start(on, objects.collect())?;
    let agent = &mut started.agent;
    let place = match on {
        On::Memory => "maps in memory",
        On::Kernel => "the kernel's maps",
    };
    let side = format!("{place}, {}", bars::in_force(&size));
    let mut rows = endpoints(agent, &size, effort.changes, &side, (None, bars::CPU))?;

    let mut took = Vec::new();
    for number in 0..effort.changes {
        // Each version lets in another port, so what is in force differs each time.
        let version = u16::try_from(number % 50).unwrap_or(0) + 1;
        let changed = policy_with(OWN_NAMESPACE, &Selector::default(), 0, version);
        took.push(changed_by(agent, changed)?);
    }
    rows.extend(told(
        "one policy of the node's pods changed",
        &side,
        &took,
        (None, bars::CPU),
    ));

    took.clear();
    for number in 0..effort.relabels {
        took.push(changed_by(agent, crowd(number + 1))?);
    }
    let what = format!("a namespace of {CROWD_PODS} pods relabelled");
    rows.extend(told(&what, &side, &took, (None, None)));
    Ok(rows)
}

/// The crowded namespace, in turns of a team that the node's policies speak of and of one that they do not.
fn crowd(number: u32) -> Object {
    namespace(
        CROWD,
        if number.is_multiple_of(2) {
            "team-0"
        } else {
            "team-1"
        },
    )
}

/// One endpoint among 250,000.
fn largest(effort: &Effort) -> Result<Vec<Row>> {
    let size = Size::LARGEST;
    let objects = others(&size).chain(own_objects(&size));
    let (mut started, _) = start(On::Kernel, objects.collect())?;
    let side = "the kernel's maps, 10,000 services, 250,000 endpoints";
    let bars = (bars::LIVE, bars::CPU);
    endpoints(&mut started.agent, &size, effort.changes, side, bars)
}

/// An endpoint comes to a service, and goes: a change each.
fn endpoints(
    agent: &mut Offline,
    size: &Size,
    changes: u32,
    side: &str,
    bars: (Option<Bar>, Option<Bar>),
) -> Result<Vec<Row>> {
    let mut took = Vec::new();
    for number in 0..changes {
        // Another service for each pair.
        let service = (number / 2 * 37) % size.services;
        let before = slices(size, service).into_iter().next();
        let Some(Object::EndpointSlice(before)) = before else {
            bail!("service {service} has no slice");
        };
        let changed = if number % 2 == 0 {
            let mut slice: EndpointSlice = (*before).clone();
            slice.endpoints.push(spare_endpoint(size, number));
            Object::EndpointSlice(Arc::new(slice))
        } else {
            Object::EndpointSlice(before)
        };
        took.push(changed_by(agent, changed)?);
    }
    Ok(told("one endpoint changed", side, &took, bars))
}

fn changed_by(agent: &mut Offline, object: Object) -> Result<Took> {
    let what = object.id();
    let took = agent.change([object])?;
    // A change that changes nothing would be the fastest of all.
    ensure!(took.writes > 0, "the change of {what} wrote nothing");
    Ok(took)
}

/// Rows of many changes of one kind. The bars are of the slowest of a hundred, and of the CPU time.
fn told(name: &str, side: &str, took: &[Took], bars: (Option<Bar>, Option<Bar>)) -> Vec<Row> {
    let figures = |part: fn(&Took) -> Duration| -> Vec<f64> {
        let times = took.iter().map(part);
        times
            .map(|time| time.as_secs_f64() * MILLISECONDS)
            .collect()
    };
    let (live, cpu) = (figures(|t| t.live), figures(|t| t.cpu));
    let row = |what: &str, figures: &[f64]| {
        let name = format!("{name}: {what}");
        Some(Row::new(GROUP, &name, side, Summary::of(figures)?, "ms"))
    };
    let slowest = Row::new(
        GROUP,
        &format!("{name}: live, p99"),
        side,
        Summary::one(quantile(&live, 0.99)),
        "ms",
    );
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
    let writes: Vec<f64> = took.iter().map(|t| t.writes as f64).collect();
    let writes =
        Summary::of(&writes).map(|w| Row::new(GROUP, &format!("{name}: writes"), side, w, ""));
    [
        row("compiled", &figures(|t| t.compile)),
        row("live", &live),
        Some(slowest.bar(bars.0)),
        row("the end, after its grace period", &figures(|t| t.whole)),
        row("CPU", &cpu).map(|row| row.bar(bars.1)),
        writes,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a process of its own tells of its start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cold {
    /// From the first object to the end of the plan, in seconds; programs were loaded before.
    pub whole: f64,
    /// Of it, until all was compiled.
    pub compile: f64,
    /// CPU time of it, in seconds.
    pub cpu: f64,
    /// Loading maps and programs, in seconds.
    pub load: f64,
    /// Writes.
    pub writes: u64,
    /// Resident memory then, in bytes.
    pub resident: u64,
    /// Of it, what is the process's own: without the file it runs from and the maps that it has mapped.
    pub own: u64,
    /// The most that was ever resident, in bytes.
    pub peak: u64,
}

/// Starts with so much, in this process.
///
/// # Errors
/// Not root, or not all of it fitted.
pub fn cold(size: &Size) -> Result<Cold> {
    let objects: Vec<Object> = others(size).chain(own_objects(size)).collect();
    let began = std::time::Instant::now();
    let (node, datapath) = Node::load()?;
    let load = began.elapsed();
    let mut agent = Offline::new(Box::new(datapath), offline::local(&[(LINK, POD)]));
    let took = agent.start(objects)?;
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let memory = |name| bytes_of(&status, name).with_context(|| format!("no {name} in /proc"));
    let [resident, own, peak] = ["VmRSS:", "RssAnon:", "VmHWM:"].map(memory);
    let (resident, own, peak) = (resident?, own?, peak?);
    // Both are part of what is resident.
    drop((agent, node));
    Ok(Cold {
        whole: took.whole.as_secs_f64(),
        compile: took.compile.as_secs_f64(),
        cpu: took.cpu.as_secs_f64(),
        load: load.as_secs_f64(),
        writes: took.writes,
        resident,
        own,
        peak,
    })
}

/// A line of `/proc/PID/status`, in bytes.
pub(super) fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// The argument by which this program is told to be such a process.
pub const COLD_ARGUMENT: &str = "--cold";

fn cold_starts(
    size: &Size,
    time: Option<Bar>,
    memory: Option<Bar>,
    effort: &Effort,
) -> Result<Vec<Row>> {
    let mut all: Vec<Cold> = Vec::new();
    for _ in 0..effort.starts {
        let output = Command::new(env::current_exe().context("finding this program")?)
            .arg(COLD_ARGUMENT)
            .arg(format!("{},{}", size.services, size.endpoints))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("starting a process for a cold start")?;
        ensure!(output.status.success(), "a cold start: {}", output.status);
        all.push(serde_json::from_slice(&output.stdout).context("what a cold start told")?);
    }
    let side = format!("{} services, {} endpoints", size.services, size.endpoints);
    let row = |name: &str, unit: &str, of: &dyn Fn(&Cold) -> f64| {
        let figures: Vec<f64> = all.iter().map(of).collect();
        Some(Row::new(GROUP, name, &side, Summary::of(&figures)?, unit))
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory of a process is far below 2^52"
    )]
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    #[expect(clippy::cast_precision_loss, reason = "a million or so")]
    let writes = |c: &Cold| c.writes as f64;
    Ok([
        row("cold start", "s", &|c| c.whole).map(|row| {
            row.bar(time).note(
                "from objects in memory to the end of the plan; the programs were loaded before",
            )
        }),
        row("cold start: compiled", "s", &|c| c.compile),
        row("cold start: CPU", "s", &|c| c.cpu),
        row("cold start: writes", "", &writes),
        row("maps and programs loaded", "s", &|c| c.load),
        row("resident after it", "MiB", &|c| mebibytes(c.resident)).map(|row| row.bar(memory)),
        row(
            "of it its own, without mapped files and maps",
            "MiB",
            &|c| mebibytes(c.own),
        ),
        row("resident at most", "MiB", &|c| mebibytes(c.peak)),
    ]
    .into_iter()
    .flatten()
    .collect())
}

/// Reads [`COLD_ARGUMENT`]'s value.
///
/// # Errors
/// It is not two numbers.
pub fn cold_size(text: &str) -> Result<Size> {
    let numbers = text
        .split_once(',')
        .and_then(|(services, endpoints)| Some((services.parse().ok()?, endpoints.parse().ok()?)));
    let (services, endpoints) =
        numbers.with_context(|| format!("{text:?} is not SERVICES,ENDPOINTS"))?;
    Ok(Size {
        services,
        endpoints,
        policies: 0,
        pods: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_changes_have_their_bars() {
        let took: Vec<Took> = (1..=100)
            .map(|n| Took {
                compile: Duration::from_micros(n),
                live: Duration::from_micros(n * 10),
                whole: Duration::from_millis(n),
                cpu: Duration::from_micros(n * 2),
                writes: 3,
            })
            .collect();
        let rows = told(
            "one endpoint changed",
            "here",
            &took,
            (bars::LIVE, bars::CPU),
        );
        assert_eq!(rows.len(), 6);
        let slowest = rows.iter().find(|r| r.name.ends_with("p99")).unwrap();
        assert!((0.98..1.0).contains(&slowest.value.median), "{slowest:?}");
        assert!(slowest.bar.is_some());
        assert!(
            rows.iter()
                .any(|r| r.name.ends_with("CPU") && r.bar.is_some())
        );
    }

    #[test]
    fn changes_in_memory_write_each_time() {
        let size = Size {
            services: 50,
            endpoints: 100,
            policies: 60,
            pods: 10,
        };
        let objects = others(&size).chain(own_objects(&size));
        let (mut started, _) = start(On::Memory, objects.collect()).unwrap();
        let rows = endpoints(&mut started.agent, &size, 8, "", (None, None)).unwrap();
        assert_eq!(rows.len(), 6);
        for version in 1..4 {
            let changed = policy_with(OWN_NAMESPACE, &Selector::default(), 0, version);
            changed_by(&mut started.agent, changed).unwrap();
        }
        // Of all pods of the namespace, or there would be nothing to write.
        let pods = (0..8).map(|n| pod_in(CROWD, CROWD_FIRST + n));
        started.agent.change(pods.chain([crowd(0)])).unwrap();
        for number in 1..4 {
            changed_by(&mut started.agent, crowd(number)).unwrap();
        }
    }

    #[test]
    fn the_kernels_words_and_our_own_are_read() {
        assert_eq!(
            bytes_of("VmHWM:\t 20 kB\nVmRSS:\t 12 kB\n", "VmRSS:"),
            Some(12 << 10)
        );
        assert_eq!(bytes_of("", "VmRSS:"), None);
        let size = cold_size("10000,250000").unwrap();
        assert_eq!(size, Size::LARGEST);
        assert!(cold_size("10000").is_err());
    }
}
