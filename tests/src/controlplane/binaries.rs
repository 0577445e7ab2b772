//! Where the control plane's programs come from: `KUBEBUILDER_ASSETS`, the cache, or a build of the Go module
//! `tests/controlplane`.
//!
//! The cache lies outside the repository, one folder per content of the module. It is built under another name
//! and renamed when whole, under a lock, so that neither an interrupted build nor two at once leave half of it.

use std::env::VarError;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::go::Go;
use super::module::Module;

/// The variable with which the Kubernetes world's test environments name a folder of ready binaries.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// What a control plane cannot start without.
pub(super) const NEEDED: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];
/// What only comparisons want.
pub(super) const KUBE_PROXY: &str = "kube-proxy";

/// A folder that holds etcd, kube-apiserver and kube-controller-manager, and mostly kube-proxy.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds the programs, or builds them (minutes, and gigabytes of Go's own cache, the first time).
    /// Blocks: call it off the async runtime.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` names a folder without them, or when they must be built and cannot be: the
    /// text then says in one line what is missing and what serves instead.
    pub fn find_or_build() -> Result<Self> {
        match std::env::var(ASSETS_VARIABLE) {
            Ok(directory) => Self::ready_made(directory.into()),
            Err(VarError::NotPresent) => Self::cached(&Module::read()?),
            Err(error) => Err(error).context(ASSETS_VARIABLE),
        }
    }

    /// The folder.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// kube-proxy, for comparisons; ready-made folders may lack it.
    #[must_use]
    pub fn kube_proxy(&self) -> Option<PathBuf> {
        let path = self.directory.join(KUBE_PROXY);
        path.exists().then_some(path)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn ready_made(directory: PathBuf) -> Result<Self> {
        let missing: Vec<_> = NEEDED
            .into_iter()
            .filter(|name| !directory.join(name).exists())
            .collect();
        ensure!(
            missing.is_empty(),
            "{ASSETS_VARIABLE} is {}, which has no {}: put it there, or unset the variable to have it built with Go",
            directory.display(),
            missing.join(", ")
        );
        Ok(Self { directory })
    }

    fn cached(module: &Module) -> Result<Self> {
        let parent = cache_root()?;
        let directory = parent.join(module.cache_name());
        if directory.exists() {
            return Ok(Self { directory });
        }
        let go = Go::find(Module::folder(), module.go_version())?;
        std::fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        let lock = File::create(parent.join("lock")).context("the cache's lock")?;
        lock.lock()
            .context("waiting for another build of the control plane")?;
        if !directory.exists() {
            let unfinished = parent.join("unfinished");
            // Under the lock it can only be what an interrupted build left.
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished)?;
            }
            std::fs::create_dir(&unfinished)?;
            eprintln!(
                "building the test control plane, Kubernetes {} and etcd {} (about five minutes, once): {}",
                module.kubernetes_version(),
                module.etcd_version(),
                directory.display()
            );
            module.build(&go, &unfinished)?;
            std::fs::rename(&unfinished, &directory)?;
        }
        Ok(Self { directory })
    }
}

/// `$XDG_CACHE_HOME/sluice/controlplane`, or below `~/.cache`.
fn cache_root() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context(
            "neither XDG_CACHE_HOME nor HOME is set: nowhere to keep the test control plane",
        )?;
    Ok(base.join("sluice").join("controlplane"))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_ready_made_folder_names_what_it_lacks() -> Result<()> {
        let folder = tempfile::tempdir()?;
        File::create(folder.path().join("etcd"))?;
        File::create(folder.path().join("kube-apiserver"))?;
        let Err(error) = Binaries::ready_made(folder.path().to_owned()) else {
            bail!("it lacks one")
        };
        assert!(
            error
                .to_string()
                .contains("has no kube-controller-manager:"),
            "{error}"
        );
        Ok(())
    }
}
