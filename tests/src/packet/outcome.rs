//! Running a program on a packet, and what came of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use agent_common::{Address, Count, Event, Reason, count_index, drop_index, event_kind, hook};
use anyhow::{Context, Result};

use super::build::Packet;
use super::object;
use super::seen::Seen;
use super::world::{LocalPod, World};

/// Returned by a classifier that leaves the packet to the next one (`TC_ACT_UNSPEC`).
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: i32 = 7;
/// Where a packet that reaches a pod comes from.
#[derive(Clone, Copy, Debug)]
pub enum Via<'a> {
    /// A process of this host sent it: no interface.
    Host,
    /// The uplink.
    Uplink,
    /// Another pod's link, through the stack.
    Pod(&'a LocalPod),
}

/// An event that the programs put into the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// See [`agent_common::event_kind`].
    pub kind: u8,
    /// Why, for drops and rejections.
    pub reason: Option<Reason>,
    /// The flow's source.
    pub source: SocketAddr,
    /// The flow's destination.
    pub destination: SocketAddr,
    /// Number of the rule that decided egress.
    pub egress_rule: u32,
    /// Number of the rule that decided ingress.
    pub ingress_rule: u32,
    /// See [`agent_common::hook`].
    pub hook: u8,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the program returned.
    pub verdict: i32,
    /// The packet in.
    pub sent: Vec<u8>,
    /// The packet out.
    pub frame: Vec<u8>,
    /// Packets counted as dropped, by hook and reason.
    pub drops: BTreeMap<(u32, Reason), u64>,
    /// Everything else that was counted.
    pub counts: BTreeMap<Count, u64>,
    /// What the ring holds.
    pub events: Vec<Told>,
}

impl Outcome {
    fn context(&self) -> String {
        let show = |result: Result<Seen>| match result {
            Ok(seen) => format!("{seen:?}"),
            Err(error) => format!("{error:#}"),
        };
        format!(
            "returned {}, dropped {:?}, counted {:?}\n in: {}\nout: {}",
            self.verdict,
            self.drops,
            self.counts,
            show(Seen::read(&self.sent)),
            show(Seen::read(&self.frame)),
        )
    }

    /// The packet out, whole and with right checksums.
    pub fn seen(&self) -> Seen {
        Seen::read(&self.frame)
            .unwrap_or_else(|error| panic!("the packet out: {error:#}\n{}", self.context()))
    }

    /// It goes on to the stack, and no drop is counted.
    pub fn passes(self) -> Self {
        assert_eq!(self.verdict, NEXT, "it should pass: {}", self.context());
        assert!(self.drops.is_empty(), "it passes: {}", self.context());
        self
    }

    /// It goes on to the stack as it came.
    pub fn passes_untouched(self) -> Self {
        let out = self.passes();
        assert_eq!(out.frame, out.sent, "untouched: {}", out.context());
        out
    }

    /// It is redirected, and no drop is counted.
    pub fn redirected(self) -> Self {
        assert_eq!(
            self.verdict,
            REDIRECT,
            "it should be redirected: {}",
            self.context()
        );
        assert!(
            self.drops.is_empty(),
            "it is redirected: {}",
            self.context()
        );
        self
    }

    /// It is redirected into this pod: one hop less, the pod's MACs.
    pub fn delivered_to(self, pod: &LocalPod) -> Self {
        let out = self.redirected();
        let (sent, seen) = (Seen::read(&out.sent), out.seen());
        if let Ok(sent) = sent {
            assert_eq!(seen.hops, sent.hops - 1, "one hop: {}", out.context());
        }
        assert_eq!(seen.to_mac, pod.mac, "to the pod's MAC: {}", out.context());
        assert_eq!(
            seen.from_mac,
            pod.host_mac,
            "from the link's MAC: {}",
            out.context()
        );
        out
    }

    /// It is dropped at this hook for exactly this reason, counted once with its bytes, and told of.
    pub fn dropped(self, hook: u32, reason: Reason) -> Self {
        let out = self.dropped_untold(hook, reason);
        assert_eq!(
            out.events.len(),
            1,
            "one event: {:?}\n{}",
            out.events,
            out.context()
        );
        assert_eq!(out.events[0].kind, event_kind::DROP, "{:?}", out.events);
        assert_eq!(out.events[0].reason, Some(reason), "{:?}", out.events);
        assert_eq!(u32::from(out.events[0].hook), hook, "{:?}", out.events);
        out
    }

    /// [`Outcome::dropped`] where there is nothing to tell of the flow.
    pub fn dropped_untold(self, hook: u32, reason: Reason) -> Self {
        assert_eq!(
            self.verdict,
            SHOT,
            "it should be dropped: {}",
            self.context()
        );
        self.only(hook, reason)
    }

    /// It is turned into its own answer and redirected back into the pod, for exactly this reason.
    pub fn rejected(self, reason: Reason) -> Self {
        self.rejected_at(hook::FROM_POD, reason)
    }

    /// It is turned into its own answer at this hook and redirected back, for exactly this reason.
    pub fn rejected_at(self, hook: u32, reason: Reason) -> Self {
        assert_eq!(
            self.verdict,
            REDIRECT,
            "it should be answered: {}",
            self.context()
        );
        let out = self.only(hook, reason);
        assert_eq!(
            out.events.len(),
            1,
            "one event: {:?}\n{}",
            out.events,
            out.context()
        );
        assert_eq!(out.events[0].kind, event_kind::REJECT, "{:?}", out.events);
        assert_eq!(out.events[0].reason, Some(reason), "{:?}", out.events);
        out
    }

