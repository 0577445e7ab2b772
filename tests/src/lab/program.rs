//! Finds the programs that the lab starts: `sluice` itself and the lab's own helper.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Finds a program of this workspace: at the path in the environment variable `variable`, or else beside the running
/// executable (`target/<profile>/`, also from `target/<profile>/deps/`), or else in a sibling profile's directory.
pub(crate) fn find(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{variable} names {}, which is no file", path.display());
    }
    let running = env::current_exe().context("finding the running executable")?;
    let beside = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name));
    let other = |profile: &str| {
        running
            .ancestors()
            .nth(3)
            .map(|target| target.join(profile).join(name))
    };
    let candidates: Vec<PathBuf> = beside
        .chain(other("release"))
        .chain(other("debug"))
        .collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "there is no {name} at {}: build it, or set {variable}",
            list(&candidates)
        ),
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths
        .iter()
        .map(|p: &PathBuf| Path::display(p).to_string())
        .collect();
    shown.join(", ")
}
