//! A directory of manifests as the cluster: ordinary YAML or JSON, many documents a file, lists too, subfolders.
//!
//! * A file counts when it is closed after writing, or renamed or linked into place; a removed file is its objects deleted.
//! * Files are those that end in `.yaml`, `.yml` or `.json`; names that begin with a dot are not looked at. Symlinks are
//!   followed, and a directory that is replaced by one rename (`..data` of a ConfigMap volume) changes as a whole.
//! * An empty directory is an empty cluster. One that is missing or cannot be read, or that has such a directory in it, is
//!   a failed source: everything stays in force, and nothing is taken in until it is mended.
//! * A broken document or object changes nothing that its file gave before. Of an object that stands in several files the
//!   first in path order counts.
//! * Where something vanishes, what replaces it is waited for a little: a directory that is removed file by file is missing, not
//!   emptied, and an object that moves to another file is never gone.
//! * An empty file, and one that was written when its file system was full, is a broken one.
//! * A file has at most 32 MiB.

mod document;
mod documents;
mod files;
mod parse;
mod store;
#[cfg(test)]
mod tests;
mod tree;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use inotify::{Inotify, Watches};
use tokio::time::{Instant, sleep, sleep_until};

pub use self::documents::Documents;
use self::tree::RawEvent;
use self::worker::Worker;
use super::{Event, Events, Source};
use crate::model::Kind;

/// Between two looks at a directory that has failed. Most mends are seen at once, as inotify events; a file system that is
/// mounted, or the target of a symlink that is made again, is not.
const RETRY: Duration = Duration::from_secs(1);
/// Where something vanished, so long nothing more must happen before it counts: `rm -r`, a version control system's checkout and kubelet's
/// writer (which flips `..data` before it makes the symlinks of new files) have microseconds to a few milliseconds between their steps.
const SETTLE: Duration = Duration::from_millis(50);
/// It counts after so long in any case: a directory in which something always happens is not held back.
const SETTLE_MOST: Duration = Duration::from_millis(250);
/// Bytes of the buffer for events: some hundred of them.
const BUFFER: usize = 16_384;
/// Events that are looked at together, if so many are there: the kernel's own queue has 16,384 (`max_queued_events`).
const BATCH: usize = 16_384;

/// The manifests directory.
#[derive(Debug)]
pub struct ManifestSource {
    root: PathBuf,
}

impl ManifestSource {
    /// A source of the manifests in a directory and those below. The directory need not exist yet.
    pub fn new(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        Self {
            // It fails only where there is no working directory, or for an empty path.
            root: std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()),
        }
    }
}

impl Source for ManifestSource {
    fn name(&self) -> &'static str {
        "manifests"
    }

    fn kinds(&self) -> &[Kind] {
        &Kind::ALL
    }

    fn run(self: Box<Self>, events: Events) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut told = Told {
                events,
                failed: None,
                synced: false,
            };
            // The receiver being gone is the only way out.
            let _ = run(self.root, &mut told).await;
        })
    }
}

/// The receiver is gone.
struct Closed;

/// What the reconciler was told of the directory's state.
struct Told {
    events: Events,
    failed: Option<(SystemTime, String)>,
    synced: bool,
}

impl Told {
    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    async fn good(&mut self, events: Vec<Event>) -> Result<(), Closed> {
        for event in events {
            self.send(event).await?;
        }
        if self.failed.take().is_some() || !self.synced {
            self.synced = true;
            for kind in Kind::ALL {
                self.send(Event::Synced(kind)).await?;
            }
        }
        Ok(())
    }

    async fn bad(&mut self, reason: String) -> Result<(), Closed> {
        let since = match &self.failed {
            Some((_, told)) if *told == reason => return Ok(()),
            Some((since, _)) => *since,
            None => SystemTime::now(),
        };
        self.failed = Some((since, reason.clone()));
        for kind in Kind::ALL {
            self.send(Event::Stale {
                kind,
                since,
                reason: reason.clone(),
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until it is time to try again.
    async fn retry(&self) -> Result<(), Closed> {
        tokio::select! {
            () = self.events.closed() => Err(Closed),
            () = sleep(RETRY) => Ok(()),
        }
    }
}

async fn run(root: PathBuf, told: &mut Told) -> Result<(), Closed> {
    let (watches, mut batches) = loop {
        match Inotify::init().and_then(batches) {
            Ok(batches) => break batches,
            Err(error) => {
                let reason = format!(
                    "inotify: {error}; raise the sysctl fs.inotify.max_user_instances, or the limit of open files"
                );
                told.bad(reason).await?;
                told.retry().await?;
            }
        }
    };
    let worker = Arc::new(Mutex::new(Worker::new(root, watches)));
    let mut input = Input::Look;
    // Since when something is not over.
    let mut unsettled: Option<Instant> = None;
    loop {
        let worker = Arc::clone(&worker);
        let done = tokio::task::spawn_blocking(move || {
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            worker.work(input)
        });
        let settled = match done.await {
            Ok(Ok(Some(events))) => {
                told.good(events).await?;
                true
            }
            Ok(Ok(None)) => false,
            Ok(Err(reason)) => {
                told.bad(reason).await?;
                true
            }
            Err(error) => {
                told.bad(format!(
                    "reading the manifests failed inside Sluice: {error}"
                ))
                .await?;
                true
            }
        };
        let now = Instant::now();
        unsettled = (!settled).then(|| unsettled.unwrap_or(now));
        let look = unsettled.map(|since| (now + SETTLE).min(since + SETTLE_MOST));
        if look.is_some_and(|at| at <= now) {
            input = Input::Look;
            continue;
        }
        let failed = told.failed.is_some();
        input = tokio::select! {
            () = told.events.closed() => return Err(Closed),
            batch = batches.next() => match batch {
                Some(Ok(batch)) => Input::Events(batch),
                // Then nothing is known of what happened: look at everything, after a while.
                Some(Err(error)) => {
                    told.bad(format!("inotify: {error}")).await?;
                    told.retry().await?;
                    Input::Everything
                }
                // A stream of the kernel's events has no end.
                None => {
                    told.retry().await?;
                    Input::Everything
                }
            },
            () = sleep_until(look.unwrap_or(now)), if look.is_some() => Input::Look,
            () = sleep(RETRY), if failed && look.is_none() => Input::Everything,
        };
    }
}

/// What the worker is given.
enum Input {
    Everything,
    Events(Vec<RawEvent>),
    /// What it was given before is over.
    Look,
}

impl Worker {
    /// None where more is to be waited for.
    fn work(&mut self, input: Input) -> Result<Option<Vec<Event>>, String> {
        match input {
            Input::Everything => self.doubt(),
            Input::Events(events) => {
                if self.take(&events) {
                    return Ok(None);
                }
            }
            Input::Look => {}
        }
        self.look().map(Some)
    }
}

/// Events as they come: all that are there at once, because a rename is two of them.
fn batches(
    inotify: Inotify,
) -> io::Result<(
    Watches,
    impl Stream<Item = io::Result<Vec<RawEvent>>> + Unpin,
)> {
    let watches = inotify.watches();
    let stream = inotify.into_event_stream(vec![0; BUFFER])?;
    let batches = stream.ready_chunks(BATCH).map(|batch| {
        batch
            .into_iter()
            .map(|event| {
                event.map(|event| RawEvent {
                    watch: event.wd.get_watch_descriptor_id(),
                    mask: event.mask,
                    name: event.name,
                })
            })
            .collect()
    });
    Ok((watches, batches))
}
