//! A thread's readiness loop: epoll with numbers for names.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Events taken from the kernel at once.
const BATCH: usize = 256;

/// An epoll instance.
pub(super) struct Ready {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Ready {
    pub(super) fn new() -> Result<Self> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("making an epoll instance")?;
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); BATCH],
        })
    }

    /// Tells of `fd`, under the name `key`, whenever it becomes readable or writable (edge-triggered), until it is closed.
    pub(super) fn add(&self, fd: impl AsFd, key: u64) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll
            .add(fd, EpollEvent::new(flags, key))
            .context("adding a socket to epoll")
    }

    /// Tells of `fd` as long as it is readable.
    pub(super) fn add_readable(&self, fd: impl AsFd, key: u64) -> Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, key))
            .context("adding a descriptor to epoll")
    }

    /// The keys of what became ready, waiting until `end` for the first; empty if nothing did. None as `end` is for ever.
    pub(super) fn wait(&mut self, end: Option<Instant>) -> Result<Vec<u64>> {
        loop {
            let timeout = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => EpollTimeout::NONE,
                Some(Duration::ZERO) => EpollTimeout::ZERO,
                // Rounded up, or the last fraction of a millisecond would be spent spinning.
                Some(left) => EpollTimeout::try_from(left.as_nanos().div_ceil(1_000_000))
                    .unwrap_or(EpollTimeout::MAX),
            };
            match self.epoll.wait(&mut self.events, timeout) {
                Ok(n) => return Ok(self.events[..n].iter().map(EpollEvent::data).collect()),
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e).context("epoll_wait"),
            }
        }
    }
}
