//! The path of a packet through each hook (ARCHITECTURE.md, "The path of a packet").

use std::net::{IpAddr, Ipv4Addr};

use agent_common::{Count, Reason, THIS_HOST, address_kind, event_kind, hook};

use super::super::wire::{self, Ends, Kind};
use super::cluster::{Pod, is_no_source};
use super::flows::{Half, in_pieces, reopens};
use super::open::{Opened, Opening};
use super::policy::Question;
use super::{Arrival, Deed, Expected, Model, Told, Verdict};

impl Model {
    /// What must become of a packet; the model has seen it then.
    pub fn see(&mut self, at: &Arrival<'_>) -> Expected {
        let at = &Arrival {
            wire: self.put_together(at),
            ..at.clone()
        };
        let came = self.enters(at);
        // Of a link that is nobody's nothing is kept; what an uplink brings leaves something only where its flow is known.
        if at.hook != hook::FROM_UPLINK && self.cluster.links.contains_key(&at.ifindex) {
            self.leaves(at, &came);
        }
        let found = at.wire.kind == Kind::Flow && came.verdict != Verdict::Drop && !came.limited;
        if found && !at.wire.v4 && at.wire.walked && at.wire.part.is_none() {
            self.did(at, Deed::ChainWalked);
        }
        came
    }

    fn enters(&mut self, at: &Arrival<'_>) -> Expected {
        match at.hook {
            hook::FROM_POD => self.pod_sends(at),
            hook::TO_POD => self.pod_gets(at),
            _ => self.uplink_brings(at),
        }
    }

    /// On to the stack as it came.
    pub(super) fn passes(at: &Arrival<'_>) -> Expected {
        Expected {
            verdict: Verdict::Next,
            frame: at.frame.to_vec(),
            told: None,
            limited: false,
        }
    }

    /// Dropped for a reason, counted and told.
    pub(super) fn drops(&mut self, at: &Arrival<'_>, reason: Reason) -> Expected {
        *self.tally.drops.entry((at.hook, reason)).or_default() += 1;
        Expected {
            verdict: Verdict::Drop,
            frame: at.frame.to_vec(),
            told: Some(Told {
                kind: event_kind::DROP,
                reason: Some(reason),
            }),
            limited: false,
        }
    }

    /// Sends a packet on by a half: into a pod, which is a hop, or on to the stack; rewritten where the half says so.
    fn sends(&self, at: &Arrival<'_>, half: &Half) -> Expected {
        let mut out = Self::passes(at);
        // The stack answers that the time is exceeded, about the packet as its sender knows it.
        if self.target(half).is_some() && at.wire.hops <= 1 {
            return out;
        }
        if half.translated {
            let to = Ends {
                from: half.new_from,
                to: half.new_to,
                protocol: at.wire.ends.protocol,
            };
            wire::translate(&mut out.frame, &at.wire, to);
        }
        self.redirects(at, half, &mut out);
        out
    }

    /// The pod that packets of a half are redirected into.
    fn target(&self, half: &Half) -> Option<&Pod> {
        half.deliver
            .and_then(|slot| self.cluster.pods.get(&slot))
            .filter(|pod| pod.ifindex != 0)
    }

    /// Into the pod that the half names, which is a hop, if the packet has one left.
    pub(super) fn redirects(&self, at: &Arrival<'_>, half: &Half, out: &mut Expected) {
        if let Some(pod) = self.target(half)
            && at.wire.hops > 1
        {
            wire::hop(&mut out.frame, at.wire.v4);
            out.frame[..6].copy_from_slice(&pod.mac);
            out.frame[6..12].copy_from_slice(&pod.host_mac);
            out.verdict = Verdict::Redirect;
        }
    }

    /// A packet of a flow that goes the way of `ends` and is sent by what their half says.
    fn goes_on(&mut self, at: &Arrival<'_>, ends: Ends) -> Expected {
        self.note(at, ends, true);
        match self.flows.find(&ends).copied() {
            Some(half) => self.sends_whole(at, &half),
            None => Self::passes(at),
        }
    }

    /// [`Self::sends`], but for what cannot be rewritten in pieces.
    fn sends_whole(&mut self, at: &Arrival<'_>, half: &Half) -> Expected {
        if in_pieces(at, half) {
            return self.drops(at, Reason::Fragment);
        }
        self.sends(at, half)
    }

