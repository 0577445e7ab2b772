//! A new flow: where it goes, whether it may, and its two halves.

use agent_common::{Count, Reason, THIS_HOST, address_kind, event_kind, hook, limits, pod_flag};

use super::super::wire::Ends;
use super::flows::{Half, in_pieces, over};
use super::policy::{Question, has_ports};
use super::{Arrival, Model, Told};

/// What is to be opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// The opener's packets.
    pub(super) ends: Ends,
    /// Slot of the pod at this link.
    pub(super) here: u32,
    /// That pod is the responder.
    pub(super) here_responds: bool,
    /// Where the opener's packets enter.
    pub(super) enters: u32,
    /// This host opens it.
    pub(super) host: bool,
    /// It is the middle of a connection.
    pub(super) midstream: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Opened {
    /// The halves, the opener's first.
    Yes(Box<[Half; 2]>),
    /// Such a flow is there already.
    Again,
    /// No.
    No(Reason),
}

/// Above these the kernel's random port may be any; see [`limits::PORT_FLOOR`].
const PORTS: std::ops::Range<u16> = limits::PORT_FLOOR..u16::MAX;
/// Of so many ports taken eight at random may be: then a client may be left without one.
const MOST: usize = 2_000;

impl Model {
    pub(super) fn open(&mut self, at: &Arrival<'_>, opening: &Opening) -> Opened {
        let mut half = match self.choose(at, opening) {
            Ok(half) => half,
            Err(reason) => return Opened::No(reason),
        };
        half.host = opening.host;
        half.midstream = opening.midstream;
        if let Err(reason) = self.permit(at, opening, &mut half) {
            return Opened::No(reason);
        }
        self.insert(at, opening, half)
    }

    /// Whether a flow to these ends may be: whether its packet can be translated, and what policy says.
    fn permit(&self, at: &Arrival<'_>, opening: &Opening, half: &mut Half) -> Result<(), Reason> {
        if in_pieces(at, half) {
            return Err(Reason::Fragment);
        }
        self.judge(&question(opening, half), half)
    }

    /// The ends behind the node: a backend, where a service is asked for, and ends that clash with no live flow's.
    fn choose(&mut self, at: &Arrival<'_>, opening: &Opening) -> Result<Half, Reason> {
        let ends = opening.ends;
        let plain = Half::plain(ends);
        // What comes up through the stack is past its translation: a ClusterIP there is nobody's whom the packet could reach. And who was
        // connected to a service's backend is not to be led to another.
        if self.cluster.is_cluster_ip(ends.to.ip()) {
            if opening.midstream {
                return Err(Reason::Midstream);
            }
            if at.hook == hook::TO_POD {
                return Err(Reason::ClusterIpFromOutside);
            }
        }
        let Some(frontend) = self.cluster.frontend(ends, has_ports(ends.protocol)) else {
            if self.free(at, ends, &plain) {
                self.clear(ends, &plain);
                return Ok(plain);
            }
            self.count(Count::Clash, 1);
            return self.other_port(at, ends, plain);
        };
        let frontend = frontend.ok_or(Reason::NoServicePort)?;
        let (alive, gone) = self.cluster.choices(frontend.pool);
        if alive.is_empty() && !gone {
            return Err(if frontend.drop_when_empty {
                Reason::NoLocalEndpoint
            } else {
                Reason::NoEndpoint
            });
        }
        if !has_ports(ends.protocol) {
            return Err(Reason::ServiceProtocol);
        }
        // Every try at random may have met a place whose backend is gone.
        let untold = !at.chance.told && at.chance.made.is_none();
        let nobody = gone && at.chance.told_reason == Some(Reason::NoEndpoint);
        let Some(number) = (if nobody {
            None
        } else {
            self.pick(at, opening, frontend.pool, &alive)
        }) else {
            return Err(Reason::NoEndpoint);
        };
        let half = self.pointed(ends, frontend.pool, number);
        let clashes = alive
            .iter()
            .any(|other| !self.free(at, ends, &self.pointed(ends, frontend.pool, *other)));
        if self.free(at, ends, &half) && !self.moved_port(at, ends) {
            self.clear(ends, &half);
            let most = if clashes { limits::BACKEND_TRIES } else { 0 };
            self.count_between(Count::Clash, 0, most.into());
            self.count_between(Count::BackendChosen, u64::from(!untold || !clashes), 1);
            return Ok(half);
        }
        self.count_between(Count::Clash, 1, limits::BACKEND_TRIES.into());
        self.other_port(at, ends, half)
    }

    /// Whether what came of it shows another port of the client's, although the backend's ends are free.
    fn moved_port(&self, at: &Arrival<'_>, ends: Ends) -> bool {
        matches!(at.chance.made, Some((made, _, port)) if made == ends && port != ends.from.port())
    }

