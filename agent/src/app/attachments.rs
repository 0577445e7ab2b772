//! Puts the programs where the node's links are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::datapath::attach::{Attacher, Mode, Place, Report, Side};
use crate::datapath::cgroup::Sockets;
use crate::datapath::drift::{Found, Maps, Part, Repair};
use crate::datapath::pins::Pins;
use crate::datapath::programs::Programs;
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
    maps: Maps,
    cgroup: PathBuf,
    /// None before the first time.
    sockets: Option<Sockets>,
    attached: Arc<Mutex<Attached>>,
    repaired: Vec<Repair>,
}

impl Attachments {
    pub(super) fn new(
        programs: Programs,
        attacher: Attacher,
        pins: Arc<Pins>,
        maps: Maps,
        cgroup: PathBuf,
    ) -> Self {
        Self {
            programs,
            attacher,
            pins,
            maps,
            cgroup,
            sockets: None,
            attached: Arc::default(),
            repaired: Vec::new(),
        }
    }

    /// What is attached, as of the last time.
    pub(super) fn attached(&self) -> Arc<Mutex<Attached>> {
        Arc::clone(&self.attached)
    }
}

impl Attachments {
    /// Says what was attached, and notes where something had been taken away since the last time.
    fn tell(&mut self, local: &Local, report: &Report) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let same_way = attached.mode == self.attacher.mode();
        for place in &report.attached {
            let (interface, side) = (name(local, place.ifindex), place.side);
            if same_way && attached.places.contains(&key(place)) {
                let what =
                    format!("interface {interface}: its program at the {side:?} side was gone");
                let part = Part::Attachment;
                self.repaired.push(Repair { part, what });
            } else {
                tracing::info!(interface, ?side, "attached");
            }
        }
        attached.mode = self.attacher.mode();
        attached.cgroup = Some(self.cgroup.clone());
        attached.places = report
            .attached
            .iter()
            .chain(&report.kept)
            .map(key)
            .collect();
    }
}

impl Attach for Attachments {
    fn attach(&mut self, local: &Local) -> Result<Vec<Problem>, Error> {
        if self.sockets.is_none() {
            self.programs.install()?;
        }
        let pods: BTreeSet<u32> = local.pods.keys().copied().collect();
        let uplinks: BTreeSet<u32> = local.uplinks.keys().copied().collect();
        let mut report = self.attacher.reconcile(&pods, &uplinks)?;
        if self.sockets.is_none() {
            let (sockets, _) = Sockets::attach(&self.pins, &self.programs, &self.cgroup)?;
            self.sockets = Some(sockets);
        }
        let unsettled = self.programs.settle(&self.pins).err();
        self.tell(local, &report);
        self.repaired.append(&mut report.repaired);
        let failed = report.failed.iter().map(|(place, error)| {
            Problem::new(
                format_args!("interface {}", name(local, place.ifindex)),
                format!(
                    "no program at its {:?} side: {error}; tried again",
                    place.side
                ),
            )
        });
        let unsettled = unsettled.map(|error| {
            let what = "connections of the Sluice before";
            Problem::new(what, format!("not taken over yet: {error}; tried again"))
        });
        Ok(failed.chain(report.problems).chain(unsettled).collect())
    }

    fn check(&mut self) -> Vec<Problem> {
        let mut found = Found::default();
        if let Some(sockets) = &mut self.sockets {
            self.maps.check(&self.pins, &self.programs, &mut found);
            self.attacher.check(&self.pins, &mut found);
            sockets.check(&self.pins, &self.programs, &mut found);
        }
        self.repaired.append(&mut found.repaired);
        found.problems
    }

    fn mended(&mut self) -> Vec<Repair> {
        std::mem::take(&mut self.repaired)
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