    /// Judges a flow again whose epoch rose, in its opener's direction. `ends` are those of packets that the pod at this link sends.
    fn rejudge(&mut self, ends: Ends, here: u32) -> Result<(), Reason> {
        let Some(mut half) = self.flows.find(&ends).copied() else {
            return Ok(());
        };
        let (opener, responder) = if half.reply {
            (half.new_to.ip(), ends.from)
        } else {
            (ends.from.ip(), half.new_to)
        };
        let asked = Question {
            opener,
            responder,
            protocol: ends.protocol,
            here: Some(here),
            here_responds: half.reply,
            host: half.host,
        };
        let (own, audit) = (half.own, half.audit);
        self.judge(&asked, &mut half)?;
        // What the flow was when it began stays.
        (half.own, half.audit) = (own, audit);
        if half.direct {
            half.deliver = if half.reply {
                half.opener
            } else {
                half.responder
            };
        }
        if let Some(stored) = self.flows.find_mut(&ends) {
            *stored = half;
        }
        self.count(Count::FlowRejudged, 1);
        Ok(())
    }

    fn pod_sends(&mut self, at: &Arrival<'_>) -> Expected {
        let ends = at.wire.ends;
        // An answered flow whose entry holds: the interface is the source check.
        if at.wire.kind == Kind::Flow
            && !at.wire.walked
            && !at.wire.ends_association()
            && let Some(half) = self.flows.answered.get(&ends)
            && half.enters == at.ifindex
            && self.judged(half, at.ifindex)
            && self.backend_holds(half, ends.protocol)
            && !reopens(half, &at.wire)
        {
            return self.goes_on(at, ends);
        }
        let Some(here) = self.cluster.links.get(&at.ifindex).copied() else {
            return Self::passes(at);
        };
        if ends.to.ip().is_loopback() {
            return self.drops(at, Reason::DestinationMartian);
        }
        match at.wire.kind {
            // RFC 5095: it leaves no pod.
            _ if at.wire.visits => {
                return self.unknown_from_pod(at, here, Reason::ExtensionHeader, true);
            }
            Kind::Link if self.stays_on_link(at) => return self.neighbour(at, here),
            Kind::Unknown(Reason::IcmpError) => return self.error_from_pod(at, here),
            Kind::Unknown(reason) => return self.unknown_from_pod(at, here, reason, false),
            Kind::Never(reason) => return self.unknown_from_pod(at, here, reason, true),
            Kind::Later => return self.unknown_from_pod(at, here, Reason::Fragment, true),
            Kind::Flow | Kind::Link => {}
        }
        if !self.cluster.sends_as(here, ends.from.ip()) {
            return self.drops(at, Reason::SourceSpoofed);
        }
        if !self.flows.answered.contains_key(&ends)
            && let Some(half) = self.flows.waiting.get(&ends)
            && half.reply
            && !reopens(half, &at.wire)
        {
            let opener = half.partner(ends.protocol);
            self.promote(at, opener, ends);
        }
        if let Some(half) = self.flows.find_mut(&ends) {
            // The sender's address was nobody's when the flow was made, or another pod's, whose place this one took.
            if half.enters == 0 || (half.reply && !at.wire.opens()) {
                half.enters = at.ifindex;
            }
            let half = *half;
            // The other half, which the kernel may have evicted alone; what has its place then is another flow's, and stays.
            let partner = half.partner(ends.protocol);
            let whole = self
                .flows
                .find(&partner)
                .is_some_and(|other| other.partner(ends.protocol) == ends);
            let partner = if whole { partner } else { ends };
            // Opened when nobody had the service's address yet, by either end.
            let untranslated = half.backend.is_none() && self.cluster.is_cluster_ip(ends.to.ip());
            if half.enters == at.ifindex && !reopens(&half, &at.wire) && !untranslated {
                let holds = self.backend_holds(&half, ends.protocol);
                // Of half a flow the opener's packets begin anew: nothing would take its answers for what they are.
                if holds && (whole || half.reply) {
                    if !self.judged(&half, at.ifindex)
                        && let Err(reason) = self.rejudge(ends, here)
                    {
                        return self.drops(at, reason);
                    }
                    return self.goes_on(at, ends);
                }
                let middle = ends.protocol == wire::TCP && !at.wire.opens() && !at.wire.follows;
                if !holds && middle {
                    self.forget(ends, partner);
                    return self.refuses(at, Reason::BackendGone);
                }
            }
            self.forget(ends, partner);
        }
        if at.wire.follows {
            // The flow of its first is not there any more, and it can open none.
            return self.drops(at, Reason::Fragment);
        }
        if ends.protocol == wire::TCP && !at.wire.opens() {
            if self.cluster.is_cluster_ip(ends.to.ip()) {
                return self.refuses(at, Reason::Midstream);
            }
            return match self.take_up(at, here, false, at.ifindex) {
                Ok(Some((half, told))) => Expected {
                    told,
                    ..self.sends(at, &half)
                },
                Ok(None) => Self::passes(at),
                Err(reason) => self.drops(at, reason),
            };
        }
        let opening = Opening {
            ends,
            here,
            here_responds: false,
            enters: at.ifindex,
            host: false,
            midstream: false,
        };
        match self.open(at, &opening) {
            Opened::Yes(opened) => Expected {
                told: self.tells_opened(&opened),
                ..self.sends(at, &opened[0])
            },
            Opened::Again => self.looks_again(at),
            Opened::No(reason) => self.refuses(at, reason),
        }
    }

