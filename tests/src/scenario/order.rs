//! Orders of arrival.

use std::collections::BTreeMap;

use sluice::local::Local;
use sluice::model::ObjectId;
use sluice::source::Event;

/// In which order a step's objects arrive, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// By kind and name, in one apply; the node's own state before them.
    Forward,
    /// The other way round, one apply for each; the node's own state last.
    Reverse,
    /// Anyhow, one apply for each; the node's own state in between.
    Shuffled(u64),
    /// As forward, with a new agent after each step, which must find nothing to write.
    Restarting,
}

/// Events in bundles that may change places: those of one object stay together.
fn bundles(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut objects: BTreeMap<ObjectId, Vec<Event>> = BTreeMap::new();
    let mut others = Vec::new();
    for event in events {
        let id = match &event {
            Event::Upsert(object) => Some(object.id()),
            Event::Delete(id) => Some(id.clone()),
            Event::Rejected(about) | Event::Notice(about) => about.id.clone(),
            Event::Mended(_) | Event::Synced(_) | Event::Stale { .. } => None,
        };
        match id {
            Some(id) => objects.entry(id).or_default().push(event),
            None => others.push(vec![event]),
        }
    }
    objects.into_values().chain(others).collect()
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn shuffle<T>(list: &mut [T], seed: u64) {
    let mut state = seed;
    for at in (1..list.len()).rev() {
        let other = random(&mut state) % (at as u64 + 1);
        list.swap(at, usize::try_from(other).unwrap_or(at));
    }
}

/// What a step tells, in an order.
pub(super) enum Told {
    /// Of objects.
    Events(Vec<Event>),
    /// The node's own state.
    Local(Local),
}

/// Everything that a step tells.
pub(super) fn in_order(order: Order, events: Vec<Event>, local: Option<&Local>) -> Vec<Told> {
    let local = local.cloned().map(Told::Local);
    let mut bundles = bundles(events);
    match order {
        Order::Forward | Order::Restarting => {
            let all = Told::Events(bundles.concat());
            local.into_iter().chain([all]).collect()
        }
        Order::Reverse => {
            bundles.reverse();
            bundles.into_iter().map(Told::Events).chain(local).collect()
        }
        Order::Shuffled(seed) => {
            let mut all: Vec<Told> = bundles.into_iter().map(Told::Events).chain(local).collect();
            shuffle(&mut all, seed);
            all
        }
    }
}
