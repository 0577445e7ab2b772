//! One kind: list, then watch from there, and list again only when the server has forgotten the place (410 Gone).
//!
//! Not kube's own `watcher`: it does not tell when a watch that failed is open again, which is when a kind is no longer stale.

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kube::Resource;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::{DeserializeGuard, ResourceExt};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::DefaultBackoff;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::access::{Access, Lent};
use super::known::Known;
use super::trouble::{Trouble, forgets, judge, no_answer, no_list};
use crate::source::objects::{Convert, Converted, convert, id_of};
use crate::source::{Event, Events, Rejected};

/// Objects of a page: client-go's default.
const PAGE: u32 = 500;
/// Seconds after which the server ends a watch, at random between these, as client-go's reflectors have it: agents that started
/// together do not come back together for ever.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// A watch without an event for so long is opened anew: something on the way, or the server itself, may have gone silent while the
/// connection lives. The server sends a bookmark each minute; this is that, and half a minute for a server that is busy.
const SILENT: Duration = Duration::from_secs(90);
/// A watch that ends sooner did no good, and the next waits a little. One that was opened after a failure and says nothing for so
/// long is good: the server tells at once that it has forgotten the place.
const SHORT: Duration = Duration::from_secs(1);
/// A watch that the server ended before its time is opened again within this, at random: the server is being restarted, and every
/// agent of the cluster was told so at the same moment.
const SPREAD: Duration = Duration::from_secs(1);
/// A kind that was followed for so long, the longest wait of the backoff before its jitter, has earned short waits again. Else what ends
/// connections now and then, and oftener than in the two minutes in which the backoff forgets, would make waits grow for ever.
const FOLLOWED_WELL: Duration = Duration::from_secs(30);
/// The longest wait for a page of a list, or for a watch to open: a server that takes the connection and then says nothing
/// would hold the agent for ever. The server's own limit is the same (`--request-timeout`).
const ANSWER: Duration = Duration::from_secs(60);
/// The longest that a server's `Retry-After` holds the agent back.
const ASKED_TO_WAIT: Duration = Duration::from_mins(5);

/// The receiver is gone.
struct Closed;

/// Why following stopped for a moment.
enum Pause {
    Closed,
    /// The place in the history is lost: list again.
    Gone,
    /// The server cannot be followed.
    Failed(Failure),
}

/// The server cannot be followed.
struct Failure {
    trouble: Trouble,
    /// Since when nothing is known: the request began then.
    since: Instant,
}

/// Why the credentials are to be read again.
#[derive(Clone, Copy)]
enum Renew {
    /// They were refused.
    Refused,
    /// The server could not be reached, or not be trusted.
    Unreached,
}

/// How a watch ended that did not fail.
enum End {
    /// The server ended it: at its time, or before.
    Server,
    /// Nothing came for too long.
    Silent,
}

impl From<Closed> for Pause {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

/// Follows a kind until the receiver is gone.
pub(super) async fn follow<K>(access: Arc<Access>, events: Events)
where
    K: Convert + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut follower = Follower::<K>::new(access, events).await;
    // 0.8 to 30 s, and up to twice that at random; two quiet minutes take it back to the start.
    let mut backoff = DefaultBackoff::default();
    let mut recoveries = follower.access.recoveries();
    // Another kind's recovery ended the last wait: it ends no second one.
    let mut woken = false;
    loop {
        follower.renew().await;
        let began = Instant::now();
        recoveries.mark_unchanged();
        let mut hopes = false;
        let wait = match follower.step().await {
            Ok(_) if began.elapsed() < SHORT => next(&mut backoff),
            Ok(End::Server)
                if began.elapsed() < Duration::from_secs(WATCH_SECONDS.start.into()) =>
            {
                SPREAD.mul_f32(fastrand::f32())
            }
            Ok(End::Server | End::Silent) => continue,
            Err(Pause::Closed) => return,
            Err(Pause::Gone) => {
                tracing::info!(
                    kind = %K::KIND,
                    version = follower.version,
                    "the API server has forgotten this version (410 Gone): listing again"
                );
                follower.version = None;
                if !std::mem::replace(&mut follower.displaced, true) {
                    continue;
                }
                // The list is what helps; where it did not, the next waits.
                let failure = Failure {
                    trouble: forgets::<K>(),
                    since: began,
                };
                if follower.stale(failure).await.is_err() {
                    return;
                }
                next(&mut backoff)
            }
            Err(Pause::Failed(failure)) => {
                if follower.at_once(&failure) {
                    continue;
                }
                if follower.was_followed_well() && !crate::mutant::removed("backoff-for-ever") {
                    backoff.reset();
                }
                let asked = failure.trouble.wait.unwrap_or_default().min(ASKED_TO_WAIT);
                hopes = failure.trouble.refused || failure.trouble.unreached;
                if follower.stale(failure).await.is_err() {
                    return;
                }
                // On top of it, so that all who were told the same do not come back at the same moment.
                if crate::mutant::removed("deaf-to-retry-after") {
                    next(&mut backoff)
                } else {
                    asked + next(&mut backoff)
                }
            }
        };
        woken = tokio::select! {
            () = sleep(wait) => false,
            Ok(()) = recoveries.changed(), if hopes && !woken => {
                sleep(SPREAD.mul_f32(fastrand::f32())).await;
                true
            }
        };
    }
}

/// How long to wait before the next attempt.
fn next(backoff: &mut DefaultBackoff) -> Duration {
    match backoff.next() {
        Some(wait) if !crate::mutant::removed("backoff-all-alike") => wait,
        _ => SHORT,
    }
}

