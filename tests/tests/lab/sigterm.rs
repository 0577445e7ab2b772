//! SIGTERM in the middle of much to do: the agent ends at once, and what it had begun stays whole and is gone on with.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use agent_common::{Backend, Reason};
use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use inotify::{Inotify, WatchMask};
use serde_json::json;
use tests::lab::patience;

use crate::bad_input::{MANY, crowd};
use crate::policies::on;
use crate::scene::{DEADLINE, HTTP, POLL, SERVICE, Scene};
use crate::services::{Load, WEB, service_probes, web};

/// What an agent may take from SIGTERM to its end.
const END: Duration = Duration::from_secs(1);
/// New connections a second, and how many must have been answered before and after.
const RATE: u32 = 200;
const PHASE: u64 = 100;
/// An apply has begun when it has written so many backends.
const BEGUN: u32 = 1_000;

/// The file of the service with many endpoints, and what stands there when it has none.
const CROWD: &str = "crowd.json";
const NOBODY: &str = r#"{ "apiVersion": "v1", "kind": "List", "items": [] }"#;

/// Tells when somebody opens a manifest.
struct Opened(Inotify);

impl Opened {
    fn watch(scene: &Scene) -> Result<Self> {
        let inotify = Inotify::init()?;
        inotify.watches().add(scene.dir.path(), WatchMask::OPEN)?;
        Ok(Self(inotify))
    }

    fn wait(&mut self, file: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE * patience();
        let mut buffer = [0; 4096];
        loop {
            match self.0.read_events(&mut buffer) {
                Ok(mut events) => {
                    if events.any(|event| event.name.is_some_and(|name| *name == *file)) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(Instant::now() < end, "nobody opens {file}");
            std::thread::sleep(POLL);
        }
    }
}

/// Whether a backend of this number was ever written.
fn is_written(scene: &Scene, number: u32) -> Result<bool> {
    let pin = MapData::from_pin(scene.pinned().path("backends"))?;
    let backends: Array<_, Backend> = Array::try_from(Map::Array(pin))?;
    Ok(backends.get(&number, 0)?.word.port_be != 0)
}

/// Ends the agent; how long it took.
fn end(scene: &mut Scene) -> Result<Duration> {
    let started = Instant::now();
    let status = scene.agent.terminate()?;
    let took = started.elapsed();
    ensure!(status.success(), "{status}");
    ensure!(took < END * patience(), "{took:?}");
    Ok(took)
}

#[test]
fn an_agent_in_the_middle_of_a_big_apply_ends_within_a_second_of_sigterm() -> Result<()> {
    let mut scene = web(&[])?;
    let guard = on(
        "stranger",
        "guard",
        json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "nobody" } } }] }] }),
    );
    scene.apply([&guard])?;
    let load = Load::start(&scene, RATE)?;
    let assert_in_force = |scene: &Scene| -> Result<()> {
        load.more(PHASE)?;
        scene.assert_denied("client", "stranger", HTTP, Reason::PolicyIngress)?;
        scene.assert_answered_by_any(&service_probes(scene, WEB, SERVICE)?)
    };
    assert_in_force(&scene)?;

    let (service, list) = crowd();
    scene.dir.put(&service)?;
    scene.dir.put_file(CROWD, &list.to_string())?;
    let wait = Instant::now() + 6 * DEADLINE * patience();
    while !is_written(&scene, BEGUN)? {
        ensure!(Instant::now() < wait, "{}", scene.agent.log_tail());
        std::thread::sleep(POLL);
    }
    let applying = end(&mut scene)?;
    ensure!(
        !is_written(&scene, u32::try_from(MANY)?)?,
        "the apply was over before the agent was"
    );
    assert_in_force(&scene)?;
    scene.agent.start_again()?;
    scene.settle()?;
    ensure!(is_written(&scene, u32::try_from(MANY)?)?, "it goes on");
    let problems = &scene.agent.status()?["problems"];
    ensure!(problems.as_array().is_none_or(Vec::is_empty), "{problems}");
    assert_in_force(&scene)?;

    let mut reader = Opened::watch(&scene)?;
    scene.dir.put_file(CROWD, &list.to_string())?;
    reader.wait(CROWD)?;
    let reading = end(&mut scene)?;
    assert_in_force(&scene)?;
    scene.dir.remove(&service)?;
    scene.dir.put_file(CROWD, NOBODY)?;
    scene.agent.start_again()?;
    scene.settle()?;
    assert_in_force(&scene)?;
    load.stop()?;
    tests::say(format_args!(
        "SIGTERM: the end came after {applying:?} in the middle of an apply of {MANY} endpoints, after {reading:?} while they were read"
    ));
    Ok(())
}
