//! Which interface carries which stub, and making it so.
//!
//! Reconciling is by what is really there, read each time: links of tcx by their pins, clsact filters by asking the kernel. So a restart
//! keeps what an earlier agent attached, with no gap, and something taken away by hand comes back. Links of tcx are held, too: their pins
//! may go without a packet noticing. What is attached is a stub that never changes, whatever layout is in force; the pinned stubs are those
//! of the agent that made them first.

pub(super) mod clsact;
mod stub;
mod tcx;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::drift::{Found, Repair};
use super::held::Held;
use super::host::{self, HostError};
use super::load::LoadError;
use super::pins::Pins;
use super::programs::Programs;
use crate::problem::Problem;
use clsact::Clsact;
use tcx::Tcx;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// tcx where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// Links of tcx.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// Where on an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// What comes from the wire, or from the pod.
    Ingress,
    /// What goes there.
    Egress,
}

/// A place that a stub belongs in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Interface index.
    pub ifindex: u32,
    /// Which way.
    pub side: Side,
}

/// The stubs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StubName {
    /// Host side of a pod's link, ingress.
    FromPod,
    /// Host side of a pod's link, egress.
    ToPod,
    /// Uplink, ingress.
    FromUplink,
}

impl StubName {
    const ALL: [Self; 3] = [Self::FromPod, Self::ToPod, Self::FromUplink];

    /// The program's name in the object, and that of its pin and filter.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "stub_from_pod",
            Self::ToPod => "stub_to_pod",
            Self::FromUplink => "stub_from_uplink",
        }
    }
}

/// Why something could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel has no tcx, and it was asked for.
    #[error(
        "this kernel has no tcx (it came with Linux 6.6): use --attach=clsact or --attach=auto"
    )]
    NoTcx,
    /// A stub is missing or cannot be pinned.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The network namespace cannot be told.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Something about one interface.
    #[error("interface {ifindex}: {what}: {source}")]
    Interface {
        /// Its index.
        ifindex: u32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something about no interface in particular.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl AttachError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What a reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// Attached now.
    pub attached: Vec<Place>,
    /// Taken away now: places that no pod link or uplink needs any more.
    pub detached: Vec<Place>,
    /// Found and kept.
    pub kept: Vec<Place>,
    /// Places that could not be served; all others were.
    pub failed: Vec<(Place, AttachError)>,
    /// Links that were pinned again.
    pub repaired: Vec<Repair>,
    /// Links that could not be pinned again.
    pub problems: Vec<Problem>,
}

/// Attaches the stubs.
pub struct Attacher {
    stubs: BTreeMap<StubName, Held>,
    tcx: Option<Tcx>,
    clsact: Clsact,
    use_tcx: bool,
}

impl Attacher {
    /// Takes the pinned stubs over, or pins these; finds out what the kernel can do. Attaches nothing yet.
    ///
    /// # Errors
    /// A stub cannot be pinned, or tcx was asked for and is not there.
    pub fn new(pins: &Pins, programs: &Programs, mode: Mode) -> Result<Self, AttachError> {
        let mut stubs = BTreeMap::new();
        for name in StubName::ALL {
            stubs.insert(name, stub::adopt(pins, programs, name)?);
        }
        let has_tcx = match stubs.get(&StubName::FromPod) {
            Some(stub) => tcx::supported(stub)?,
            None => false,
        };
        let use_tcx = match (mode, has_tcx) {
            (Mode::Tcx, false) => return Err(AttachError::NoTcx),
            (Mode::Clsact, _) | (Mode::Auto, false) => false,
            (Mode::Tcx | Mode::Auto, true) => true,
        };
        let tcx = if has_tcx {
            Some(Tcx::new(pins.links(), host::netns_cookie()?))
        } else {
            None
        };
        Ok(Self {
            stubs,
            tcx,
            clsact: Clsact::new(),
            use_tcx,
        })
    }

