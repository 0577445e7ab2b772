//! One kind: list, then watch from there, and list again only when the server has forgotten the place (410 Gone).
//!
//! Not kube's own `watcher`: it does not tell when a watch that failed is open again, which is when a kind is no longer stale.

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{DeserializeGuard, ResourceExt};
use kube::runtime::watcher::DefaultBackoff;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::known::Known;
use super::trouble::{explain, is_gone};
use crate::source::objects::{Convert, Converted, convert, id_of};
use crate::source::{Event, Events, Rejected};

/// Objects of a page: client-go's default.
const PAGE: u32 = 500;
/// A watch without an event, and without the bookmark that servers send each minute, for so long is opened anew: the
/// connection may be dead without either end knowing.
const IDLE: Duration = Duration::from_secs(150);
/// A watch that ends sooner did no good, and the next waits a little. One that was opened after a failure and says nothing for so
/// long is good: the server tells at once that it has forgotten the place.
const SHORT: Duration = Duration::from_secs(1);
/// The longest wait for a page of a list, or for a watch to open: a server that takes the connection and then says nothing
/// would hold the agent for ever.
const ANSWER: Duration = Duration::from_secs(60);

/// The receiver is gone.
struct Closed;

/// Why following stopped for a moment.
enum Pause {
    Closed,
    /// The place in the history is lost: list again.
    Gone,
    /// One line for people.
    Failed(String),
}

impl From<Closed> for Pause {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

/// Follows a kind until the receiver is gone.
pub(super) async fn follow<K>(client: Client, events: Events)
where
    K: Convert + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut follower = Follower::<K> {
        api: Api::all(client),
        events,
        known: Known::new(K::KIND),
        version: None,
        failed: None,
    };
    // 0.8 to 30 s with jitter; two quiet minutes take it back to the start.
    let mut backoff = DefaultBackoff::default();
    let mut gone = false;
    loop {
        let began = Instant::now();
        let was_gone = std::mem::take(&mut gone);
        let wait = match follower.step().await {
            Ok(()) => began.elapsed() < SHORT,
            Err(Pause::Closed) => return,
            Err(Pause::Gone) => {
                tracing::info!(
                    kind = %K::KIND,
                    version = follower.version,
                    "the API server has forgotten this version (410 Gone): listing again"
                );
                follower.version = None;
                gone = true;
                // The list is what helps; only where it did not the next waits.
                was_gone
            }
            Err(Pause::Failed(reason)) => {
                if follower.stale(reason).await.is_err() {
                    return;
                }
                true
            }
        };
        if wait && let Some(delay) = backoff.next() {
            tokio::time::sleep(delay).await;
        }
    }
}

struct Follower<K> {
    api: Api<DeserializeGuard<K>>,
    events: Events,
    known: Known,
    /// Where the next watch begins; None where a list must come first.
    version: Option<String>,
    /// Since when the source is lost, and why.
    failed: Option<(SystemTime, String)>,
}

impl<K> Follower<K>
where
    K: Convert + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    /// Lists where that is needed, then watches until the watch ends.
    async fn step(&mut self) -> Result<(), Pause> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => {
                let version = self.list().await?;
                self.version = Some(version.clone());
                version
            }
        };
        self.watch(&version).await
    }

    /// Lists everything page by page, deletes what is not there any more, and gives the version of the list.
    async fn list(&mut self) -> Result<String, Pause> {
        self.known.begin();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = answered::<K, _>(self.api.list(&params)).await?;
            for object in page.items {
                let events = self.known.apply(read(object));
                self.send(events).await?;
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params.continue_token = Some(token),
                _ => {
                    let events = self.known.complete();
                    self.send(events).await?;
                    self.failed = None;
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }

    /// Watches from a version on. Once the watch goes on from there the kind is not stale any more: what happened since is on its way.
    async fn watch(&mut self, version: &str) -> Result<(), Pause> {
        let params = WatchParams::default();
        let mut stream = pin!(answered::<K, _>(self.api.watch(&params, version)).await?);
        loop {
            let patience = if self.failed.is_some() { SHORT } else { IDLE };
            let event = match timeout(patience, stream.next()).await {
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    return Err(pause::<K>(kube::Error::Api(status)));
                }
                Ok(Some(event)) => Some(event.map_err(pause::<K>)?),
                Ok(None) => return Ok(()),
                Err(_) if self.failed.is_some() => None,
                Err(_) => return Ok(()),
            };
            if self.failed.take().is_some() {
                tracing::info!(kind = %K::KIND, "the API server is followed again");
                self.send(vec![Event::Synced(K::KIND)]).await?;
            }
            let Some(event) = event else { continue };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = object.resource_version();
                    let events = self.known.apply(read(object));
                    self.send(events).await?;
                    self.advance(version);
                }
                WatchEvent::Deleted(object) => {
                    let version = object.resource_version();
                    if let Ok(id) = id_of(K::KIND, object.meta()) {
                        let events = self.known.delete(&id);
                        self.send(events).await?;
                    }
                    self.advance(version);
                }
                WatchEvent::Bookmark(bookmark) => {
                    self.advance(Some(bookmark.metadata.resource_version));
                }
                // Taken above.
                WatchEvent::Error(_) => {}
            }
        }
    }

    /// The next watch begins behind this. (A lone event without a version leaves the place where it is.)
    fn advance(&mut self, version: Option<String>) {
        if let Some(version) = version.filter(|v| !v.is_empty()) {
            self.version = Some(version);
        }
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Closed> {
        for event in events {
            self.events.send(event).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Tells that the source is lost, once for each reason.
    async fn stale(&mut self, reason: String) -> Result<(), Closed> {
        let since = match &self.failed {
            Some((_, told)) if *told == reason => return Ok(()),
            Some((since, _)) => *since,
            None => SystemTime::now(),
        };
        tracing::warn!(kind = %K::KIND, "{reason}; the last state stays in force, trying again");
        self.failed = Some((since, reason.clone()));
        self.send(vec![Event::Stale {
            kind: K::KIND,
            since,
            reason,
        }])
        .await
    }
}

/// What a request's answer was, if one came in time.
async fn answered<K: Convert + Resource<DynamicType = ()>, T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Pause> {
    match timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(pause::<K>),
        Err(_) => Err(Pause::Failed(format!(
            "listing and watching {}: no answer within {ANSWER:?}; check the API server and the way to it",
            K::plural(&())
        ))),
    }
}

fn pause<K: Resource<DynamicType = ()>>(error: kube::Error) -> Pause {
    if is_gone(&error) {
        Pause::Gone
    } else {
        Pause::Failed(explain::<K>(&error))
    }
}

/// An object as it came, cut to the model.
fn read<K: Convert>(object: DeserializeGuard<K>) -> Result<Converted, Rejected> {
    match object.0 {
        Ok(object) => convert(&object),
        Err(invalid) => {
            let id = id_of(K::KIND, &invalid.metadata).ok();
            let name = invalid.metadata.name.unwrap_or_default();
            Err(Rejected {
                object: id
                    .as_ref()
                    .map_or_else(|| format!("{} {name}", K::KIND), ToString::to_string),
                id,
                reason: format!("the API server's object cannot be read: {}", invalid.error),
            })
        }
    }
}
