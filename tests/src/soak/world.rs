//! The world as it is written: manifests and links, each change of one of them noted in the history before it begins.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sluice::model::{Cluster, Kind};
use sluice::source::{Documents, Event};

use super::history::{History, State};
use super::view::{Links, NODES, Plugged, PolicyView, ServiceView};
use crate::lab::lock;
use crate::lab::manifests::ManifestDir;

/// Writes the world.
#[derive(Debug)]
pub(super) struct World {
    /// What the agents read.
    pub(super) dir: ManifestDir,
    documents: Documents,
    cluster: Cluster,
    links: Links,
    uplinks: [bool; 2],
    own: [[IpAddr; 2]; 2],
    /// None until the agents are ready: nothing is held against what is written before.
    history: Option<Arc<Mutex<History>>>,
}

impl World {
    /// An empty world; the nodes own these addresses.
    pub(super) fn new(dir: ManifestDir, own: [[IpAddr; 2]; 2]) -> Self {
        Self {
            dir,
            documents: Documents::new(),
            cluster: Cluster::default(),
            links: Links::new(),
            uplinks: [true; 2],
            own,
            history: None,
        }
    }

    /// All that was written so far is in force: the history begins.
    pub(super) fn begin(&mut self) -> Arc<Mutex<History>> {
        let cluster = Arc::new(self.cluster.clone());
        let state = State {
            number: 0,
            what: "the begin".to_owned(),
            policy: Arc::new(PolicyView::new(
                Arc::clone(&cluster),
                &self.links,
                &self.own,
            )),
            services: Arc::new(ServiceView::new(cluster)),
            links: Arc::new(self.links.clone()),
            uplinks: self.uplinks,
        };
        let history = Arc::new(Mutex::new(History::new(state)));
        self.history = Some(Arc::clone(&history));
        history
    }

    /// Writes or replaces an object.
    pub(super) fn put(&mut self, object: &Value) -> Result<()> {
        let text = serde_yaml_ng::to_string(object).context("writing YAML")?;
        let name = name_of(object);
        self.documents.put(&name, &text);
        self.take_in(&format!("put {name}"))?;
        let written = self.dir.put(object);
        self.end();
        written
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, object: &Value) -> Result<()> {
        let name = name_of(object);
        self.documents.remove(&name);
        self.take_in(&format!("remove {name}"))?;
        let written = self.dir.remove(object);
        self.end();
        written
    }

    /// Plugs a pod's addresses in, or (with nothing) unplugs them, by `change`.
    pub(super) fn link<T>(
        &mut self,
        what: &str,
        addresses: [IpAddr; 2],
        plugged: Option<&Plugged>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        for ip in addresses {
            match plugged {
                Some(plugged) => drop(self.links.insert(ip, plugged.clone())),
                None => drop(self.links.remove(&ip)),
            }
        }
        self.note(what, true, false);
        let changed = change();
        self.end();
        changed
    }

    /// Takes a node's uplink up or down, by `change`.
    pub(super) fn uplink(
        &mut self,
        node: usize,
        up: bool,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.uplinks[node] = up;
        let word = if up { "up" } else { "down" };
        self.note(&format!("uplink of {} {word}", NODES[node]), false, false);
        let changed = change();
        self.end();
        changed
    }

    fn take_in(&mut self, what: &str) -> Result<()> {
        let (mut policy, mut services) = (false, false);
        for event in self.documents.changes() {
            let kind = match event {
                Event::Upsert(object) => {
                    let kind = object.id().kind;
                    drop(self.cluster.upsert(object));
                    kind
                }
                Event::Delete(id) => {
                    drop(self.cluster.delete(&id));
                    id.kind
                }
                Event::Rejected(rejected) => bail!("a bad manifest was made: {rejected}"),
                Event::Synced(_) | Event::Stale { .. } | Event::Notice(_) | Event::Mended(_) => {
                    continue;
                }
            };
            match kind {
                Kind::Service | Kind::EndpointSlice => services = true,
                _ => policy = true,
            }
        }
        self.note(what, policy, services);
        Ok(())
    }

    fn note(&self, what: &str, policy: bool, services: bool) {
        let Some(history) = &self.history else {
            return;
        };
        let cluster = Arc::new(self.cluster.clone());
        let mut history = lock(history);
        let last = history.current();
        let policy = match &last {
            Some(last) if !policy => Arc::clone(&last.policy),
            _ => Arc::new(PolicyView::new(
                Arc::clone(&cluster),
                &self.links,
                &self.own,
            )),
        };
        let services = match &last {
            Some(last) if !services => Arc::clone(&last.services),
            _ => Arc::new(ServiceView::new(cluster)),
        };
        let links = match last {
            Some(last) if *last.links == self.links => Arc::clone(&last.links),
            _ => Arc::new(self.links.clone()),
        };
        history.begin(|number| State {
            number,
            what: what.to_owned(),
            policy,
            services,
            links,
            uplinks: self.uplinks,
        });
    }

    fn end(&self) {
        if let Some(history) = &self.history {
            lock(history).end();
        }
    }
}

fn name_of(object: &Value) -> String {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
    };
    let (kind, namespace, name) = (
        text("/kind"),
        text("/metadata/namespace"),
        text("/metadata/name"),
    );
    format!("{kind} {namespace}/{name}")
}
