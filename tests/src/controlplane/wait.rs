//! Waiting for the cluster to become what a test expects: by watching, never by sleeping.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// How long a controller may take. One alone needs a second or two; machines that build at once need more.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
/// A watch ends and is started anew after this, in seconds; below the server's own limit of 295.
const WATCH_SECONDS: u32 = 60;

/// Lists the objects that `labels` selects, and again after each change of one of them, until `wanted` says so.
/// Returns that list.
///
/// # Errors
/// When the deadline passes (the text holds `what` and the last list), or the server refuses.
pub(super) async fn until<K>(
    api: &Api<K>,
    labels: &str,
    what: &str,
    mut wanted: impl FnMut(&[K]) -> bool,
) -> Result<Vec<K>>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut last = Vec::new();
    let waiting = async {
        loop {
            let list = api.list(&ListParams::default().labels(labels)).await?;
            let version = list.metadata.resource_version.clone().unwrap_or_default();
            last = list.items;
            if wanted(&last) {
                return Ok::<_, anyhow::Error>(());
            }
            let params = WatchParams::default().labels(labels).timeout(WATCH_SECONDS);
            let mut changes = std::pin::pin!(api.watch(&params, &version).await?);
            while let Some(event) = changes.try_next().await? {
                if !matches!(event, WatchEvent::Bookmark(_)) {
                    // A change, or an error such as 410 Gone: either way the next list tells.
                    break;
                }
            }
        }
    };
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(done) => done.with_context(|| format!("waiting for {what}"))?,
        Err(_) => bail!("waited {DEADLINE:?} for {what}; the last state: {last:#?}"),
    }
    Ok(last)
}
