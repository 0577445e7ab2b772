//! From the cluster to what the maps should say. Pure: no I/O, no clock.
//!
//! Each part keeps what saves it work, and runs again only the keys that a change concerns.

mod addresses;
mod adopt;
mod binding;
pub mod endpoints;
mod enforcement;
mod groups;
mod identity;
mod names;
mod notices;
mod numbers;
mod peers;
mod pods;
mod policies;
mod ports;
mod prefixes;
mod remains;
pub mod services;
mod sets;
#[cfg(test)]
pub(crate) mod tests;
mod trie;
mod view;
mod vocabulary;

pub use names::{RuleName, RuleNames};
pub use view::{PodView, Sizes};

use agent_common::limits;

use crate::datapath::Contents;
use crate::desired::Delta;
use crate::local::Local;
use crate::model::{Change, Cluster, Text};
use crate::problem::Problem;
use enforcement::Enforcement;
use notices::Selected;
use services::{ServiceOptions, Services};

/// What ipBlocks match (`--ip-block-mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IpBlockMode {
    /// What the CIDR says, as upstream's tests want.
    #[default]
    Literal,
    /// As Cilium (and AKS): never pods, nodes or this host.
    Cilium,
}

/// What holds for a pod link whose pod no source has told of (`--unknown-pod`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnknownPod {
    /// It is not isolated.
    #[default]
    Allow,
    /// Only this host reaches it.
    Deny,
}

/// Capacities that compile keeps to, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `addresses`.
    pub addresses: u32,
    /// `groups`, which identities are places of.
    pub identities: u32,
    /// `prefixes`.
    pub prefixes: u32,
    /// `rules`.
    pub rules: u32,
    /// `pods`.
    pub pods: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: limits::ADDRESSES,
            identities: crate::desired::STAGED_IDENTITIES,
            prefixes: limits::PREFIXES,
            rules: limits::RULES,
            pods: limits::PODS,
        }
    }
}

/// What compile depends on beside the cluster and the node's own state. It does not change while a compiler lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The node that this agent runs on.
    pub node_name: Text,
    /// See [`IpBlockMode`].
    pub ip_block_mode: IpBlockMode,
    /// See [`UnknownPod`].
    pub unknown_pod: UnknownPod,
    /// See [`Limits`].
    pub limits: Limits,
}

impl Options {
    /// The defaults, on a node.
    pub fn new(node_name: Text) -> Self {
        Self {
            node_name,
            ip_block_mode: IpBlockMode::default(),
            unknown_pod: UnknownPod::default(),
            limits: Limits::default(),
        }
    }
}

/// What an update came to.
#[derive(Clone, Default, Debug)]
pub struct Compiled {
    /// Everything that is different from what was compiled before; the first one is the whole.
    pub delta: Delta,
    /// Everything that is not in force as the cluster asks, now (not only since the last update).
    pub problems: Vec<Problem>,
    /// What an operator would want to know and is no error (a policy that selects nothing), likewise.
    pub notices: Vec<Problem>,
    /// Once the delta is applied, an update without changes is due: it removes what had to stay until then.
    pub unfinished: bool,
}

/// Compiles the cluster, change by change.
#[derive(Clone, Debug)]
pub struct Compiler {
    enforcement: Enforcement,
    services: Services,
    selected: Selected,
    service_options: ServiceOptions,
    adopting: Option<Box<Contents>>,
}

impl Compiler {
    /// A compiler that has compiled nothing. Its first update must be told of the whole cluster (every object as a change that
    /// appears) and that the node's own state changed.
    pub fn new(options: Options) -> Self {
        Self {
            service_options: ServiceOptions {
                node_name: options.node_name.clone(),
            },
            services: Services::default(),
            selected: Selected::default(),
            enforcement: Enforcement::new(options),
            adopting: None,
        }
    }

    /// Before the first update: takes numbers over from what the maps say, so that they differ
    /// from the first delta, which is the whole, in as little as can be.
    pub fn adopt(&mut self, contents: Contents) {
        self.adopting = Some(Box::new(contents));
    }

    /// Whether the plan could not do all of what it was told: something may still point to numbers that are not in use any more,
    /// and pods may be judged by sets that they should have left. Until it could, these stay what they are.
    pub fn hold(&mut self, hold: bool) {
        self.enforcement.hold = hold;
    }

    /// Takes changes in, and the node's own state.
    pub fn update(
        &mut self,
        cluster: &Cluster,
        local: &Local,
        changes: &[Change],
        local_changed: bool,
    ) -> Compiled {
        let mut delta = Delta::default();
        let mut problems = Vec::new();
        let adopting = self.adopting.take();
        self.enforcement.update(
            cluster,
            local_changed.then_some(local),
            changes,
            adopting.as_deref(),
            &mut delta,
            &mut problems,
        );
        self.services.update(
            cluster,
            changes,
            &self.service_options,
            &mut delta,
            &mut problems,
        );
        if let Some(contents) = adopting {
            self.enforcement.take_over(&contents, &mut delta);
        }
        self.selected.update(cluster, changes);
        let overlaps = self.enforcement.overlaps.notices();
        let mut notices: Vec<Problem> = self.selected.notices().chain(overlaps).collect();
        notices.sort();
        problems.sort();
        problems.dedup();
        Compiled {
            delta,
            problems,
            notices,
            unfinished: self.enforcement.unfinished(),
        }
    }

    /// What the numbers of verdicts stand for.
    pub fn rule_names(&self) -> &RuleNames {
        &self.enforcement.names
    }

    /// What the compiler was made with.
    pub fn options(&self) -> &Options {
        &self.enforcement.options
    }
}
