//! Readers that take their time: programs read one map after the other while the agent writes, and end before a grace
//! period does.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;

use agent_common::lookup::{self, Tables};
use agent_common::{
    Address, AddressEntry, Backend, Head, Pod, PrefixEntry, RuleKey, ServiceEntry, ServiceKey,
    Verdict, address_kind, set_flag,
};

use crate::compile::tests::cluster::Rng;
use crate::datapath::faulty::{Fault, Faulty};
use crate::datapath::memory::Memory;
use crate::datapath::{Contents, Datapath, DatapathError, Write};
use crate::oracle::policy::Flow;

/// Maps that remember every state that they were in since the last grace period began to count.
pub(super) struct Recorder {
    pub(super) inner: Faulty<Memory>,
    /// States, oldest first, the present one last; before each the write that led there.
    pub(super) states: Vec<(Option<Write>, Contents)>,
    /// Where in `states` grace periods ended: whoever began before has ended there.
    pub(super) graces: Vec<usize>,
    /// Where in `states` a plan began or had ended.
    pub(super) rests: Vec<usize>,
}

impl Recorder {
    pub(super) fn new(memory: Memory) -> Self {
        let states = vec![(None, memory.view().clone())];
        Self {
            inner: Faulty::new(memory),
            states,
            graces: vec![0],
            rests: vec![0],
        }
    }

    pub(super) fn now(&self) -> &Contents {
        &self.states[self.states.len() - 1].1
    }

    /// The nth write from now fails.
    pub(super) fn fail(&mut self, nth: u64, fault: Fault) {
        self.inner.fail(nth, fault);
    }

    /// The agent that crashed is started again.
    pub(super) fn revive(&mut self) {
        self.inner = Faulty::new(self.inner.inner.clone());
    }

    /// A plan has ended.
    pub(super) fn rest(&mut self) {
        let last = self.states.len() - 1;
        self.rests.push(last);
    }

    /// Forgets what lies before the last grace period, but for the last state of rest before it.
    pub(super) fn forget(&mut self) {
        let grace = self.graces[self.graces.len() - 1];
        let from = self.rests.iter().rev().find(|at| **at <= grace);
        let from = from.copied().unwrap_or(0);
        self.states.drain(..from);
        let later = |list: &mut Vec<usize>| {
            list.retain(|at| *at >= from);
            list.iter_mut().for_each(|at| *at -= from);
        };
        later(&mut self.graces);
        later(&mut self.rests);
    }

    /// The last state that a reader may meet which begins at a state.
    pub(super) fn until(&self, begin: usize) -> usize {
        let end = self.graces.iter().find(|grace| **grace > begin);
        end.copied().unwrap_or(self.states.len() - 1)
    }

    /// The states of rest around a reader's time.
    pub(super) fn rests_around(&self, begin: usize, end: usize) -> impl Iterator<Item = &Contents> {
        let before = self.rests.iter().rposition(|at| *at <= begin).unwrap_or(0);
        let after = self.rests.iter().position(|at| *at >= end);
        let after = after.unwrap_or(self.rests.len() - 1);
        let rests = &self.rests[before..=after.max(before)];
        rests.iter().map(|at| &self.states[*at].1)
    }
}

impl Datapath for Recorder {
    fn write(&mut self, write: &Write) -> Result<(), DatapathError> {
        self.inner.write(write)?;
        let now = self.inner.inner.view().clone();
        self.states.push((Some(*write), now));
        Ok(())
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        self.inner.grace()?;
        self.graces.push(self.states.len() - 1);
        Ok(())
    }

    fn contents(&self) -> Result<Contents, DatapathError> {
        self.inner.contents()
    }
}

/// A program that reads on while the maps change.
pub(super) struct Reader<'a> {
    recorder: &'a Recorder,
    begin: usize,
    at: Cell<usize>,
    end: usize,
    rng: RefCell<&'a mut Rng>,
    /// Chance in a hundred that time goes on before a read.
    pace: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(recorder: &'a Recorder, begin: usize, pace: u64, rng: &'a mut Rng) -> Self {
        Self {
            end: recorder.until(begin),
            recorder,
            begin,
            at: Cell::new(begin),
            rng: RefCell::new(rng),
            pace,
        }
    }

    pub(super) fn maps(&self) -> &Contents {
        let left = self.end - self.at.get();
        let mut rng = self.rng.borrow_mut();
        if left > 0 && rng.chance(self.pace) {
            let more = 1 + rng.below(left as u64) as usize;
            self.at.set(self.at.get() + more);
        }
        &self.recorder.states[self.at.get()].1
    }

    /// The states in which the reader began and ended.
    pub(super) fn span(&self) -> (usize, usize) {
        (self.begin, self.at.get())
    }
}

impl Tables for Reader<'_> {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        self.maps().address(address)
    }
    fn prefix(&self, address: &Address) -> Option<PrefixEntry> {
        self.maps().prefix(address)
    }
    fn group(&self, identity: u32) -> u32 {
        self.maps().group(identity)
    }
    fn rule(&self, key: &RuleKey) -> Option<Verdict> {
        self.maps().rule(key)
    }
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        self.maps().service(key)
    }
    fn head(&self, pool: u32) -> Option<Head> {
        self.maps().head(pool)
    }
    fn slot(&self, index: u32) -> Option<u32> {
        self.maps().slot(index)
    }
    fn backend(&self, backend: u32) -> Option<Backend> {
        self.maps().backend(backend)
    }
    fn literal(&self) -> bool {
        self.maps().literal()
    }
}

/// What lets tables be asked for pods too.
pub(super) trait Pods: Tables {
    fn pod(&self, slot: u32) -> Pod;
}

impl Pods for Contents {
    fn pod(&self, slot: u32) -> Pod {
        self.pods.get(&slot).copied().unwrap_or_default()
    }
}

impl Pods for Reader<'_> {
    fn pod(&self, slot: u32) -> Pod {
        self.maps().pod(slot)
    }
}

/// A judgement of one end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Judgement {
    pub(super) slot: u32,
    pub(super) epoch: u32,
    pub(super) verdict: Verdict,
}

/// As `judge` of agent-ebpf/src/policy.rs does, read by read: egress at the source, ingress at the destination.
pub(super) fn judge(maps: &impl Pods, flow: &Flow) -> [Option<Judgement>; 2] {
    let local = |ip: IpAddr| {
        let entry = maps.address(&Address::from(ip))?;
        (entry.kind == address_kind::LOCAL_POD).then_some(u32::from(entry.slot))
    };
    let (opener, responder) = (local(flow.source), local(flow.destination));
    if opener.is_some() && opener == responder {
        return [None, None];
    }
    let end = |slot: u32, egress: bool, peer: IpAddr| {
        // Each of these is a read of its own.
        let epoch = maps.pod(slot).epoch;
        let pod = maps.pod(slot);
        let word = if egress { pod.egress } else { pod.ingress };
        let peer = Address::from(peer);
        let verdict = if word.flags & set_flag::ISOLATED == 0 {
            Verdict::OPEN
        } else {
            let entry = maps.address(&peer);
            lookup::judge(maps, word, &peer, entry, flow.protocol, flow.port.to_be())
        };
        Judgement {
            slot,
            epoch,
            verdict,
        }
    };
    [
        opener.map(|slot| end(slot, true, flow.destination)),
        responder.map(|slot| end(slot, false, flow.source)),
    ]
}

/// Whether each end lets the flow pass; one that is not local does.
pub(super) fn passes(judged: [Option<Judgement>; 2]) -> [bool; 2] {
    judged.map(|end| end.is_none_or(|end| end.verdict.passes()))
}
