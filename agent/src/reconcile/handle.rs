//! How the rest of the agent speaks with the loop.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{Snapshot, State};

/// How the rest of the agent sees the loop.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The newest snapshot: published after each apply, and when a source's state changes.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// True from the first apply on.
    pub ready: watch::Receiver<bool>,
    pub(super) requests: mpsc::Sender<oneshot::Sender<Arc<State>>>,
    pub(super) touched: Arc<Notify>,
}

impl Handle {
    /// What a test shows; nobody answers requests.
    #[cfg(test)]
    pub(crate) fn showing(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        ready: watch::Receiver<bool>,
    ) -> Self {
        Self {
            snapshots,
            ready,
            requests: mpsc::channel(1).0,
            touched: Arc::default(),
        }
    }

    /// Has the loop look at once whether what it attached is still there.
    pub fn check(&self) {
        self.touched.notify_one();
    }

    /// The whole state, as of now. None once the loop has ended.
    pub async fn state(&self) -> Option<Arc<State>> {
        let (answer, state) = oneshot::channel();
        self.requests.send(answer).await.ok()?;
        state.await.ok()
    }
}
