//! The bench: what packets, changes and starts cost, and what is left of the plain path's speed.
//!
//! ```text
//! packet      BPF_PROG_TEST_RUN, run-time statistics ──┐
//! userspace   Compiler, Planner, maps; own processes ──┼──> rows ──> bench.json, bench.txt, bench.svg
//! same-node, across-nodes   sockets in the lab ────────┤
//! kube-proxy  the real one, sockets in a lab of its own ┘
//! ```
//!
//! Everything that is compared is measured in one run, in turns. Traffic, client, server and softirq have one CPU; agents and whatever else
//! runs have the others. Bars are shown beside the figures and fail nothing. What fails a run is a harness that did not measure what it
//! says: packets that did not meet the programs, or met some where there should be none.

pub mod bars;
pub mod bpf;

pub mod field;
pub mod node;
pub mod offline;
pub mod packet;
pub mod population;
pub mod report;
pub mod rivals;
pub mod runs;
pub mod stats;
pub mod svg;
pub mod table;
pub mod traffic;
pub mod userspace;
pub mod work;
pub mod yaml;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, available_parallelism};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};

pub use self::report::Report;
pub use self::table::table;
pub use self::userspace::COLD_ARGUMENT;

use crate::lab::traffic::affinity::pin_thread;

/// The CPU of everything that is timed, and that of everything else.
const TRAFFIC_CPU: usize = 0;
const OTHER_CPU: usize = 1;

/// Rounds of kube-proxy's part, and the length of its windows.
const ROUNDS: usize = 15;
const QUICK_ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_millis(300);

/// A part of the bench that can be asked for by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Nanoseconds a packet.
    Packet,
    /// The agent's own work.
    Userspace,
    /// Sockets on one node.
    SameNode,
    /// Sockets across two nodes.
    AcrossNodes,
    /// kube-proxy beside it: minutes, and a control plane. The short run leaves it out unless it is asked for.
    KubeProxy,
}

impl Part {
    /// All, in the order in which they run.
    pub const ALL: [Self; 5] = [
        Self::Packet,
        Self::Userspace,
        Self::SameNode,
        Self::AcrossNodes,
        Self::KubeProxy,
    ];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Userspace => "userspace",
            Self::SameNode => "same-node",
            Self::AcrossNodes => "across-nodes",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| format!("nothing is called {name}; there are: {}", names()))
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The short run: fewer rounds of less.
    pub quick: bool,
    /// Empty: all of it.
    pub parts: Vec<Part>,
    /// Where the report goes.
    pub directory: PathBuf,
}

/// Runs the bench; what is measured is printed as it comes, and written at the end.
///
/// # Errors
/// Not root, one CPU only, or the harness failed. Packets that did not match are no error here: the report says so.
pub fn run(plan: &Plan) -> Result<Report> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench loads programs and makes network namespaces, and needs root: run it through sudo"
    );
    let cpus = available_parallelism().map_or(1, usize::from);
    ensure!(
        cpus > OTHER_CPU,
        "the bench needs two CPUs, one for what it times and one for the rest; here is {cpus}"
    );
    // Threads and children start where their parent is.
    pin_thread(Some(OTHER_CPU))?;
    let mut report = Report {
        machine: machine(cpus),
        began: UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
        quick: plan.quick,
        packets_matched: true,
        rows: Vec::new(),
    };
    let asked = |part| plan.parts.is_empty() || plan.parts.contains(&part);
    if asked(Part::Packet) {
        tell("packets", &report);
        let effort = if plan.quick {
            packet::Effort::QUICK
        } else {
            packet::Effort::WHOLE
        };
        report.rows.extend(timed(move || packet::measure(&effort))?);
    }
    if asked(Part::Userspace) {
        tell("the agent's own work", &report);
        let effort = if plan.quick {
            userspace::Effort::QUICK
        } else {
            userspace::Effort::WHOLE
        };
        report
            .rows
            .extend(timed(move || userspace::measure(&effort))?);
    }
    let places = [asked(Part::SameNode), asked(Part::AcrossNodes)];
    if places.contains(&true) {
        tell("traffic", &report);
        let effort = if plan.quick {
            traffic::Effort::QUICK
        } else {
            traffic::Effort::WHOLE
        };
        let measured = traffic::measure(&traffic::Effort { places, ..effort }, TRAFFIC_CPU)?;
        report.told_of(&measured.mismatches);
        // What the issue asks for first stands first.
        report.rows.splice(0..0, measured.rows);
    }
    if plan.parts.contains(&Part::KubeProxy) || (plan.parts.is_empty() && !plan.quick) {
        tell("kube-proxy", &report);
        let effort = rivals::Effort {
            rounds: if plan.quick { QUICK_ROUNDS } else { ROUNDS },
            window: WINDOW,
        };
        // On a thread of its own, which goes into the lab for good.
        let measured = thread::spawn(move || rivals::measure(&effort, TRAFFIC_CPU));
        let measured = measured.join();
        let (rows, mismatches) = measured.map_err(|_| anyhow!("kube-proxy's part panicked"))??;
        report.told_of(&mismatches);
        report.rows.extend(rows);
    }
    write(&report, &plan.directory)?;
    Ok(report)
}

