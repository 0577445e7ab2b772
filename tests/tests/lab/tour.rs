//! The tour that `cargo xtask run` gives shows what it says it shows, or says that it did not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// The file of the samples that holds the policy.
const POLICY: &str = "40-policy.yaml";

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples")
}

/// What the samples say, file by file.
fn contents(dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    files
        .into_iter()
        .map(|file| Ok((file.clone(), fs::read_to_string(file)?)))
        .collect()
}

fn tour(samples: &Path) -> Result<Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_tour"))
        .arg("--once")
        .arg("--samples")
        .arg(samples)
        .output()
        .context("starting the tour")?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(output)
}

#[test]
fn the_tour_shows_what_it_says_and_fails_without_the_policy() -> Result<()> {
    let before = contents(&samples())?;
    let whole = tour(&samples())?;
    ensure!(
        whole.status.code() == Some(0),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    let text = String::from_utf8_lossy(&whole.stdout).into_owned();
    for word in [
        "backend-1",
        "backend-2",
        "backend-3",
        "policy-ingress",
        "shop/backend-ingress",
    ] {
        ensure!(text.contains(word), "the tour does not speak of {word}");
    }
    ensure!(
        contents(&samples())? == before,
        "the tour changes nothing of the repository"
    );

    let without = tempfile::tempdir()?;
    for (file, text) in &before {
        let name = file.file_name().context("a file's name")?;
        if name != POLICY {
            fs::write(without.path().join(name), text)?;
        }
    }
    ensure!(
        contents(without.path())?.len() == before.len() - 1,
        "the samples have no {POLICY} to take out"
    );
    let open = tour(without.path())?;
    ensure!(
        open.status.code() == Some(1),
        "without the policy the tour must fail, and ended with {}",
        open.status
    );
    // Nothing stays behind, of this run or an earlier one.
    let left: Vec<_> = fs::read_dir("/run/netns")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("slc-tour-"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
