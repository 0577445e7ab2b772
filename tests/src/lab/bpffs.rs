//! The BPF file system: mounted where it must be, and a pin root per lab and node under it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::owner::absent_is_fine;

/// Where bpffs belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// What the names of all labs' pin directories begin with.
const PREFIX: &str = "slc-";

/// Mounts bpffs at `/sys/fs/bpf` if nothing of the kind is there.
///
/// # Errors
/// The kernel has no bpffs, or refuses the mount.
pub fn ensure_mounted() -> Result<()> {
    if !is_mounted()? {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting bpffs: try `mount -t bpf bpf {BPFFS}`"))?;
    }
    Ok(())
}

fn is_mounted() -> Result<bool> {
    let fs = statfs(BPFFS).with_context(|| format!("looking at {BPFFS}"))?;
    Ok(fs.filesystem_type() == BPF_FS_MAGIC)
}

/// The pin directory of lab `lab`; removed with it.
fn lab_pins(lab: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("{PREFIX}{lab}"))
}

/// The pin root of one node of a lab; its parent exists then, the root itself is the agent's to make.
pub(crate) fn pin_root(lab: &str, node: &str) -> Result<PathBuf> {
    ensure_mounted()?;
    let dir = lab_pins(lab);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir.join(node))
}

/// Removes every pin of a lab; what was attached only by a pin is detached with it.
pub(crate) fn remove_pins(lab: &str) -> Result<()> {
    let dir = lab_pins(lab);
    absent_is_fine(fs::remove_dir_all(&dir))
        .with_context(|| format!("removing the pins in {}", dir.display()))
}
