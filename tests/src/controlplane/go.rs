//! The Go toolchain: the first that is new enough, and one line to act on where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::binaries::ASSETS_VARIABLE;

/// Where Go's own archive and Debian's packages put it: sudo's PATH has neither.
const ELSEWHERE: [&str; 2] = ["/usr/local/go/bin/go", "/usr/lib/go/bin/go"];

/// A `go` command of at least the version asked for.
pub(super) struct Go(PathBuf);

impl Go {
    /// Finds one that can build the module in `module`, whose go.mod asks for `needed`.
    pub(super) fn find(module: &Path, needed: &str) -> Result<Self> {
        let needed_version =
            version(needed).with_context(|| format!("{needed} is no version of Go"))?;
        let mut found = Vec::new();
        for path in candidates() {
            // Asked inside the module, a Go that fetches newer toolchains by itself answers with that one,
            // and one that is too old and may not says so.
            let answer = Command::new(&path)
                .current_dir(module)
                .args(["env", "GOVERSION"])
                .output();
            let Ok(answer) = answer else { continue };
            let stdout = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            if answer.status.success()
                && version(&stdout).is_some_and(|version| version >= needed_version)
            {
                return Ok(Self(path));
            }
            let stderr = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
            let why = if answer.status.success() {
                stdout
            } else {
                stderr
            };
            found.push(format!(
                "{} is {}",
                path.display(),
                why.lines().next().unwrap_or("broken")
            ));
        }
        let found = if found.is_empty() {
            "there is none".to_owned()
        } else {
            found.join(", ")
        };
        bail!(
            "the test control plane needs Go {needed} or newer to be built, and {found}: install Go, or set \
             {ASSETS_VARIABLE} to a folder with etcd, kube-apiserver and kube-controller-manager"
        )
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// `go` on PATH, then the usual other places, then Debian's versioned packages.
fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join("go"))
        .collect();
    candidates.extend(ELSEWHERE.map(PathBuf::from));
    if let Ok(folders) = std::fs::read_dir("/usr/lib") {
        let versioned = folders
            .flatten()
            .filter(|folder| folder.file_name().to_string_lossy().starts_with("go-"));
        candidates.extend(versioned.map(|folder| folder.path().join("bin/go")));
    }
    candidates.retain(|candidate| candidate.is_file());
    candidates.dedup();
    candidates
}

/// `go1.26.8`, `1.26.0` or `go1.27rc1 X:...` as numbers that compare; a part that is absent counts as 0.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.trim_start_matches("go").split('.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .map_or(part, |end| &part[..end]);
        digits.parse::<u32>()
    });
    let major = numbers.next()?.ok()?;
    let minor = numbers.next()?.ok()?;
    Some((
        major,
        minor,
        numbers.next().and_then(Result::ok).unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("go1.26.8") > version("1.26.0"));
        assert!(version("go1.9") < version("1.26.0"), "not as text");
        assert_eq!(version("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(version("devel"), None);
    }

    #[test]
    fn none_new_enough_is_one_line() -> Result<()> {
        let Err(error) = Go::find(Path::new("/"), "999.0.0") else {
            bail!("there is no such Go")
        };
        let text = error.to_string();
        assert!(
            text.starts_with("the test control plane needs Go 999.0.0"),
            "{text}"
        );
        assert!(
            text.contains(ASSETS_VARIABLE) && !text.contains('\n'),
            "{text}"
        );
        Ok(())
    }
}
