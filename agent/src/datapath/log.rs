//! Lines that the programs themselves write, where the object was built for it (`cargo xtask build --ebpf-log`): never in a release.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The map that aya-log's half in the programs writes to. It is not pinned: lines are for the agent that loaded the programs.
pub(super) const MAP: &str = "AYA_LOGS";

/// The reader of such lines.
pub struct ProgramLog {
    logger: EbpfLogger<&'static dyn log::Log>,
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}

impl ProgramLog {
    /// The reader for a loaded object; None where its programs write no lines.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        ebpf.map(MAP)?;
        let logger = EbpfLogger::init(ebpf).ok()?;
        Some(Self { logger })
    }

    /// Hands lines to the process's log, for ever.
    ///
    /// # Errors
    /// The runtime cannot wait for the descriptor.
    pub async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns its ring's descriptor, gives the same one each time, and closes it only when it is dropped.
        let lines = unsafe { AsyncFd::register_with_interest(self.logger, Interest::READABLE) };
        let mut lines = lines?;
        loop {
            let mut guard = lines.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}
