//! A backend goes as Kubernetes lets it go (first it ends, then it is gone) and comes back, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::print;
use super::samples::{documents, is_slice_of};
use super::stage::{DEADLINE, Stage, at};
use crate::lab::traffic::connects::{ConnectPlan, Connects};

/// New connections a second to each of the service's addresses.
const RATE: u32 = 100;
/// Connections that each phase waits for, at each address.
const PHASE: u64 = 60;

/// Between looks at how far the generators are.
const LOOK: Duration = Duration::from_millis(1);

/// What becomes of the backend's endpoints.
#[derive(Clone, Copy)]
enum Change {
    Ends,
    Gone,
}

/// The slices' file with one backend changed.
fn changed(stage: &Stage, addresses: &[String], change: Change) -> Result<String> {
    let is_its = |endpoint: &Value| {
        let address = endpoint["addresses"][0].as_str().unwrap_or_default();
        addresses.iter().any(|own| own == address)
    };
    let mut text = String::new();
    for mut object in documents(&stage.slices.1)? {
        if is_slice_of(&object, &stage.backend.name) {
            let endpoints = object["endpoints"].as_array_mut();
            let endpoints = endpoints.context("a slice without endpoints")?;
            match change {
                Change::Gone => endpoints.retain(|endpoint| !is_its(endpoint)),
                Change::Ends => endpoints.iter_mut().filter(|e| is_its(e)).for_each(|e| {
                    e["conditions"] =
                        json!({ "ready": false, "serving": true, "terminating": true });
                }),
            }
        }
        text += "---\n";
        text += &serde_yaml_ng::to_string(&object)?;
    }
    Ok(text)
}

/// Scales the last backend away and back while requests go on.
pub(super) fn away_and_back(stage: &Stage) -> Result<()> {
    let leaver = stage.backends().last().context("no backend")?;
    let pod = stage.pod(leaver)?;
    let addresses = pod.addresses().map(|ip| ip.to_string());
    let full_name = pod.full_name();
    let its = |backends: &[Value]| -> Option<bool> {
        let backend = backends.iter().find(|b| b["pod"] == full_name.as_str())?;
        backend["chosen"].as_bool()
    };
    let put = |text: &str| stage.copy.put_file(&stage.slices.0, text);
    let client = stage.pod("client")?.netns();
    let loads: Vec<Connects> = at(&stage.backend)
        .map(|to| Connects::start(client, ConnectPlan::tcp(to, RATE)))
        .collect::<Result<_>>()?;
    print::line(&format!(
        "shop/client opens {} connections a second to {}, without retries",
        u64::from(RATE) * loads.len() as u64,
        stage.backend.full_name()
    ));

    phase(stage, &loads, "all there", leaver, true)?;
    put(&changed(stage, &addresses, Change::Ends)?)?;
    stage.wait_for_backends(|backends| its(backends) == Some(false))?;
    // What it had before goes on while it ends; in a moment it has nothing any more.
    more(&loads)?;
    put(&changed(stage, &addresses, Change::Gone)?)?;
    stage.wait_for_backends(|backends| its(backends).is_none())?;
    phase(stage, &loads, "scaled away", leaver, false)?;
    put(&stage.slices.1)?;
    stage.wait_for_backends(|backends| its(backends) == Some(true))?;
    phase(stage, &loads, "and back", leaver, true)?;

    let (mut requests, mut again) = (0, 0);
    for load in loads {
        let report = load.stop()?;
        ensure!(report.failed() == 0, "requests failed: {report:?}");
        requests += report.started;
        again += report.retransmits;
    }
    ensure!(again == 0, "{again} segments were sent again");
    print::good(&format!("{requests} requests, 0 errors, 0 retransmissions"));
    Ok(())
}

/// Waits until each generator has had some more answers.
fn more(loads: &[Connects]) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    for load in loads {
        let wanted = load.so_far().1 + PHASE;
        while load.so_far().1 < wanted {
            let (started, answered, failed) = load.so_far();
            ensure!(
                failed == 0 && Instant::now() < end,
                "{failed} of {started} requests failed, {answered} were answered"
            );
            // The generators are threads of their own and tell nobody.
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Some requests, and who answered them; the leaver must be among them or must not.
fn phase(stage: &Stage, loads: &[Connects], title: &str, leaver: &str, there: bool) -> Result<()> {
    let count = |name: &str| -> u64 { stage.servers.get(name).map_or(0, |s| s.accepted()) };
    let before: Vec<u64> = stage.backends().map(count).collect();
    more(loads)?;
    let mut shares = Vec::new();
    for (name, before) in stage.backends().zip(before) {
        let share = count(name) - before;
        shares.push(format!("{name} {share:>3}"));
        if name == leaver {
            ensure!((share > 0) == there, "{title}: {name} got {share} requests");
        }
    }
    print::line(&format!("{title:<12} {}", shares.join("   ")));
    Ok(())
}
