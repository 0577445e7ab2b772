//! What the agent says where Prometheus and kubelet ask it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::world::World;

/// `--metrics-address`: the node's own loopback.
pub(crate) const ADDRESS: &str = "127.0.0.1:9966";
/// However busy the machine is.
const ANSWER: Duration = Duration::from_secs(20);

/// The code and the text of `GET path`.
fn get(world: &World, path: &str) -> Result<(u16, String)> {
    let answer = world.node.netns().run(|| -> Result<String> {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: sluice\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let answer = answer.with_context(|| format!("asking {ADDRESS} for {path}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end of its head")?;
    let code = head.split(' ').nth(1).context("an answer without a code")?;
    Ok((code.parse()?, body.to_owned()))
}

/// Readiness, as kubelet is told it: not ready, with what it waits for.
pub(crate) fn unready(world: &World) -> Result<String> {
    let (code, text) = get(world, "/readyz")?;
    ensure!(code == 503, "/readyz answers {code}: {text}");
    Ok(text)
}

/// Readiness, as kubelet is told it: ready.
pub(crate) fn ready(world: &World) -> Result<()> {
    let answer = get(world, "/readyz")?;
    ensure!(
        answer == (200, "ready\n".to_owned()),
        "/readyz answers {answer:?}"
    );
    Ok(())
}

/// Writes to the maps since the agent's start.
pub(crate) fn writes(world: &World) -> Result<u64> {
    let (_, text) = get(world, "/metrics")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("sluice_map_writes_total "));
    Ok(value.context("no sluice_map_writes_total")?.parse()?)
}
