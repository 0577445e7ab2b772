//! The Go module `tests/controlplane`: the versions it pins, and its build.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

use super::binaries::{KUBE_PROXY, NEEDED};
use super::fingerprint::Fingerprint;
use super::go::Go;
use super::process::die_with_parent;

/// The Go module's folder.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/controlplane");
/// The packages whose version variables the programs report; unset, they call themselves v0.0.0-master.
const VERSION_PACKAGES: [&str; 2] = [
    "k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
];

/// What `tests/controlplane/go.mod` pins.
pub(super) struct Module {
    go_version: String,
    kubernetes_version: String,
    etcd_version: String,
    /// A fingerprint of every file that decides what is built.
    fingerprint: u64,
}

impl Module {
    pub(super) fn read() -> Result<Self> {
        let folder = Self::folder();
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
        module.fingerprint = fingerprint.value();
        Ok(module)
    }

    /// Where it lies.
    pub(super) fn folder() -> &'static Path {
        Path::new(MODULE)
    }

    /// The Go version that it needs at least, such as `1.26.0`.
    pub(super) fn go_version(&self) -> &str {
        &self.go_version
    }

    /// With the `v`.
    pub(super) fn kubernetes_version(&self) -> &str {
        &self.kubernetes_version
    }

    /// With the `v`.
    pub(super) fn etcd_version(&self) -> &str {
        &self.etcd_version
    }

    /// Another name for every content, system and architecture.
    pub(super) fn cache_name(&self) -> String {
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

    /// Builds all four programs into `output`; where this process is killed, the build is too.
    pub(super) fn build(&self, go: &Go, output: &Path) -> Result<()> {
        let mut command = Command::new(go.path());
        command
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
            .arg("./...");
        die_with_parent(&mut command);
        let result = command
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
}
