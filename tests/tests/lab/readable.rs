//! The maps as a person at three in the morning reads them: `bpftool map dump pinned`, fields by name.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::scene::SERVICE;
use crate::services::{WEB, service_probes, web};

/// As much of a dump as is read: arrays have entries for every number there may be.
const ENOUGH: u64 = 256 << 10;

#[test]
fn bpftool_prints_the_maps_fields_by_name() -> Result<()> {
    let scene = web(&[])?;
    // Flows to look at.
    scene.assert_answered_by_any(&service_probes(&scene, WEB, SERVICE)?)?;
    for (map, fields) in [
        ("services", &["address", "port_be", "protocol"][..]),
        ("backends", &["address", "port_be", "state", "generation"]),
        ("pods", &["ifindex", "mac", "epoch"]),
        (
            "conntrack",
            &[
                "source",
                "destination",
                "new_destination",
                "last_seen",
                "path",
            ],
        ),
        ("addresses", &["identity", "kind"]),
        ("counters", &["packets", "bytes"]),
    ] {
        let path = scene.pinned().path(map);
        let mut dump = Command::new("bpftool")
            .args(["-j", "map", "dump", "pinned"])
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting bpftool")?;
        let mut text = Vec::new();
        let output = dump.stdout.take().context("bpftool's output")?;
        output.take(ENOUGH).read_to_end(&mut text)?;
        // A long dump ends here.
        dump.kill()?;
        dump.wait()?;
        let text = String::from_utf8_lossy(&text);
        for field in fields {
            ensure!(
                text.contains(&format!("\"{field}\":")),
                "{}: no field {field} in {}",
                path.display(),
                &text[..text.len().min(2_000)]
            );
        }
    }
    Ok(())
}