struct Follower<K> {
    access: Arc<Access>,
    lent: Lent,
    api: Api<DeserializeGuard<K>>,
    events: Events,
    known: Known,
    /// Where the next watch begins; None where a list must come first.
    version: Option<String>,
    /// The place in the history was lost, and no watch has told anything since.
    displaced: bool,
    /// Since when the server tells what happens, without a failure.
    followed: Option<Instant>,
    /// Since when the source is lost, and why.
    failed: Option<(SystemTime, String)>,
    /// When the server was last heard, where the last watch went silent.
    heard: Option<Instant>,
    /// Before the next request, the credentials are to be read again, because of this.
    renew: Option<Renew>,
    /// They were read again because they were refused, and nothing has succeeded since.
    renewed: bool,
}

impl<K> Follower<K>
where
    K: Convert + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    async fn new(access: Arc<Access>, events: Events) -> Self {
        let lent = access.lend().await;
        Self {
            api: Api::all(lent.client.clone()),
            access,
            lent,
            events,
            known: Known::new(K::KIND),
            version: None,
            displaced: false,
            followed: None,
            failed: None,
            heard: None,
            renew: None,
            renewed: false,
        }
    }

    /// Lists where that is needed, then watches until the watch ends.
    async fn step(&mut self) -> Result<End, Pause> {
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
            let began = Instant::now();
            let page = answered::<K, _>(self.api.list(&params)).await?;
            for object in page.items {
                let events = self.known.apply(read(object));
                self.send(events).await?;
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params.continue_token = Some(token),
                _ => {
                    let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                    let Some(version) = version else {
                        let trouble = no_list::<K>();
                        return Err(Pause::Failed(Failure {
                            trouble,
                            since: began,
                        }));
                    };
                    let events = self.known.complete();
                    self.send(events).await?;
                    self.followed();
                    return Ok(version);
                }
            }
        }
    }

    /// Watches from a version on. Once the watch goes on from there the kind is not stale any more: what happened since is on its way.
    async fn watch(&mut self, version: &str) -> Result<End, Pause> {
        let params = WatchParams::default().timeout(fastrand::u32(WATCH_SECONDS));
        let mut stream = pin!(answered::<K, _>(self.api.watch(&params, version)).await?);
        // It answers, and took the credentials.
        self.heard = None;
        self.renewed = false;
        let mut heard = Instant::now();
        loop {
            let patience = match self.failed {
                Some(_) => SHORT,
                None if crate::mutant::removed("silent-watch") => Duration::MAX,
                None => SILENT,
            };
            let event = match timeout(patience, stream.next()).await {
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    return Err(pause::<K>(kube::Error::Api(status), Instant::now()));
                }
                Ok(Some(event)) => Some(event.map_err(|error| pause::<K>(error, Instant::now()))?),
                Ok(None) => return Ok(End::Server),
                Err(_) if self.failed.is_some() => None,
                Err(_) => {
                    tracing::info!(
                        kind = %K::KIND,
                        "the watch has said nothing for {SILENT:?}, not even a bookmark: opening it again"
                    );
                    self.heard = Some(heard);
                    return Ok(End::Silent);
                }
            };
            heard = Instant::now();
            self.displaced = false;
            let was_lost = self.failed.is_some();
            self.followed();
            if was_lost {
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

    /// The server tells what happens.
    fn followed(&mut self) {
        if self.failed.take().is_some() {
            self.access.recovered();
        }
        self.followed.get_or_insert_with(Instant::now);
        self.heard = None;
        self.renewed = false;
    }

    /// Asked at a failure: whether all was well for long before it.
    fn was_followed_well(&mut self) -> bool {
        let since = self.followed.take();
        since.is_some_and(|since| since.elapsed() >= FOLLOWED_WELL)
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

    /// Whether a failure is worth a second try at once: the first time that credentials are refused, they may have been rotated.
    fn at_once(&mut self, failure: &Failure) -> bool {
        self.renew = match &failure.trouble {
            trouble if trouble.refused => Some(Renew::Refused),
            trouble if trouble.unreached => Some(Renew::Unreached),
            _ => None,
        };
        failure.trouble.refused && !std::mem::replace(&mut self.renewed, true)
    }

    /// Reads the credentials again where that may help: just before they are used, for they may be written at any time.
    async fn renew(&mut self) {
        let lent = match self.renew.take() {
            None => return,
            Some(Renew::Refused) => self.access.refused(&self.lent).await,
            Some(Renew::Unreached) => self.access.unreached().await,
        };
        match lent {
            Ok(lent) => {
                self.api = Api::all(lent.client.clone());
                self.lent = lent;
            }
            Err(error) => {
                tracing::warn!(kind = %K::KIND, "the credentials cannot be read again: {error}");
            }
        }
    }

    /// Tells that the source is lost, once for each reason.
    async fn stale(&mut self, failure: Failure) -> Result<(), Closed> {
        let reason = failure.trouble.reason;
        let since = match &self.failed {
            Some((_, told)) if *told == reason => return Ok(()),
            Some((since, _)) if !crate::mutant::removed("stale-since-now") => *since,
            _ => {
                let lost = self.heard.unwrap_or(failure.since);
                SystemTime::now() - lost.elapsed()
            }
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
    let since = Instant::now();
    match timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(|error| pause::<K>(error, since)),
        Err(_) => Err(Pause::Failed(Failure {
            trouble: no_answer::<K>(ANSWER),
            since,
        })),
    }
}

fn pause<K: Resource<DynamicType = ()>>(error: kube::Error, since: Instant) -> Pause {
    match judge::<K>(&error) {
        None => Pause::Gone,
        Some(trouble) => Pause::Failed(Failure { trouble, since }),
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
