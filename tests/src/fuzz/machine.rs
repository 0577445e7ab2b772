//! One node twice: the programs with their maps, and the model. Each step is done to both, and what comes of it is held against each other.

mod config;
mod errors;
mod observe;

use std::collections::HashMap;

use agent_common::{Count, address_kind, event_kind, hook};
use anyhow::{Context, Result};

use super::coverage::Coverage;
use super::model::cluster::Who;
use super::model::{Arrival, Expected, Model, Told, Verdict};
use super::step::{By, Edit, Origin, PacketStep, Place, Step};
use super::wire;
use crate::packet::address::Family;
use crate::packet::flows;
use crate::packet::world::{LocalPod, Service, World};
use observe::Observed;

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// How the programs and the model differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In a few words, the same for the same fault: a shorter sequence must show the same.
    pub what: String,
    /// What the one did and the other.
    pub detail: String,
}

/// A packet that went through.
struct Gone {
    place: Place,
    sent: Vec<u8>,
    out: Vec<u8>,
    verdict: Verdict,
}

/// The programs and the model.
pub struct Machine {
    world: World,
    model: Model,
    pods: HashMap<u8, LocalPod>,
    services: Vec<Service>,
    gone: HashMap<usize, Gone>,
    before: Vec<u64>,
    /// Whether limits were spent: what they keep back is no difference then.
    spent: bool,
    /// Events that did not come.
    silent: u64,
    /// Refusals that were not sent, at least and at most.
    unsent: (u64, u64),
    /// Holds the tables after each packet, to find the one that is at fault.
    close: bool,
    verdicts: Coverage,
}

impl Machine {
    /// A node that knows itself and another.
    ///
    /// # Errors
    /// See [`World::new`].
    pub fn new(close: bool) -> Result<Self> {
        let mut world = World::new(Family::V4)?;
        let mut model = Model::default();
        for family in FAMILIES {
            for (address, kind, identity) in [
                (family.host(), address_kind::HOST, 1),
                (family.node(), address_kind::NODE, 2),
            ] {
                world.know(address, kind, identity)?;
                let who = Who {
                    kind,
                    slot: None,
                    identity,
                };
                model.cluster.who.insert(address, who);
            }
        }
        let before = world.counted()?;
        Ok(Self {
            world,
            model,
            pods: HashMap::new(),
            services: Vec::new(),
            gone: HashMap::new(),
            before,
            spent: false,
            silent: 0,
            unsent: (0, 0),
            close,
            verdicts: Coverage::default(),
        })
    }

    /// Does a step to both.
    ///
    /// # Errors
    /// The kernel refuses it. A difference is `Ok(Some(...))`.
    pub fn take(&mut self, step: &Step) -> Result<Option<Difference>> {
        match step {
            Step::Packet(packet) => self.packet(packet),
            _ => {
                self.configure(step)
                    .with_context(|| format!("step {step:?}"))?;
                Ok(None)
            }
        }
    }

    /// Holds tables and counters, and gives the maps to the next sequence. Adds what was reached to `coverage`.
    ///
    /// # Errors
    /// The kernel refuses the reading.
    pub fn finish(self, coverage: &mut Coverage) -> Result<Option<Difference>> {
        let difference = match self.tables_differ()? {
            Some(difference) => Some(difference),
            None => self.counters_differ(coverage)?,
        };
        coverage.add(&self.verdicts);
        self.world.leave();
        Ok(difference)
    }

    /// Gives the maps to the next sequence.
    pub fn leave(self) {
        self.world.leave();
    }

    fn packet(&mut self, step: &PacketStep) -> Result<Option<Difference>> {
        let Some((place, frame)) = self.resolve(step) else {
            return Ok(None);
        };
        let Some((at_hook, program, ifindex, ingress)) = self.enters(place) else {
            return Ok(None);
        };
        let wire = wire::read(&frame);
        let tick = flows::now();
        // By whom a service's packet was denied, which only the ring tells.
        let unclear = self.spent && self.model.cluster.is_cluster_ip(wire.ends.to.ip());
        let before = if unclear {
            self.world.counted()?
        } else {
            Vec::new()
        };
        let (code, out) = self
            .world
            .pass(program, ifindex, ingress, &frame)
            .with_context(|| format!("packet {} at {place:?}: {frame:02x?}", step.id))?;
        let events = self.world.raw_events();
        let observed = Observed::new(code, out, &events);
        let mut chance = self.chance(&wire, &observed);
        if unclear && observed.silent_drop() {
            self.find_out(at_hook, &before, &mut chance)?;
        }
        let arrival = Arrival {
            hook: at_hook,
            ifindex,
            ingress,
            frame: &frame,
            wire,
            tick,
            chance,
        };
        let expected = self.model.see(&arrival);
        if let Some(verdict) = observed.verdict {
            self.verdicts.saw(at_hook, verdict);
            let gone = Gone {
                place,
                sent: frame.clone(),
                out: observed.frame.clone(),
                verdict,
            };
            self.gone.insert(step.id, gone);
        }
        let mut difference = self.differs(&arrival, &expected, &observed);
        if difference.is_none() && self.close {
            difference = self.tables_differ()?;
        }
        Ok(difference.map(|mut difference| {
            difference.detail = format!(
                "packet {} at {place:?}, {:?}\n  in:       {}\n  expected: {:?} {}\n  saw:      {:?} {}\n{}",
                step.id,
                wire,
                hex(&frame),
                (expected.verdict, expected.told),
                hex(&expected.frame),
                (code, &observed.told),
                hex(&observed.frame),
                difference.detail,
            );
            difference
        }))
    }

