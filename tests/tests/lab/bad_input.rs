//! What a careless person may write: each is rejected alone and visibly, and nothing that is in force is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::lab::{manifests, patience};

use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, SERVICE, Scene, service, slices, vip};
use crate::services::{BACKENDS, WEB, ready, service_probes, web};

/// Endpoints of the service that is too large for a person.
pub(crate) const MANY: usize = 70_000;
/// Endpoints of one slice: what the controller puts into one (`--max-endpoints-per-slice`, at most 1,000).
const PER_SLICE: usize = 1_000;

/// Where `sluice status -o json` tells of what.
const REJECTED: &str = "rejected";
const NOTICES: &str = "notices";
const PROBLEMS: &str = "problems";

impl Scene {
    /// What a section of the status says of `object`, once it says something.
    fn told(&self, sections: &[&str], object: &str) -> Result<String> {
        let end = Instant::now() + DEADLINE * patience();
        loop {
            let status = self.agent.status()?;
            for section in sections {
                for entry in status[*section].as_array().into_iter().flatten() {
                    if entry["object"].as_str().is_some_and(|o| o.contains(object)) {
                        return Ok(entry["reason"].as_str().unwrap_or_default().to_owned());
                    }
                }
            }
            ensure!(
                Instant::now() < end,
                "the status says nothing of {object} in {sections:?}: {status}"
            );
        }
    }

    /// Objects that the status tells of in a section.
    fn objects_told(&self, section: &str) -> Result<BTreeSet<String>> {
        let status = self.agent.status()?;
        let entries = status[section].as_array().into_iter().flatten();
        Ok(entries
            .filter_map(|entry| entry["object"].as_str().map(str::to_owned))
            .collect())
    }
}

/// The policy and the service that must stay in force whatever else is written.
fn assert_in_force(scene: &Scene) -> Result<()> {
    scene.assert_answered_by_any(&service_probes(scene, WEB, SERVICE)?)?;
    scene.assert_denied("stranger", BACKENDS[0], HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed("client", BACKENDS[0], HTTP)
}

#[test]
fn bad_objects_are_rejected_alone_and_what_they_replace_stays_in_force() -> Result<()> {
    let mut scene = web(&[])?;
    let started = scene.agent.process().id();
    let guard = on(
        BACKENDS[0],
        "guard",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }] }] }),
    );
    scene.apply([&guard])?;
    assert_in_force(&scene)?;
    let good_slices = slices("web", &ready(&scene, &BACKENDS)?);
    let [good_service, ..] = service("web", WEB, &[]);

    // A file that is no YAML, beside the others.
    scene
        .dir
        .put_file("broken.yaml", "kind: [unclosed\n  - : :\n")?;
    let reason = scene.told(&[REJECTED], "broken.yaml")?;
    ensure!(!reason.is_empty());
    assert_in_force(&scene)?;

    // An unknown kind is not ours: a notice.
    scene.dir.put(&json!({ "apiVersion": "example.com/v1", "kind": "Gadget", "metadata": { "name": "thing", "namespace": "default" } }))?;
    ensure!(!scene.told(&[NOTICES], "Gadget")?.is_empty());

    // Each of these replaces something good.
    let spoil = |object: &Value, pointer: &str, with: Value| -> Result<Value> {
        let mut bad = object.clone();
        *bad.pointer_mut(pointer)
            .with_context(|| format!("{object} has no {pointer}"))? = with;
        Ok(bad)
    };
    let block = |cidr: &str| json!([{ "from": [{ "ipBlock": { "cidr": cidr } }] }]);
    let cases = [
        (
            "EndpointSlice default/web-ipv4",
            spoil(
                &good_slices[0],
                "/endpoints/0/addresses/0",
                json!("10.244.1.999"),
            )?,
        ),
        (
            "Service default/web",
            spoil(&good_service, "/spec/ports/0/port", json!(0))?,
        ),
        (
            "NetworkPolicy default/guard",
            spoil(&guard, "/spec/ingress", block("10.0.0.0/99"))?,
        ),
        (
            "NetworkPolicy default/guard",
            spoil(&guard, "/spec/ingress", block("no address"))?,
        ),
        (
            "NetworkPolicy default/guard",
            spoil(
                &guard,
                "/spec/podSelector",
                json!({ "matchExpressions": [{ "key": "app", "operator": "Perhaps", "values": ["x"] }] }),
            )?,
        ),
    ];
    for (object, bad) in &cases {
        scene.apply([bad])?;
        let reason = scene.told(&[REJECTED], object)?;
        ensure!(!reason.is_empty(), "{object}: no reason");
        assert_in_force(&scene).with_context(|| format!("with a bad {object} ({reason})"))?;
        scene.dir.put_all([&guard, &good_service])?;
        scene.apply(&good_slices)?;
        let left = scene.objects_told(REJECTED)?;
        ensure!(
            !left.contains(*object),
            "{object} is good again, and still rejected: {left:?}"
        );
    }

    // A policy that selects nothing is good, and worth a word.
    scene.apply([&on("no-such-pod", "idle", json!({}))])?;
    ensure!(
        !scene
            .told(&[NOTICES], "NetworkPolicy default/idle")?
            .is_empty()
    );

    // A service whose slices name no port: said somewhere, refused as one without endpoints, nothing else touched.
    let portless =
        manifests::endpoint_slices("default", "portless", &[], &ready(&scene, &BACKENDS)?);
    let [service_object, ..] = service("portless", 30, &[]);
    scene.dir.put_all(&portless)?;
    scene.apply([&service_object])?;
    ensure!(
        !scene
            .told(&[REJECTED, NOTICES, PROBLEMS], "portless")?
            .is_empty()
    );
    assert_in_force(&scene)?;

    // Mended or gone, they are not told of any more.
    for slice in &portless {
        scene.dir.remove(slice)?;
    }
    scene.dir.put_file("broken.yaml", "# nothing\n")?;
    scene.settle()?;
    let left = scene.objects_told(REJECTED)?;
    ensure!(left.is_empty(), "{left:?}");
    ensure!(
        scene.agent.process().id() == started
            && scene.agent.process().wait(Duration::ZERO)?.is_none(),
        "the agent did not live through it:\n{}",
        scene.agent.log_tail()
    );
    ensure!(
        !scene.agent.log().contains("panicked"),
        "{}",
        scene.agent.log_tail()
    );
    Ok(())
}

