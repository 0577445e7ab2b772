//! What a test may call allowed, and what denied.
//!
//! A connection counts as denied only when all of this holds: a control probe to the same server passes; the attempt met
//! silence; the server saw nothing of it; and the counter of drops for the expected reason rose by one packet at least for
//! each attempt. Anything else (a server that is down, a route that is missing, another rule) is no denial.

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};

use crate::scene::{DEADLINE, Scene, at};

impl Scene {
    /// Probes from a client to a server at one port: both families, both protocols.
    pub(crate) fn probes(&self, from: &str, to: &str, port: u16) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for proto in Proto::ALL {
            for address in at(self.addresses(to)?, port) {
                probes.push(Probe::new(self.netns(from)?, proto, address));
            }
        }
        Ok(probes)
    }

    /// All probes from one to the other at a port are answered.
    pub(crate) fn assert_allowed(&self, from: &str, to: &str, port: u16) -> Result<()> {
        let probes = self.probes(from, to, port)?;
        self.assert_answered(&probes, to)
            .with_context(|| format!("{from} to {to}, port {port}"))
    }

    /// All of these probes are answered by the server called `by`.
    pub(crate) fn assert_answered(&self, probes: &[Probe], by: &str) -> Result<()> {
        let outcomes = probe::run(probes, Patience::deadline(DEADLINE))?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                outcome.by() == Some(by),
                "{probe}: {outcome}, but {by} should have answered; drops: {:?}",
                self.pinned().all_drops()?
            );
        }
        Ok(())
    }

    /// No probe from one to the other at a port is let through; the node's own are, as the control. Counts only as the
    /// module says.
    pub(crate) fn assert_denied(
        &self,
        from: &str,
        to: &str,
        port: u16,
        reason: Reason,
    ) -> Result<()> {
        let probes = self.probes(from, to, port)?;
        self.assert_all_denied(&probes, to, &self.probes("node", to, port)?, reason)
            .with_context(|| format!("{from} to {to}, port {port}"))
    }

    /// None of these probes is let through to the server of `to`, and all of `controls` are. Counts only as the module says.
    pub(crate) fn assert_all_denied(
        &self,
        probes: &[Probe],
        to: &str,
        controls: &[Probe],
        reason: Reason,
    ) -> Result<()> {
        self.assert_answered(controls, to)
            .context("the control probe: without it, silence proves nothing")?;
        let server = self.server(to)?;
        let (mark, before) = (server.mark(), self.pinned().drops(reason)?);
        let outcomes = probe::run(probes, Patience::MATRIX)?;
        for (probe, outcome) in probes.iter().zip(&outcomes) {
            ensure!(
                *outcome == Outcome::TimedOut,
                "{probe}: {outcome}, but it should be dropped ({})",
                reason.name()
            );
        }
        ensure_unseen(server, mark)?;
        let dropped = self.pinned().drops(reason)? - before;
        ensure!(
            dropped >= probes.len() as u64,
            "{} probes met silence, but {dropped} packets were dropped for {}; all drops: {:?}",
            probes.len(),
            reason.name(),
            self.pinned().all_drops()?
        );
        self.assert_answered(controls, to)
            .context("the control probe afterwards")
    }
}

/// The server saw nothing since `mark`.
pub(crate) fn ensure_unseen(server: &Server, mark: usize) -> Result<()> {
    let seen = server.seen_since(mark);
    ensure!(
        seen.is_empty(),
        "{} saw what should not reach it: {seen:?}",
        server.name()
    );
    Ok(())
}