    /// The frame of a step and where it enters.
    fn resolve(&self, step: &PacketStep) -> Option<(Place, Vec<u8>)> {
        let (mut place, mut frame) = match &step.origin {
            Origin::Frame(place, frame) => (*place, frame.clone()),
            Origin::Again(id) => {
                let gone = self.gone.get(id)?;
                (gone.place, gone.sent.clone())
            }
            Origin::AnswerTo(id) => {
                let gone = self.gone.get(id).filter(|g| g.verdict != Verdict::Drop)?;
                (self.answers_at(gone)?, wire::turn(&gone.out))
            }
            Origin::Onward(id) => {
                let gone = self.gone.get(id).filter(|g| g.verdict == Verdict::Next)?;
                let by = match gone.place {
                    Place::FromPod(n) => By::Pod(n),
                    Place::Uplink => By::Uplink,
                    Place::ToPod(..) => return None,
                };
                let wire = wire::read(&gone.out);
                let pod = self.pod_with(wire.ends.to.ip())?;
                let mut frame = gone.out.clone();
                if wire.header > 0 {
                    wire::hop(&mut frame, wire.v4);
                }
                (Place::ToPod(pod, by), frame)
            }
            Origin::Error(id, teller, kind, bytes) => {
                self.error_about(self.gone.get(id)?, *teller, *kind, *bytes)?
            }
        };
        for edit in &step.edits {
            edit.apply(&mut frame);
            if let Edit::At(elsewhere) = edit {
                place = *elsewhere;
            }
        }
        Some((place, frame))
    }

    /// Who answers a packet: the pod that it reached, else whoever has its destination.
    fn answers_at(&self, gone: &Gone) -> Option<Place> {
        let (from, to) = {
            let ends = wire::read(&gone.out).ends;
            (ends.from.ip(), ends.to.ip())
        };
        if let Place::ToPod(pod, _) = gone.place {
            return Some(Place::FromPod(pod));
        }
        if let Some(pod) = self.pod_with(to) {
            return Some(Place::FromPod(pod));
        }
        if self.model.cluster.kind_of(to) == Some(address_kind::HOST) {
            return Some(Place::ToPod(self.pod_with(from)?, By::Host));
        }
        Some(Place::Uplink)
    }

    /// The pod that has an address.
    fn pod_with(&self, address: std::net::IpAddr) -> Option<u8> {
        let slot = self.model.cluster.slot_of(address)?;
        u8::try_from(slot).ok()
    }

    /// Hook, program, interface, and the interface that brought the packet.
    fn enters(&self, place: Place) -> Option<(u32, &'static str, u32, u32)> {
        let ifindex = |pod: u8| self.pods.get(&pod).map(|pod| pod.ifindex);
        Some(match place {
            Place::FromPod(pod) => {
                let link = ifindex(pod)?;
                (hook::FROM_POD, "stub_from_pod", link, link)
            }
            Place::ToPod(pod, by) => {
                let ingress = match by {
                    By::Host => 0,
                    By::Uplink => self.world.uplink_ifindex(),
                    By::Pod(from) => ifindex(from)?,
                };
                (hook::TO_POD, "stub_to_pod", ifindex(pod)?, ingress)
            }
            Place::Uplink => {
                let uplink = self.world.uplink_ifindex();
                (hook::FROM_UPLINK, "stub_from_uplink", uplink, uplink)
            }
        })
    }

    /// Holds what came of a packet against what must.
    fn differs(
        &mut self,
        at: &Arrival<'_>,
        expected: &Expected,
        observed: &Observed,
    ) -> Option<Difference> {
        let suppressed = self.spent
            && expected.limited
            && expected.verdict == Verdict::Redirect
            && observed.verdict == Some(Verdict::Drop);
        if suppressed {
            self.unsent.0 += 1;
        }
        if self.spent && expected.limited {
            self.unsent.1 += 1;
        }
        let frame = if suppressed {
            at.frame
        } else {
            &expected.frame
        };
        // Nobody was answered then, and so it is told.
        let told = if suppressed {
            expected.told.map(|told| Told {
                kind: event_kind::DROP,
                ..told
            })
        } else {
            expected.told
        };
        let difference = |what: &str| {
            let reason = |told: Option<_>| format!("{told:?}");
            Some(Difference {
                what: format!(
                    "{what} at {}: {:?} {} and not {:?} {}",
                    hook::name(at.hook),
                    observed.verdict,
                    reason(observed.told.map(|t| t.reason)),
                    expected.verdict,
                    reason(expected.told.map(|t| t.reason)),
                ),
                detail: String::new(),
            })
        };
        if !suppressed && observed.verdict != Some(expected.verdict) {
            return difference("verdict");
        }
        if observed.frame != frame {
            return difference("packet");
        }
        if self.spent && observed.told.is_none() && expected.told.is_some() {
            self.silent += 1;
        } else if observed.told != told || observed.more {
            return difference("event");
        }
        if observed
            .place
            .is_some_and(|place| place != (at.hook, at.ifindex, at.frame.len()))
        {
            return difference("event's place");
        }
        if observed.verdict != Some(Verdict::Drop) && !self.sums_hold(at, expected, observed) {
            return difference("sums");
        }
        None
    }
}

/// Bytes for people.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts that limits decide, which differ from run to run.
pub(super) const LIMITED: [Count; 3] = [
    Count::EventLost,
    Count::EventSuppressed,
    Count::RejectSuppressed,
];
