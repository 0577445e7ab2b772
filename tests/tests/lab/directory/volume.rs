//! An agent whose manifests lie on a small file system of their own, and which modes of files bind as they bind anybody.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::lab::agent::{AgentPlan, Source};
use tests::lab::manifests::ManifestDir;
use tests::lab::traffic::connects::{ConnectPlan, Connects};

use super::KINDS;
use crate::node_parts::await_that;
use crate::policies::on;
use crate::scene::{HTTP, SERVICE, Scene, at, service, vip};
use crate::services::{BACKENDS, ready, wait_for, web};
use crate::unfit::in_a_changed_machine;

/// KiB of the file system: each of some thirty manifests takes a page.
const ROOM: u32 = 512;
/// The service whose objects go from file to file.
const FLIPPED: u8 = 23;
/// New connections a second to it, in each family.
const RATE: u32 = 100;
/// Connections of each family to see after each trouble.
const PHASE: u64 = 40;
/// Who owns what the agent may not read.
const NOBODY: u32 = 65_534;
/// The file of two policies that is written when there is no room.
const TWO: &str = "two.yaml";

/// The volume, as this process sees it.
struct Volume {
    root: PathBuf,
}

impl Volume {
    /// Starts the scene's agent anew, with the scene's manifests on a file system that only it has.
    fn mount(scene: &mut Scene) -> Result<Self> {
        let place = scene.lab.dir().join("volume");
        fs::create_dir(&place)?;
        let changes = format!(
            "mount -t tmpfs -o size={ROOM}k none {place}\nmkdir {place}/staging {place}/manifests\ncp {from}/*.yaml {place}/manifests",
            place = place.display(),
            from = scene.dir.path().display(),
        );
        let bound = "setpriv --bounding-set -dac_override,-dac_read_search";
        let binary = in_a_changed_machine(&scene.lab, "volume", &changes, bound)?;
        let plan = AgentPlan {
            binary: Some(binary),
            source: Source::Manifests(place.join("manifests")),
            ..scene.agent.plan().clone()
        };
        let status = scene.agent.terminate()?;
        ensure!(status.success(), "{status}");
        scene.agent.start_again_as(plan)?;
        let process = Path::new("/proc").join(scene.agent.process().id().to_string());
        let root = process.join("root").join(place.strip_prefix("/")?);
        scene.dir = ManifestDir::seen_at(root.join("manifests"), root.join("staging"));
        Ok(Self { root })
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// A version of what is flipped: files with their objects.
    fn version(&self, name: &str, files: &[(&str, &[Value])]) -> Result<()> {
        let version = self.manifests().join(name);
        fs::create_dir(&version)?;
        for (file, objects) in files {
            fs::write(version.join(file), documents(objects)?)?;
        }
        Ok(())
    }

    fn link(&self, target: &str, name: &str) -> Result<()> {
        Ok(symlink(target, self.manifests().join(name))?)
    }
}

fn documents(objects: &[Value]) -> Result<String> {
    let texts = objects.iter().map(serde_yaml_ng::to_string);
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

/// Only this one may ask that pod.
fn guard(pod: &str, from: &str) -> Value {
    let peer = json!([{ "podSelector": { "matchLabels": { "app": from } } }]);
    on(
        pod,
        &format!("guard-{pod}"),
        json!({ "ingress": [{ "from": peer }] }),
    )
}

fn ensure_guarded(scene: &Scene, pod: &str, allowed: &str, denied: &str) -> Result<()> {
    scene.assert_denied(denied, pod, HTTP, Reason::PolicyIngress)?;
    scene.assert_allowed(allowed, pod, HTTP)
}

/// Connections to the flipped service all the while.
struct Load([Connects; 2]);

impl Load {
    fn start(scene: &Scene) -> Result<Self> {
        let client = scene.netns("client")?;
        let [v4, v6] =
            at(vip(FLIPPED), SERVICE).map(|to| Connects::start(client, ConnectPlan::tcp(to, RATE)));
        Ok(Self([v4?, v6?]))
    }

    fn more(&self) -> Result<()> {
        let wait = |load: &Connects| wait_for(load, load.so_far().1 + PHASE);
        self.0.iter().try_for_each(wait)
    }

    fn stop(self) -> Result<()> {
        for load in self.0 {
            let report = load.stop()?;
            ensure!(
                report.failed() == 0 && report.retransmits == 0,
                "{report:?}"
            );
        }
        Ok(())
    }
}

#[test]
fn a_flip_a_full_disk_and_a_directory_that_cannot_be_read_disturb_no_packet() -> Result<()> {
    let mut scene = web(&[])?;
    let [one, two, three] = BACKENDS;
    let volume = Volume::mount(&mut scene)?;
    let flipped = service("flipped", FLIPPED, &ready(&scene, &[one])?);
    let two_policies = |first: &str, lines: usize| -> Result<String> {
        let comment = "# nothing\n".repeat(lines);
        let (first, second) = (guard(two, first), guard(three, "client"));
        Ok(format!(
            "{}{comment}---\n{}",
            documents(&[first])?,
            documents(&[second])?
        ))
    };
    scene.dir.put_file(TWO, &two_policies("client", 1)?)?;
    volume.version(
        "..v1",
        &[
            ("a.yaml", &flipped),
            ("guard.yaml", &[guard(one, "client")]),
        ],
    )?;
    for (target, name) in [
        ("..v1", "..data"),
        ("..data/a.yaml", "a.yaml"),
        ("..data/guard.yaml", "guard.yaml"),
    ] {
        volume.link(target, name)?;
    }
    scene.settle()?;
    for pod in BACKENDS {
        ensure_guarded(&scene, pod, "client", "stranger")?;
    }
    // From here on the first sees connections all the while.
    let load = Load::start(&scene)?;
    load.more()?;

    // kubelet's own order of steps (pkg/volume/util/atomic_writer.go). The service goes to another file, and stays what it is. A policy
    // that lets another in is another; the client's way to the service is one of the policy's too.
    let both = |pod: &str| -> Value {
        let peer = |app: &str| json!({ "podSelector": { "matchLabels": { "app": app } } });
        let peers = json!([peer("client"), peer("stranger")]);
        on(
            pod,
            &format!("guard-{pod}"),
            json!({ "ingress": [{ "from": peers }] }),
        )
    };
    volume.version(
        "..v2",
        &[("b.yaml", &flipped), ("guard.yaml", &[both(one)])],
    )?;
    volume.link("..v2", "..data_tmp")?;
    let (new, data) = ("..data_tmp", "..data");
    fs::rename(volume.manifests().join(new), volume.manifests().join(data))?;
    volume.link("..data/b.yaml", "b.yaml")?;
    fs::remove_file(volume.manifests().join("a.yaml"))?;
    fs::remove_dir_all(volume.manifests().join("..v1"))?;
    scene.settle()?;
    scene.assert_allowed("stranger", one, HTTP)?;
    load.more().context("after the flip")?;

    // No room: what is written is cut behind the first of two policies, which would let the stranger in.
    let filler = volume.root.join("filler");
    let mut filling = File::create(&filler)?;
    while filling.write_all(&[0; 4096]).is_ok() {}
    drop(filling);
    let file = volume.manifests().join(TWO);
    let longer = two_policies("stranger", 4096)?;
    let error = fs::write(&file, &longer).err().context("it had room")?;
    ensure!(error.kind() == ErrorKind::StorageFull, "{error}");
    let cut = fs::read_to_string(&file)?;
    ensure!(longer.starts_with(&cut) && cut.contains(two) && !cut.contains(three));
    await_that("a word of the full file system", || {
        let rejected = scene.agent.status()?["rejected"].to_string();
        Ok(rejected.contains(TWO) && rejected.contains("the file system is full"))
    })?;
    let status = scene.until_stale(0)?;
    ensure!(status["ready"] == true, "{status:#}");
    for pod in [two, three] {
        ensure_guarded(&scene, pod, "client", "stranger").context("on a full disk")?;
    }
    load.more().context("on a full disk")?;
    fs::remove_file(&filler)?;
    scene.dir.put_file(TWO, &two_policies("stranger", 1)?)?;
    scene.settle()?;
    ensure_guarded(&scene, two, "stranger", "client").context("written again")?;
    let rejected = scene.agent.status()?["rejected"].clone();
    ensure!(rejected == json!([]), "{rejected}");

    // Somebody else's, and closed.
    let mode = |mode| fs::set_permissions(volume.manifests(), Permissions::from_mode(mode));
    chown(volume.manifests(), Some(NOBODY), Some(NOBODY))?;
    mode(0o700)?;
    let status = scene.until_stale(KINDS)?;
    let reason = status["sources"][0]["reason"].to_string();
    ensure!(reason.contains("Permission denied"), "{reason}");
    ensure!(status["ready"] == false, "{status:#}");
    scene.dir.put_file(TWO, &two_policies("client", 1)?)?;
    ensure_guarded(&scene, two, "stranger", "client").context("not to be read")?;
    load.more().context("not to be read")?;
    mode(0o755)?;
    let status = scene.until_stale(0)?;
    ensure!(status["ready"] == true, "{status:#}");
    scene.settle()?;
    ensure_guarded(&scene, two, "client", "stranger").context("to be read again")?;
    load.more()?;
    load.stop()
}
