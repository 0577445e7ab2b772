//! The directory fails: the last state stays, and what comes back is one difference. What takes a mount of its own is in the lab's tier.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::{Uid, setfsuid};

use super::live::{Live, MARK};
use super::namespace;
use crate::model::Kind;
use crate::source::Event;
use crate::source::manifests::{SETTLE, SETTLE_MOST};

/// The account of nobody, whom modes bind.
const NOBODY: u32 = 65_534;

/// Makes this thread, and those that it starts, subject to modes of files: root is not.
struct Bound(Uid);

impl Bound {
    fn by_modes() -> Self {
        Self(setfsuid(Uid::from_raw(NOBODY)))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        setfsuid(self.0);
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Live {
    /// The reason and the beginning of the next failure, told of every kind and of nothing else.
    async fn lost(&mut self) -> (String, SystemTime) {
        let mut told = None;
        for kind in Kind::ALL {
            let event = self.next().await;
            let Event::Stale {
                kind: stale,
                since,
                reason,
            } = event
            else {
                panic!("{event:?}")
            };
            assert_eq!(stale, kind);
            told = Some((reason, since));
        }
        told.unwrap()
    }
}

#[tokio::test]
async fn removed_file_by_file_it_is_missing_and_not_emptied() {
    let mut live = Live::empty().await;
    for name in ["a", "b", "c"] {
        live.write(&format!("{name}.yaml"), &namespace(name, "x"));
    }
    live.told().await;
    tokio::time::pause();
    for name in ["a.yaml", "b.yaml", MARK] {
        fs::remove_file(live.root.join(name)).unwrap();
        // The source sees it before the next goes.
        tokio::time::sleep(SETTLE / 2).await;
    }
    fs::remove_dir_all(&live.root).unwrap();
    let (reason, since) = live.lost().await;
    assert!(reason.contains("No such file"), "{reason}");
    // As another thing: since then as before.
    fs::write(&live.root, "a file").unwrap();
    let (reason, again) = live.lost().await;
    assert!(reason.contains("Not a directory"), "{reason}");
    assert_eq!(again, since);
    fs::remove_file(&live.root).unwrap();
    live.lost().await;
    tokio::time::resume();
    let new = live.base.path().join("new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("b.yaml"), namespace("b", "x")).unwrap();
    fs::write(new.join("c.yaml"), namespace("c", "y")).unwrap();
    fs::rename(&new, &live.root).unwrap();
    let mended = format!("~{}", live.path(MARK));
    assert_eq!(
        live.until_synced().await,
        ["-Namespace a", "+Namespace c", &mended]
    );
}

/// `git checkout` removes a file and writes the new one; kubelet flips `..data` before it links new files.
#[tokio::test]
async fn what_is_replaced_in_steps_is_never_gone_between_them() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("a", "x"));
    live.told().await;
    tokio::time::pause();
    fs::remove_file(live.root.join("a.yaml")).unwrap();
    tokio::time::sleep(SETTLE / 2).await;
    live.write("a.yaml", &namespace("a", "y"));
    assert_eq!(live.told().await, ["+Namespace a"]);
    // It does not wait for ever, though always something goes.
    let began = tokio::time::Instant::now();
    live.write("b.yaml", &namespace("b", "x"));
    live.until("+Namespace b").await;
    fs::remove_file(live.root.join("b.yaml")).unwrap();
    let busy = async {
        loop {
            live.write("c.yaml", &namespace("c", "x"));
            fs::remove_file(live.root.join("c.yaml")).unwrap();
            tokio::time::sleep(SETTLE / 2).await;
            if began.elapsed() > SETTLE_MOST * 4 {
                break;
            }
        }
    };
    busy.await;
    let told = live.until("-Namespace b").await;
    assert_eq!(told.first().unwrap(), "-Namespace b", "{told:?}");
}

#[tokio::test]
async fn an_object_that_moves_between_files_of_a_config_map_is_never_gone() {
    let version = |root: &Path, name: &str, files: &[(&str, &str)]| {
        fs::create_dir_all(root.join(name)).unwrap();
        for (file, text) in files {
            fs::write(root.join(name).join(file), text).unwrap();
        }
    };
    let (kept, moved) = (namespace("kept", "x"), namespace("moved", "x"));
    let mut live = Live::start(|root| {
        version(root, "..v1", &[("a.yaml", &kept), ("b.yaml", &moved)]);
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        symlink("..data/b.yaml", root.join("b.yaml")).unwrap();
    });
    live.until_synced().await;
    tokio::time::pause();
    // kubelet's own order of steps (pkg/volume/util/atomic_writer.go).
    let new = namespace("new", "x");
    version(
        &live.root,
        "..v2",
        &[("a.yaml", &kept), ("c.yaml", &moved), ("d.yaml", &new)],
    );
    symlink("..v2", live.root.join("..data_tmp")).unwrap();
    tokio::time::sleep(SETTLE / 2).await;
    fs::rename(live.root.join("..data_tmp"), live.root.join("..data")).unwrap();
    tokio::time::sleep(SETTLE / 2).await;
    symlink("..data/c.yaml", live.root.join("c.yaml")).unwrap();
    symlink("..data/d.yaml", live.root.join("d.yaml")).unwrap();
    tokio::time::sleep(SETTLE / 2).await;
    fs::remove_file(live.root.join("b.yaml")).unwrap();
    fs::remove_dir_all(live.root.join("..v1")).unwrap();
    assert_eq!(live.told().await, ["+Namespace new"]);
}

#[tokio::test]
async fn unreadable_it_fails_and_readable_again_it_is_read() {
    let _bound = Bound::by_modes();
    let mut live = Live::start(|root| {
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("a.yaml"), namespace("a", "x")).unwrap();
        fs::write(root.join("sub/b.yaml"), namespace("b", "x")).unwrap();
    });
    assert_eq!(live.until_synced().await, ["+Namespace a", "+Namespace b"]);
    for (path, modes) in [
        (live.root.clone(), [0, 0o200]),
        // What is below cannot be looked at: nothing may be concluded from that.
        (live.root.clone(), [0o600, 0o600]),
        (live.root.join("sub"), [0, 0o100]),
    ] {
        for unreadable in modes {
            mode(&path, unreadable);
        }
        let (reason, _) = live.lost().await;
        assert!(reason.contains("Permission denied"), "{reason}");
        mode(&path, 0o700);
        let told = live.until_synced().await;
        let known = told.iter().all(|t| !t.starts_with('-'));
        assert!(known, "{told:?}");
    }
    // A file alone is a broken file.
    mode(&live.root.join("a.yaml"), 0);
    let path = live.path("a.yaml");
    live.until(&format!("!{path}")).await;
    mode(&live.root.join("a.yaml"), 0o600);
    live.until(&format!("~{path}")).await;
}

