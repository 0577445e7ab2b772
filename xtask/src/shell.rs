//! Other programs: finding them, running them, becoming root through sudo.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where administrators' tools lie; an ordinary user's PATH on Debian lacks them.
const SYSTEM_BINARIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// PATH with the administrators' directories at its end.
pub(crate) fn path() -> OsString {
    let current = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&current).collect();
    for directory in SYSTEM_BINARIES.map(PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    std::env::join_paths(directories).unwrap_or(current)
}

/// The program's path, where it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&path())
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the process's effective user.
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// The words that make a program run as root: none as root, otherwise sudo with this environment and PATH.
///
/// # Errors
/// When this is not root and there is no sudo.
pub(crate) fn root_prefix() -> Result<Vec<OsString>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if find("sudo").is_none() {
        bail!("this step needs root and sudo is not installed: run it as root, or install sudo");
    }
    // sudo replaces PATH even where it keeps the rest.
    let mut setting = OsString::from("PATH=");
    setting.push(path());
    Ok(vec![
        "sudo".into(),
        "--preserve-env".into(),
        "env".into(),
        setting,
    ])
}

/// `program` as root.
///
/// # Errors
/// When this is not root and there is no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    let mut words = root_prefix()?;
    words.push(program.as_ref().to_owned());
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    Ok(command)
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains(char::is_whitespace) {
                format!("'{word}'")
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs the command with this process's terminal; an unsuccessful end is an error.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Standard output of a command that succeeds; `None` where it cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command whose output matters only when it fails; the error carries the last lines of it.
///
/// # Errors
/// When it cannot be started or does not end with 0.
pub(crate) fn run_quietly(command: &mut Command, log: &Path) -> Result<()> {
    /// Enough to name a cause without flooding the terminal.
    const LAST_LINES: usize = 12;
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let file =
        std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share the log file")?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
    bail!(
        "`{}` ended with {status} (all of it: {}):\n  {tail}",
        line(command),
        log.display()
    )
}