    fn only(self, hook: u32, reason: Reason) -> Self {
        let expected = BTreeMap::from([((hook, reason), 1)]);
        assert_eq!(
            self.drops,
            expected,
            "for {}: {}",
            reason.name(),
            self.context()
        );
        self
    }

    /// The ends of the packet out.
    pub fn shows(self, source: SocketAddr, destination: SocketAddr) -> Self {
        let seen = self.seen();
        assert_eq!(seen.source, source, "source: {}", self.context());
        assert_eq!(
            seen.destination,
            destination,
            "destination: {}",
            self.context()
        );
        self
    }

    /// Something was counted so many times.
    pub fn counted(self, what: Count, times: u64) -> Self {
        let counted = self.counts.get(&what).copied().unwrap_or(0);
        assert_eq!(counted, times, "{}: {}", what.name(), self.context());
        self
    }
}

impl World {
    /// A packet that a pod sends, with the MACs of its link.
    pub fn from_pod(&mut self, pod: &LocalPod, packet: &Packet) -> Outcome {
        self.run("stub_from_pod", pod.ifindex, pod.ifindex, packet.bytes())
    }

    /// A packet that reaches a pod through the stack.
    pub fn to_pod(&mut self, pod: &LocalPod, via: Via<'_>, packet: &Packet) -> Outcome {
        let ingress = match via {
            Via::Host => 0,
            Via::Uplink => self.uplink(),
            Via::Pod(from) => from.ifindex,
        };
        self.run("stub_to_pod", pod.ifindex, ingress, packet.bytes())
    }

    /// A packet from outside.
    pub fn from_uplink(&mut self, packet: &Packet) -> Outcome {
        let uplink = self.uplink();
        self.run("stub_from_uplink", uplink, uplink, packet.bytes())
    }

    /// Lets a pod send a packet again and again while nobody reads the ring, until an event is lost.
    pub fn overflow(&mut self, pod: &LocalPod, packet: &Packet) -> Outcome {
        self.reading = false;
        let lost = (0..object::RING_BYTES / size_of::<Event>() as u32)
            .map(|_| self.from_pod(pod, packet))
            .find(|out| out.counts.contains_key(&Count::EventLost));
        self.reading = true;
        lost.unwrap_or_else(|| panic!("the ring took every event"))
    }

    /// Runs a program on a frame.
    pub fn run(&mut self, program: &str, ifindex: u32, ingress: u32, frame: Vec<u8>) -> Outcome {
        self.must(|w| w.try_run(program, ifindex, ingress, frame))
    }

    fn try_run(
        &mut self,
        name: &str,
        ifindex: u32,
        ingress: u32,
        sent: Vec<u8>,
    ) -> Result<Outcome> {
        let before = self.counters()?;
        if self.reading {
            self.tell()?;
        }
        let (verdict, frame) = self.pass(name, ifindex, ingress, &sent)?;
        let after = self.counters()?;
        let rose = |index: u32| -> Option<u64> {
            let index = usize::try_from(index).ok()?;
            Some(after[index] - before[index]).filter(|n| *n > 0)
        };
        let mut drops = BTreeMap::new();
        for hook in 0..hook::HOOKS {
            for reason in Reason::ALL {
                if let Some(n) = rose(drop_index(hook, *reason)) {
                    drops.insert((hook, *reason), n);
                }
            }
        }
        let counts = Count::ALL
            .iter()
            .filter_map(|c| Some((*c, rose(count_index(*c))?)))
            .collect();
        let outcome = Outcome {
            verdict,
            sent,
            frame,
            drops,
            counts,
            events: if self.reading {
                self.tell()?
            } else {
                Vec::new()
            },
        };
        super::row::remember(&outcome);
        Ok(outcome)
    }

    /// Packets of every counter, all CPUs together.
    pub(super) fn counters(&self) -> Result<Vec<u64>> {
        self.counters
            .iter()
            .map(|values| Ok(values?.iter().map(|value| value.packets).sum()))
            .collect()
    }

    /// Takes the events out of the ring.
    pub fn tell(&mut self) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        while let Some(item) = self.events.next() {
            told.push(event(&item).context("an event that is too short")?);
        }
        Ok(told)
    }
}

/// Reads an [`agent_common::Event`] by the places of its fields, as another reader of the ring would.
fn event(bytes: &[u8]) -> Option<Told> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let end = |address: usize, port: usize| -> Option<SocketAddr> {
        let raw: [u8; 16] = bytes.get(address..address + 16)?.try_into().ok()?;
        let port = u16::from_be_bytes(bytes.get(port..port + 2)?.try_into().ok()?);
        Some(SocketAddr::new(IpAddr::from(Address::v6(raw)), port))
    };
    Some(Told {
        source: end(8, 40)?,
        destination: end(24, 42)?,
        kind: *bytes.get(66)?,
        reason: Reason::from_number(*bytes.get(67)?),
        egress_rule: word(68)?,
        ingress_rule: word(72)?,
        hook: *bytes.get(92)?,
    })
}
