//! What the programs did, as it can be seen: verdict, packet out, events, tables, counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_common::{
    Count, Fragment, FragmentKey, NO_BACKEND, Reason, count_index, drop_index, hook,
};
use anyhow::Result;

use super::super::coverage::Coverage;
use super::super::model::flows::{Half, ends_of};
use super::super::model::parts::{Begun, Place};
use super::super::model::{Chance, Told, Verdict};
use super::super::wire::{Ends, Kind, Wire};
use super::{Difference, LIMITED, Machine};
use crate::packet::flows::tuple;

/// What a program did to a packet.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) verdict: Option<Verdict>,
    pub(super) frame: Vec<u8>,
    pub(super) told: Option<Told>,
    /// Backend of the event's flow.
    backend: Option<u32>,
    /// Hook, interface and length that the event names.
    pub(super) place: Option<(u32, u32, usize)>,
    /// More than one event came, or one that is none.
    pub(super) more: bool,
}

impl Observed {
    /// Reads events by the places of their fields, as another reader of the ring would.
    pub(super) fn new(code: i32, frame: Vec<u8>, events: &[Vec<u8>]) -> Self {
        let mut observed = Self {
            verdict: Verdict::of(code),
            frame,
            told: None,
            backend: None,
            place: None,
            more: events.len() > 1,
        };
        let Some(event) = events.first() else {
            return observed;
        };
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?))
        };
        let (Some(kind), Some(reason), Some(at_hook)) =
            (event.get(66), event.get(67), event.get(92))
        else {
            observed.more = true;
            return observed;
        };
        observed.told = Some(Told {
            kind: *kind,
            reason: Reason::from_number(*reason),
        });
        observed.backend = word(88).filter(|number| *number != NO_BACKEND);
        observed.place = word(76)
            .zip(word(80))
            .map(|(ifindex, length)| (u32::from(*at_hook), ifindex, length as usize));
        observed
    }
}

impl Observed {
    /// It was dropped, and a limit kept the ring from telling why.
    pub(super) fn silent_drop(&self) -> bool {
        self.told.is_none() && self.verdict == Some(Verdict::Drop)
    }
}

/// Ticks that the model's clock and the programs' may be apart: one, where it turned between two readings.
const TURN: u32 = 1;

impl Machine {
    /// What a choice at random came to, by what came of it.
    pub(super) fn chance(&self, wire: &Wire, observed: &Observed) -> Chance {
        let made = |ends: Ends| {
            let flow = self
                .world
                .waiting_entry(&tuple(ends.protocol, ends.from, ends.to))?;
            let half = Half::of(ends.protocol, &flow);
            (!half.reply).then_some((
                ends,
                half.backend.map(|(number, ..)| number),
                half.new_from.port(),
            ))
        };
        let none = !matches!(wire.kind, Kind::Flow | Kind::Link)
            || observed.verdict == Some(Verdict::Drop);
        Chance {
            made: if none {
                None
            } else {
                made(wire.ends).or_else(|| made(wire.ends.turned()))
            },
            told_backend: observed.backend,
            told_reason: observed.told.and_then(|told| told.reason),
            told: observed.told.is_some(),
            vanished: Vec::new(),
        }
    }

    /// What the ring would have told of a packet that was dropped: which counter rose, and which halves are gone.
    pub(super) fn find_out(&self, at: u32, before: &[u64], chance: &mut Chance) -> Result<()> {
        let after = self.world.counted()?;
        chance.told_reason = Reason::ALL.iter().copied().find(|reason| {
            let index = drop_index(at, *reason) as usize;
            after.get(index) != before.get(index)
        });
        let known = [&self.model.flows.answered, &self.model.flows.waiting];
        for (entries, known) in self.world.tables()?.iter().zip(known) {
            let there: BTreeSet<Ends> = entries.iter().map(|(key, _)| ends_of(key)).collect();
            let gone = known.keys().filter(|ends| !there.contains(ends));
            chance.vanished.extend(gone.copied());
        }
        Ok(())
    }

