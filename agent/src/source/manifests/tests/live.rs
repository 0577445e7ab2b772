//! Real files, real inotify events. Events are awaited; nothing sleeps.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{namespace, short};
use crate::model::Kind;
use crate::source::{Event, ManifestSource, Source};

/// A source that hangs is a failure after this.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events that may wait; as in the agent, the source waits when it is full.
const QUEUE: usize = 16;

/// A directory and the source that watches it.
pub(super) struct Live {
    pub(super) base: TempDir,
    pub(super) root: PathBuf,
    events: mpsc::Receiver<Event>,
    marks: usize,
}

impl Live {
    /// Starts a source on `manifests` in a new directory, after `prepare` made it.
    pub(super) fn start(prepare: impl FnOnce(&Path)) -> Self {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("manifests");
        prepare(&root);
        let (sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(Box::new(ManifestSource::new(&root)).run(sender));
        Self {
            base,
            root,
            events,
            marks: 0,
        }
    }

    /// Starts one on an empty directory, and waits until it has said so.
    pub(super) async fn empty() -> Self {
        let mut live = Self::start(|root| fs::create_dir(root).unwrap());
        assert_eq!(live.until_synced().await, [""; 0]);
        live
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.root.join(name), text).unwrap();
    }

    pub(super) async fn next(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event comes in time")
            .expect("the source runs")
    }

    /// The events up to the one that is expected, it included.
    pub(super) async fn until(&mut self, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            told.push(short(&self.next().await));
            if told.last().is_some_and(|t| t == last) {
                return told;
            }
        }
    }

    /// The events before all six kinds are synced.
    pub(super) async fn until_synced(&mut self) -> Vec<String> {
        let mut told = self.until("=NetworkPolicy").await;
        let kinds = told.split_off(told.len() - Kind::ALL.len());
        let all: Vec<String> = Kind::ALL.iter().map(|kind| format!("={kind}")).collect();
        assert_eq!(kinds, all);
        told
    }

    /// The events so far. A broken file is told behind all objects and the files before it, and so marks the end of what was
    /// done before it was written, in whatever batches the source saw it.
    pub(super) async fn told(&mut self) -> Vec<String> {
        self.marks += 1;
        self.write(MARK, &format!("metadata: {{name: mark-{}}}", self.marks));
        let mut told = self.until(&format!("!{}", self.path(MARK))).await;
        told.pop();
        told
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }
}

/// The last file of all.
pub(super) const MARK: &str = "zz-mark.yaml";

#[tokio::test]
async fn files_that_are_there_already() {
    let mut live = Live::start(|root| {
        fs::create_dir_all(root.join("sub/deeper")).unwrap();
        fs::write(root.join("b.yaml"), namespace("b", "x")).unwrap();
        fs::write(root.join("sub/deeper/a.yml"), namespace("a", "x")).unwrap();
        fs::write(
            root.join("c.json"),
            r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"c"}}"#,
        )
        .unwrap();
        fs::write(root.join("README.md"), "not a manifest").unwrap();
        fs::write(root.join(".hidden.yaml"), namespace("hidden", "x")).unwrap();
    });
    assert_eq!(
        live.until_synced().await,
        ["+Namespace a", "+Namespace b", "+Namespace c"]
    );
}

