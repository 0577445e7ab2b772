//! Go, which builds the cluster tier's control plane; ready binaries serve instead.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{State, apt};
use crate::{shell, workspace};

/// The module that builds the control plane.
const MODULE: &str = "tests/controlplane/go.mod";

/// The first version of Go that fetches a newer one by itself where a module asks for it.
const FETCHES_ITSELF: (u32, u32) = (1, 21);

/// The variable that names a directory of ready binaries, as controller-runtime's envtest calls it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Major and minor, from `1.26.0`, `go1.26.8` or Debian's `2:1.19~1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let text = text.rsplit(':').next()?.trim_start_matches("go");
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the module asks for; `None` in a tree without it.
fn wanted() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(workspace::root().join(MODULE)).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("go "))
        .and_then(version)
}

fn installed() -> Option<(u32, u32)> {
    version(&shell::output(
        Command::new("go").args(["env", "GOVERSION"]),
    )?)
}

pub(super) fn check() -> State {
    let Some(wanted) = wanted() else {
        return State::Ready("this tree has none to build".to_owned());
    };
    if let Some(directory) = std::env::var_os(ASSETS) {
        let directory = Path::new(&directory);
        return if directory.join("kube-apiserver").is_file() {
            State::Ready(format!("ready binaries in {}", directory.display()))
        } else {
            State::Missing(format!(
                "{ASSETS} names {}, which has no kube-apiserver",
                directory.display()
            ))
        };
    }
    let (major, minor) = wanted;
    match installed() {
        Some(found) if found >= wanted => State::Ready(format!("Go {}.{}", found.0, found.1)),
        Some(found) if found >= FETCHES_ITSELF => State::Ready(format!(
            "Go {}.{}, which fetches {major}.{minor} by itself",
            found.0, found.1
        )),
        Some(found) => State::Missing(format!(
            "Go {}.{} is too old, {major}.{minor} is wanted",
            found.0, found.1
        )),
        None => State::Missing(format!("Go {major}.{minor} is not installed")),
    }
}

pub(super) fn install() -> Result<()> {
    let advice = format!(
        "install a newer Go, or set {ASSETS} to a directory with etcd, kube-apiserver and kube-controller-manager"
    );
    if std::env::var_os(ASSETS).is_some() {
        bail!("{advice}");
    }
    match (
        installed(),
        apt::candidate("golang-go").as_deref().and_then(version),
    ) {
        (None, Some(packaged)) if packaged >= FETCHES_ITSELF => apt::install(&["golang-go"]),
        (_, Some(packaged)) => bail!("the packaged Go is {}.{}: {advice}", packaged.0, packaged.1),
        (_, None) => bail!("{advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_read_in_each_spelling() {
        assert_eq!(version("1.26.0"), Some((1, 26)));
        assert_eq!(version("go1.26.8"), Some((1, 26)));
        assert_eq!(version("2:1.19~1"), Some((1, 19)));
        assert_eq!(version("devel"), None);
    }
}
