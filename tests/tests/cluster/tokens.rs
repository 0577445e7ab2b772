//! A token that ends while the agent runs, and the one that comes into its place.

use std::time::{Duration, Instant};

use agent_common::Reason;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::controlplane::ControlPlane;

use crate::audit::Audit;
use crate::outage::{KINDS, disconnect, stale};
use crate::scrape;
use crate::world::World;

/// How long the first token lives: an agent that starts on a busy machine uses it in time, and it ends while changes are measured.
pub(crate) const LIVES: Duration = Duration::from_secs(15);
/// It has ended so long after its end, whatever the machine does: with what the server remembers of it (10 s).
const ENDED: Duration = Duration::from_mins(1);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// A token that was just made, and ends.
pub(crate) struct Ending {
    token: String,
    end: Instant,
}

impl Ending {
    /// It lives for [`LIVES`] from now.
    pub(crate) fn now(token: String) -> Self {
        let end = Instant::now() + LIVES;
        Self { token, end }
    }

    /// Waits until the server does not take it any more. It is not asked before, because it would remember its answer.
    async fn wait(&self, plane: &ControlPlane) -> Result<()> {
        tokio::time::sleep_until(self.end.into()).await;
        while self.end.elapsed() < ENDED {
            if !plane.is_token_good(&self.token).await? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the token is still taken {ENDED:?} after its end")
    }
}

/// The token of the agent's file has ended. That shows with the next request: nobody is asked again who watches.
pub(crate) async fn expired_and_rotated(
    plane: &ControlPlane,
    world: &mut World,
    audit: &Audit,
    token: &Ending,
) -> Result<()> {
    token.wait(plane).await?;
    let target = world.addresses("target").await?;
    let denied = |world: &World, when: &str| {
        let (stranger, client) = (&world.stranger, &world.client);
        world.denied(when, stranger, client, &target, Reason::PolicyIngress)
    };
    let status = world.wait_status("before the token ends", |status| status["ready"] == true)?;
    ensure!(stale(&status).is_empty(), "stale: {status:#}");
    let (writes, lists) = (scrape::writes(world)?, lists(audit)?);

    disconnect(world, plane.server().ip())?;
    let refused = |source: &Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        reason.contains("(401)") && reason.contains("the credentials are not accepted")
    };
    let status = world.wait_status("an expired token", |status| {
        let lost = stale(status);
        lost.len() == KINDS && lost.iter().all(refused)
    })?;
    println!("expired: {}", stale(&status)[0]["reason"]);
    let log = plane.directory().join("kube-apiserver.log");
    let log = std::fs::read_to_string(log).context("the API server's log")?;
    ensure!(
        log.contains("service account token has expired"),
        "the API server refused it for another reason"
    );
    let said = scrape::unready(world)?;
    ensure!(said.contains("kubernetes, lost since"), "/readyz: {said}");
    denied(world, "with an expired token")?;

    let rotated = Instant::now();
    let token = plane.service_account_token("kube-system", "sluice").await?;
    plane.kubeconfig_of_token_file("kube-system", "sluice", &token)?;
    world.wait_status("a rotated token", |status| {
        stale(status).is_empty() && status["ready"] == true
    })?;
    println!("a rotated token was found after {:.1?}", rotated.elapsed());
    scrape::ready(world)?;
    denied(world, "with a rotated token")?;
    ensure!(
        scrape::writes(world)? == writes,
        "maps were written, though nothing is different"
    );
    ensure!(
        self::lists(audit)? == lists,
        "listed again, though every watch could go on from its place"
    );
    Ok(())
}

/// Lists of all kinds that the agent asked for so far.
pub(crate) fn lists(audit: &Audit) -> Result<usize> {
    audit.count_of("list")
}
