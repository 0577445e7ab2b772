//! `ip -batch`: many commands in one process, which is what makes ten pods in a fraction of a second possible.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::netns::Netns;
use super::process;

/// Runs lines of `ip` commands in a namespace, or in the caller's. It stops at the first line that fails.
pub(crate) fn batch(netns: Option<&Netns>, script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(netns) = netns {
        process::enter_before_exec(&mut command, netns)?;
    }
    let mut child = command.spawn().context("starting `ip` (install iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        // `ip` may end at a bad line before it has read the rest; its own words tell more than EPIPE.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let place = netns.map_or("the machine's own namespace", Netns::name);
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("ip in {place}: {}\n{}", words.trim(), numbered(script));
    }
    Ok(())
}

/// `ip` reports a failed command by its line number.
fn numbered(script: &str) -> String {
    script.lines().enumerate().map(|(i, line)| format!("  {}: {line}\n", i + 1)).collect()
}
