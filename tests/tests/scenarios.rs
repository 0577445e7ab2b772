//! Scenarios: manifests in, the sorted dump of the maps out, in every order of arrival; then back to empty.
//!
//! Each `scenarios/*.txt` is one. `BLESS=1` writes what was seen into those whose expectations it does not meet; read the
//! difference before it is committed. `SCENARIO=name` runs those whose name contains it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sluice::compile::Options;
use sluice::local::Local;
use sluice::model::intern;
use sluice::source::Documents;
use tests::scenario::{Agent, NODE, Order, Scenario, Shared, is_empty, run};

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
            let same = was.for_new_flows() == got.for_new_flows()
                && (was.told == got.told || order == Order::Restarting);
            if !same {
                let lines = difference(&was.text(), &got.text());
                let _ = writeln!(
                    wrong,
                    "  step {number}: {order:?} differs from Forward\n{lines}"
                );
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

/// Endpoints in a slice, as many as the API takes.
const IN_A_SLICE: u32 = 1_000;
/// More endpoints than the kernel's own limits let others serve, and than fit a 16-bit count.
const MANY: u32 = 70_000;

/// A service and `count` endpoints.
fn big(count: u32, documents: &mut Documents) {
    documents.put(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: big, namespace: d}\n\
         spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n",
    );
    for slice in 0..MANY / IN_A_SLICE {
        let mut endpoints = String::new();
        for number in slice * IN_A_SLICE..count.min((slice + 1) * IN_A_SLICE) {
            let [_, a, b, c] = number.to_be_bytes();
            let _ = write!(endpoints, "{{addresses: [10.{a}.{b}.{c}]}},");
        }
        documents.put(
            &format!("slice-{slice}.yaml"),
            &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: big-{slice}, namespace: d, labels: {{kubernetes.io/service-name: big}}}}\n\
                 addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{endpoints}]\n"
            ),
        );
    }
}

#[test]
fn a_service_of_70_000_endpoints_is_served_whole_and_goes_whole() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, async {
        let options = Options::new(intern(NODE));
        let maps = Shared::new(&options);
        let agent = Agent::start(&options, &maps);
        let mut documents = Documents::new();
        big(MANY, &mut documents);
        agent.tell_local(&Local::default());
        agent.tell(documents.changes()).await.unwrap();
        agent.tell_synced().await.unwrap();
        agent.settled().await.unwrap();
        assert_eq!(agent.told(), "");
        let held = maps.view();
        let counts: Vec<u32> = held.heads.values().map(|head| head.count).collect();
        assert_eq!((counts, held.services.len()), (vec![MANY], 1));
        let first = held.heads.values().next().unwrap().first;
        let served: std::collections::BTreeSet<_> = (first..first + MANY)
            .map(|at| held.slots.get(&at).unwrap().backend)
            .map(|number| held.backends.get(&number).unwrap().address)
            .collect();
        assert_eq!(served.len(), MANY as usize);
        // One endpoint less is a few words, not a pool anew.
        let _ = maps.take_log();
        big(MANY - 1, &mut documents);
        agent.tell(documents.changes()).await.unwrap();
        agent.settled().await.unwrap();
        assert!(maps.take_log().len() < 8);
        for slice in 0..MANY / IN_A_SLICE {
            documents.remove(&format!("slice-{slice}.yaml"));
        }
        documents.remove("service.yaml");
        agent.tell(documents.changes()).await.unwrap();
        agent.settled().await.unwrap();
        is_empty(&maps.view()).unwrap();
        agent.end().await.unwrap();
    });
}
