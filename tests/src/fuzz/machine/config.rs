//! What the agent would write, and what befalls the tables: to the maps and to the model.

use std::net::SocketAddr;

use agent_common::{
    SetWord, address_kind, backend_state, feature, limits, pod_flag, service_flag, set_flag,
};
use anyhow::{Context, Result};

use super::super::model::cluster::{Backend, Frontend, Pod, Pool, Who};
use super::super::model::policy::{Isolation, Ports, Rule};
use super::super::step::Step;
use super::super::wire::{Ends, read};
use super::{FAMILIES, Machine};
use crate::packet::address::Family;
use crate::packet::flows::tuple;
use crate::packet::rules;

/// The set of pods that no source knows: nothing is in it.
const NO_SET: u32 = 0;

impl Machine {
    pub(super) fn configure(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Pod(n) => self.new_pod(*n),
            Step::Remote(family, n) => self.new_remote(*family, *n),
            Step::Service(frontend, protocol, backends, drop_when_empty) => {
                self.new_service(*frontend, *protocol, backends, *drop_when_empty);
            }
            Step::ClusterIp(address) => {
                self.world.cluster_ip(*address)?;
                self.knows(*address, address_kind::CLUSTER_IP, None, 0);
            }
            Step::Isolate(..) | Step::Open(..) | Step::Unknown(_) => self.isolation(step),
            Step::Allow(..) | Step::Withdraw(..) => self.rule(step),
            Step::Group(address, group) => {
                if let Some(who) = self.model.cluster.who.get(address) {
                    self.world.group(who.identity, *group);
                    self.model.cluster.groups.insert(who.identity, *group);
                }
            }
            Step::Prefix(network, bits, identity, group) => {
                self.world.prefix(*network, *bits, *identity, *group);
                let cluster = &mut self.model.cluster;
                cluster
                    .prefixes
                    .retain(|(n, b, _)| (n, b) != (network, bits));
                cluster.prefixes.push((*network, *bits, *identity));
                cluster.groups.insert(*identity, *group);
            }
            Step::Features(literal, tell) => {
                let bit = |on: bool, bit| if on { bit } else { 0 };
                self.world.features(
                    bit(*literal, feature::LITERAL) | bit(*tell, feature::EVENTS_ALLOWED),
                )?;
                self.model.cluster.literal = *literal;
                self.model.cluster.tell_allowed = *tell;
            }
            Step::Epoch(_) | Step::Flags(..) | Step::Detach(_) | Step::Ended(_) => {
                self.pod_changes(step);
            }
            Step::Share(n, more) => {
                if let Some(pod) = self.pods.get(n) {
                    self.world.limit_share(pod, *more);
                    if let Some(pod) = self.model.cluster.pods.get_mut(&pod.slot) {
                        pod.limit = pod.held + more;
                    }
                }
            }
            Step::State(..) | Step::Reborn(..) | Step::Resize(..) | Step::Slot(..) => {
                self.service_changes(step);
            }
            Step::Move(address, n) => {
                if let Some(pod) = self.pods.get(n).copied() {
                    self.world.move_address(*address, &pod);
                    let slot = Some(pod.slot);
                    self.knows(*address, address_kind::LOCAL_POD, slot, pod.identity);
                }
            }
            Step::Forget(address) => {
                if self.model.cluster.who.remove(address).is_some() {
                    self.world.forget_address(*address);
                }
            }
            Step::Spend => {
                self.world.spend_budgets();
                self.spent = true;
            }
            Step::Age(ticks) => self.age(*ticks)?,
            Step::Evict(id, other) => self.evict(*id, *other),
            Step::TakePorts(id) => self.take_ports(*id)?,
            Step::Packet(_) => {}
        }
        Ok(())
    }

    fn knows(&mut self, address: std::net::IpAddr, kind: u8, slot: Option<u32>, identity: u32) {
        let who = Who {
            kind,
            slot,
            identity,
        };
        self.model.cluster.who.insert(address, who);
    }

    fn new_pod(&mut self, n: u8) {
        if self.pods.contains_key(&n) {
            return;
        }
        self.world.family = Family::V4;
        let pod = self.world.pod(n);
        self.pods.insert(n, pod);
        for family in FAMILIES {
            self.world.move_address(family.pod(n), &pod);
            let slot = Some(pod.slot);
            self.knows(family.pod(n), address_kind::LOCAL_POD, slot, pod.identity);
        }
        let known = Pod {
            ifindex: pod.ifindex,
            flags: pod_flag::USED | pod_flag::REDIRECT,
            identity: pod.identity,
            mac: pod.mac,
            host_mac: pod.host_mac,
            epoch: 1,
            egress: None,
            ingress: None,
            limit: 0,
            held: 0,
        };
        self.model.cluster.pods.insert(pod.slot, known);
        self.model.cluster.links.insert(pod.ifindex, pod.slot);
    }

    fn new_remote(&mut self, family: Family, n: u8) {
        self.world.family = family;
        let (address, identity) = self.world.remote_pod(n);
        self.knows(address, address_kind::REMOTE_POD, None, identity);
    }

    fn new_service(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        backends: &[SocketAddr],
        drop_when_empty: bool,
    ) {
        let cluster = &self.model.cluster;
        if cluster.services.contains_key(&(frontend, protocol)) {
            return;
        }
        let flags = if drop_when_empty {
            service_flag::DROP_WHEN_EMPTY
        } else {
            0
        };
        let service = self
            .world
            .service_with_flags(frontend, protocol, backends, flags);
        self.knows(frontend.ip(), address_kind::CLUSTER_IP, None, 0);
        let cluster = &mut self.model.cluster;
        let there = Frontend {
            pool: service.pool,
            drop_when_empty,
            external: false,
        };
        cluster.services.insert((frontend, protocol), there);
        cluster.pools.push(Pool {
            slots: service.backends.clone(),
            count: backends.len(),
        });
        cluster.backends.extend(backends.iter().map(|at| Backend {
            at: *at,
            generation: 1,
            state: backend_state::SERVING,
        }));
        self.services.push(service);
    }

    fn isolation(&mut self, step: &Step) {
        let (n, directions, isolation) = match step {
            Step::Isolate(n, egress, set) => {
                let isolation = Isolation {
                    set: *set,
                    unknown: false,
                };
                (n, vec![*egress], Some(isolation))
            }
            Step::Open(n, egress) => (n, vec![*egress], None),
            Step::Unknown(n) => {
                let isolation = Isolation {
                    set: NO_SET,
                    unknown: true,
                };
                (n, vec![true, false], Some(isolation))
            }
            _ => return,
        };
        let Some(pod) = self.pods.get(n).copied() else {
            return;
        };
        let word = match isolation {
            None => SetWord::default(),
            Some(Isolation { unknown: true, .. }) => SetWord {
                set: NO_SET,
                flags: set_flag::ISOLATED | set_flag::UNKNOWN,
            },
            Some(Isolation { set, .. }) => {
                self.model.cluster.sets.entry(set).or_default().whole = true;
                self.world.set(set)
            }
        };
        for egress in directions {
            self.world.edit(&pod, |content| {
                if egress {
                    content.egress = word;
                } else {
                    content.ingress = word;
                }
            });
            if let Some(pod) = self.model.cluster.pods.get_mut(&pod.slot) {
                if egress {
                    pod.egress = isolation;
                } else {
                    pod.ingress = isolation;
                }
            }
        }
    }

    fn rule(&mut self, step: &Step) {
        let (set, rule, comes) = match step {
            Step::Allow(set, rule) => (set, rule, true),
            Step::Withdraw(set, rule) => (set, rule, false),
            _ => return,
        };
        let known = &mut self.model.cluster.sets.entry(*set).or_default().rules;
        let same = |other: &Rule| (other.group, other.ports) == (rule.group, rule.ports);
        let was_there = known.iter().any(same);
        known.retain(|other| !same(other));
        let ports = as_written(rule.ports);
        if comes {
            known.push(*rule);
            self.world.rule(*set, rule.group, ports, rule.action);
        } else if was_there {
            self.world.withdraw(*set, rule.group, ports);
        }
    }

    fn pod_changes(&mut self, step: &Step) {
        let (Step::Epoch(n) | Step::Flags(n, ..) | Step::Detach(n) | Step::Ended(n)) = step else {
            return;
        };
        let Some(pod) = self.pods.get(n).copied() else {
            return;
        };
        let Some(known) = self.model.cluster.pods.get_mut(&pod.slot) else {
            return;
        };
        match step {
            Step::Epoch(_) => {
                self.world.raise_epoch(&pod);
                known.epoch += 1;
            }
            Step::Flags(_, redirects, any_source) => {
                known.flags = pod_flag::USED;
                if *redirects {
                    known.flags |= pod_flag::REDIRECT;
                }
                if *any_source {
                    known.flags |= pod_flag::ANY_SOURCE;
                }
                let flags = known.flags;
                self.world.edit(&pod, |content| content.flags = flags);
            }
            Step::Ended(_) => {
                self.world
                    .edit(&pod, |content| (content.ifindex, content.flags) = (0, 0));
                (known.ifindex, known.flags) = (0, 0);
            }
            _ => {
                if self.model.cluster.links.remove(&pod.ifindex).is_some() {
                    self.world.detach(&pod);
                }
            }
        }
    }

    fn service_changes(&mut self, step: &Step) {
        let (Step::State(s, ..) | Step::Reborn(s, _) | Step::Resize(s, _) | Step::Slot(s, ..)) =
            step
        else {
            return;
        };
        let Some(service) = self.services.get(*s) else {
            return;
        };
        let cluster = &mut self.model.cluster;
        let number = |index: usize| service.backends.get(index).copied();
        let Some(pool) = cluster.pools.get_mut(service.pool as usize) else {
            return;
        };
        match step {
            Step::State(_, index, state) => {
                if let Some(number) = number(*index) {
                    self.world.backend(number, |word| word.state = *state);
                    if let Some(backend) = cluster.backends.get_mut(number as usize) {
                        backend.state = *state;
                    }
                }
            }
            Step::Reborn(_, index) => {
                if let Some(number) = number(*index) {
                    self.world.backend(number, |word| word.generation += 1);
                    if let Some(backend) = cluster.backends.get_mut(number as usize) {
                        backend.generation += 1;
                    }
                }
            }
            Step::Resize(_, count) => {
                pool.count = (*count).min(service.backends.len());
                self.world
                    .resize(service, u32::try_from(pool.count).unwrap_or(0));
            }
            Step::Slot(_, index, with) => {
                if let (Some(number), Some(place)) = (number(*with), pool.slots.get_mut(*index)) {
                    *place = number;
                    let index = u32::try_from(*index).unwrap_or(0);
                    self.world.slot(service, index, number);
                }
            }
            _ => {}
        }
    }

    /// Lets time go by: every flow was last seen, and every datagram begun, so many ticks earlier.
    fn age(&mut self, ticks: u32) -> Result<()> {
        let tables = self.world.tables()?;
        for (answered, entries) in [true, false].into_iter().zip(tables) {
            for (key, mut flow) in entries {
                flow.last_seen = flow.last_seen.saturating_sub(ticks);
                self.world.put_entry(answered, key, flow)?;
            }
        }
        for (key, mut first) in self.world.places()? {
            first.begun = first.begun.saturating_sub(ticks);
            self.world.put_place(key, first)?;
        }
        for begun in self.model.places.values_mut() {
            begun.tick = begun.tick.saturating_sub(ticks);
        }
        let flows = &mut self.model.flows;
        for half in flows
            .answered
            .values_mut()
            .chain(flows.waiting.values_mut())
        {
            half.seen = half.seen.saturating_sub(ticks);
        }
        Ok(())
    }

    /// The half of a packet's flow, or the other, where the flow still waits for its answer.
    fn waiting_ends(&self, id: usize, other: bool) -> Option<Ends> {
        let ends = read(&self.gone.get(&id)?.sent).ends;
        let ends = if other {
            self.model.flows.waiting.get(&ends)?.partner(ends.protocol)
        } else {
            ends
        };
        self.model.flows.waiting.contains_key(&ends).then_some(ends)
    }

    fn evict(&mut self, id: usize, other: bool) {
        if let Some(ends) = self.waiting_ends(id, other) {
            self.model.flows.waiting.remove(&ends);
            self.world
                .evict_waiting(&tuple(ends.protocol, ends.from, ends.to));
        }
    }

    /// Takes every port that the flow's client could be given towards its backend.
    fn take_ports(&mut self, id: usize) -> Result<()> {
        let Some(ends) = self.waiting_ends(id, true) else {
            return Ok(());
        };
        let key = |ends: Ends| tuple(ends.protocol, ends.from, ends.to);
        let Some(half) = self.model.flows.waiting.get(&ends).copied() else {
            return Ok(());
        };
        let entry = self
            .world
            .waiting_entry(&key(ends))
            .context("the model knows a half that the programs do not")?;
        for port in limits::PORT_FLOOR..=u16::MAX {
            let mut taken = ends;
            taken.to.set_port(port);
            if self.model.flows.find(&taken).is_none() {
                self.world.put_entry(true, key(taken), entry)?;
                self.model.flows.answered.insert(taken, half);
            }
        }
        Ok(())
    }
}

/// Ports as the rules' trie has them.
fn as_written(ports: Ports) -> rules::Ports {
    match ports {
        Ports::Any => rules::Ports::Any,
        Ports::Protocol(protocol) => rules::Ports::Protocol(protocol),
        Ports::Range(protocol, first, last) => {
            let free = u32::BITS - u32::from(last - first).leading_zeros();
            rules::Ports::Prefix(protocol, first, u16::BITS - free)
        }
    }
}