/// A service that is too large for a person, and the list of its slices.
pub(crate) fn crowd() -> (Value, Value) {
    let service = manifests::service(
        "default",
        "crowd",
        &vip(40)[..1],
        &[crate::scene::port(HTTP, tests::lab::traffic::Proto::Tcp)],
    );
    let items: Vec<Value> = (0..MANY / PER_SLICE)
        .map(|slice| {
            let endpoint = |n: usize| {
                let n = slice * PER_SLICE + n;
                json!({ "addresses": [format!("10.{}.{}.{}", 128 + (n >> 16), (n >> 8) & 0xff, n & 0xff)], "conditions": { "ready": true } })
            };
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("crowd-{slice}"), "namespace": "default",
                    "labels": { "kubernetes.io/service-name": "crowd" },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "tcp", "port": HTTP, "protocol": "TCP" }],
                "endpoints": (0..PER_SLICE).map(endpoint).collect::<Vec<_>>(),
            })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    (service, list)
}

#[test]
fn seventy_thousand_endpoints_are_served_whole_or_rejected_with_the_limit() -> Result<()> {
    let scene = web(&[])?;
    let (crowd, list) = crowd();
    scene
        .dir
        .put_file("crowd.json", &serde_json::to_string(&list)?)?;
    scene.dir.put(&crowd)?;
    // It takes as long as it takes; a moment in which the agent is busy is no reason to give up.
    let end = Instant::now() + 6 * DEADLINE * patience();
    let served = loop {
        let listed = scene.agent.cli(&["service", "list"])?;
        let crowd = listed["services"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|s| s["name"] == "crowd");
        let backends = crowd
            .and_then(|s| s["frontends"][0]["backends"].as_array())
            .map_or(0, Vec::len);
        let problem = scene
            .objects_told(PROBLEMS)?
            .iter()
            .any(|o| o.contains("crowd"));
        if backends == MANY || problem {
            break backends;
        }
        ensure!(
            Instant::now() < end,
            "{backends} of {MANY} endpoints are served, and no problem is told"
        );
    };
    if served != MANY {
        let reason = scene.told(&[PROBLEMS], "crowd")?;
        ensure!(
            reason.chars().any(|c| c.is_ascii_digit()),
            "no limit is named: {reason}"
        );
    }
    println!("{served} endpoints are served");
    scene.settle()?;
    scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)?;
    // And back.
    scene.dir.put_file(
        "crowd.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": []}",
    )?;
    scene.remove([&crowd])?;
    scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)
}
