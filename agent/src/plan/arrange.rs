//! How a pool's backends stand in its run, and in which order slots are written so that no reader sees a mixture and no
//! crash loses whose a backend is.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::pools::PoolState;

/// Where everything is to stand.
pub(super) struct Target {
    /// Live backends, then those that are kept.
    pub(super) array: Vec<u32>,
    /// How many are live.
    pub(super) count: usize,
    /// Whether one word can make it live in the run where the pool stands. Otherwise it takes a new run.
    pub(super) in_place: bool,
}

/// Slot writes, as (index in the run, backend; zero empties).
#[derive(Default)]
pub(super) struct Edits {
    /// Behind the old count: nobody reads them.
    pub(super) before: Vec<(usize, u32)>,
    /// At most one, which makes the new state live (or does not show, before the count falls).
    pub(super) switch: Option<(usize, u32)>,
    /// After the head was written, behind the new count.
    pub(super) after: Vec<(usize, u32)>,
}

/// Chooses the places, as near as possible to where everything stands.
pub(super) fn target(old: &PoolState, chosen: &[u32], kept: &BTreeSet<u32>) -> Target {
    let wanted: HashSet<u32> = chosen.iter().copied().collect();
    let mut seen = HashSet::new();
    let mut holes = Vec::new();
    for (at, number) in old.array[..old.count].iter().enumerate() {
        if !(wanted.contains(number) && seen.insert(*number)) {
            holes.push(at);
        }
    }
    let added: Vec<u32> = chosen
        .iter()
        .copied()
        .filter(|n| !seen.contains(n))
        .collect();
    let mut array = old.array[..old.count].to_vec();
    let in_place = match (holes.as_slice(), added.as_slice()) {
        ([], added) => {
            array.extend(added);
            true
        }
        ([hole], [one]) => {
            array[*hole] = *one;
            true
        }
        ([hole], []) => {
            array.swap_remove(*hole);
            true
        }
        _ => {
            let mut holes = holes.iter().peekable();
            let mut at = 0;
            array.retain(|_| {
                let hole = holes.next_if_eq(&&at).is_some();
                at += 1;
                !hole
            });
            array.extend(&added);
            false
        }
    };
    let count = array.len();
    place_kept(old, kept, &mut array);
    Target {
        array,
        count,
        in_place,
    }
}

/// Appends the kept ones, each where it stands already if it can.
fn place_kept(old: &PoolState, kept: &BTreeSet<u32>, array: &mut Vec<u32>) {
    let mut left = kept.clone();
    let places: Vec<Option<u32>> = (array.len()..array.len() + kept.len())
        .map(|at| {
            let here = old.array.get(at).copied().filter(|_| at >= old.count);
            here.filter(|number| left.remove(number))
        })
        .collect();
    let mut rest = left.into_iter();
    array.extend(places.into_iter().filter_map(|p| p.or_else(|| rest.next())));
}

/// Backends of the pool, of those that `stay`, that change their place in a way in which a crash could lose whose they are.
pub(super) fn moved(old: &PoolState, target: &Target, stay: &HashSet<u32>) -> Vec<u32> {
    let had = old.ids.iter().copied();
    let had: HashSet<u32> = had.filter(|number| stay.contains(number)).collect();
    let live: HashSet<u32> = old.array[..old.count].iter().copied().collect();
    target
        .array
        .iter()
        .enumerate()
        .filter(|(at, number)| {
            let stays_live = *at < target.count && live.contains(number);
            let now = old.array.get(*at);
            had.contains(number) && !stays_live && now.is_some_and(|now| now != *number)
        })
        .map(|(_, number)| *number)
        .collect()
}

/// The slot writes of a change in place.
pub(super) fn edits(old: &PoolState, target: &Target, moved: &[u32]) -> Edits {
    let (had, has) = (old.array.len(), target.array.len());
    let mut now: HashMap<usize, u32> = HashMap::new();
    let mut edits = Edits::default();
    let differs = |at: usize| old.array.get(at) != target.array.get(at);
    let mut write = |list: &mut Vec<(usize, u32)>, at: usize, backend: u32| {
        now.insert(at, backend);
        list.push((at, backend));
    };
    for at in had..has {
        write(&mut edits.before, at, target.array[at]);
    }
    let tail = had.max(has);
    for (offset, number) in moved.iter().enumerate() {
        write(&mut edits.before, tail + offset, *number);
    }
    for at in old.count..had.min(has) {
        if differs(at) {
            write(&mut edits.before, at, target.array[at]);
        }
    }
    for at in 0..old.count.min(target.count) {
        if differs(at) {
            edits.switch = Some((at, target.array[at]));
        }
    }
    for at in target.count..old.count.min(has) {
        if differs(at) {
            write(&mut edits.after, at, target.array[at]);
        }
    }
    for at in (has..tail + moved.len()).rev() {
        let stands = now.get(&at).or(old.array.get(at));
        if stands.is_some_and(|n| *n != 0) {
            edits.after.push((at, 0));
        }
    }
    edits
}
