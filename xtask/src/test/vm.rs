//! The tier `vm`: tests that ran on this machine's kernel run again on an older one, which an emulator boots.
//!
//! The test binaries are those of the other tiers, with the libraries of this machine, in an initial file system; `vm-init` (in
//! `tests/src/bin`) is its first process and runs them. Everything they print arrives by a serial line and is counted as
//! elsewhere. The emulator needs a minute for what a second does here, nearly all of it in the verifier: so a gate run has nearly
//! all of the packet tier and the core of the lab ([`PARTS`]), and `--all` has the rest ([`ALL`]).

mod boot;
mod image;
mod modules;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcome::Outcome;
use super::runner;
use crate::setup::vm::{Kernel, kernel};
use crate::{shell, workspace};
use image::Image;
use report::Report;

/// The tier's name.
pub(crate) const NAME: &str = "vm";
/// One line for people.
pub(crate) const ABOUT: &str = "packets and the core of the lab on an older kernel, emulated";

/// What is built, as for the other tiers.
const CARGO: &[&str] = &[
    "--package",
    "tests",
    "--test",
    "packets",
    "--test",
    "kernel",
    "--test",
    "lab",
];
/// Programs that are built beside the tests, and that the machine has at the same place relative to them.
const BUILT: [&str; 2] = ["lab-hand", "vm-init"];
/// Agents, of this layout and of the next: beside the tests' build, as `cargo xtask test lab` makes them.
const AGENTS: [&str; 2] = ["sluice", "sluice-next"];
/// This machine's programs that tests and labs call; behind the first three, those of the scripts by which a test changes what an agent
/// finds.
const PROGRAMS: [&str; 14] = [
    "ip", "tc", "bpftool", "sh", "unshare", "mount", "umount", "setpriv", "grep", "sed", "cut",
    "tac", "mkdir", "cp",
];
/// Where scripts name their shell.
const SHELL: &str = "/bin/sh";
/// Modules: links, the hooks' qdisc and filters, the lab's switch, what sockets are asked through.
const MODULES: [&str; 6] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "bridge",
    "tcp_diag",
    "udp_diag",
];
/// How many times longer than elsewhere an agent may take to start.
const PATIENCE: &str = "6";
/// Sets of random policies: a fifth of those that are tried elsewhere.
const SETS: &str = "4";

/// Tests of one target that run in one go.
struct Part {
    /// How it is called in what is printed.
    name: &'static str,
    /// The target of tests.
    target: &'static str,
    /// Whole names of tests; none stands for all.
    tests: &'static [&'static str],
    /// Names of tests that this part does without, for their time.
    without: &'static [&'static str],
    /// How many run at a time.
    threads: u32,
    /// The longest that it may take.
    bound: Duration,
    /// Fewer tests than this count as a failure.
    least: u32,
}

/// What a gate run has: every program through the verifier, nearly all of the packet tier, and of the lab, on clsact: services,
/// policies, processes of the host, connections that stand, the redirect, a restart, filters removed by hand, a link that goes down and
/// up, a scan, and what is revoked. An agent chooses clsact here by itself.
const PARTS: &[Part] = &[
    Part {
        name: "packets",
        target: "packets",
        tests: &[],
        without: &[
            // Thousands of damaged frames.
            "parsing::no_frame_however_damaged_leaves_a_pod_that_may_send_nothing",
        ],
        // Each thread loads programs of its own, which takes less time than half of the rows.
        threads: 2,
        bound: Duration::from_mins(8),
        least: 100,
    },
    Part {
        name: "the core of the lab",
        target: "lab",
        tests: &[
            "clsact::by_clsact_services_and_policies_work_as_by_tcx",
            "policies::a_policy_cuts_connections_that_stand_at_once_and_its_end_lets_them_go_on",
            "policies::default_deny_isolates_each_direction_for_itself",
            "redirect::a_redirected_packet_meets_its_targets_ingress_policy",
            "restart::what_changed_while_the_agent_was_dead_is_in_force_after_its_start",
        ],
        without: &[],
        threads: 2,
        bound: Duration::from_mins(8),
        least: 5,
    },
    Part {
        name: "what restarts, faults and changes do",
        target: "lab",
        // Those that need one start of an agent; a start is ten seconds here.
        tests: &[
            "drift::clsact_filters_and_qdiscs_that_are_removed_come_back_at_once",
            "node_parts::a_link_that_goes_down_and_up_is_served_again",
            "pressure::a_scan_evicts_nobodys_connections_idle_or_busy",
            "revocation::what_a_change_takes_away_ends_with_the_next_packet_either_way",
        ],
        without: &[],
        threads: 2,
        bound: Duration::from_mins(8),
        least: 4,
    },
];

