//! `flows` of the admin socket: what was kept, and then what comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_common::Count;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::server::{line, say};
use super::{Answer, FlowLine, FlowRequest, Lost, LostAt};
use crate::observe::flows::{Record, Subscription, Watched};
use crate::observe::state::{Provider, State, Summary};
use crate::observe::view::{FlowEvent, FlowList};

/// How old names may be: asking for the whole state costs the reconciler a copy of it, and events come by the thousand.
const NAMES_FRESH: Duration = Duration::from_millis(250);
/// How often the programs' own counts of lost events are looked at.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// Names for events, asked for again when the state has changed.
struct Names<'a> {
    provider: &'a dyn Provider,
    state: Arc<State>,
    /// None until it is asked for the first time: the state that a watch begins with is of before the revision could be read.
    revision: Option<u64>,
    asked: Instant,
}

impl Names<'_> {
    async fn build(&mut self, record: &Record) -> Option<FlowEvent> {
        let revision = Some(self.provider.revision());
        if revision != self.revision
            && self.asked.elapsed() >= NAMES_FRESH
            && let Some(state) = self.provider.state().await
        {
            (self.state, self.revision, self.asked) = (state, revision, Instant::now());
        }
        FlowEvent::build(record, &self.state)
    }
}

/// Events that the programs could not report, by place, since they were looked at last.
struct Unreported {
    seen: [(LostAt, Count, u64); 2],
}

impl Unreported {
    fn new(summary: &Summary) -> Self {
        let start = |at, count| (at, count, total(summary, count));
        Self {
            seen: [
                start(LostAt::Ring, Count::EventLost),
                start(LostAt::RateLimit, Count::EventSuppressed),
            ],
        }
    }

    fn more(&mut self, summary: &Summary) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (at, count, seen) in &mut self.seen {
            let now = total(summary, *count);
            if now > *seen {
                lost.push(Lost {
                    events: now - *seen,
                    at: *at,
                });
            }
            *seen = now;
        }
        lost
    }
}

fn total(summary: &Summary, wanted: Count) -> u64 {
    let mut counts = summary.counters.counts.iter();
    counts
        .find(|(count, _)| *count == wanted)
        .map_or(0, |(_, n)| *n)
}

pub(super) async fn serve(
    request: &FlowRequest,
    provider: &dyn Provider,
    state: Arc<State>,
    reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (kept, subscription) = provider.flows().subscribe(request.allowed);
    let wanted = kept
        .iter()
        .filter(|record| subscription.wants(record))
        .filter_map(|record| FlowEvent::build(record, &state))
        .filter(|event| request.only.takes(event));
    let mut flows: Vec<_> = wanted.rev().take(request.last).collect();
    flows.reverse();
    say(writer, line(&Answer::Ok(FlowList { flows }))?).await?;
    if !request.follow {
        return Ok(());
    }
    let names = Names {
        provider,
        state,
        revision: None,
        asked: Instant::now(),
    };
    follow(request, names, subscription, reader, writer).await
}

async fn follow(
    request: &FlowRequest,
    mut names: Names<'_>,
    mut subscription: Subscription,
    mut reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut unreported = Unreported::new(&names.provider.summary());
    let mut look = interval_at(Instant::now() + LOST_EVERY, LOST_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut lines = Vec::new();
        tokio::select! {
            watched = subscription.next() => match watched {
                Some(Watched::Record(record)) => {
                    let event = names.build(&record).await;
                    if let Some(event) = event.filter(|event| request.only.takes(event)) {
                        lines.push(FlowLine::Event(Box::new(event)));
                    }
                }
                Some(Watched::Lost(events)) => lines.push(FlowLine::Lost(Lost { events, at: LostAt::Client })),
                None => return Ok(()),
            },
            _ = look.tick() => {
                let lost = unreported.more(&names.provider.summary());
                lines.extend(lost.into_iter().map(FlowLine::Lost));
            }
            // The client says nothing more: anything but silence is its end.
            _ = reader.read_u8() => return Ok(()),
        }
        for text in &lines {
            let bytes = line(text)?;
            // No deadline: a client that stands still loses events, and is told so when it goes on.
            tokio::select! {
                written = writer.write_all(&bytes) => written?,
                _ = reader.read_u8() => return Ok(()),
            }
        }
    }
}