    fn pod_gets(&mut self, at: &Arrival<'_>) -> Expected {
        // Packets show what they are behind translation, so the entry is found the other way round.
        let ends = at.wire.ends.turned();
        // The host's own flow is nobody else's.
        let host = at.ingress == 0;
        let borrowed = |half: &Half| half.host && half.reply && !host;
        if at.wire.kind == Kind::Flow
            && !at.wire.walked
            && !at.wire.ends_association()
            && let Some(half) = self.flows.answered.get(&ends)
            && self.judged(half, at.ifindex)
            && !reopens(half, &at.wire)
            && !borrowed(half)
        {
            self.note(at, ends, false);
            return Self::passes(at);
        }
        let Some(here) = self.cluster.links.get(&at.ifindex).copied() else {
            return Self::passes(at);
        };
        match at.wire.kind {
            Kind::Link => return Self::passes(at),
            Kind::Unknown(Reason::IcmpError) => return self.error_to_pod(at, here),
            // The host reaches its pods whatever policy says.
            Kind::Unknown(_) | Kind::Never(_) | Kind::Later if host => return Self::passes(at),
            Kind::Unknown(reason) | Kind::Never(reason) => {
                return self.unknown_to_pod(at, here, reason);
            }
            Kind::Later => return self.unknown_to_pod(at, here, Reason::Fragment),
            Kind::Flow => {}
        }
        // A service's answer that nobody has translated back yet: this host's own, or one that the stack has just taken its masquerade from.
        let mut ends = ends;
        let mut raw = host.then(|| self.answers(at, THIS_HOST)).flatten();
        if raw.is_none() {
            if !self.flows.answered.contains_key(&ends)
                && let Some(half) = self.flows.waiting.get(&ends)
                && !half.reply
                && !reopens(half, &at.wire)
            {
                let answers = half.partner(ends.protocol);
                self.promote(at, ends, answers);
            }
            if !host && self.flows.find(&ends).is_none() {
                raw = self.answers(at, 0);
            }
        }
        if let Some((opener, _)) = raw {
            ends = opener;
        }
        if let Some(half) = self.flows.find(&ends).copied() {
            if !reopens(&half, &at.wire) {
                if borrowed(&half) {
                    return self.drops(at, Reason::SourceMartian);
                }
                if !host
                    && !self.judged(&half, at.ifindex)
                    && let Err(reason) = self.rejudge(ends, here)
                {
                    return self.drops(at, reason);
                }
                self.note(at, ends, false);
                return match raw {
                    Some((_, answers)) => self.sends_whole(at, &answers),
                    None => Self::passes(at),
                };
            }
            self.forget(ends, half.partner(ends.protocol));
        }
        if at.wire.follows {
            return if host {
                Self::passes(at)
            } else {
                self.unknown_to_pod(at, here, Reason::Fragment)
            };
        }
        // A service's answer whose flow has lost its opener's half: services open nothing.
        if !host && self.cluster.is_cluster_ip(at.wire.ends.from.ip()) {
            return self.drops(at, Reason::SourceMartian);
        }
        let ends = at.wire.ends.turned();
        let enters = match self.cluster.slot_of(at.wire.ends.from.ip()) {
            _ if host => THIS_HOST,
            Some(slot) => self.cluster.ifindex(slot),
            None => 0,
        };
        if !host && ends.protocol == wire::TCP && !at.wire.opens() {
            return match self.take_up(at, here, true, enters) {
                Ok(taken) => Expected {
                    told: taken.and_then(|(_, told)| told),
                    ..Self::passes(at)
                },
                Err(reason) => self.drops(at, reason),
            };
        }
        let opening = Opening {
            ends: at.wire.ends,
            here,
            here_responds: true,
            enters,
            host,
            midstream: false,
        };
        match self.open(at, &opening) {
            Opened::Yes(opened) => Expected {
                told: self.tells_opened(&opened),
                ..Self::passes(at)
            },
            Opened::Again => self.looks_again(at),
            Opened::No(_) if host => Self::passes(at),
            Opened::No(reason) => self.drops(at, reason),
        }
    }

