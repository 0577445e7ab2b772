//! The manifests directory fails under a running agent, and in ways that take mounts: the last state stays in force, and status says since
//! when it is one.

mod volume;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use agent_common::Reason;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use sluice::source::{Event, ManifestSource, Source};
use tests::lab::manifests;
use tokio::sync::mpsc;

use crate::policies::on;
use crate::scene::{HTTP, POLL, SERVICE, Scene};
use crate::services::{BACKENDS, WEB, service_probes, web};

/// Kinds of objects, each of which is stale.
const KINDS: usize = 6;
/// However busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events that may wait.
const QUEUE: usize = 16;

impl Scene {
    /// Waits until so many kinds are stale, and gives the status.
    fn until_stale(&self, kinds: usize) -> Result<Value> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.agent.status()?;
            let sources = status["sources"].as_array().context("no sources")?;
            let stale = sources.iter().filter(|s| !s["stale_since"].is_null());
            if stale.count() == kinds {
                return Ok(status);
            }
            ensure!(
                std::time::Instant::now() < end,
                "not {kinds} stale: {status:#}"
            );
            std::thread::sleep(POLL);
        }
    }
}

#[test]
fn a_directory_that_is_gone_leaves_everything_in_force_and_status_says_since_when() -> Result<()> {
    let scene = web(&[])?;
    let guard = |from: &str| {
        let peer = json!([{ "podSelector": { "matchLabels": { "app": from } } }]);
        on(
            BACKENDS[0],
            "guard",
            json!({ "ingress": [{ "from": peer }] }),
        )
    };
    scene.apply([&guard("client")])?;
    let guarded = |allowed: &str, denied: &str| -> Result<()> {
        scene.assert_denied(denied, BACKENDS[0], HTTP, Reason::PolicyIngress)?;
        scene.assert_allowed(allowed, BACKENDS[0], HTTP)
    };
    let in_force = || -> Result<()> {
        scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)?;
        guarded("client", "stranger")
    };
    in_force()?;
    let ready = scene.until_stale(0)?;
    ensure!(ready["ready"] == true, "{ready:#}");

    let (path, away) = (scene.dir.path(), scene.dir.path().with_extension("away"));
    fs::rename(path, &away)?;
    let status = scene.until_stale(KINDS)?;
    let since = status["sources"][0]["stale_since"].clone();
    ensure!(status["ready"] == false, "{status:#}");
    let waits = status["waiting_for"][0].as_str().unwrap_or_default();
    ensure!(
        waits.starts_with(&format!(
            "manifests, lost since {}",
            since.as_str().unwrap_or_default()
        )),
        "{waits}"
    );
    println!("missing: {}, {waits}", status["sources"][0]["reason"]);
    in_force()?;

    // It comes back, and is different: one policy changed.
    let changed = serde_yaml_ng::to_string(&guard("stranger"))?;
    fs::write(away.join("NetworkPolicy.default.guard.yaml"), changed)?;
    fs::rename(&away, path)?;
    let status = scene.until_stale(0)?;
    ensure!(status["ready"] == true, "{status:#}");
    scene.settle()?;
    guarded("stranger", "client")
}

/// A source on a directory of its own file system, in a mount namespace of its own.
struct Mounted {
    dir: tempfile::TempDir,
    events: mpsc::Receiver<Event>,
}

