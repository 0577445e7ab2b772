//! The receiving end of `sd_notify(3)`: a daemon says on `$NOTIFY_SOCKET` that it is ready.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::owner::absent_is_fine;
use super::process::{Process, wait_readable};

/// The longest message that is read, in bytes; the protocol's are a few lines.
const MAX_MESSAGE: usize = 4096;
/// The line that says "ready".
const READY: &str = "READY=1";

/// A socket for one daemon's messages.
#[derive(Debug)]
pub(crate) struct Notify {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Notify {
    /// Makes the socket; one that an earlier daemon left at this path is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        absent_is_fine(std::fs::remove_file(path))
            .with_context(|| format!("removing {}", path.display()))?;
        let socket = UnixDatagram::bind(path)
            .with_context(|| format!("making the socket {}", path.display()))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            socket,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until `READY=1` has come.
    ///
    /// # Errors
    /// The process ended first, or the deadline came.
    pub(crate) fn wait_ready(&self, process: &mut Process, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            // The message first: a daemon may say that it is ready and end at once.
            if self.take_ready()? {
                return Ok(());
            }
            let readable = wait_readable(&[self.socket.as_fd(), process.ended()], end)?;
            match readable[..] {
                [true, _] => {}
                [_, true] => bail!(
                    "it ended before it was ready: {:?}",
                    process.wait(Duration::ZERO)?
                ),
                _ => bail!("it was not ready within {deadline:?}"),
            }
        }
    }

    fn take_ready(&self) -> Result<bool> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(n)
                    if String::from_utf8_lossy(&buffer[..n])
                        .lines()
                        .any(|line| line == READY) =>
                {
                    return Ok(true);
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e).context("reading a notify socket"),
            }
        }
    }
}
