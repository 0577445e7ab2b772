//! What each local pod holds of `conntrack`, and what it may hold. Programs count a pod's flows as they come; what goes is told by
//! nobody, so each pass through the table counts them anew.

use std::mem::offset_of;

use agent_common::{Flow, Pod, Share, limits};

use super::DatapathError;
use super::pins::Pins;
use super::words::Words;

/// The pinned maps `shares` and `pods`.
#[derive(Debug)]
pub(super) struct Shares {
    shares: Words<Share>,
    pods: Words<Pod>,
}

/// A slot while flows are counted.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The interface of the pod that has the slot; 0: nobody has.
    ifindex: u32,
    /// What [`Share::made`] was when the count began.
    made: u32,
    /// Flows counted so far.
    flows: u32,
}

/// A count under way.
#[derive(Debug)]
pub(super) struct Count {
    slots: Vec<Slot>,
}

/// What a pod holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holding {
    /// Flows in `conntrack`.
    pub flows: u32,
    /// The pod's slot.
    pub slot: u32,
}

impl Shares {
    /// Opens the pinned maps, which must be there and checked already.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            shares: Words::open(pins, "shares")?,
            pods: Words::open(pins, "pods")?,
        })
    }

    /// Sets how many flows each pod may hold; 0: no bound.
    pub(super) fn set_limit(&self, flows: u32) -> Result<(), DatapathError> {
        (0..limits::PODS).try_for_each(|slot| {
            self.shares
                .store_half(slot, offset_of!(Share, limit), flows)
        })
    }

    /// Begins a count. Flows that are made from here on may be counted twice, until the next.
    pub(super) fn begin(&self) -> Result<Count, DatapathError> {
        let slots = (0..limits::PODS).map(|slot| {
            Ok(Slot {
                ifindex: self.pods.read(slot)?.ifindex,
                made: self.shares.read(slot)?.made,
                flows: 0,
            })
        });
        Ok(Count {
            slots: slots.collect::<Result<_, DatapathError>>()?,
        })
    }

    /// Ends a count: what programs add to from now on is what was counted.
    pub(super) fn end(&self, count: &Count) -> Result<Vec<Holding>, DatapathError> {
        let mut held = Vec::new();
        for (number, slot) in (0..).zip(&count.slots) {
            let base = slot.made.wrapping_sub(slot.flows);
            self.shares
                .store_half(number, offset_of!(Share, base), base)?;
            if slot.flows > 0 {
                held.push(Holding {
                    flows: slot.flows,
                    slot: number,
                });
            }
        }
        Ok(held)
    }
}

impl Count {
    /// Counts an entry of `conntrack`, where it is the half that counts. One of a pod that had the slot before counts for nobody.
    pub(super) fn note(&mut self, flow: &Flow) {
        let slot = self.slots.get_mut(flow.charged() as usize);
        if let Some(slot) = slot
            && flow.is_charged_half()
            && flow.ifindex == slot.ifindex
            && slot.ifindex != 0
        {
            slot.flows += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use agent_common::{NO_SLOT, flow_flag};

    use super::*;

    #[test]
    fn a_flow_counts_once_and_for_the_pod_that_has_the_slot_now() {
        let slot = |ifindex| Slot {
            ifindex,
            made: 0,
            flows: 0,
        };
        let mut count = Count {
            slots: vec![slot(0), slot(7), slot(8)],
        };
        let forward = Flow {
            opener: 1,
            responder: 2,
            ifindex: 7,
            ..Flow::NONE
        };
        let reply = Flow {
            flags: flow_flag::REPLY,
            ifindex: 8,
            ..forward
        };
        count.note(&forward);
        count.note(&reply);
        // From outside to pod 2; of pod 1 when it had another link; of the host; of a slot that nobody has.
        let outside = Flow {
            opener: NO_SLOT,
            ifindex: 0,
            ..forward
        };
        count.note(&outside);
        count.note(&Flow {
            opener: NO_SLOT,
            ..reply
        });
        count.note(&Flow {
            ifindex: 6,
            ..forward
        });
        count.note(&Flow::NONE);
        count.note(&Flow {
            opener: 0,
            ifindex: 0,
            ..forward
        });
        let flows: Vec<u32> = count.slots.iter().map(|slot| slot.flows).collect();
        assert_eq!(flows, [0, 1, 1]);
    }
}
