//! Interfaces for the programs' contexts. `BPF_PROG_TEST_RUN` takes an interface index only if the caller's network namespace
//! has it, so all rows share one private namespace with enough of them. Nothing is attached to them and nothing runs over them.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};

use super::build::DESTINATION_MAC;

/// Pod links, and the uplink at index 0.
const LINKS: usize = 8;

struct Namespace {
    file: File,
    indices: Vec<u32>,
}

static NAMESPACE: OnceLock<Result<Namespace, String>> = OnceLock::new();

fn make() -> Result<Namespace> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "packet rows load eBPF programs and need root: run them through sudo"
    );
    thread::spawn(|| -> Result<Namespace> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a private network namespace")?;
        let mut indices = Vec::new();
        // Or the uplink would take packets for other stations'.
        let own = DESTINATION_MAC.map(|byte| format!("{byte:02x}")).join(":");
        for n in 0..LINKS / 2 {
            // Both ends stay here: each is somebody's link.
            let made = Command::new("ip")
                .args(["link", "add", &name(2 * n), "address", &own, "type", "veth"])
                .args(["peer", "name", &name(2 * n + 1)])
                .stdin(Stdio::null())
                .output()
                .context("starting `ip` (install iproute2)")?;
            ensure!(
                made.status.success(),
                "making a veth: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            );
        }
        for n in 0..LINKS {
            indices.push(if_nametoindex(name(n).as_str()).context("reading an interface's index")?);
        }
        let file = File::open("/proc/thread-self/ns/net").context("keeping the namespace")?;
        Ok(Namespace { file, indices })
    })
    .join()
    .map_err(|_| anyhow!("the thread that makes the namespace panicked"))?
}

fn name(n: usize) -> String {
    format!("slcpkt{n}")
}

/// Moves the calling thread into the rows' namespace, and tells the interfaces there: the uplink, then pods' links.
///
/// # Errors
/// Not root, or no veth to be had.
pub fn enter() -> Result<&'static [u32]> {
    let namespace = NAMESPACE
        .get_or_init(|| make().map_err(|e| format!("{e:#}")))
        .as_ref()
        .map_err(|e| anyhow!("{e}"))?;
    setns(&namespace.file, CloneFlags::CLONE_NEWNET).context("entering the rows' namespace")?;
    Ok(&namespace.indices)
}