    /// The backend that was chosen: one of those that may be, by what came of it.
    fn pick(&self, at: &Arrival<'_>, opening: &Opening, pool: u32, alive: &[u32]) -> Option<u32> {
        let shown = match at.chance.made {
            Some((made, backend, _)) if made == opening.ends => backend,
            _ => at.chance.told_backend,
        };
        if let Some(number) = shown.filter(|number| alive.contains(number)) {
            return Some(number);
        }
        if at.chance.told || alive.len() < 2 {
            return alive.first().copied();
        }
        // The ring does not tell: it was denied, as a counter says, and what was left of a dead flow that was in its way is gone.
        let fits = |number: &u32| {
            let mut half = self.pointed(opening.ends, pool, *number);
            let free = self.free(at, opening.ends, &half);
            let cleared = self.in_the_way(opening.ends, &half);
            let denied = self.permit(at, opening, &mut half).err();
            let gone = |ends: &Ends| at.chance.vanished.contains(ends);
            (
                denied == at.chance.told_reason,
                cleared.iter().all(gone) && at.chance.vanished.len() <= cleared.len(),
                free,
            )
        };
        alive.iter().copied().max_by_key(fits)
    }

    fn pointed(&self, ends: Ends, pool: u32, number: u32) -> Half {
        let mut half = Half::plain(ends);
        let Some(backend) = self.cluster.backends.get(number as usize) else {
            return half;
        };
        half.translated = true;
        half.backend = Some((number, backend.generation, pool));
        half.new_to = backend.at;
        // Hairpin: who reaches itself through a service sees the service's address.
        if backend.at.ip() == ends.from.ip() {
            half.new_from.set_ip(ends.to.ip());
        }
        half
    }

    /// Another port for the client.
    fn other_port(&mut self, at: &Arrival<'_>, ends: Ends, half: Half) -> Result<Half, Reason> {
        if !has_ports(ends.protocol) {
            return Err(Reason::PortClash);
        }
        let with = |port: u16| {
            let mut half = half;
            half.new_from.set_port(port);
            half.translated = true;
            half.port_rewritten = true;
            half
        };
        let shown = match at.chance.made {
            Some((made, _, port)) if made == ends => Some(port),
            _ => None,
        };
        let chosen = match shown {
            Some(port) if PORTS.contains(&port) => Some(port),
            _ => {
                let free = |port: &u16| self.free(at, ends, &with(*port));
                let taken = PORTS.filter(|port| !free(port)).count();
                let told = at.chance.told_reason == Some(Reason::PortClash);
                if taken >= MOST && (told || taken == PORTS.len()) {
                    None
                } else {
                    PORTS.clone().find(free)
                }
            }
        };
        let half = with(chosen.ok_or(Reason::PortClash)?);
        if !self.free(at, ends, &half) {
            return Err(Reason::PortClash);
        }
        self.clear(ends, &half);
        Ok(half)
    }

    /// Whether no live flow's answers look like this flow's.
    fn free(&self, at: &Arrival<'_>, ends: Ends, half: &Half) -> bool {
        let answers = half.partner(ends.protocol);
        // Who asks itself from the port that it serves.
        if half.backend.is_some() && answers == ends {
            return false;
        }
        let taken = |found: &Half, answered: bool| {
            found.partner(ends.protocol) != ends && !over(found, ends.protocol, answered, at.tick)
        };
        let among_answered = self.flows.answered.get(&answers);
        let among_waiting = self.flows.waiting.get(&answers);
        !among_answered.is_some_and(|found| taken(found, true))
            && !among_waiting.is_some_and(|found| taken(found, found.answered))
    }

    /// The halves that [`Self::clear`] removes.
    fn in_the_way(&self, ends: Ends, half: &Half) -> Vec<Ends> {
        let answers = half.partner(ends.protocol);
        let mut halves = Vec::new();
        for (table, even_own) in [(&self.flows.answered, true), (&self.flows.waiting, false)] {
            if let Some(found) = table.get(&answers) {
                let partner = found.partner(ends.protocol);
                if even_own || partner != ends {
                    let there = [answers, partner];
                    halves.extend(there.into_iter().filter(|ends| table.contains_key(ends)));
                }
            }
        }
        halves
    }

    /// Removes what is left of flows that are over and whose answers look like this one's.
    fn clear(&mut self, ends: Ends, half: &Half) {
        let answers = half.partner(ends.protocol);
        if let Some(found) = self.flows.answered.get(&answers).copied() {
            self.flows.answered.remove(&found.partner(ends.protocol));
            self.flows.answered.remove(&answers);
            self.count(Count::ConntrackRemoved, 2);
        }
        if let Some(found) = self.flows.waiting.get(&answers).copied()
            && found.partner(ends.protocol) != ends
        {
            self.flows.waiting.remove(&found.partner(ends.protocol));
            self.flows.waiting.remove(&answers);
            self.count(Count::UnrepliedRemoved, 2);
        }
    }

