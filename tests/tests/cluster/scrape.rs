//! What the agent of the node says where Prometheus and kubelet ask it.

use anyhow::{Result, ensure};
use tests::lab::scrape::{get, sample};

use crate::world::World;

/// Readiness, as kubelet is told it: not ready, with what it waits for.
pub(crate) fn unready(world: &World) -> Result<String> {
    let (code, text) = get(world.node.netns(), "/readyz")?;
    ensure!(code == 503, "/readyz answers {code}: {text}");
    Ok(text)
}

/// Readiness, as kubelet is told it: ready.
pub(crate) fn ready(world: &World) -> Result<()> {
    let answer = get(world.node.netns(), "/readyz")?;
    ensure!(
        answer == (200, "ready\n".to_owned()),
        "/readyz answers {answer:?}"
    );
    Ok(())
}

/// Writes to the maps since the agent's start.
pub(crate) fn writes(world: &World) -> Result<u64> {
    sample(world.node.netns(), "sluice_map_writes_total")
}