impl Mounted {
    /// A tmpfs of so many KiB with these files.
    fn new(kib: u32, files: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        mount_tmpfs(dir.path(), kib)?;
        for (name, text) in files {
            fs::write(dir.path().join(name), text)?;
        }
        let (sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(Box::new(ManifestSource::new(dir.path())).run(sender));
        Ok(Self { dir, events })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The events up to the one that is expected, it included.
    async fn until(&mut self, last: &str) -> Result<Vec<String>> {
        let mut told: Vec<String> = Vec::new();
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let event = event.with_context(|| format!("nothing after {told:?}"))?;
            told.push(match event.context("the source ended")? {
                Event::Upsert(object) => format!("+{}", object.id()),
                Event::Delete(id) => format!("-{id}"),
                Event::Rejected(r) => format!("! {}", r.reason),
                Event::Mended(_) => "mended".to_owned(),
                Event::Synced(kind) => format!("={kind}"),
                Event::Stale { kind, reason, .. } => format!("stale {kind}: {reason}"),
                other @ Event::Notice(_) => bail!("{other:?}"),
            });
            if told.last().is_some_and(|t| t.starts_with(last)) {
                return Ok(told);
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Or the directory could not be removed. It may be unmounted already.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

fn mount_tmpfs(at: &Path, kib: u32) -> Result<()> {
    let size = format!("size={kib}k");
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(size.as_str()),
    )
    .with_context(|| format!("mounting a tmpfs at {}", at.display()))
}

/// Runs a test in a mount namespace that ends with it.
fn with_mounts(test: impl AsyncFnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(test())
        });
        test.join().unwrap_or_else(|_| bail!("the test panicked"))
    })
}

fn namespace(name: &str, team: &str) -> Result<String> {
    let object = manifests::namespace(name, &[("team", team)]);
    Ok(serde_yaml_ng::to_string(&object)?)
}

/// The lines of comment make the file longer than the room that is left, so that what is written of it is good YAML with one object less.
#[test]
fn what_is_written_to_a_full_disk_changes_nothing() -> Result<()> {
    with_mounts(async || {
        let text = |team: &str, lines: usize| -> Result<String> {
            let comment = "# nothing\n".repeat(lines);
            Ok(format!(
                "{}{comment}---\n{}",
                namespace("a", team)?,
                namespace("b", team)?
            ))
        };
        let mut mounted = Mounted::new(64, &[("f.yaml", &text("x", 1)?)])?;
        mounted.until("=NetworkPolicy").await?;
        let filler = mounted.path().join("filler");
        let mut filling = File::create(&filler)?;
        while filling.write_all(&[0; 4096]).is_ok() {}
        drop(filling);
        let file = mounted.path().join("f.yaml");
        let longer = text("y", 4096)?;
        let error = fs::write(&file, &longer).err().context("it had room")?;
        ensure!(error.kind() == ErrorKind::StorageFull, "{error}");
        let cut = fs::read_to_string(&file)?;
        ensure!(longer.starts_with(&cut) && cut.contains("name: a") && !cut.contains("name: b"));
        let told = mounted.until("! the file system is full").await?;
        ensure!(told.len() == 1, "{told:?}");
        println!("full: {}", told[0]);
        // Room alone does not make it whole; whoever wrote it must write it again.
        fs::remove_file(&filler)?;
        fs::write(mounted.path().join("zz.yaml"), namespace("c", "x")?)?;
        let told = mounted.until("+Namespace c").await?;
        ensure!(told.len() == 1, "{told:?}");
        fs::write(&file, text("y", 8)?)?;
        let told = mounted.until("mended").await?;
        ensure!(
            told == ["+Namespace a", "+Namespace b", "mended"],
            "{told:?}"
        );
        Ok(())
    })
}

#[test]
fn a_file_system_that_is_unmounted_is_missing_and_not_empty() -> Result<()> {
    with_mounts(async || {
        let (a, b) = (namespace("a", "x")?, namespace("b", "x")?);
        let mut mounted = Mounted::new(64, &[("a.yaml", &a), ("b.yaml", &b)])?;
        mounted.until("=NetworkPolicy").await?;
        umount2(mounted.path(), MntFlags::MNT_DETACH)?;
        let told = mounted.until("stale NetworkPolicy").await?;
        ensure!(told.len() == KINDS, "{told:?}");
        ensure!(told[0].contains("another file system"), "{told:?}");
        println!("unmounted: {}", told[0]);
        mount_tmpfs(mounted.path(), 64)?;
        let staged = mounted.path().join(".b");
        fs::write(&staged, &b)?;
        fs::rename(&staged, mounted.path().join("b.yaml"))?;
        let told = mounted.until("=Namespace").await?;
        ensure!(told == ["-Namespace a", "=Namespace"], "{told:?}");
        Ok(())
    })
}