    /// Whether both ends are local pods that take redirects: then the flow leaves out the stack.
    fn goes_direct(&self, at: &Arrival<'_>, opening: &Opening, half: &Half) -> bool {
        let pod = |slot: Option<u32>| slot.and_then(|slot| self.cluster.pods.get(&slot));
        let (Some(a), Some(b)) = (pod(half.opener), pod(half.responder)) else {
            return false;
        };
        at.hook == hook::FROM_POD
            && !half.midstream
            && a.flags & b.flags & pod_flag::REDIRECT != 0
            // What a router sends on for somebody else stays in the stack, which knows the way back.
            && (!a.any_source() || self.cluster.slot_of(opening.ends.from.ip()) == half.opener)
    }

    /// Puts both halves among the flows that wait for their answer.
    fn insert(&mut self, at: &Arrival<'_>, opening: &Opening, mut half: Half) -> Opened {
        let ends = opening.ends;
        half.direct = self.goes_direct(at, opening, &half);
        half.deliver = half.responder.filter(|_| half.direct);
        half.enters = opening.enters;
        half.seen = at.tick;
        half.tag = at.wire.tag;
        let answers = half.partner(ends.protocol);
        let enters = match half.responder {
            _ if opening.here_responds => at.ifindex,
            Some(slot) => self.cluster.ifindex(slot),
            None if self.cluster.kind_of(answers.from.ip()) == Some(address_kind::HOST) => {
                THIS_HOST
            }
            None => 0,
        };
        let reply = Half {
            reply: true,
            new_from: ends.to,
            new_to: ends.from,
            // What an INIT asks for its answers will bear.
            tag: at.wire.asked,
            deliver: half.opener.filter(|_| half.direct),
            enters,
            ..half
        };
        if let Some(there) = self.flows.waiting.get(&ends) {
            let partner = there.partner(ends.protocol);
            if !self.flows.waiting.contains_key(&partner) {
                self.flows.waiting.remove(&ends);
                self.count(Count::UnrepliedRemoved, 1);
            }
            return Opened::Again;
        }
        self.flows.waiting.insert(ends, half);
        if self.flows.waiting.insert(answers, reply).is_some() {
            // Left behind when the opener's half was evicted alone.
            self.count(Count::UnrepliedRemoved, 1);
        }
        self.count(Count::FlowCreated, 1);
        if half.audit {
            self.count(Count::Audited, 1);
        }
        Opened::Yes(Box::new([half, reply]))
    }

    /// What the ring says of a flow that was opened.
    pub(super) fn tells_opened(&self, opened: &[Half; 2]) -> Option<Told> {
        let kind = if opened[0].audit {
            event_kind::AUDIT
        } else if self.cluster.tell_allowed {
            event_kind::ALLOW
        } else {
            return None;
        };
        Some(Told { kind, reason: None })
    }

    /// Takes up a connection whose beginning nobody saw: in the orientation that both ends' policies allow, the packet's own first.
    /// (Pods here have no sockets that would tell.) Answers the half of the packet's own direction; `None`: there is one already.
    pub(super) fn take_up(
        &mut self,
        at: &Arrival<'_>,
        here: u32,
        here_responds: bool,
        enters: u32,
    ) -> Result<Option<(Half, Option<Told>)>, Reason> {
        let own = Opening {
            ends: at.wire.ends,
            here,
            here_responds,
            enters,
            host: false,
            midstream: true,
        };
        match self.open(at, &own) {
            Opened::Yes(opened) => {
                self.count(Count::MidstreamAdmitted, 1);
                let told = self.tells_opened(&opened);
                return Ok(Some((opened[0], told)));
            }
            Opened::Again => return Ok(None),
            Opened::No(Reason::PolicyEgress | Reason::PolicyIngress) => {}
            Opened::No(reason) => return Err(reason),
        }
        let turned = Opening {
            ends: own.ends.turned(),
            here_responds: !here_responds,
            enters: self.opener_enters(at, own.ends.to, here_responds),
            ..own
        };
        match self.open(at, &turned) {
            Opened::Yes(opened) => {
                self.count(Count::MidstreamAdmitted, 1);
                let told = self.tells_opened(&opened);
                Ok(Some((opened[1], told)))
            }
            _ => Err(Reason::Midstream),
        }
    }

    /// Where the packets of an opener enter that is not the sender of the packet at hand.
    fn opener_enters(&self, at: &Arrival<'_>, opener: std::net::SocketAddr, is_here: bool) -> u32 {
        if is_here {
            return at.ifindex;
        }
        match self.cluster.who.get(&opener.ip()) {
            Some(who) if who.kind == address_kind::LOCAL_POD => {
                who.slot.map_or(0, |slot| self.cluster.ifindex(slot))
            }
            Some(who) if who.kind == address_kind::HOST => THIS_HOST,
            _ => 0,
        }
    }
}

fn question(opening: &Opening, half: &Half) -> Question {
    Question {
        opener: opening.ends.from.ip(),
        responder: half.new_to,
        protocol: opening.ends.protocol,
        here: Some(opening.here),
        here_responds: opening.here_responds,
        host: opening.host,
    }
}
