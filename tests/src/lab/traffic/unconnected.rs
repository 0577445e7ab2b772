//! One datagram from a socket that is not connected: `sendto` and `recvfrom`, as resolvers do it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Outcome;
use super::answer::{Answer, MAX_LINE};

/// A datagram that was sent from a socket that is not connected, and whose answer is still to come.
#[derive(Debug)]
pub struct Question {
    socket: UdpSocket,
    to: SocketAddr,
    token: String,
    sent: Instant,
}

impl Question {
    /// Asks from the calling thread's own namespace; where the system refuses to send, what it said.
    ///
    /// # Errors
    /// The lab failed: no socket.
    pub fn ask_here(to: SocketAddr, token: &str) -> Result<Result<Self, Outcome>> {
        let any: SocketAddr = if to.is_ipv6() {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).context("binding a UDP socket")?;
        let sent = Instant::now();
        if let Err(error) = socket.send_to(format!("{token}\n").as_bytes(), to) {
            return Ok(Err(of_io(&error, "sendto")));
        }
        Ok(Ok(Self {
            socket,
            to,
            token: token.to_owned(),
            sent,
        }))
    }

    /// What the answer is. It must come from the address that was asked, as a resolver wants it; another source is
    /// [`Outcome::Broken`].
    ///
    /// # Errors
    /// The lab failed: no socket.
    pub fn answer(&self, deadline: Duration) -> Result<Outcome> {
        let Self { to, token, .. } = self;
        self.socket.set_read_timeout(Some(deadline))?;
        let mut buffer = [0; MAX_LINE];
        Ok(match self.socket.recv_from(&mut buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Outcome::TimedOut
            }
            Err(error) => of_io(&error, "recvfrom"),
            Ok((_, from)) if from != *to => {
                Outcome::Broken(format!("asked {to}, the answer came from {from}"))
            }
            Ok((n, _)) => match Answer::parse(&buffer[..n]) {
                Ok(answer) if answer.token == *token => Outcome::Answered {
                    by: answer.by,
                    peer_seen: answer.peer,
                    local_seen: answer.local,
                    latency: self.sent.elapsed(),
                },
                Ok(answer) => {
                    Outcome::Broken(format!("asked {token:?}, answered {:?}", answer.token))
                }
                Err(error) => Outcome::Broken(format!("{error:#}")),
            },
        })
    }
}

/// Asks from the calling thread's own namespace and waits for the answer. See [`Question::answer`].
///
/// # Errors
/// The lab failed: no socket.
pub fn ask_here(to: SocketAddr, token: &str, deadline: Duration) -> Result<Outcome> {
    match Question::ask_here(to, token)? {
        Ok(question) => question.answer(deadline),
        Err(refused) => Ok(refused),
    }
}

fn of_io(error: &std::io::Error, doing: &str) -> Outcome {
    match error.raw_os_error() {
        Some(code) => Outcome::from_errno(nix::Error::from_raw(code), doing),
        None => Outcome::Broken(error.to_string()),
    }
}
