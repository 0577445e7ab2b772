//! A connection with one request, or one datagram from a new port.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Context;
use crate::lab::traffic::Outcome;
use crate::lab::traffic::attempt::Attempt;
use crate::soak::flow::{Done, Flow, Kind};

/// Makes it, and tells what became of it.
pub(super) async fn make(context: Arc<Context>, flow: Flow) -> Result<()> {
    let token = context.token('r');
    let began = Instant::now();
    let patience = context.patience(&flow, began);
    // A socket stays where it was made: no await between these two.
    flow.client.netns.enter()?;
    let outcome = match Attempt::start(flow.proto, flow.to, None, &token) {
        Err(outcome) => outcome,
        Ok(attempt) => {
            // SAFETY: the attempt owns its socket, always answers the same descriptor, and closes it when it is dropped,
            // which is after the runtime has let go of it.
            let attempt = unsafe { AsyncFd::register(attempt) }.context("watching a socket")?;
            match tokio::time::timeout(patience, answer(attempt)).await {
                Ok(outcome) => outcome?,
                Err(_) => Outcome::TimedOut,
            }
        }
    };
    context.tell(Done {
        flow,
        kind: Kind::Request,
        token,
        began,
        ended: Instant::now(),
        outcome,
    });
    Ok(())
}

async fn answer(mut attempt: AsyncFd<Attempt>) -> Result<Outcome> {
    loop {
        let ready = attempt.ready_mut(Interest::READABLE | Interest::WRITABLE);
        let mut ready = ready.await.context("waiting for a socket")?;
        if let Some(outcome) = ready.get_inner_mut().advance() {
            return Ok(outcome);
        }
        ready.clear_ready();
    }
}