/// What `--all` has instead.
const ALL: &[Part] = &[
    Part {
        without: &[],
        bound: Duration::from_mins(20),
        ..PARTS[0]
    },
    Part {
        name: "kernel",
        target: "kernel",
        tests: &[],
        without: &[],
        threads: 1,
        bound: Duration::from_mins(10),
        least: 5,
    },
    Part {
        name: "the whole lab",
        target: "lab",
        tests: &[],
        without: &[],
        threads: 2,
        bound: Duration::from_mins(60),
        least: 50,
    },
];

/// Tests that have no sense in the machine; each with its reason.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "tour::",
        "reads the samples of the repository, which the machine does not have",
    ),
    (
        "bad_input::seventy_thousand_endpoints_are_served_whole_or_rejected_with_the_limit",
        "asks an agent for its status that compiles 70,000 endpoints, for which the emulator takes minutes",
    ),
    (
        "sigterm::an_agent_in_the_middle_of_a_big_apply_ends_within_a_second_of_sigterm",
        "puts as many in force, and bounds time besides",
    ),
    (
        "restart::killed_under_load_and_started_again_nothing_is_lost",
        "makes 500 connections a second, more than the emulator carries: connections time out and segments are sent again without any kill",
    ),
    (
        "clsact::by_clsact_a_start_adopts_the_filters_and_a_kill_is_not_noticed",
        "makes as many",
    ),
    (
        "tcx_links_are_kept_by_a_restart_and_removed_when_unneeded",
        "tcx came with Linux 6.6",
    ),
    (
        "changing_the_way_of_attaching_leaves_one_of_each",
        "tcx came with Linux 6.6",
    ),
    (
        "drops_are_told_at_a_limited_rate_and_all_counted",
        "asks for a run of a program within a tick of the clock, 4 ms, and the emulator takes longer",
    ),
    (
        "refusals_are_limited_and_the_rest_is_dropped_with_the_same_reason",
        "asks for a run of a program within a tick of the clock, 4 ms, and the emulator takes longer",
    ),
    (
        "reject::what_a_limit_keeps_back_is_told_as_dropped",
        "asks for two answers within a tick of the clock, 4 ms, and the emulator takes longer",
    ),
    (
        "reject::what_the_outside_is_refused_is_limited",
        "asks for two answers within a tick of the clock, 4 ms, and the emulator takes longer",
    ),
    (
        "coverage::every_reason_and_count_has_a_row",
        "runs every row, these four too",
    ),
    (
        "flows::a_million_entries_cost_a_known_amount_of_cpu_to_keep",
        "bounds time of a CPU, of which an emulator takes many times as much",
    ),
    (
        "node_parts::by_tcx_a_program_of_somebody_else_behind_ours_still_runs",
        "tcx came with Linux 6.6",
    ),
    (
        "cleanup::cleanup_removes_what_is_ours_by_tcx_and_nothing_else",
        "tcx came with Linux 6.6",
    ),
    (
        "cleanup::by_tcx_cleanup_works_on_a_node_that_is_half_broken",
        "tcx came with Linux 6.6",
    ),
    (
        "by_clsact::",
        "the others are by clsact too: that is what an agent chooses here",
    ),
    (
        "full::",
        "fills maps to the last entry, and leaves the emulator no time for what lives meanwhile",
    ),
    (
        "upgrade::",
        "a start over another layout's maps reads two million elements, for which the emulator takes minutes",
    ),
];

/// Time for the machine's own start and end.
const BOOT: Duration = Duration::from_mins(2);