    /// How the programs are attached.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        if self.use_tcx {
            Mode::Tcx
        } else {
            Mode::Clsact
        }
    }

    /// Makes sure that the pins of the stubs are there.
    pub fn check(&self, pins: &Pins, found: &mut Found) {
        for (name, stub) in &self.stubs {
            stub.keep_pinned(&pins.program(name.program()), found);
        }
    }

    /// Makes it so that pod links and uplinks carry their stubs, and nothing else of ours does. What is missing comes first, what is too
    /// many goes last. Works in the calling thread's network namespace, the one that [`Self::new`] was called in.
    ///
    /// # Errors
    /// What is attached cannot be read. An interface that fails by itself (it may just have gone) is in the report.
    pub fn reconcile(
        &mut self,
        pods: &BTreeSet<u32>,
        uplinks: &BTreeSet<u32>,
    ) -> Result<Report, AttachError> {
        let wanted = wanted(pods, uplinks);
        let mut report = Report::default();
        let (mut in_tcx, mut in_clsact) = (BTreeMap::new(), BTreeMap::new());
        if let Some(tcx) = &mut self.tcx {
            let mut found = Found::default();
            in_tcx = tcx.attached(&mut found)?;
            (report.repaired, report.problems) = (found.repaired, found.problems);
        }
        // Without a filter of ours there may be thousands of interfaces and no qdisc: one dump tells.
        let mut qdiscs = Qdiscs {
            there: self.clsact.qdiscs()?,
            made: BTreeSet::new(),
        };
        for (place, filter) in self.clsact.attached(&qdiscs.there)? {
            if filter.made_qdisc {
                qdiscs.made.insert(place.ifindex);
            }
            in_clsact.insert(place, filter.program);
        }

        for (&place, name) in &wanted {
            let Some(stub) = self.stubs.get(name) else {
                continue;
            };
            let present = if self.use_tcx {
                in_tcx.get(&place)
            } else {
                in_clsact.get(&place)
            };
            if present == Some(&stub.id) {
                report.kept.push(place);
                continue;
            }
            let replaces = present.is_some();
            let result = match &mut self.tcx {
                Some(tcx) if self.use_tcx => tcx.attach(place, stub, replaces),
                _ => qdiscs
                    .ensure(&self.clsact, place.ifindex)
                    .and_then(|made| self.clsact.attach(place, *name, stub, replaces, made)),
            };
            match result {
                Ok(()) => report.attached.push(place),
                Err(error) => report.failed.push((place, error)),
            }
        }

        let unneeded = |places: &BTreeMap<Place, u32>, in_use: bool| -> Vec<Place> {
            places
                .keys()
                .filter(|place| !in_use || !wanted.contains_key(*place))
                // Only when its other way of being attached works may this one go.
                .filter(|place| !report.failed.iter().any(|(failed, _)| failed == *place))
                .copied()
                .collect()
        };
        let from_tcx = unneeded(&in_tcx, self.use_tcx);
        let from_clsact = unneeded(&in_clsact, !self.use_tcx);
        if let Some(tcx) = &mut self.tcx {
            for place in from_tcx {
                tcx.detach(place)?;
                report.detached.push(place);
            }
        }
        for place in from_clsact {
            let removed = self.clsact.detach(place).and_then(|()| {
                if qdiscs.made.contains(&place.ifindex) {
                    self.clsact.remove_qdisc(place.ifindex)?;
                }
                Ok(())
            });
            match removed {
                Ok(()) => report.detached.push(place),
                Err(error) => report.failed.push((place, error)),
            }
        }
        Ok(report)
    }
}

/// Interfaces with a clsact qdisc, and those whose qdisc Sluice made.
struct Qdiscs {
    there: BTreeSet<u32>,
    made: BTreeSet<u32>,
}

impl Qdiscs {
    /// Adds the qdisc where it is missing. Whether it is ours.
    fn ensure(&mut self, clsact: &Clsact, ifindex: u32) -> Result<bool, AttachError> {
        if !self.there.contains(&ifindex) {
            if clsact.add_qdisc(ifindex)? {
                self.made.insert(ifindex);
            }
            self.there.insert(ifindex);
        }
        Ok(self.made.contains(&ifindex))
    }
}

/// Every place and the stub that belongs there. A pod's link is never an uplink, whatever a list of devices says.
fn wanted(pods: &BTreeSet<u32>, uplinks: &BTreeSet<u32>) -> BTreeMap<Place, StubName> {
    let mut wanted = BTreeMap::new();
    for &ifindex in uplinks {
        let side = Side::Ingress;
        wanted.insert(Place { ifindex, side }, StubName::FromUplink);
    }
    for &ifindex in pods {
        for (side, name) in [
            (Side::Ingress, StubName::FromPod),
            (Side::Egress, StubName::ToPod),
        ] {
            wanted.insert(Place { ifindex, side }, name);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_both_sides_and_uplinks_one() {
        let wanted = wanted(&BTreeSet::from([4]), &BTreeSet::from([2, 4]));
        let place = |ifindex, side| Place { ifindex, side };
        assert_eq!(
            wanted.into_iter().collect::<Vec<_>>(),
            [
                (place(2, Side::Ingress), StubName::FromUplink),
                (place(4, Side::Ingress), StubName::FromPod),
                (place(4, Side::Egress), StubName::ToPod),
            ]
        );
    }
}
