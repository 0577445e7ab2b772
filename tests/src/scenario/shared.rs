//! Maps in memory that outlive the agent, as pinned ones do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::{Config, feature};
use sluice::compile::{IpBlockMode, Options, UnknownPod};
use sluice::datapath::memory::Memory;
use sluice::datapath::{Contents, Datapath, DatapathError, Write};

#[derive(Default, Debug)]
struct Inner {
    memory: Memory,
    log: Vec<Write>,
}

/// Maps in memory, with a log of what is written.
#[derive(Clone, Default, Debug)]
pub struct Shared(Arc<Mutex<Inner>>);

impl Shared {
    /// Empty maps, configured as the agent's wiring does.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let shared = Self::default();
        let mut features = 0;
        if options.ip_block_mode == IpBlockMode::Literal {
            features |= feature::LITERAL;
        }
        if options.unknown_pod == UnknownPod::Deny {
            features |= feature::UNKNOWN_DENY;
        }
        let config = Config {
            features,
            ..Config::default()
        };
        shared.with(|inner| {
            // Maps in memory refuse nothing but what does not fit.
            let _ = inner.memory.write(&Write::Config(config));
        });
        shared
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the maps hold.
    #[must_use]
    pub fn view(&self) -> Contents {
        self.with(|inner| inner.memory.view().clone())
    }

    /// The writes since the last call.
    #[must_use]
    pub fn take_log(&self) -> Vec<Write> {
        self.with(|inner| std::mem::take(&mut inner.log))
    }
}

impl Datapath for Shared {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        self.with(|inner| {
            inner.memory.write(write)?;
            inner.log.push(*write);
            Ok(())
        })
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.with(|inner| inner.memory.grace())
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        self.with(|inner| inner.memory.contents())
    }
}

/// Writes by map and field, counted: one line each.
pub(super) fn summary(writes: &[Write]) -> String {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for write in writes {
        let field = match write {
            Write::BackendWord(..) => ".word",
            Write::PodSet(..) => ".set",
            Write::PodFacts(..) => ".facts",
            Write::Epoch(..) => ".epoch",
            Write::Service(_, None)
            | Write::Address(_, None)
            | Write::Prefix(_, None)
            | Write::Rule(_, None)
            | Write::Link(_, None) => " removed",
            _ => "",
        };
        *counts
            .entry(format!("{}{field}", write.map().0))
            .or_insert(0) += 1;
    }
    counts
        .into_iter()
        .map(|(name, count)| format!("{name}: {count}\n"))
        .collect()
}
