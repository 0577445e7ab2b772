//! Where the control plane's programs come from: `KUBEBUILDER_ASSETS`, the cache, or a build of the Go module
//! `tests/controlplane`.
//!
//! The cache lies outside the repository, one folder per content of the module. It is built under another name
//! and renamed when whole, under a lock, so that neither an interrupted build nor two at once leave half of it.

use std::env::VarError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};

use super::go::Go;

/// The variable with which the Kubernetes world's test environments name a folder of ready binaries.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// The Go module's folder.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/controlplane");
/// What a control plane cannot start without.
const NEEDED: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];
const KUBE_PROXY: &str = "kube-proxy";
/// The packages whose version variables the programs report; unset, they call themselves v0.0.0-master.
const VERSION_PACKAGES: [&str; 2] = [
    "k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
];

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
        let go = Go::find(Path::new(MODULE), &module.go_version)?;
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
                module.kubernetes_version,
                module.etcd_version,
                directory.display()
            );
            module.build(&go, &unfinished)?;
            std::fs::rename(&unfinished, &directory)?;
        }
        Ok(Self { directory })
    }
}

/// What `tests/controlplane/go.mod` pins.
struct Module {
    /// Go's own minimum, such as `1.26.0`.
    go_version: String,
    kubernetes_version: String,
    etcd_version: String,
    /// A fingerprint of every file that decides what is built.
    fingerprint: u64,
}

impl Module {
    fn read() -> Result<Self> {
        let folder = Path::new(MODULE);
        let go_mod = read(&folder.join("go.mod"))?;
        let mut fingerprint = Fingerprint::new();
        fingerprint.add(&go_mod);
        fingerprint.add(&read(&folder.join("go.sum"))?);
        for name in NEEDED.into_iter().chain([KUBE_PROXY]) {
            fingerprint.add(&read(&folder.join(name).join("main.go"))?);
        }
        let value = |key: &str| {
            value_in(&go_mod, key).with_context(|| format!("tests/controlplane/go.mod: no {key}"))
        };
        let mut module = Self {
            go_version: value("go")?,
            kubernetes_version: value("k8s.io/kubernetes")?,
            etcd_version: value("go.etcd.io/etcd/server/v3")?,
            fingerprint: 0,
        };
        for flag in module.build_flags() {
            fingerprint.add(&flag);
        }
        module.fingerprint = fingerprint.0;
        Ok(module)
    }

    fn cache_name(&self) -> String {
        // Go's names of the architectures that eBPF agents run on; others go by Rust's.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        format!(
            "{:016x}-{}-{architecture}",
            self.fingerprint,
            std::env::consts::OS
        )
    }

    /// Everything but the output: no paths of this machine, no debug information, nothing taken from git.
    fn build_flags(&self) -> Vec<String> {
        let version = self.kubernetes_version.as_str();
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let mut link = String::from("-s -w");
        for package in VERSION_PACKAGES {
            for (variable, value) in [
                ("gitVersion", version),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitTreeState", "clean"),
            ] {
                link.push_str(&format!(" -X {package}.{variable}={value}"));
            }
        }
        let flags =
            ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags"].map(str::to_owned);
        flags.into_iter().chain([link]).collect()
    }

    fn build(&self, go: &Go, output: &Path) -> Result<()> {
        let result = Command::new(go.path())
            .current_dir(MODULE)
            // Static programs run in any root file system, and no C compiler has a say.
            .env("CGO_ENABLED", "0")
            // A go.work above this repository is none of ours.
            .env("GOWORK", "off")
            .arg("build")
            .args(self.build_flags())
            .arg("-o")
            // A trailing separator makes it a folder: one program for each main package.
            .arg(output.join(""))
            .arg("./...")
            .output()
            .with_context(|| format!("running {}", go.path().display()))?;
        if !result.status.success() {
            bail!(
                "building the test control plane failed ({}):\n{}",
                result.status,
                text(&result)
            );
        }
        Ok(())
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The word after `key` at the start of a line of go.mod: `go 1.26.0`, or a requirement and its version.
fn value_in(go_mod: &str, key: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key))
            .then(|| words.next())?
            .map(str::to_owned)
    })
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

/// 64-bit FNV-1a: names a cache folder alike in every version of this program. It guards against nobody.
struct Fingerprint(u64);

impl Fingerprint {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;

    fn new() -> Self {
        Self(Self::OFFSET_BASIS)
    }

    /// Takes in a text and its end, so that a word moved from one file to the next changes the value.
    fn add(&mut self, text: &str) {
        for byte in text.bytes().chain([0]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(Self::PRIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_mod_pins_the_versions() -> Result<()> {
        let module = Module::read()?;
        assert!(
            module.kubernetes_version.starts_with("v1."),
            "{}",
            module.kubernetes_version
        );
        assert!(
            module.etcd_version.starts_with("v3."),
            "{}",
            module.etcd_version
        );
        assert!(module.go_version.starts_with("1."), "{}", module.go_version);
        let minor = module
            .kubernetes_version
            .split('.')
            .nth(1)
            .context("a minor version")?;
        assert!(
            module
                .build_flags()
                .concat()
                .contains(&format!("gitMinor={minor} "))
        );
        Ok(())
    }

    #[test]
    fn another_content_is_another_folder() {
        let of = |texts: &[&str]| {
            let mut fingerprint = Fingerprint::new();
            texts.iter().for_each(|text| fingerprint.add(text));
            fingerprint.0
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ba"]));
        assert_eq!(of(&["ab"]), of(&["ab"]));
    }

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