    /// Holds both tables against the model's.
    pub(super) fn tables_differ(&self) -> Result<Option<Difference>> {
        let tables = self.world.tables()?;
        let model = [&self.model.flows.answered, &self.model.flows.waiting];
        for ((name, entries), known) in ["conntrack", "unreplied"]
            .into_iter()
            .zip(tables)
            .zip(model)
        {
            let there: HashMap<Ends, Half> = entries
                .iter()
                .map(|(key, flow)| (ends_of(key), Half::of(key.protocol, flow)))
                .collect();
            let all: BTreeSet<&Ends> = there.keys().chain(known.keys()).collect();
            for ends in all {
                let (is, should) = (there.get(ends), known.get(ends));
                if !same(is, should) {
                    let what = match (is, should) {
                        (Some(_), None) => "more in",
                        (None, Some(_)) => "less in",
                        _ => "another entry in",
                    };
                    return Ok(Some(Difference {
                        what: format!("{what} {name}"),
                        detail: format!("  {ends:?}\n  is:       {is:?}\n  expected: {should:?}\n"),
                    }));
                }
            }
        }
        self.places_differ()
    }

    /// Holds what is kept of datagrams under way against the model's.
    fn places_differ(&self) -> Result<Option<Difference>> {
        let there: BTreeMap<Place, Begun> = self
            .world
            .places()?
            .iter()
            .map(|(key, first)| (place_of(key), begun_of(first)))
            .collect();
        let known = &self.model.places;
        let all: BTreeSet<&Place> = there.keys().chain(known.keys()).collect();
        for place in all {
            let (is, should) = (there.get(place), known.get(place));
            let same = match (is, should) {
                (Some(is), Some(should)) => {
                    let tick = is.tick.abs_diff(should.tick) <= TURN;
                    tick && (is.ports, is.protocol) == (should.ports, should.protocol)
                }
                _ => false,
            };
            if !same {
                return Ok(Some(Difference {
                    what: "another entry in fragments".to_owned(),
                    detail: format!("  {place:?}\n  is:       {is:?}\n  expected: {should:?}\n"),
                }));
            }
        }
        Ok(None)
    }

    /// Holds the counters against what the model counted, and notes what was reached.
    pub(super) fn counters_differ(&self, coverage: &mut Coverage) -> Result<Option<Difference>> {
        let after = self.world.counted()?;
        let rose = |index: u32| {
            let index = index as usize;
            after.get(index).copied().unwrap_or(0) - self.before.get(index).copied().unwrap_or(0)
        };
        let tally = &self.model.tally;
        let differ = |name: String, is: u64, least: u64, most: u64| {
            Some(Difference {
                what: format!("count of {name}"),
                detail: format!("  counted {is}, expected {least} to {most}\n"),
            })
        };
        for at in 0..hook::HOOKS {
            for reason in Reason::ALL {
                let is = rose(drop_index(at, *reason));
                let expected = tally.drops.get(&(at, *reason)).copied().unwrap_or(0);
                coverage.reached(at, *reason, is);
                if is != expected {
                    let name = format!("{} at {}", reason.name(), hook::name(at));
                    return Ok(differ(name, is, expected, expected));
                }
            }
        }
        for ((at, deed), times) in &tally.deeds {
            coverage.done(*at, *deed, *times);
        }
        for count in Count::ALL {
            let is = rose(count_index(*count));
            coverage.counted(*count, is);
            let (least, most) = match count {
                Count::EventLost | Count::EventSuppressed => continue,
                Count::RejectSuppressed => self.unsent,
                _ => tally.counts.get(count).copied().unwrap_or_default(),
            };
            if !(least..=most).contains(&is) {
                return Ok(differ(count.name().to_owned(), is, least, most));
            }
        }
        let silent: u64 = LIMITED[..2].iter().map(|c| rose(count_index(*c))).sum();
        if silent != self.silent {
            return Ok(differ(
                "events kept back".to_owned(),
                silent,
                self.silent,
                self.silent,
            ));
        }
        Ok(None)
    }
}

/// Whether an entry says what it should. The clock may have turned between the two.
fn same(is: Option<&Half>, should: Option<&Half>) -> bool {
    match (is, should) {
        (Some(is), Some(should)) => {
            let seen = is.seen.abs_diff(should.seen) <= TURN;
            let is = Half {
                seen: should.seen,
                ..*is
            };
            seen && is == *should
        }
        (None, None) => true,
        _ => false,
    }
}

/// The place that an element's key stands for.
fn place_of(key: &FragmentKey) -> Place {
    const UNIT: usize = 8;
    Place {
        from: key.source.into(),
        to: key.destination.into(),
        id: u32::from_be(key.id_be),
        shared: key.protocol,
        at: usize::from(key.offset) * UNIT,
        hook: key.hook.into(),
    }
}

/// What an element says of its datagram's first fragment.
fn begun_of(first: &Fragment) -> Begun {
    Begun {
        ports: (
            u16::from_be(first.source_port_be),
            u16::from_be(first.destination_port_be),
        ),
        protocol: first.protocol,
        tick: first.begun,
    }
}
