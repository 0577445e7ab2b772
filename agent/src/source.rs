//! Where cluster state comes from. Every source speaks in [`Event`]s, through one channel; the reconciler owns the cluster.

mod kube;
mod manifests;
mod objects;

use std::fmt;
use std::time::SystemTime;

pub use self::kube::{ClientError, KubeSource};
pub use self::manifests::{Documents, ManifestSource};

use tokio::sync::mpsc;

use crate::model::{Kind, Object, ObjectId};

/// What a source tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is there, or is different now.
    Upsert(Object),
    /// An object is gone. A source turns a relist, a removed file and a missed deletion into these.
    Delete(ObjectId),
    /// An object cannot be taken as it is. What it replaces stays in force; a good version or its deletion ends the rejection.
    Rejected(Rejected),
    /// The rejection of what [`Rejected::object`] names so, and that has no id (a file), is over.
    Mended(String),
    /// Something worth telling an operator that is no error (a kind that is skipped, a policy that selects nothing).
    Notice(Rejected),
    /// Everything of a kind that exists at the source has been told.
    Synced(Kind),
    /// The source of a kind is lost since then; its last state stays in force.
    Stale {
        /// The kind.
        kind: Kind,
        /// Since when.
        since: SystemTime,
        /// Why, for people.
        reason: String,
    },
}

/// An object that was not taken, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    /// What: `NetworkPolicy default/web`, or a file where no object can be made out.
    pub object: String,
    /// The id, where it is known.
    pub id: Option<ObjectId>,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

/// How sources reach the reconciler.
pub type Events = mpsc::Sender<Event>;

/// A source of cluster state. It runs until the receiver is gone, and never ends because its origin fails: it reports
/// [`Event::Stale`] and tries again.
pub trait Source: Send {
    /// For people and metrics: `manifests`, `kubernetes`.
    fn name(&self) -> &'static str;
    /// The kinds that this source tells of; the reconciler waits for each to be synced before it removes anything.
    fn kinds(&self) -> &[Kind];
    /// Runs the source.
    fn run(self: Box<Self>, events: Events) -> futures::future::BoxFuture<'static, ()>;
}
