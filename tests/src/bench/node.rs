//! The datapath of a node without a network: the agent's maps and programs as it loads them, pinned where a lab's are, attached to
//! nothing.

use agent_common::{Config, Timeouts, feature, limits};
use anyhow::{Context, Result};
use sluice::datapath::attach::{Attacher, Mode};
use sluice::datapath::capacity::Memory;
use sluice::datapath::object::Sizes;
use sluice::datapath::pins::Pins;
use sluice::datapath::{Datapath, KernelDatapath, Write, host, load, programs::Programs};

use super::runs::Pinned;
use crate::lab::{Lab, bpffs};

/// Maps and programs. They go with this value.
pub struct Node {
    /// The stubs, as they would be attached: `stub_from_pod` and `stub_to_pod`.
    pub from_pod: Pinned,
    /// See [`Node::from_pod`].
    pub to_pod: Pinned,
    /// Flows that the table of those that nobody has answered has room for.
    pub unanswered: u32,
    _programs: Programs,
    // Last: it takes the pins away.
    _lab: Lab,
}

impl Node {
    /// Loads everything, and answers the maps beside it, as large as an agent makes them on this machine. Works in the calling thread's
    /// network namespace.
    ///
    /// # Errors
    /// Not root, no bpffs, or the kernel refuses a map or a program.
    pub fn load() -> Result<(Self, KernelDatapath)> {
        let lab = Lab::new("benchmaps")?;
        let root = bpffs::pin_root(&lab.id(), "maps")?;
        let pins = Pins::open(&root)?;
        let sizes = Sizes::of_flows(Memory::read().flows());
        let mut loaded = load::load(&pins, &sizes, &Timeouts::DEFAULT)?;
        let config = Config {
            netns_cookie: host::netns_cookie()?,
            features: feature::LITERAL,
            layout: u64::from(limits::LAYOUT),
        };
        loaded
            .datapath
            .write(&Write::Config(config))
            .context("writing the switches")?;
        loaded.programs.install()?;
        // It pins the stubs; nothing is attached.
        Attacher::new(&pins, &loaded.programs, Mode::Auto)?;
        let stub = |name: &str| Pinned::open(&pins.program(name));
        let node = Self {
            from_pod: stub("stub_from_pod")?,
            to_pod: stub("stub_to_pod")?,
            unanswered: sizes.unreplied / limits::ENTRIES_PER_FLOW,
            _programs: loaded.programs,
            _lab: lab,
        };
        Ok((node, loaded.datapath))
    }
}
