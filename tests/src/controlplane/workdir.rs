//! The temporary folder of one control plane: etcd's data, certificates, kubeconfigs and logs.
//!
//! It goes with its owner. An owner that was killed leaves it behind, so each new one first removes those whose
//! owner is gone: a file lock says so, because the kernel lets go of it however the owner ended.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

const PREFIX: &str = "sluice-controlplane-";
const LOCK: &str = "lock";
/// Marks the folder of a failed test, which is kept for its logs.
const FAILED: &str = "failed";
/// How long the folder of a failed test is kept.
const KEEP_FAILED: Duration = Duration::from_secs(24 * 3600);
/// Keys and tokens are nobody else's to read.
const PRIVATE: u32 = 0o600;

/// A locked temporary folder, removed when dropped unless [`Workdir::keep`] was called.
pub(super) struct Workdir {
    folder: TempDir,
    _lock: File,
}

impl Workdir {
    /// A new folder in the system's place for temporary files, after the ones left behind were removed.
    pub(super) fn create() -> Result<Self> {
        sweep(&std::env::temp_dir());
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .context("making a temporary folder for the control plane")?;
        // Named only once locked: a sweep passes over a folder without a lock file.
        let unnamed = folder.path().join("lock.new");
        let lock = File::create(&unnamed)?;
        lock.try_lock().context("locking a new file")?;
        std::fs::rename(&unnamed, folder.path().join(LOCK))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file that only its owner may read, and returns its path.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, content)
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(PRIVATE)))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Leaves the folder where it is when this value is dropped, for a person to read its logs.
    pub(super) fn keep(&mut self) {
        if File::create(self.path().join(FAILED)).is_ok() {
            self.folder.disable_cleanup(true);
        }
    }
}

/// Removes the folders of control planes whose owner is gone. What cannot be removed is someone else's.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        if ours && abandoned(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn abandoned(folder: &Path) -> bool {
    let failed = std::fs::metadata(folder.join(FAILED))
        .and_then(|file| file.modified())
        .ok();
    if failed
        .and_then(|since| since.elapsed().ok())
        .is_some_and(|age| age < KEEP_FAILED)
    {
        return false;
    }
    File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_without_a_living_owner_are_swept() -> Result<()> {
        let alive = Workdir::create()?;
        let killed = alive.path().join(format!("{PREFIX}killed"));
        let young = alive.path().join(format!("{PREFIX}young"));
        let failed = alive.path().join(format!("{PREFIX}failed"));
        for folder in [&killed, &young, &failed] {
            std::fs::create_dir(folder)?;
        }
        File::create(killed.join(LOCK))?;
        File::create(failed.join(LOCK))?;
        File::create(failed.join(FAILED))?;

        sweep(alive.path());
        assert!(!killed.exists(), "its owner is gone");
        assert!(young.exists(), "its owner has not locked it yet");
        assert!(failed.exists(), "a person may still read its logs");
        assert!(!abandoned(alive.path()), "its owner lives");
        Ok(())
    }
}