    /// The opener's ends, and the half by which this is to be translated, where it is a service's answer as its backend sent it. `enters` is where
    /// such answers enter.
    fn answers(&mut self, at: &Arrival<'_>, enters: u32) -> Option<(Ends, Half)> {
        if at.wire.opens() {
            return None;
        }
        let ends = at.wire.ends;
        let half = self
            .flows
            .find(&ends)
            .copied()
            .filter(|half| half.reply && half.translated && half.enters == enters)?;
        let opener = half.partner(ends.protocol);
        if !self.flows.answered.contains_key(&ends) {
            self.promote(at, opener, ends);
        }
        self.flows.find(&opener)?;
        // The stack has routed it here.
        let half = Half {
            deliver: None,
            ..half
        };
        Some((opener, half))
    }

    fn uplink_brings(&mut self, at: &Arrival<'_>) -> Expected {
        let ends = at.wire.ends;
        if at.wire.kind == Kind::Flow
            && !at.wire.walked
            && !at.wire.ends_association()
            && let Some(half) = self.flows.answered.get(&ends)
            && half.enters == 0
        {
            return self.goes_on(at, ends);
        }
        match at.wire.kind {
            Kind::Never(Reason::Vlan) => return self.drops(at, Reason::Vlan),
            Kind::Unknown(Reason::Vlan | Reason::Ethertype) => return Self::passes(at),
            Kind::Link if !at.wire.walked => return Self::passes(at),
            _ if !at.wire.addressed => return Self::passes(at),
            _ => {}
        }
        if ends.to.ip().is_loopback() {
            return self.drops(at, Reason::DestinationMartian);
        }
        let source = ends.from.ip();
        let kind = self.cluster.kind_of(ends.to.ip());
        let to_host = kind == Some(address_kind::HOST);
        // Who has no address yet speaks to everybody on the link.
        let silent = source.is_unspecified() && is_multicast(ends.to.ip());
        let nobodys = is_no_source(source) && !silent;
        // The stack has its own check for what this host keeps, and puts that together itself.
        if !to_host && (self.cluster.is_ours(source) || nobodys) {
            return self.drops(at, Reason::SourceMartian);
        }
        match at.wire.kind {
            _ if to_host && at.wire.walked => return Self::passes(at),
            Kind::Link => return Self::passes(at),
            Kind::Unknown(Reason::IcmpError) if !to_host => return self.error_from_uplink(at),
            _ => {}
        }
        if at.wire.kind == Kind::Flow
            && let Some(half) = self.flows.find(&ends).copied()
        {
            if half.enters != 0 {
                return self.drops(at, Reason::SourceMartian);
            }
            let waits = !self.flows.answered.contains_key(&ends);
            if waits && !half.reply {
                return Self::passes(at);
            }
            let out = if waits && self.promote(at, half.partner(ends.protocol), ends) {
                // It was put there a moment ago: the next packet says that it lives.
                self.closes(at, ends, true, false);
                self.sends_whole(at, &half)
            } else {
                self.goes_on(at, ends)
            };
            self.leaves(at, &out);
            return out;
        }
        if kind == Some(address_kind::CLUSTER_IP) {
            return if at.wire.kind == Kind::Flow && !at.wire.follows {
                self.refuses(at, Reason::ClusterIpFromOutside)
            } else {
                self.drops(at, Reason::ClusterIpFromOutside)
            };
        }
        Self::passes(at)
    }

    /// There is a flow with these ends already. What was left of one that was evicted is gone now, and the packet begins anew. Where its ends are those
    /// of a live flow of others, it has no place; this host's packets reach their pod all the same.
    fn looks_again(&mut self, at: &Arrival<'_>) -> Expected {
        if !self.flows.waiting.contains_key(&at.wire.ends) {
            return self.enters(at);
        }
        if at.ingress == 0 {
            return Self::passes(at);
        }
        self.drops(at, Reason::PortClash)
    }
}

/// Multicast, or IPv4's limited broadcast.
pub(super) fn is_multicast(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}
