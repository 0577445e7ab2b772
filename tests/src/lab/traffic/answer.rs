//! What servers and clients say to each other: a line with a token there, a line with who, from where and the token back.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The longest request or answer, in bytes; fits a datagram on any link.
pub(crate) const MAX_LINE: usize = 512;

/// A server's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name.
    pub by: String,
    /// The client's address as the server saw it.
    pub peer: SocketAddr,
    /// The server's own address that the request came to.
    pub local: SocketAddr,
    /// The client's token, given back.
    pub token: String,
}

impl Answer {
    /// The line that goes over the wire, with its end.
    pub fn encode(&self) -> String {
        format!("{} {} {} {}\n", self.by, self.peer, self.local, self.token)
    }

    /// Reads a line, with or without its end.
    pub(crate) fn parse(line: &[u8]) -> Result<Self> {
        let line = str::from_utf8(line).context("an answer that is no text")?;
        let parts: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
        ensure!(parts.len() == 4, "an answer that is no answer: {line:?}");
        let address = |text: &str| {
            text.parse()
                .with_context(|| format!("no address in the answer {line:?}"))
        };
        Ok(Self {
            by: parts[0].to_owned(),
            peer: address(parts[1])?,
            local: address(parts[2])?,
            token: parts[3].to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_answer_survives_the_wire_in_both_families() {
        for (peer, local) in [
            ("10.244.1.2:40000", "10.244.1.3:80"),
            ("[fd00::2]:40000", "[fd00::3]:80"),
        ] {
            let (peer, local) = (peer.parse().unwrap(), local.parse().unwrap());
            let answer = Answer {
                by: "backend-1".to_owned(),
                peer,
                local,
                token: "7".to_owned(),
            };
            assert_eq!(Answer::parse(answer.encode().as_bytes()).unwrap(), answer);
        }
        assert!(Answer::parse(b"HTTP/1.1 400\n").is_err());
    }
}