impl Report {
    /// Packets did not match, where there is anything to tell.
    fn told_of(&mut self, mismatches: &[String]) {
        self.packets_matched &= mismatches.is_empty();
        for mismatch in mismatches {
            eprintln!("bench: {mismatch}");
        }
    }
}

/// Says how far it is, on the way that errors take too: the table alone is the program's output.
fn tell(what: &str, report: &Report) {
    let began = UNIX_EPOCH + Duration::from_secs(report.began);
    let seconds = SystemTime::now()
        .duration_since(began)
        .unwrap_or_default()
        .as_secs();
    eprintln!("bench: {seconds:>4} s: {what}");
}

/// Runs on a thread of its own on the CPU of what is timed: it may go into another network namespace for good.
fn timed<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = thread::Builder::new()
        .name("bench-timed".to_owned())
        .spawn(move || {
            pin_thread(Some(TRAFFIC_CPU))?;
            work()
        })
        .context("starting a thread")?;
    thread
        .join()
        .map_err(|_| anyhow!("a part of the bench panicked"))?
}

fn machine(cpus: usize) -> String {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = line("/proc/sys/kernel/osrelease");
    let cpuinfo = line("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name"));
    let model = model
        .unwrap_or_default()
        .trim_start_matches(['\t', ' ', ':']);
    format!("Linux {}, {cpus} CPUs, {model}", release.trim())
}

/// `bench.json`, `bench.txt` and `bench.svg` in a directory.
fn write(report: &Report, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let json = serde_json::to_string_pretty(report).context("writing the report as JSON")?;
    let files = [
        ("bench.json", json),
        ("bench.txt", table(report)),
        ("bench.svg", svg::picture(report)),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What a process of its own does: starts with so much, and tells what that took as JSON.
///
/// # Errors
/// The size cannot be read, or not all of it fitted.
pub fn cold(size: &str) -> Result<String> {
    let size = userspace::cold_size(size)?;
    serde_json::to_string(&userspace::cold(&size)?).context("telling of a start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_called_by_their_names() {
        for part in Part::ALL {
            assert_eq!(part.name().parse(), Ok(part));
        }
        let wrong = "traffic".parse::<Part>().unwrap_err();
        assert!(wrong.contains("same-node"), "{wrong}");
    }

    #[test]
    fn a_report_is_three_files() {
        let directory = tempfile::tempdir().unwrap();
        let report = report::tests::sample();
        write(&report, &directory.path().join("bench")).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join("bench").join(name));
        let back: Report = serde_json::from_str(&read("bench.json").unwrap()).unwrap();
        assert_eq!(back, report);
        assert!(read("bench.txt").unwrap().contains("connect-request-close"));
        assert!(read("bench.svg").unwrap().starts_with("<svg"));
    }
}