/// Builds and runs the tier; `only` is a filter for the tests of every part of [`ALL`].
pub(crate) fn run(only: Option<&str>, all: bool) -> Outcome {
    let started = Instant::now();
    let mut outcome = Outcome::default();
    if let Err(error) = try_run(only, all, &mut outcome) {
        outcome.trouble(format!("{error:#}"));
    }
    outcome.took = started.elapsed();
    outcome
}

fn try_run(only: Option<&str>, all: bool, outcome: &mut Outcome) -> Result<()> {
    let kernel = kernel()?;
    runner::build(CARGO, &[])?;
    let directory = workspace::target().join("xtask").join(NAME);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    // Who names a test wants it, wherever it is.
    let all = all || only.is_some();
    let parts = if all { ALL } else { PARTS };
    for (test, why) in LEFT_OUT {
        println!("left out: {test}: {why}");
    }
    if !all {
        for test in parts.iter().flat_map(|part| part.without) {
            println!("left to `cargo xtask test {NAME} --all`: {test}");
        }
    }
    let image = directory.join("initramfs.cpio");
    write_image(&kernel, parts, only, &directory, &image)?;

    let messages = directory.join("kernel.log");
    let (mut machine, output) = boot::start(&kernel, &image, &messages)?;
    let bound = parts.iter().map(|part| part.bound).sum::<Duration>() + BOOT;
    let mut report = Report::new(outcome);
    let in_time = runner::read(output, bound, |line| {
        println!("{line}");
        report.read_line(line);
    });
    if !in_time {
        runner::kill(machine.id());
    }
    let status = machine.wait().context("cannot wait for the emulator")?;
    let expected = parts.iter().map(|part| {
        // A filter may well leave nothing of a part.
        let least = if only.is_some() { 0 } else { part.least };
        (part.name, least)
    });
    report.end(expected);
    if !in_time {
        bail!(
            "the machine was not done after {} minutes: stopped",
            bound.as_secs() / 60
        );
    }
    if !status.success() {
        bail!(
            "the emulator ended with {status}; the kernel's last words are in {}",
            messages.display()
        );
    }
    Ok(())
}

/// The test binaries and programs that the build has made, by name.
fn built() -> Result<BTreeMap<String, PathBuf>> {
    let mut command = workspace::cargo();
    command
        .args(["test", "--no-run", "--message-format=json"])
        .args(CARGO);
    let messages = shell::output(crate::setup::with_ebpf_toolchain(&mut command))
        .context("cargo does not tell where the test binaries are")?;
    Ok(report::executables(&messages))
}

/// Writes the initial file system.
fn write_image(
    kernel: &Kernel,
    parts: &[Part],
    only: Option<&str>,
    directory: &Path,
    to: &Path,
) -> Result<()> {
    let mut image = Image::default();
    for mounted in ["/dev", "/proc", "/sys", "/tmp", "/run"] {
        image.directory(Path::new(mounted));
    }
    let mut plan = String::new();
    for (number, module) in modules::in_order(&kernel.modules, &MODULES)?
        .iter()
        .enumerate()
    {
        let inside = format!("/vm/modules/{number}.ko");
        image.file(module, Path::new(&inside));
        writeln!(plan, "module\t{inside}")?;
    }
    for name in PROGRAMS {
        let program = shell::find(name).with_context(|| format!("no {name} on this machine"))?;
        let inside = Path::new("/usr/bin").join(name);
        image.program(&program, &inside)?;
        if Path::new(SHELL).ends_with(name) {
            image.file(&program, Path::new(SHELL));
        }
    }
    // As below a target directory, where tests look for the programs beside them.
    let built = built()?;
    let mut add = |name: &str, path: &Path, inside: &str| -> Result<()> {
        let small = directory.join(name);
        shell::run(
            Command::new("strip")
                .arg("-o")
                .args([small.as_path(), path]),
        )?;
        image.program(&small, Path::new(inside))
    };
    let of_build = |name: &str| {
        built
            .get(name)
            .with_context(|| format!("cargo has built no {name}"))
    };
    for name in AGENTS {
        add(
            name,
            &workspace::target().join("debug").join(name),
            &format!("/vm/debug/{name}"),
        )?;
    }
    for name in BUILT {
        add(name, of_build(name)?, &format!("/vm/debug/{name}"))?;
    }
    let targets: BTreeSet<_> = parts.iter().map(|part| part.target).collect();
    for target in targets {
        add(
            target,
            of_build(target)?,
            &format!("/vm/debug/deps/{target}"),
        )?;
    }
    image.file(&directory.join("vm-init"), Path::new("/init"));
    writeln!(plan, "set\tSLUICE_LAB_PATIENCE\t{PATIENCE}")?;
    writeln!(plan, "set\tSLUICE_LAB_SETS\t{SETS}")?;
    writeln!(plan, "do\tip\tlink\tset\tlo\tup")?;
    for part in parts {
        writeln!(plan, "{}", part.line(only))?;
    }
    image.bytes(Path::new("/vm/plan"), plan.into_bytes());
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut file = BufWriter::new(file);
    image.write(&mut file)?;
    file.flush().context("cannot write the image")
}

