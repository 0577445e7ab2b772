//! What an agent says where Prometheus and kubelet ask it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::netns::Netns;

/// `--metrics-address` of a lab's agents: their node's own loopback.
pub const ADDRESS: &str = "127.0.0.1:9966";
/// However busy the machine is.
const ANSWER: Duration = Duration::from_secs(20);

/// The code and the text of `GET path` on a node.
///
/// # Errors
/// Nobody answers, or not with HTTP.
pub fn get(node: &Netns, path: &str) -> Result<(u16, String)> {
    let answer = node.run(|| -> Result<String> {
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

/// The value of a sample in `/metrics`, named with its labels: `sluice_problems{limit="services"}`.
///
/// # Errors
/// As [`get`], or there is no such sample.
pub fn sample(node: &Netns, name: &str) -> Result<u64> {
    let (_, text) = get(node, "/metrics")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}
