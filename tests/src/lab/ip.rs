//! `ip -batch`: many commands in one process, which is what makes ten pods in a fraction of a second possible.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::netns::Netns;
use super::process;

/// A line that begins so is for IPv6: `ip` takes the family for a whole batch only. Where a line has an address, `ip route`
/// and `ip addr` see the family by themselves; `ip rule` does not.
const IPV6: &str = "-6 ";

/// Runs lines of `ip` commands in a namespace, or in the caller's. It stops at the first line that fails. Lines that begin
/// with `-6` run after the others.
pub(crate) fn batch(netns: Option<&Netns>, script: &str) -> Result<()> {
    let ipv6: Vec<&str> = script
        .lines()
        .filter_map(|line| line.strip_prefix(IPV6))
        .collect();
    if ipv6.is_empty() {
        return run(netns, &["-batch", "-"], script);
    }
    let others: Vec<&str> = script
        .lines()
        .filter(|line| !line.starts_with(IPV6))
        .collect();
    run(netns, &["-batch", "-"], &others.join("\n"))?;
    run(netns, &["-6", "-batch", "-"], &ipv6.join("\n"))
}

fn run(netns: Option<&Netns>, args: &[&str], script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(netns) = netns {
        process::enter_before_exec(&mut command, netns)?;
    }
    let mut child = command
        .spawn()
        .context("starting `ip` (install iproute2)")?;
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
    script
        .lines()
        .enumerate()
        .map(|(i, line)| format!("  {}: {line}\n", i + 1))
        .collect()
}