impl Part {
    /// Its line of the plan.
    fn line(&self, only: Option<&str>) -> String {
        let mut words = vec![
            "run".to_owned(),
            self.name.to_owned(),
            self.bound.as_secs().to_string(),
            format!("/vm/debug/deps/{}", self.target),
            "--color=never".to_owned(),
            format!("--test-threads={}", self.threads),
        ];
        match only {
            Some(only) => words.push(only.to_owned()),
            None if !self.tests.is_empty() => {
                words.push("--exact".to_owned());
                words.extend(self.tests.iter().map(|test| (*test).to_owned()));
            }
            None => {}
        }
        if self.tests.is_empty() {
            let left_out = LEFT_OUT.iter().map(|(test, _)| test);
            for test in left_out.chain(self.without) {
                words.extend(["--skip".to_owned(), (*test).to_owned()]);
            }
        }
        words.join("\t")
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL, LEFT_OUT, PARTS};
    use crate::workspace;

    /// Whether a file of the tests has what a name says: `module::`, `test` or `module::test`.
    fn is_there(name: &str) -> bool {
        let tests = workspace::root().join("tests/tests");
        let (module, test) = match name.rsplit_once("::") {
            Some((module, test)) => (format!("{module}.rs"), test),
            None => (".rs".to_owned(), name),
        };
        workspace::files().unwrap().iter().any(|file| {
            let of_tests = workspace::root().join(file).starts_with(&tests);
            let named = file.to_string_lossy().ends_with(&module);
            let file = workspace::root().join(file);
            of_tests && named && std::fs::read_to_string(file).is_ok_and(|text| text.contains(test))
        })
    }

    /// A test that is called otherwise now would run, or not, and nobody would know.
    #[test]
    fn what_is_named_is_there() {
        assert!(is_there("drift::links_that_are_detached_come_back"));
        assert!(
            !is_there("drift::no_such_test")
                && !is_there("tour::links_that_are_detached_come_back")
        );
        for name in LEFT_OUT.iter().map(|(name, _)| *name) {
            assert!(is_there(name), "{name}");
        }
        for name in PARTS
            .iter()
            .flat_map(|part| part.tests.iter().chain(part.without))
        {
            assert!(is_there(name), "{name}");
        }
    }

    #[test]
    fn the_plan_names_tests_whole_and_leaves_out_what_cannot_run() {
        let named: Vec<_> = PARTS.iter().filter(|part| !part.tests.is_empty()).collect();
        assert_eq!(named.len(), 2);
        for part in named {
            let line = part.line(None);
            assert!(line.starts_with("run\t"), "{line}");
            assert!(line.contains("\t--exact\t"), "{line}");
            assert!(!line.contains("--skip"), "{line}");
            assert_eq!(usize::try_from(part.least).unwrap(), part.tests.len());
        }
        let whole = ALL.iter().find(|part| part.target == "lab").unwrap();
        assert!(whole.line(None).contains("--skip"));
        assert!(whole.line(Some("kill")).contains("\tkill\t--skip"));
        let packets = PARTS.iter().find(|part| part.target == "packets").unwrap();
        assert!(packets.line(None).contains("--skip\tparsing::"));
    }
}
