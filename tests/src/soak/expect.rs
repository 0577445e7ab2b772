//! What the oracle expects of a connection, over all states that its packets may have met.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use sluice::oracle::policy::Flow as Connection;
use sluice::oracle::services::ServiceAnswer;

use super::flow::{Flow, Place};
use super::history::{GRACE, History, State};
use super::view::{PolicyView, ServiceView, protocol};
use crate::lab::wire::Wire;

/// The world's server.
pub(super) const WORLD: &str = "world";

/// Of the states that a connection's packets may have met.
#[derive(Debug)]
pub(super) struct Window {
    /// By node, from the connection's begin to its end.
    met: [Vec<Arc<State>>; 2],
    /// On either node, from a second before its begin to a second after its end.
    around: Vec<Arc<State>>,
}

/// What may become of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// Servers that may answer.
    pub(super) answers: BTreeSet<String>,
    /// It may meet silence.
    pub(super) silence: bool,
    /// It may be refused.
    pub(super) refusal: bool,
    /// A backend left the service meanwhile: it may be cut off.
    pub(super) cut: bool,
    /// An end of it came or went, or its backend left the service: nothing is expected of it but to be answered by nobody
    /// else.
    pub(super) unstable: bool,
}

impl Expected {
    /// Whether only one thing may become of it.
    pub(super) fn is_decided(&self) -> bool {
        let answered = !self.answers.is_empty();
        !self.unstable && !self.cut && answered != (self.silence || self.refusal)
    }
}

fn distinct<'a, T>(
    states: &'a [Arc<State>],
    of: impl Fn(&'a State) -> &'a Arc<T>,
) -> Vec<&'a Arc<T>> {
    let mut all: Vec<&Arc<T>> = Vec::new();
    for state in states {
        let this = of(state);
        if !all.iter().any(|known| Arc::ptr_eq(known, this)) {
            all.push(this);
        }
    }
    all
}

impl Window {
    /// Of a connection between these moments.
    pub(super) fn new(history: &History, began: Instant, ended: Instant) -> Self {
        Self::wide(history, began, ended, (began, ended))
    }

    /// The same where packets within `met` only decide, a part of the connection's time.
    pub(super) fn wide(
        history: &History,
        began: Instant,
        ended: Instant,
        met: (Instant, Instant),
    ) -> Self {
        let before = began.checked_sub(GRACE).unwrap_or(began);
        let [mut around, other] = [0, 1].map(|node| history.between(node, before, ended + GRACE));
        // Both end with the same state; the longer one holds the other.
        if other.len() > around.len() {
            around = other;
        }
        Self {
            met: [0, 1].map(|node| history.between(node, met.0, met.1)),
            around,
        }
    }

    fn services(&self, node: usize) -> Vec<&Arc<ServiceView>> {
        distinct(&self.met[node], |state| &state.services)
    }

    fn policies(&self, node: usize) -> Vec<&Arc<PolicyView>> {
        distinct(&self.met[node], |state| &state.policy)
    }

    /// The server behind an address and its node, all the while.
    fn server(&self, ip: IpAddr) -> Option<(&str, usize)> {
        let mut found: Option<(&str, usize)> = None;
        for state in &self.around {
            let plugged = state.links.get(&ip)?;
            let this = (&*plugged.server, plugged.node);
            if *found.get_or_insert(this) != this {
                return None;
            }
        }
        found
    }

    /// Whether a client's end of the connection was there all the while.
    pub(super) fn client_stays(&self, flow: &Flow) -> bool {
        match flow.client.place {
            Place::Pod(_) => self
                .server(flow.source())
                .is_some_and(|(server, _)| *server == *flow.client.name),
            Place::Host(_) | Place::World => true,
        }
    }

    /// Whether what a connection crosses between this client and a target on a node, or in the world, was there all the while.
    pub(super) fn joined(&self, flow: &Flow, target_node: Option<usize>) -> bool {
        let client_node = match flow.client.place {
            Place::Pod(node) | Place::Host(node) => Some(node),
            Place::World => None,
        };
        let crossed = [client_node, target_node].into_iter().flatten();
        client_node == target_node
            || crossed
                .into_iter()
                .all(|node| self.around.iter().all(|state| state.uplinks[node]))
    }

    /// The servers that were behind an address at any time.
    fn servers(&self, ip: IpAddr) -> impl Iterator<Item = String> {
        let states = self.around.iter();
        states.filter_map(move |state| Some(state.links.get(&ip)?.server.to_string()))
    }

