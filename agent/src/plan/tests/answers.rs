//! What maps answer, taken together: of each service address, and of each end of a pod in each direction what it lets pass
//! of every peer. Asked by the one look-up, and after a write only where the write can have changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_common::lookup::{self, Tables};
use agent_common::{Address, ServiceKey, SetWord, address_kind, set_flag};

use super::services::{Answer, answer};
use crate::compile::tests::PROBES;
use crate::datapath::{Bits, Contents, Write};
use crate::desired;
use crate::model::Direction;

const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// What is asked.
#[derive(Clone, Default, Debug)]
pub(super) struct Questions {
    /// Every address that may be an end or a peer.
    pub(super) ends: BTreeSet<IpAddr>,
    /// Every service address.
    pub(super) services: BTreeSet<ServiceKey>,
}

/// One end of a pod, in one direction.
pub(super) type End = (IpAddr, Direction);

/// What an end lets pass: of each peer a bit for each of [`PROBES`]. None: the address is no local pod's.
pub(super) type Function = Option<BTreeMap<IpAddr, u16>>;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answers {
    pub(super) ends: BTreeMap<End, Function>,
    pub(super) services: BTreeMap<ServiceKey, Answer>,
}

/// The slot of an address that is a local pod's.
fn slot(maps: &Contents, end: IpAddr) -> Option<u32> {
    let entry = maps.address(&Address::from(end))?;
    (entry.kind == address_kind::LOCAL_POD).then_some(entry.slot.into())
}

/// The word by which an end is judged, where it is isolated.
fn word(maps: &Contents, (end, direction): End) -> Option<SetWord> {
    let pod = maps.pods.get(&slot(maps, end)?)?;
    Some(desired::set_of(pod, direction)).filter(|word| word.flags & set_flag::ISOLATED != 0)
}

/// The set by which an end is judged, where it is isolated.
pub(super) fn set_of(maps: &Contents, end: End) -> Option<u32> {
    word(maps, end).map(|word| word.set)
}

fn mask(maps: &Contents, end: End, peer: IpAddr) -> u16 {
    let Some(word) = word(maps, end) else {
        return u16::MAX;
    };
    let peer = Address::from(peer);
    let entry = maps.address(&peer);
    let passes = |(protocol, port): (u8, u16)| {
        lookup::judge(maps, word, &peer, entry, protocol, port.to_be()).passes()
    };
    let bits = PROBES.into_iter().enumerate();
    bits.fold(0, |mask, (at, probe)| mask | u16::from(passes(probe)) << at)
}

impl Questions {
    fn peers(&self, end: IpAddr) -> impl Iterator<Item = IpAddr> + '_ {
        let same = move |peer: &&IpAddr| **peer != end && peer.is_ipv4() == end.is_ipv4();
        self.ends.iter().filter(same).copied()
    }

    fn function(&self, maps: &Contents, end: End) -> Function {
        slot(maps, end.0)?;
        let peers = self.peers(end.0);
        Some(peers.map(|peer| (peer, mask(maps, end, peer))).collect())
    }

    /// Everything.
    pub(super) fn ask(&self, maps: &Contents) -> Answers {
        let ends = self.ends.iter();
        let ends = ends.flat_map(|end| DIRECTIONS.map(|direction| (*end, direction)));
        Answers {
            ends: ends.map(|end| (end, self.function(maps, end))).collect(),
            services: self.ask_services(maps),
        }
    }

    fn ask_services(&self, maps: &Contents) -> BTreeMap<ServiceKey, Answer> {
        let keys = self.services.iter();
        keys.map(|key| (*key, answer(maps, key))).collect()
    }

    /// Asks anew what a write can have changed.
    pub(super) fn follow(&self, answers: &mut Answers, maps: &Contents, write: &Write) {
        match write {
            Write::Backend(..)
            | Write::BackendWord(..)
            | Write::Slot(..)
            | Write::Head(..)
            | Write::Service(..) => answers.services = self.ask_services(maps),
            Write::Epoch(..) | Write::Link(..) => {}
            Write::Address(address, _) => {
                let ip = IpAddr::from(*address);
                answers.services = self.ask_services(maps);
                for direction in DIRECTIONS {
                    let end = (ip, direction);
                    if let Some(function) = answers.ends.get_mut(&end) {
                        *function = self.function(maps, end);
                    }
                }
                Self::peers_again(answers, maps, |peer| peer == ip);
            }
            Write::Group(identity, _) => Self::peers_again(answers, maps, |peer| {
                let peer = Address::from(peer);
                let own = maps.address(&peer).map(|entry| entry.identity);
                let block = maps.prefix(&peer).map(|entry| entry.identity);
                own == Some(*identity) || block == Some(*identity)
            }),
            Write::Prefix(prefix, _) => Self::peers_again(answers, maps, |peer| {
                let bytes = Address::from(peer).bytes;
                Bits::of(prefix.length, agent_common::Prefix { bytes }) == *prefix
            }),
            Write::Rule(key, _) => {
                let set = key.data.set;
                self.ends_again(answers, maps, |end| set_of(maps, end) == Some(set));
            }
            Write::Pod(at, _) | Write::PodSet(at, ..) | Write::PodFacts(at, _) => {
                self.ends_again(answers, maps, |end| slot(maps, end.0) == Some(*at));
            }
            Write::Config(_) => *answers = self.ask(maps),
        }
    }

    fn ends_again(&self, answers: &mut Answers, maps: &Contents, which: impl Fn(End) -> bool) {
        for (end, function) in &mut answers.ends {
            if which(*end) {
                *function = self.function(maps, *end);
            }
        }
    }

    fn peers_again(answers: &mut Answers, maps: &Contents, which: impl Fn(IpAddr) -> bool) {
        let mut known: BTreeMap<IpAddr, bool> = BTreeMap::new();
        for (end, function) in &mut answers.ends {
            if set_of(maps, *end).is_none() {
                continue;
            }
            for (peer, bits) in function.iter_mut().flatten() {
                if *known.entry(*peer).or_insert_with(|| which(*peer)) {
                    *bits = mask(maps, *end, *peer);
                }
            }
        }
    }
}
