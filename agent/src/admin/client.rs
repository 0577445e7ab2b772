//! The CLI's side of the admin socket.

use std::io::{self, BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Answer, FlowLine, FlowRequest, Request};
use crate::observe::view::FlowList;

/// How long the agent may take to answer; a document of the biggest cluster takes a second or two.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no agent answers at {0}: is it running? start it with `sluice agent --node-name NAME --manifests DIR` (or --kubeconfig FILE), or name its socket with --socket"
    )]
    NotRunning(PathBuf),
    /// The socket may not be used.
    #[error("may not use {0}: permission denied; only the agent's user (root) may ask it")]
    Denied(PathBuf),
    /// The agent answered that it cannot.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The agent ended, or closed the connection.
    #[error("the agent at {0} has closed the connection: it has ended, or was restarted")]
    Gone(PathBuf),
    /// The agent took too long.
    #[error("the agent at {0} does not answer: it is stopped or overloaded")]
    Silent(PathBuf),
    /// The answer is none.
    #[error(
        "the agent at {path} answered something that this sluice does not understand ({source}): are they of the same version?"
    )]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ClientError {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NotRunning(path),
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent(path),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone(path),
            _ => Self::Io { path, source },
        }
    }
}

/// An agent to ask.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The agent behind a socket. Connects with each request.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let path = path.to_owned();
        Self { path }
    }

    /// Asks, and reads the one document that answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        self.first(request).map(|(document, _)| document)
    }

    /// Asks for flows, and follows them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn watch(&self, request: &FlowRequest) -> Result<(FlowList, FlowStream), ClientError> {
        let (document, lines) = self.first(&Request::Flows(request.clone()))?;
        let unlimited = lines.get_ref().set_read_timeout(None);
        unlimited.map_err(|e| ClientError::io(&self.path, e))?;
        let stream = FlowStream {
            path: self.path.clone(),
            lines: lines.lines(),
        };
        Ok((document, stream))
    }

    fn first<T: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<(T, BufReader<UnixStream>), ClientError> {
        let failed = |e| ClientError::io(&self.path, e);
        let mut stream = UnixStream::connect(&self.path).map_err(failed)?;
        stream
            .set_read_timeout(Some(ANSWER_WITHIN))
            .map_err(failed)?;
        stream
            .set_write_timeout(Some(ANSWER_WITHIN))
            .map_err(failed)?;
        let mut line = serde_json::to_vec(request).map_err(|source| self.strange(source))?;
        line.push(b'\n');
        // An agent without a place for us answers and closes before it reads: what it said counts.
        let sent = stream.write_all(&line);
        let mut reader = BufReader::new(stream);
        let mut text = String::new();
        let read = reader.read_line(&mut text);
        if text.is_empty() {
            sent.map_err(failed)?;
            read.map_err(failed)?;
            return Err(ClientError::Gone(self.path.clone()));
        }
        match serde_json::from_str(&text).map_err(|source| self.strange(source))? {
            Answer::Ok(document) => Ok((document, reader)),
            Answer::Error(text) => Err(ClientError::Refused(text)),
        }
    }

    fn strange(&self, source: serde_json::Error) -> ClientError {
        let path = self.path.clone();
        ClientError::Strange { path, source }
    }
}

/// Flows as they happen. Ends only with an error: a stream has no end of its own.
#[derive(Debug)]
pub struct FlowStream {
    path: PathBuf,
    lines: Lines<BufReader<UnixStream>>,
}

impl FlowStream {
    /// Waits for the next line.
    ///
    /// # Errors
    /// The agent ended, or answered something strange.
    pub fn next_line(&mut self) -> Result<FlowLine, ClientError> {
        match self.lines.next() {
            None => Err(ClientError::Gone(self.path.clone())),
            Some(Err(e)) => Err(ClientError::io(&self.path, e)),
            Some(Ok(text)) => serde_json::from_str(&text).map_err(|source| ClientError::Strange {
                path: self.path.clone(),
                source,
            }),
        }
    }
}