#[tokio::test]
async fn written_changed_renamed_and_removed() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("a", "x"));
    assert_eq!(live.told().await, ["+Namespace a"]);
    live.write("a.yaml", &namespace("a", "y"));
    assert_eq!(live.told().await, ["+Namespace a"]);
    live.write("a.yaml", &namespace("a", "y"));
    assert_eq!(live.told().await, [""; 0], "the same again is no change");
    fs::rename(live.root.join("a.yaml"), live.root.join("b.yaml")).unwrap();
    assert_eq!(
        live.told().await,
        [""; 0],
        "a renamed file's objects are never gone"
    );
    let outside = live.base.path().join("new.yaml");
    fs::write(&outside, namespace("a", "z")).unwrap();
    fs::rename(&outside, live.root.join("b.yaml")).unwrap();
    assert_eq!(
        live.told().await,
        ["+Namespace a"],
        "renamed into place, over another"
    );
    fs::rename(live.root.join("b.yaml"), &outside).unwrap();
    assert_eq!(live.told().await, ["-Namespace a"], "renamed away");
    fs::hard_link(&outside, live.root.join("c.yaml")).unwrap();
    assert_eq!(live.told().await, ["+Namespace a"], "linked into place");
    fs::remove_file(live.root.join("c.yaml")).unwrap();
    assert_eq!(live.told().await, ["-Namespace a"]);
}

#[tokio::test]
async fn half_written_files_do_not_count() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("a", "x"));
    live.told().await;
    // The truncated file would be an empty one, and then a broken one.
    let mut file = fs::File::create(live.root.join("a.yaml")).unwrap();
    assert_eq!(live.told().await, [""; 0]);
    file.write_all(b"apiVersion: v1\nkind: [").unwrap();
    assert_eq!(live.told().await, [""; 0]);
    // A look at everything, because of a new directory, does not count it either.
    fs::create_dir(live.root.join("sub")).unwrap();
    fs::write(live.root.join("sub/b.yaml"), namespace("b", "x")).unwrap();
    live.until("+Namespace b").await;
    assert_eq!(live.told().await, [""; 0]);
    file.write_all(b"]\n").unwrap();
    drop(file);
    let broken = format!("!{}", live.path("a.yaml"));
    assert_eq!(live.told().await, [broken]);
    live.write("a.yaml", &namespace("a", "y"));
    let mended = format!("~{}", live.path("a.yaml"));
    assert_eq!(live.told().await, ["+Namespace a".to_owned(), mended]);
}

#[tokio::test]
async fn a_broken_file_keeps_what_is_in_force() {
    let mut live = Live::empty().await;
    live.write(
        "a.yaml",
        &[namespace("a", "x"), namespace("b", "x")].join("---\n"),
    );
    live.told().await;
    live.write("a.yaml", ": : :");
    let path = live.path("a.yaml");
    assert_eq!(live.told().await, [format!("!{path}")]);
    fs::write(live.root.join("a.yaml"), b"\xff\xfe").unwrap();
    assert_eq!(
        live.told().await,
        [format!("!{path}")],
        "not UTF-8: another reason, nothing else"
    );
    live.write("a.yaml", &namespace("b", "x"));
    assert_eq!(
        live.told().await,
        ["-Namespace a".to_owned(), format!("~{path}")]
    );
}

#[tokio::test]
async fn the_same_object_in_two_files() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("n", "a"));
    live.write("b.yaml", &namespace("n", "b"));
    let told = live.told().await;
    assert_eq!(
        told.last().map(String::as_str),
        Some("!Namespace n"),
        "{told:?}"
    );
    fs::remove_file(live.root.join("a.yaml")).unwrap();
    assert_eq!(live.told().await, ["+Namespace n"]);
}

#[tokio::test]
async fn subdirectories_come_and_go() {
    let mut live = Live::empty().await;
    let outside = live.base.path().join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/a.yaml"), namespace("a", "x")).unwrap();
    fs::rename(&outside, live.root.join("sub")).unwrap();
    assert_eq!(live.told().await, ["+Namespace a"]);
    fs::write(live.root.join("sub/deep/a.yaml"), namespace("a", "y")).unwrap();
    live.until("+Namespace a").await;
    fs::rename(live.root.join("sub"), live.root.join("renamed")).unwrap();
    assert_eq!(live.told().await, [""; 0]);
    fs::remove_dir_all(live.root.join("renamed")).unwrap();
    live.until("-Namespace a").await;
}

