//! Puts the programs where the node's links are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::datapath::attach::{Attacher, Mode, Place, Side};
use crate::datapath::cgroup;
use crate::datapath::load::Programs;
use crate::datapath::pins::Pins;
use crate::local::Local;
use crate::problem::Problem;
use crate::reconcile::Attach;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is attached, for status.
#[derive(Clone, Default, Debug)]
pub(super) struct Attached {
    /// Places of stubs.
    pub(super) places: BTreeSet<(u32, bool)>,
    /// How stubs are attached.
    pub(super) mode: Mode,
    /// The cgroup whose processes are translated.
    pub(super) cgroup: Option<PathBuf>,
}

/// The hook of the reconciler.
pub(super) struct Attachments {
    programs: Programs,
    attacher: Attacher,
    pins: Arc<Pins>,
    cgroup: PathBuf,
    begun: bool,
    attached: Arc<Mutex<Attached>>,
}

impl Attachments {
    pub(super) fn new(
        programs: Programs,
        attacher: Attacher,
        pins: Arc<Pins>,
        cgroup: PathBuf,
    ) -> Self {
        Self {
            programs,
            attacher,
            pins,
            cgroup,
            begun: false,
            attached: Arc::default(),
        }
    }

    /// What is attached, as of the last time.
    pub(super) fn attached(&self) -> Arc<Mutex<Attached>> {
        Arc::clone(&self.attached)
    }
}

impl Attach for Attachments {
    fn attach(&mut self, local: &Local) -> Result<Vec<Problem>, Error> {
        if !self.begun {
            self.programs.install()?;
        }
        let pods: BTreeSet<u32> = local.pods.keys().copied().collect();
        let uplinks: BTreeSet<u32> = local.uplinks.keys().copied().collect();
        let report = self.attacher.reconcile(&pods, &uplinks)?;
        if !self.begun {
            cgroup::attach(&self.pins, &self.programs, &self.cgroup)?;
            self.begun = true;
        }
        let unsettled = self.programs.settle(&self.pins).err();
        for place in &report.attached {
            tracing::info!(interface = name(local, place.ifindex), side = ?place.side, "attached");
        }
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.mode = self.attacher.mode();
        attached.cgroup = Some(self.cgroup.clone());
        attached.places = report
            .attached
            .iter()
            .chain(&report.kept)
            .map(key)
            .collect();
        let unsettled = unsettled.map(|error| {
            let what = "connections of the Sluice before";
            Problem::new(what, format!("not taken over yet: {error}; tried again"))
        });
        Ok(report
            .failed
            .iter()
            .map(|(place, error)| {
                Problem::new(
                    format_args!("interface {}", name(local, place.ifindex)),
                    format!(
                        "no program at its {:?} side: {error}; tried again",
                        place.side
                    ),
                )
            })
            .chain(unsettled)
            .collect())
    }
}

fn key(place: &Place) -> (u32, bool) {
    (place.ifindex, place.side == Side::Ingress)
}

/// An interface's name, or its index where it has just gone.
fn name(local: &Local, ifindex: u32) -> String {
    match (local.pods.get(&ifindex), local.uplinks.get(&ifindex)) {
        (Some(link), _) => link.name.clone(),
        (None, Some(name)) => name.clone(),
        (None, None) => ifindex.to_string(),
    }
}
