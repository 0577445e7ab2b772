//! `cargo xtask soak`: two nodes under random changes, kills and traffic, held against the oracle.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::run::become_process;
use crate::setup::{self, Need};
use crate::test::runner;
use crate::{mutants, shell, workspace};

/// The run of the tier `soak` that always throws the same dice: `KNOWN` of `tests/tests/soak.rs`.
const KNOWN: [&str; 4] = ["--minutes", "0.25", "--seed", "4"];

/// Mechanisms beside those of the tier `mutants` without which a short soak ends with 1, as was seen by hand.
const BY_HAND: [&str; 1] = ["no-epoch-raise"];

/// Two nodes on this machine, each with its agent, in namespaces of their own: random changes of services, endpoints,
/// policies, pods and links, continuous traffic, and random kills of the agents; each connection is held against the oracle.
///
/// Ends with counts. Exit code 1 if a verdict was wrong, a connection lost or reset, or if there were too few changes, kills or
/// requests to say anything (`tests::soak::MINIMUM`).
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For how many minutes, a quarter at least; fractions count.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,

    /// Repeats the sequence of changes, kills and connections of another run.
    #[arg(long)]
    seed: Option<u64>,

    /// Runs the agents without one mechanism, of those whose absence the soak can show: it must end with 1.
    #[arg(long = "break", value_name = "NAME", conflicts_with = "release")]
    broken: Option<String>,

    /// Optimised builds, as they run on nodes; without it those of the tests.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(name) = &arguments.broken {
        let known = breakable();
        if !known.contains(name.as_str()) {
            let known: Vec<&str> = known.into_iter().collect();
            bail!(
                "nothing that the soak can show is called {name}; there are: {}",
                known.join(", ")
            );
        }
    }
    setup::ensure(&[Need::Ebpf, Need::Lab])?;
    let mut build = workspace::cargo();
    build.args(["build", "--package", "sluice", "--package", "tests"]);
    build.args(["--bin", "sluice", "--bin", "soak", "--bin", "lab-hand"]);
    if arguments.release {
        build.arg("--release");
    }
    if arguments.broken.is_some() {
        let (variable, value) = mutants::BUILD;
        build.env(variable, value);
    }
    shell::run(setup::with_ebpf_toolchain(&mut build))?;

    let profile = if arguments.release {
        "release"
    } else {
        "debug"
    };
    let built = workspace::target().join(profile);
    let mut soak = shell::as_root(built.join("soak"))?;
    soak.current_dir(workspace::root())
        .env("SLUICE_BIN", built.join("sluice"))
        .env(
            mutants::CHOICE,
            arguments.broken.as_deref().unwrap_or_default(),
        )
        // The program says what is too short, or no number.
        .arg(format!("--minutes={}", arguments.minutes));
    if let Some(seed) = arguments.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    become_process(soak)
}

/// What `--break` takes.
fn breakable() -> BTreeSet<&'static str> {
    let rows = mutants::MUTANTS.iter().filter(|m| m.cargo == mutants::SOAK);
    rows.map(|m| m.name).chain(BY_HAND).collect()
}

/// Why `cargo xtask soak --break=NAME` did not find anything and end with 1, if it did not: this very program is run, as a person would,
/// and what it prints is kept in `printed`.
pub(crate) fn uncaught(name: &str, bound: Duration, printed: &mut Vec<String>) -> Option<String> {
    // Also when a build has put another file into its place meanwhile.
    let mut soak = Command::new("/proc/self/exe");
    soak.arg("soak")
        .args(KNOWN)
        .arg(format!("--break={name}"))
        .stdin(Stdio::null());
    let mut echo = runner::Echo::Kept(printed);
    let (mut soak, output) = match echo.start(soak) {
        Ok(started) => started,
        Err(error) => return Some(format!("{error:#}")),
    };
    let mut found = None;
    let in_time = runner::read(output, bound, |line| {
        echo.take(line);
        found = failures(line).or(found);
    });
    if !in_time {
        runner::kill(soak.id());
    }
    match (soak.wait(), found) {
        _ if !in_time => Some(format!("not done after {} s: stopped", bound.as_secs())),
        (Err(error), _) => Some(format!("it cannot be waited for: {error}")),
        (Ok(status), Some(1..)) if status.code() == Some(1) => None,
        (Ok(status), Some(found)) => Some(format!("{found} failures found, and then {status}")),
        (Ok(status), None) => Some(format!("{status}, and no counts")),
    }
}

/// Wrong, lost and reset together, in the line with which the soak ends.
fn failures(line: &str) -> Option<u64> {
    let (_, counts) = line.strip_prefix("soak: ")?.split_once("wrong verdicts ")?;
    let numbers = counts.split(", ").map(|part| {
        let number = part.rsplit(' ').next()?;
        number.parse::<u64>().ok()
    });
    numbers.sum()
}

#[cfg(test)]
mod tests {
    use super::{Arguments, BY_HAND, KNOWN, breakable, failures, run};
    use crate::{mutants, workspace};

    #[test]
    fn what_may_be_broken_has_a_switch_and_the_rows_are_of_it() {
        for name in BY_HAND {
            assert!(mutants::MUTANTS.iter().any(|m| m.name == name), "{name}");
        }
        assert!(breakable().contains("redirect-without-ingress"));
        assert!(!breakable().contains("silent-watch"));
    }

    #[test]
    fn what_the_soak_cannot_show_is_refused_with_a_list_of_what_it_can() {
        let arguments = Arguments {
            minutes: 0.25,
            seed: None,
            broken: Some("silent-watch".to_owned()),
            release: false,
        };
        let refused = run(&arguments).unwrap_err().to_string();
        for part in ["silent-watch", "no-epoch", "redirect-without-ingress"] {
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn the_known_run_is_the_one_of_the_tier() {
        let tier = workspace::root().join("tests/tests/soak.rs");
        let text = std::fs::read_to_string(tier).unwrap();
        assert!(text.contains(&format!("{KNOWN:?}")));
    }

    #[test]
    fn the_last_line_tells_what_was_found() {
        let line = |counts| format!("soak: 20 s, --seed 4: changes 31, dropped 80, {counts}");
        let found = |counts| failures(&line(counts));
        assert_eq!(found("wrong verdicts 0, lost 0, reset 0"), Some(0));
        assert_eq!(found("wrong verdicts 7, lost 2, reset 1"), Some(10));
        assert_eq!(found("wrong verdicts many, lost 2, reset 1"), None);
        assert_eq!(failures("soak: 15 s, --seed 4"), None);
    }
}