#[tokio::test]
async fn a_config_map_volume_changes_as_a_whole() {
    let version = |root: &Path, name: &str, files: &[(&str, &str)]| {
        fs::create_dir_all(root.join(name)).unwrap();
        for (file, team) in files {
            fs::write(
                root.join(name).join(format!("{file}.yaml")),
                namespace(file, team),
            )
            .unwrap();
        }
    };
    let mut live = Live::start(|root| {
        version(root, "..v1", &[("a", "x"), ("b", "x")]);
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    });
    assert_eq!(live.until_synced().await, ["+Namespace a", "+Namespace b"]);
    version(&live.root, "..v2", &[("a", "y")]);
    symlink("..v2", live.root.join("..data_tmp")).unwrap();
    fs::rename(live.root.join("..data_tmp"), live.root.join("..data")).unwrap();
    assert_eq!(
        live.until("-Namespace b").await,
        ["+Namespace a", "-Namespace b"]
    );
}

#[tokio::test]
async fn the_directory_itself_is_a_symlink_that_flips() {
    let mut live = Live::start(|root| {
        let base = root.parent().unwrap();
        for (version, name) in [("v1", "a"), ("v2", "b")] {
            fs::create_dir(base.join(version)).unwrap();
            fs::write(base.join(version).join("f.yaml"), namespace(name, version)).unwrap();
        }
        symlink("v1", root).unwrap();
    });
    assert_eq!(live.until_synced().await, ["+Namespace a"]);
    symlink("v2", live.base.path().join("tmp")).unwrap();
    fs::rename(live.base.path().join("tmp"), &live.root).unwrap();
    assert_eq!(
        live.until("+Namespace b").await,
        ["-Namespace a", "+Namespace b"]
    );
    // The watches are on the new directory.
    live.write("f.yaml", &namespace("b", "again"));
    assert_eq!(live.told().await, ["+Namespace b"]);
}

#[tokio::test]
async fn a_directory_that_is_removed_and_made_again() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("a", "x"));
    live.write("b.yaml", &namespace("b", "x"));
    live.told().await;
    // Renamed away at once: a directory whose files are removed first is an emptied one.
    fs::rename(&live.root, live.base.path().join("away")).unwrap();
    let told = live.until("stale NetworkPolicy").await;
    assert_eq!(told.len(), Kind::ALL.len(), "nothing is deleted: {told:?}");
    let again = live.base.path().join("again");
    fs::create_dir(&again).unwrap();
    fs::write(again.join("a.yaml"), namespace("a", "y")).unwrap();
    fs::rename(&again, &live.root).unwrap();
    let mended = format!("~{}", live.path(MARK));
    assert_eq!(
        live.until_synced().await,
        ["+Namespace a", "-Namespace b", &mended]
    );
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet() {
    let mut live = Live::start(|_| {});
    live.until("stale NetworkPolicy").await;
    fs::create_dir(&live.root).unwrap();
    assert_eq!(live.until_synced().await, [""; 0]);
}

#[tokio::test]
async fn a_file_where_the_directory_should_be() {
    let mut live = Live::start(|root| fs::write(root, "").unwrap());
    let Event::Stale { reason, .. } = live.next().await else {
        panic!()
    };
    assert!(reason.contains("manifests"), "{reason}");
}

#[tokio::test]
async fn a_named_pipe_does_not_hold_the_source_up() {
    let mut live = Live::start(|root| {
        fs::create_dir(root).unwrap();
        nix::unistd::mkfifo(&root.join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    let told = live.until_synced().await;
    assert_eq!(
        told,
        [format!("!{}", live.root.join("pipe.yaml").display())]
    );
}

#[tokio::test]
async fn the_source_ends_with_its_receiver() {
    let base = tempfile::tempdir().unwrap();
    let (sender, events) = mpsc::channel(QUEUE);
    let run = tokio::spawn(Box::new(ManifestSource::new(base.path())).run(sender));
    drop(events);
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
}
