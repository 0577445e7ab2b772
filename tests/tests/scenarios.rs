//! Scenarios: manifests in, the sorted dump of the maps out, in every order of arrival; then back to empty.
//!
//! Each `scenarios/*.txt` is one. `BLESS=1` writes what was seen into those whose expectations it does not meet; read the
//! difference before it is committed. `SCENARIO=name` runs those whose name contains it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tests::scenario::{Order, Scenario, run};

const ORDERS: [Order; 5] = [
    Order::Forward,
    Order::Reverse,
    Order::Shuffled(1),
    Order::Shuffled(2),
    Order::Restarting,
];

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .filter(|path| path.to_string_lossy().contains(&wanted))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenario");
    files
}

/// The lines in which two texts differ.
fn difference(want: &str, got: &str) -> String {
    let mut text = String::new();
    for line in want.lines().filter(|l| !got.lines().any(|g| g == *l)) {
        let _ = writeln!(text, "    - {line}");
    }
    for line in got.lines().filter(|l| !want.lines().any(|w| w == *l)) {
        let _ = writeln!(text, "    + {line}");
    }
    text
}

/// What is wrong with a scenario.
fn check(path: &Path, bless: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut scenario = Scenario::parse(&text).map_err(|e| format!("{e:#}"))?;
    let mut wrong = String::new();
    let mut first = None;
    for order in ORDERS {
        let outcomes = match run(&scenario, order) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let _ = writeln!(wrong, "  {order:?}: {error:#}");
                continue;
            }
        };
        let first = first.get_or_insert_with(|| outcomes.clone());
        for (number, (step, got)) in scenario.steps.iter().zip(&outcomes).enumerate() {
            let number = number + 1;
            if order == Order::Forward {
                if step.expect.1 != got.text() && !bless {
                    let lines = difference(&step.expect.1, &got.text());
                    let _ = writeln!(wrong, "  step {number}: expected and seen differ\n{lines}");
                }
                if let Some((_, writes)) = &step.writes
                    && *writes != got.writes
                    && !bless
                {
                    let lines = difference(writes, &got.writes);
                    let _ = writeln!(wrong, "  step {number}: other writes\n{lines}");
                }
                continue;
            }
            let was = &first[number - 1];
            // A new agent has not seen what was rejected before.
            let same = was.maps == got.maps
                && (was.told == got.told || order == Order::Restarting);
            if !same {
                let lines = difference(&was.text(), &got.text());
                let _ = writeln!(wrong, "  step {number}: {order:?} differs from Forward\n{lines}");
            }
        }
    }
    if let Some(outcomes) = first.filter(|_| bless) {
        for (step, got) in scenario.steps.iter().zip(&outcomes) {
            scenario.sections[step.expect.0].text = got.text();
            if let Some((at, _)) = &step.writes {
                scenario.sections[*at].text.clone_from(&got.writes);
            }
        }
        std::fs::write(path, scenario.text()).unwrap();
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

#[test]
fn every_scenario_says_what_its_golden_says_in_every_order() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures = String::new();
    let files = files();
    for path in &files {
        let name = path.file_stem().unwrap().to_string_lossy();
        if let Err(wrong) = check(path, bless) {
            let _ = writeln!(failures, "{name}:\n{wrong}");
        }
    }
    println!("{} scenarios", files.len());
    assert!(failures.is_empty(), "\n{failures}");
}
