//! Manifests as texts with names, read and merged as files of a directory are, without a directory.

use std::path::Path;

use super::parse::{Format, parse};
use super::store::Store;
use crate::source::Event;

/// Named texts of YAML: what a manifests directory with such files would tell.
#[derive(Default, Debug)]
pub struct Documents {
    store: Store,
}

impl Documents {
    /// No text.
    pub fn new() -> Self {
        Self::default()
    }

    /// A text of this name is there, or says something else now.
    pub fn put(&mut self, name: &str, text: &str) {
        self.store.put(Path::new(name), parse(Format::Yaml, text));
    }

    /// The text of a name is gone.
    pub fn remove(&mut self, name: &str) {
        self.store.remove(Path::new(name));
    }

    /// What has changed since the last call, as a source tells it.
    pub fn changes(&mut self) -> Vec<Event> {
        self.store.flush()
    }
}