    /// Whether it may pass, and whether it may be dropped, by policies of both ends. The target is behind an address now,
    /// and so after translation.
    pub(super) fn judge(
        &self,
        flow: &Flow,
        target: SocketAddr,
        target_node: Option<usize>,
    ) -> (bool, bool) {
        let source = flow.source();
        let connection = |from_host| Connection {
            source,
            destination: target.ip(),
            protocol: protocol(flow.proto).number(),
            port: target.port(),
            from_host,
        };
        let (mut egress, mut ingress) = (BTreeSet::new(), BTreeSet::new());
        let (source_node, host) = match flow.client.place {
            Place::Pod(node) => (Some(node), false),
            Place::Host(node) => (Some(node), true),
            Place::World => (None, false),
        };
        match source_node {
            Some(node) if !host => egress.extend(
                self.policies(node)
                    .iter()
                    .map(|view| view.passes(node, &connection(false)).0),
            ),
            _ => drop(egress.insert(true)),
        }
        match target_node {
            Some(node) => {
                let here = host && source_node == Some(node);
                let views = self.policies(node);
                ingress.extend(
                    views
                        .iter()
                        .map(|view| view.passes(node, &connection(here)).1),
                );
            }
            None => drop(ingress.insert(true)),
        }
        let pass = egress.contains(&true) && ingress.contains(&true);
        let denied = egress.contains(&false) || ingress.contains(&false);
        (pass, denied)
    }

    /// Whether a flow that stands could keep its backend all the while; an address that is no service's is its own backend.
    pub(super) fn serves(&self, flow: &Flow, backend: SocketAddr) -> bool {
        distinct(&self.around, |state| &state.services)
            .iter()
            .all(|view| match view.serving(flow.to.ip(), flow.proto) {
                None => flow.to == backend,
                Some(all) => all.contains(&(backend.ip(), backend.port())),
            })
    }

    /// Whether the server behind a backend's address was this one all the while, and its node.
    pub(super) fn stays(&self, backend: SocketAddr, server: &str) -> Option<usize> {
        let (name, node) = self.server(backend.ip())?;
        (name == server).then_some(node)
    }

    /// What may become of a new connection, or of a datagram in a flow that stands already.
    pub(super) fn expected(&self, flow: &Flow, stands: bool) -> Expected {
        let mut expected = Expected {
            unstable: !self.client_stays(flow),
            ..Expected::default()
        };
        let mut targets: BTreeSet<(IpAddr, u16)> = BTreeSet::new();
        let direct = (flow.to.ip(), flow.to.port());
        match flow.client.place {
            Place::World => drop(targets.insert(direct)),
            Place::Pod(node) | Place::Host(node) => {
                for view in self.services(node) {
                    let mut now = match view.answer(node, flow.to, flow.proto) {
                        ServiceAnswer::NotAService => BTreeSet::from([direct]),
                        ServiceAnswer::Backends(all) => all,
                        ServiceAnswer::NoSuchPort | ServiceAnswer::NoEndpoint => {
                            expected.refusal = true;
                            // Refusals are rationed, and then it is silence.
                            expected.silence = true;
                            BTreeSet::new()
                        }
                        ServiceAnswer::NoLocalEndpoint => {
                            // A call of this host's own cannot be dropped: it fails.
                            let host = matches!(flow.client.place, Place::Host(_));
                            expected.refusal |= host;
                            expected.silence |= !host;
                            BTreeSet::new()
                        }
                    };
                    if stands {
                        now.extend(view.serving(flow.to.ip(), flow.proto).into_iter().flatten());
                    }
                    expected.cut |= !targets.is_subset(&now);
                    targets.extend(now);
                }
            }
        }
        for (ip, port) in targets {
            let target = SocketAddr::new(ip, port);
            if ip == IpAddr::from(Wire::WORLD_V4) || ip == IpAddr::from(Wire::WORLD_V6) {
                self.add(&mut expected, flow, target, None, [WORLD.to_owned()]);
                continue;
            }
            match self.server(ip) {
                Some((name, node)) => {
                    self.add(&mut expected, flow, target, Some(node), [name.to_owned()]);
                }
                None => {
                    // Nobody there, or somebody who comes or goes.
                    let servers: Vec<String> = self.servers(ip).collect();
                    (expected.silence, expected.refusal) = (true, true);
                    expected.unstable |= !servers.is_empty();
                    expected.answers.extend(servers);
                }
            }
        }
        expected
    }

    fn add(
        &self,
        expected: &mut Expected,
        flow: &Flow,
        target: SocketAddr,
        node: Option<usize>,
        names: impl IntoIterator<Item = String>,
    ) {
        if !self.joined(flow, node) {
            (expected.silence, expected.refusal, expected.unstable) = (true, true, true);
        }
        let (pass, denied) = self.judge(flow, target, node);
        expected.silence |= denied;
        if pass {
            expected.answers.extend(names);
        }
    }
}
