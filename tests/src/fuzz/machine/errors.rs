//! ICMP errors about packets that went through, and what is held of any that comes out.

use super::super::model::{Arrival, Expected};
use super::super::step::{By, Place, Teller};
use super::super::wire::{self, ETHERNET, Kind, Quote};
use super::observe::Observed;
use super::{Gone, Machine};
use crate::packet::address::Family;
use crate::packet::build::{DESTINATION_MAC, SOURCE_MAC};
use agent_common::Reason;

/// Types and codes of errors that are about a packet: unreachable, too big, time exceeded, parameter problem; and then of others.
const V4: [[u8; 2]; 6] = [[3, 3], [3, 4], [11, 0], [12, 0], [4, 0], [5, 0]];
/// See [`V4`].
const V6: [[u8; 2]; 6] = [[1, 4], [2, 0], [3, 0], [4, 1], [100, 0], [0, 0]];

impl Machine {
    /// An error about a packet that went through, and where it enters. `bytes` of the packet's transport are quoted.
    pub(super) fn error_about(
        &self,
        gone: &Gone,
        teller: Teller,
        kind: usize,
        bytes: usize,
    ) -> Option<(Place, Vec<u8>)> {
        let (sent, out) = (wire::read(&gone.sent), wire::read(&gone.out));
        if !out.addressed || !sent.addressed {
            return None;
        }
        let family = if out.v4 { Family::V4 } else { Family::V6 };
        let (from, to) = (out.ends.from.ip(), out.ends.to.ip());
        let (place, maker, learns, quoted) = match teller {
            Teller::End => (self.answers_at(gone)?, to, from, &gone.out),
            Teller::Router => (Place::Uplink, family.outside(9), from, &gone.out),
            Teller::Host => {
                let place = Place::ToPod(self.pod_with(from)?, By::Host);
                (place, family.host(), from, &gone.out)
            }
            Teller::Through => {
                let from = sent.ends.from.ip();
                let place = Place::ToPod(self.pod_with(from)?, By::Uplink);
                (place, sent.ends.to.ip(), from, &gone.sent)
            }
            Teller::Stranger(pod) => (Place::FromPod(pod), family.pod(pod), from, &gone.out),
        };
        let read = wire::read(quoted);
        let end = (read.header + bytes).min(read.said.max(read.header));
        let quote = quoted.get(ETHERNET..ETHERNET + end)?;
        let codes = if out.v4 { V4 } else { V6 };
        let code = codes[kind % codes.len()];
        let macs = [DESTINATION_MAC, SOURCE_MAC].concat();
        Some((place, wire::error(&macs, maker, learns, code, quote)))
    }

    /// Whether the sums of what came out are as right as they were; of an answer of our own all are. An error that was written anew quotes a packet
    /// whose flow turns it into what was quoted before.
    pub(super) fn sums_hold(
        &self,
        at: &Arrival<'_>,
        expected: &Expected,
        observed: &Observed,
    ) -> bool {
        let (went, came) = (&at.wire, wire::read(&observed.frame));
        if expected.limited {
            let answer = matches!(came.kind, Kind::Flow | Kind::Unknown(Reason::IcmpError));
            return answer && wire::wrong_by(&observed.frame, &came) == (0, Some(0));
        }
        let kept = match went.kind {
            // With a hop less a listener's message may look as one that was never forwarded.
            Kind::Flow => matches!(came.kind, Kind::Flow | Kind::Link),
            Kind::Later | Kind::Unknown(Reason::IcmpError) => came.kind == went.kind,
            Kind::Link | Kind::Unknown(_) | Kind::Never(_) => return true,
        };
        if !kept || wire::wrong_by(&observed.frame, &came) != wire::wrong_by(at.frame, went) {
            return false;
        }
        let quotes = (
            wire::quoted(at.frame, went),
            wire::quoted(&observed.frame, &came),
        );
        match quotes {
            (Some(before), Some(behind)) => {
                wire::wrong_by_inside(at.frame, went, &before)
                    == wire::wrong_by_inside(&observed.frame, &came, &behind)
                    && self.translates(&behind, &before)
            }
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether a flow makes of the one packet the other, as far as it is known.
    fn translates(&self, sent: &Quote, came: &Quote) -> bool {
        sent.ends == came.ends
            || self.model.flows.find(&sent.ends).is_none_or(|half| {
                half.translated && (half.new_from, half.new_to) == (came.ends.from, came.ends.to)
            })
    }
}
