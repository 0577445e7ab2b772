//! One thread an agent: it kills it when it is told to, starts it again, and notes in the history when it was down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::history::History;
use crate::lab::agent::{Agent, AgentPlan};
use crate::lab::lock;
use crate::lab::node::Node;

/// Between two looks at whether the agent still runs.
const LOOK: Duration = Duration::from_millis(500);
/// How long an agent may take to be ready, on a machine that is busy with the soak.
const READY: Duration = Duration::from_secs(40);

/// Kill an agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    /// After this time.
    pub(super) after: Duration,
    /// Start it again after this time.
    pub(super) down: Duration,
    /// Kill that one again, so long after its start, and start another.
    pub(super) again: Option<Duration>,
}

/// Keeps one agent until nobody can order kills any more, and answers it: it is ready then.
///
/// # Errors
/// The agent ended by itself, or was not ready in time: the error quotes its log.
pub(super) fn keep(
    node: &Node,
    number: usize,
    mut agent: Agent,
    orders: &Receiver<Kill>,
    history: &Arc<Mutex<History>>,
    kills: &AtomicU64,
) -> Result<Agent> {
    let plan: AgentPlan = agent.plan().clone();
    loop {
        let order = match orders.recv_timeout(LOOK) {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = agent.process().wait(Duration::ZERO)? {
                    bail!(
                        "the agent of {} has ended by itself, {status}; the end of its log:\n{}",
                        node.name,
                        agent.log_tail()
                    );
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(agent),
        };
        std::thread::sleep(order.after);
        lock(history).down(number);
        agent.kill().context("killing an agent")?;
        kills.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(order.down);
        agent = Agent::launch(node, plan.clone())?;
        if let Some(into) = order.again {
            std::thread::sleep(into);
            agent.kill().context("killing an agent that starts")?;
            kills.fetch_add(1, Ordering::Relaxed);
            agent = Agent::launch(node, plan.clone())?;
        }
        agent.wait_ready(READY)?;
        lock(history).up(number);
        // Orders that came meanwhile are as good as carried out.
        while orders.try_recv().is_ok() {}
    }
}
