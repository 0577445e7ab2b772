//! `sluice cleanup`: everything of Sluice's goes from this node, whatever state it is in.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::Output;
use crate::admin;
use crate::datapath::cleanup::{Claim, Cleaned};
use crate::datapath::pins::DEFAULT_ROOT;

/// What to clean.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directory on a bpffs whose maps, programs and links are removed
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub pin_root: PathBuf,
    /// Also while an agent runs; what it needs comes back with its next check
    #[arg(long)]
    pub force: bool,
}

/// What was done.
#[derive(Serialize)]
struct Report<'a> {
    removed: &'a [String],
    left: &'a [String],
    failed: &'a [String],
}

/// Cleans, and says what it did.
pub(super) fn run(
    args: &CleanupArgs,
    socket: &Path,
    output: Output,
    out: &mut impl Write,
) -> Result<()> {
    // Both before anything is touched: an agent has both.
    let claim = Claim::new(&args.pin_root, args.force)?;
    let old = admin::Leftover::claim(socket, args.force)?;
    let mut cleaned = Cleaned::default();
    claim.clean(&mut cleaned);
    for (path, result) in old.remove() {
        cleaned.note(format_args!("socket {}", path.display()), result);
    }
    print(&cleaned, output, out)?;
    if !cleaned.failed.is_empty() {
        out.flush()?;
        bail!(
            "{} could not be removed: see above, and run this again as root in the node's network namespace",
            super::text::counted(cleaned.failed.len(), "thing")
        );
    }
    Ok(())
}

fn print(cleaned: &Cleaned, output: Output, out: &mut impl Write) -> Result<()> {
    if output == Output::Json {
        let report = Report {
            removed: &cleaned.removed,
            left: &cleaned.left,
            failed: &cleaned.failed,
        };
        serde_json::to_writer_pretty(&mut *out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for (word, lines) in [
        ("removed", &cleaned.removed),
        ("left", &cleaned.left),
        ("FAILED", &cleaned.failed),
    ] {
        for line in lines {
            writeln!(out, "{word} {line}")?;
        }
    }
    if cleaned.removed.is_empty() && cleaned.failed.is_empty() {
        writeln!(out, "nothing of Sluice's is here")?;
    }
    Ok(())
}
