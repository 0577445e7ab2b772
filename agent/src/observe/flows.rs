//! Events of the datapath on their way to those who watch.
//!
//! The reader of the ring calls [`FlowHub::publish`], which never waits. Each watcher has a place in one bounded queue; a
//! watcher that falls behind by a whole queue loses the oldest events and is told how many. The last events are kept for those
//! who come late.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use agent_common::{Event, event_kind};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{broadcast, watch};

/// Events a watcher may be behind: some seconds of the most that one CPU is let report (`limits::EVENTS_PER_SECOND`).
const QUEUE: usize = 4_096;
/// Events that are kept: what a person may want to scroll back through.
pub const KEPT: usize = 1_024;

/// An event and when it happened.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
}

/// What a watcher gets.
#[derive(Clone, Copy, Debug)]
pub enum Watched {
    /// An event.
    Record(Record),
    /// So many events were missed, because the watcher was slower than they came.
    Lost(u64),
}

#[derive(Debug)]
struct Shared {
    queue: broadcast::Sender<Record>,
    kept: Mutex<VecDeque<Record>>,
    /// How many watchers want allowed flows.
    allowed: watch::Sender<usize>,
}

/// Where events come together. Clones share everything.
#[derive(Clone, Debug)]
pub struct FlowHub {
    shared: Arc<Shared>,
}

impl Default for FlowHub {
    fn default() -> Self {
        Self::with_queue(QUEUE)
    }
}

impl FlowHub {
    pub(crate) fn with_queue(queue: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: broadcast::Sender::new(queue),
                kept: Mutex::new(VecDeque::with_capacity(KEPT)),
                allowed: watch::Sender::new(0),
            }),
        }
    }

    /// Takes an event from the ring. Never waits.
    pub fn publish(&self, event: Event) {
        self.publish_at(wall_clock(event.time_ns), event);
    }

    pub(crate) fn publish_at(&self, at: SystemTime, event: Event) {
        let record = Record { at, event };
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
        // While the lock is held, so that who subscribes sees each event once. An error only says that nobody watches.
        drop(self.shared.queue.send(record));
    }

    /// The number of watchers that want to see allowed flows: `app` switches [`agent_common::feature::EVENTS_ALLOWED`] on while
    /// it is not 0.
    #[must_use]
    pub fn allowed_watchers(&self) -> watch::Receiver<usize> {
        self.shared.allowed.subscribe()
    }

    /// Starts to watch: the kept events, oldest first, and what comes after the last of them. With `allowed`, allowed flows are
    /// reported from now on until the subscription is dropped.
    #[must_use]
    pub fn subscribe(&self, allowed: bool) -> (Vec<Record>, Subscription) {
        let kept = self.kept();
        let receiver = self.shared.queue.subscribe();
        let records = kept.iter().copied().collect();
        drop(kept);
        if allowed {
            self.shared.allowed.send_modify(|n| *n += 1);
        }
        let subscription = Subscription {
            receiver,
            shared: Arc::clone(&self.shared),
            allowed,
        };
        (records, subscription)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<Record>> {
        let kept = self.shared.kept.lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watcher's place in the queue.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Record>,
    shared: Arc<Shared>,
    allowed: bool,
}

impl Subscription {
    /// The next event that the watcher asked for; None once the hub and all its clones are gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Watched> {
        loop {
            match self.receiver.recv().await {
                Ok(record) if !self.wants(&record) => {}
                Ok(record) => return Some(Watched::Record(record)),
                Err(broadcast::error::RecvError::Lagged(lost)) => return Some(Watched::Lost(lost)),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Whether the watcher asked for events of this kind.
    #[must_use]
    pub const fn wants(&self, record: &Record) -> bool {
        self.allowed || record.event.kind != event_kind::ALLOW
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.allowed {
            self.shared
                .allowed
                .send_modify(|n| *n = n.saturating_sub(1));
        }
    }
}

/// The wall clock's time of a moment of the coarse monotonic clock.
fn wall_clock(monotonic_ns: u64) -> SystemTime {
    let now = SystemTime::now();
    let Ok(monotonic) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else {
        return now;
    };
    let ago = Duration::from(monotonic).saturating_sub(Duration::from_nanos(monotonic_ns));
    now.checked_sub(ago).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fixture;

    fn hub_with(queue: usize, count: u32) -> FlowHub {
        let hub = FlowHub::with_queue(queue);
        for _ in 0..count {
            hub.publish(fixture::drop_event());
        }
        hub
    }

    #[tokio::test]
    async fn who_comes_late_gets_the_kept_and_then_the_new() {
        let hub = hub_with(8, 3);
        let (kept, mut watcher) = hub.subscribe(false);
        assert_eq!(kept.len(), 3);
        hub.publish(fixture::allow_event());
        hub.publish(fixture::reject_event());
        let Some(Watched::Record(record)) = watcher.next().await else {
            panic!("an event was published")
        };
        assert_eq!(
            record.event.kind,
            event_kind::REJECT,
            "allowed flows were not asked for"
        );
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_how_many_it_lost() {
        let hub = FlowHub::with_queue(8);
        let (_, mut watcher) = hub.subscribe(false);
        for _ in 0..20 {
            hub.publish(fixture::drop_event());
        }
        assert!(matches!(watcher.next().await, Some(Watched::Lost(12))));
        assert!(matches!(watcher.next().await, Some(Watched::Record(_))));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let hub = hub_with(8, u32::try_from(KEPT).unwrap() + 10);
        assert_eq!(hub.subscribe(false).0.len(), KEPT);
    }

    #[test]
    fn allowed_flows_are_wanted_while_somebody_watches_them() {
        let hub = FlowHub::default();
        let wanted = hub.allowed_watchers();
        let plain = hub.subscribe(false);
        assert_eq!(*wanted.borrow(), 0);
        let first = hub.subscribe(true);
        let second = hub.subscribe(true);
        assert_eq!(*wanted.borrow(), 2);
        drop((first, second, plain));
        assert_eq!(*wanted.borrow(), 0);
    }

    #[test]
    fn the_wall_clock_follows_the_monotonic_one() {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
        let earlier = Duration::from(now).saturating_sub(Duration::from_secs(5));
        let at = wall_clock(u64::try_from(earlier.as_nanos()).unwrap());
        let ago = SystemTime::now().duration_since(at).unwrap();
        assert!(
            ago >= Duration::from_secs(4) && ago < Duration::from_secs(60),
            "{ago:?}"
        );
    }
}
