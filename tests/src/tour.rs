//! The tour: Sluice at work on one node, in names, with every claim checked before it is printed.
//!
//! The lab mirrors the samples: a node and pods with the names and addresses that they say. The agent watches a copy of
//! them in the lab's run directory, where the tour scales a backend away and back; the samples themselves are only read.
//! While the tour stays, edits of the samples are taken over into the copy.

mod ending;
mod print;
mod samples;
mod scaling;
mod stage;
mod stay;
mod traffic;

use std::path::Path;

use anyhow::{Context, Result};

use self::samples::Samples;
use self::stage::Stage;

/// Gives the tour with the samples in `dir`; unless `once`, it then stays until Ctrl-C.
///
/// # Errors
/// Not root, or the samples are not those of the tour, or a step did not show what it should: the error says which.
pub fn run(dir: &Path, once: bool) -> Result<()> {
    let samples =
        Samples::read(dir).with_context(|| format!("reading the samples in {}", dir.display()))?;
    let stage = Stage::set(&samples)?;
    print::step(2, "Requests spread over the backends");
    traffic::requests_spread(&stage).context("requests should spread over the backends")?;
    print::step(3, "A stranger is dropped");
    traffic::stranger_is_dropped(&stage).context("the stranger should be dropped by policy")?;
    print::step(4, "A backend is scaled away and back while requests go on");
    scaling::away_and_back(&stage).context("scaling should cost no request")?;
    print::over();
    if !once {
        stay::until_interrupted(&stage, dir)?;
    }
    Ok(())
}
