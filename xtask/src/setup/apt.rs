//! System packages of Debian and Ubuntu.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

/// Whether apt can install the package; fetches the lists first where there are none or they do not know it.
pub(super) fn available(package: &str) -> bool {
    candidate(package).is_some() || (update().is_ok() && candidate(package).is_some())
}

/// The version that apt would install.
pub(super) fn candidate(package: &str) -> Option<String> {
    let policy = shell::output(Command::new("apt-cache").args(["policy", package]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Installs the packages.
///
/// # Errors
/// Without apt, without root, or when apt fails: the line names the packages.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if shell::find("apt-get").is_none() {
        bail!("this machine has no apt-get; install what Debian calls: {list}");
    }
    if let Some(unknown) = packages.iter().find(|package| !available(package)) {
        bail!("apt knows no package {unknown} (wanted: {list})");
    }
    let mut command = shell::as_root("env")?;
    command
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "--yes",
            "--no-install-recommends",
        ])
        .args(packages);
    shell::run_quietly(
        &mut command,
        &workspace::target().join("xtask").join("apt-install.log"),
    )
    .with_context(|| format!("by hand: apt-get install {list}"))
}

/// `apt-get update`, at most once a run.
///
/// # Errors
/// Without root, or when it fails.
pub(super) fn update() -> Result<()> {
    static OUTCOME: OnceLock<Option<String>> = OnceLock::new();
    let failure = OUTCOME.get_or_init(|| {
        let log = workspace::target().join("xtask").join("apt-update.log");
        let outcome = shell::as_root("apt-get")
            .and_then(|mut command| shell::run_quietly(command.arg("update"), &log));
        outcome.err().map(|error| format!("{error:#}"))
    });
    match failure {
        None => Ok(()),
        Some(text) => bail!("{text}"),
    }
}