#[tokio::test]
async fn a_symlink_that_leads_in_a_circle_fails_and_flipped_back_is_read() {
    let mut live = Live::start(|root| {
        let base = root.parent().unwrap();
        fs::create_dir(base.join("v1")).unwrap();
        fs::write(base.join("v1/a.yaml"), namespace("a", "x")).unwrap();
        symlink("v1", root).unwrap();
    });
    assert_eq!(live.until_synced().await, ["+Namespace a"]);
    let flip = |to: &str| {
        let new = live.base.path().join("new");
        symlink(to, &new).unwrap();
        fs::rename(&new, &live.root).unwrap();
    };
    flip("manifests");
    let (reason, since) = live.lost().await;
    assert!(reason.contains("symbolic links"), "{reason}");
    assert!(SystemTime::now().duration_since(since).unwrap() < Duration::from_mins(1));
    let flip = |to: &str| {
        let new = live.base.path().join("new");
        symlink(to, &new).unwrap();
        fs::rename(&new, &live.root).unwrap();
    };
    flip("v1");
    assert_eq!(live.until_synced().await, [""; 0]);
}

/// What a writer leaves that found no room: it truncated the file first.
#[tokio::test]
async fn an_emptied_file_is_a_broken_one() {
    let mut live = Live::empty().await;
    live.write("a.yaml", &namespace("a", "x"));
    live.told().await;
    live.write("a.yaml", "");
    let path = live.path("a.yaml");
    assert_eq!(live.told().await, [format!("!{path}")]);
    live.write("a.yaml", "# nothing any more\n");
    assert_eq!(
        live.told().await,
        ["-Namespace a".to_owned(), format!("~{path}")]
    );
}
