//! Packets whose flow cannot be told (fragments that follow nothing, endless chains of extension headers, ICMP errors about nobody's packet, tags, what
//! is cut short), and what only neighbours send each other. The first are dropped where policy is in force or a ClusterIP is the target, else left to
//! the stack; some are never sent by a pod.

use std::net::IpAddr;

use agent_common::{Reason, address_kind};

use super::super::wire;
use super::hooks::is_multicast;
use super::{Arrival, Expected, Model};

impl Model {
    /// A pod sends something whose flow cannot be told. `never`: nobody may, whatever policy says.
    pub(super) fn unknown_from_pod(
        &mut self,
        at: &Arrival<'_>,
        here: u32,
        reason: Reason,
        never: bool,
    ) -> Expected {
        let (source, destination) = (at.wire.ends.from.ip(), at.wire.ends.to.ip());
        let addressed = at.wire.addressed;
        if addressed && !self.cluster.sends_as(here, source) {
            return self.drops(at, Reason::SourceSpoofed);
        }
        let target_enforced = self
            .cluster
            .slot_of(destination)
            .is_some_and(|slot| self.cluster.enforced(slot));
        if never
            || self.cluster.enforced(here)
            || (addressed && (self.cluster.is_cluster_ip(destination) || target_enforced))
        {
            return self.drops(at, reason);
        }
        Self::passes(at)
    }

    /// Something reaches a pod whose flow cannot be told.
    pub(super) fn unknown_to_pod(
        &mut self,
        at: &Arrival<'_>,
        here: u32,
        reason: Reason,
    ) -> Expected {
        if self.cluster.enforced(here) {
            self.drops(at, reason)
        } else {
            Self::passes(at)
        }
    }

    /// Whether a neighbour's message goes no further than this host; ARP never does.
    pub(super) fn stays_on_link(&self, at: &Arrival<'_>) -> bool {
        let to = at.wire.ends.to.ip();
        to.is_unspecified()
            || is_multicast(to)
            || is_link_local(to)
            || self.cluster.kind_of(to) == Some(address_kind::HOST)
    }

    /// ARP, neighbour discovery and the like pass from the pod's own addresses, from none, and from link-local ones.
    pub(super) fn neighbour(&mut self, at: &Arrival<'_>, here: u32) -> Expected {
        // RFC 4861 4.2, 4.5: advertisements and redirects are routers'.
        let speaks_as_router = at.wire.ends.protocol == wire::ICMPV6
            && matches!(at.frame.get(at.wire.transport()), Some(134 | 137));
        if speaks_as_router && !self.cluster.routes(here) {
            return self.drops(at, Reason::NeighbourSpoofed);
        }
        let sender = at.wire.arp_sender.unwrap_or(at.wire.ends.from.ip());
        if sender.is_unspecified()
            || (sender.is_ipv6() && is_link_local(sender))
            || self.cluster.sends_as(here, sender)
        {
            return Self::passes(at);
        }
        self.drops(at, Reason::NeighbourSpoofed)
    }
}

/// 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291 2.5.6).
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
