//! What the lab and its readers call: ip, iptables, nft, bpftool, ethtool, openssl.

use std::process::Command;

use anyhow::{Context, Result};

use super::{State, apt};
use crate::shell;

/// A program and the arguments with which it shows that it works without root.
const TOOLS: [(&str, &[&str], &str); 6] = [
    ("ip", &["-V"], "iproute2"),
    ("iptables", &["--version"], "iptables"),
    ("nft", &["--version"], "nftables"),
    ("bpftool", &["version"], "bpftool"),
    ("ethtool", &["--version"], "ethtool"),
    ("openssl", &["version"], "openssl"),
];

/// Running it, because Ubuntu's bpftool is a wrapper that may find nothing to wrap.
fn works(program: &str, arguments: &[&str]) -> bool {
    shell::find(program)
        .is_some_and(|path| shell::output(Command::new(path).args(arguments)).is_some())
}

fn missing() -> Vec<(&'static str, &'static str)> {
    let broken = TOOLS
        .iter()
        .filter(|(program, arguments, _)| !works(program, arguments));
    broken
        .map(|(program, _, package)| (*program, *package))
        .collect()
}

pub(super) fn check() -> State {
    let missing = missing();
    if missing.is_empty() {
        return State::Ready(TOOLS.map(|(program, ..)| program).join(", "));
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    State::Missing(format!("{} missing", names.join(", ")))
}

pub(super) fn install() -> Result<()> {
    let missing = missing();
    let packages: Vec<_> = missing
        .iter()
        .map(|(_, package)| *package)
        .filter(|package| *package != "bpftool")
        .collect();
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    if missing.iter().any(|(program, _)| *program == "bpftool") {
        bpftool()?;
    }
    Ok(())
}

/// Debian packages it under its name, Ubuntu with the kernel's tools.
fn bpftool() -> Result<()> {
    if apt::available("bpftool")
        && apt::install(&["bpftool"]).is_ok()
        && works("bpftool", &["version"])
    {
        return Ok(());
    }
    let kernel = shell::output(Command::new("uname").arg("-r")).unwrap_or_default();
    let of_kernel = format!("linux-tools-{kernel}");
    apt::install(&["linux-tools-common", &of_kernel])
        .or_else(|_| apt::install(&["linux-tools-common", "linux-tools-generic"]))
        .context("bpftool: install the package that has it for this kernel")
}
