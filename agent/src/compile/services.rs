//! Services: frontends and pools, service by service.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{Address, ServiceKey, service_flag};

use super::endpoints::{self, Place};
use crate::desired::{Delta, EndpointSet, Frontend, Pool, PoolKey};
use crate::model::{
    Change, Cluster, Family, Few, Kind, Object, ObjectKey, Service, ServicePort, Sorted, Text,
    TrafficPolicy,
};
use crate::problem::Problem;

/// What compiling services depends on beside the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceOptions {
    /// The node that this agent runs on.
    pub node_name: Text,
}

/// What one service compiles to. There are ten thousand of these, of one frontend and one pool each.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Output {
    frontends: Sorted<ServiceKey, Frontend>,
    pools: Sorted<PoolKey, Pool>,
    problems: Vec<Problem>,
}

/// The services' part of compile. What it keeps only saves work: outputs are a function of the cluster alone.
#[derive(Clone, Default, Debug)]
pub struct Services {
    outputs: BTreeMap<ObjectKey, Output>,
    /// Who claims a frontend: the first key has it, the others are problems.
    claims: BTreeMap<ServiceKey, Few<ObjectKey>>,
    /// Frontends that more than one claims.
    contended: BTreeSet<ServiceKey>,
    /// Services whose output has problems.
    troubled: BTreeSet<ObjectKey>,
    /// Services compiled so far: work is per change, not per cluster.
    #[cfg(test)]
    compiled: usize,
    place: Option<Place>,
}

impl Services {
    /// Takes changes in: puts what is different into `delta`, and every problem that there is now into `problems`.
    pub fn update(
        &mut self,
        cluster: &Cluster,
        changes: &[Change],
        options: &ServiceOptions,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        let place = Place {
            node: options.node_name.clone(),
            zone: cluster
                .nodes
                .get(&options.node_name)
                .and_then(|node| node.zone.clone()),
        };
        let mut dirty = BTreeSet::new();
        if self.place.as_ref() == Some(&place) {
            for change in changes {
                match change.id.kind {
                    Kind::Service => drop(dirty.insert(change.id.key.clone())),
                    Kind::EndpointSlice => {
                        for object in [&change.before, &change.after].into_iter().flatten() {
                            if let Object::EndpointSlice(slice) = object {
                                dirty.insert(slice.service.clone());
                            }
                        }
                    }
                    Kind::Namespace | Kind::Node | Kind::Pod | Kind::NetworkPolicy => {}
                }
            }
        } else {
            dirty.extend(cluster.services.keys().cloned());
            dirty.extend(self.outputs.keys().cloned());
        }
        let mut touched = BTreeSet::new();
        #[cfg(test)]
        {
            self.compiled += dirty.len();
        }
        for key in dirty {
            let after = cluster
                .services
                .get(&key)
                .map(|service| compile(cluster, service, &place))
                .unwrap_or_default();
            self.replace(key, after, delta, &mut touched);
        }
        self.place = Some(place);
        for key in touched {
            let frontend = self.winner(&key).and_then(|w| {
                let output = self.outputs.get(w)?;
                output.frontends.get(&key).cloned()
            });
            delta.frontends.insert(key, frontend);
            if self.claims.get(&key).is_some_and(|claims| claims.len() > 1) {
                self.contended.insert(key);
            } else {
                self.contended.remove(&key);
            }
        }
        self.tell(problems);
    }

    /// Every problem that there is now.
    fn tell(&self, problems: &mut Vec<Problem>) {
        for key in &self.troubled {
            let output = self.outputs.get(key);
            problems.extend(
                output
                    .iter()
                    .flat_map(|output| output.problems.iter().cloned()),
            );
        }
        for frontend in &self.contended {
            let mut claims = self.claims.get(frontend).into_iter().flatten();
            let Some(winner) = claims.next() else {
                continue;
            };
            problems.extend(claims.map(|key| {
                Problem::new(
                    format_args!("Service {key}"),
                    format!(
                        "{} port {} belongs to Service {winner} already; give one of the two another address or port",
                        frontend.address,
                        u16::from_be(frontend.port_be),
                    ),
                )
            }));
        }
    }

    fn winner(&self, key: &ServiceKey) -> Option<&ObjectKey> {
        self.claims.get(key)?.first()
    }

    /// Puts an output in the place of another; `touched` gets the frontends whose answer may be different now.
    fn replace(
        &mut self,
        key: ObjectKey,
        mut after: Output,
        delta: &mut Delta,
        touched: &mut BTreeSet<ServiceKey>,
    ) {
        let before = self.outputs.remove(&key).unwrap_or_default();
        for pool in before.pools.keys() {
            if !after.pools.contains_key(pool) {
                delta.pools.insert(pool.clone(), None);
            }
        }
        let pools = after.pools.iter().map(|(name, pool)| {
            let same = before.pools.get(name).filter(|now| *now == pool);
            if same.is_none() {
                delta.pools.insert(name.clone(), Some(pool.clone()));
            }
            // What did not change stays the array that the plan holds, too.
            let kept = same.filter(|_| !crate::mutant::removed("pool-twice"));
            (name.clone(), kept.unwrap_or(pool).clone())
        });
        after.pools = pools.collect();
        for (frontend, value) in &before.frontends {
            match after.frontends.get(frontend) {
                Some(now) if now == value => {}
                Some(_) => drop(touched.insert(*frontend)),
                None => {
                    touched.insert(*frontend);
                    if let Some(claims) = self.claims.get_mut(frontend) {
                        claims.remove(&key);
                        if claims.is_empty() {
                            self.claims.remove(frontend);
                        }
                    }
                }
            }
        }
        for frontend in after.frontends.keys() {
            if !before.frontends.contains_key(frontend) {
                touched.insert(*frontend);
                self.claims
                    .entry(*frontend)
                    .or_default()
                    .insert(key.clone());
            }
        }
        if after.problems.is_empty() {
            self.troubled.remove(&key);
        } else {
            self.troubled.insert(key.clone());
        }
        if after != Output::default() {
            self.outputs.insert(key, after);
        }
    }
}

fn compile(cluster: &Cluster, service: &Service, place: &Place) -> Output {
    let (mut frontends, mut pools, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(Family::of).collect();
    for port in &service.ports {
        for &family in &families {
            let (name, pool, flags) = compile_port(cluster, service, port, family, place);
            let own = service.cluster_ips.iter();
            frontends.extend(own.filter(|ip| Family::of(ip) == family).map(|ip| {
                let address = Address::from(*ip);
                let key = ServiceKey::new(address, port.port.to_be(), port.protocol.number());
                let pool = name.clone();
                (key, Frontend { pool, flags })
            }));
            pools.push((name, pool));
        }
        unnamed_port(cluster, service, port, &mut problems);
    }
    Output {
        frontends: frontends.into_iter().collect(),
        pools: pools.into_iter().collect(),
        problems,
    }
}

/// The pool of a port, and the flags of the frontends that lead to it.
fn compile_port(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    family: Family,
    place: &Place,
) -> (PoolKey, Pool, u16) {
    let slices = slices(cluster, &service.key);
    let found = endpoints::gather(slices, family, &port.name, port.protocol, place);
    let sets = endpoints::choose(&found, place);
    let (set, flags) = match service.internal_policy {
        TrafficPolicy::Cluster => (EndpointSet::Cluster, 0),
        TrafficPolicy::Local if sets.cluster.is_empty() => (EndpointSet::Local, 0),
        TrafficPolicy::Local => (EndpointSet::Local, service_flag::DROP_WHEN_EMPTY),
    };
    let name = PoolKey {
        service: service.key.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
        family,
        set,
    };
    (name, endpoints::pool(&found, &sets, set, place), flags)
}

fn slices<'a>(
    cluster: &'a Cluster,
    service: &ObjectKey,
) -> impl Iterator<Item = &'a crate::model::EndpointSlice> {
    cluster
        .slices_of
        .get(service)
        .into_iter()
        .flatten()
        .filter_map(|key| cluster.slices.get(key))
        .map(AsRef::as_ref)
}

/// Endpoints that stand in slices without the port that the service names are no endpoints of it: nobody would see why.
fn unnamed_port(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    problems: &mut Vec<Problem>,
) {
    let mut peopled = slices(cluster, &service.key)
        .filter(|slice| !slice.endpoints.is_empty())
        .peekable();
    let named = |slice: &crate::model::EndpointSlice| {
        slice
            .ports
            .iter()
            .any(|p| p.name == port.name && p.protocol == port.protocol)
    };
    if peopled.peek().is_some() && !peopled.any(named) {
        problems.push(Problem::new(
            format_args!("Service {}", service.key),
            format!(
                "no EndpointSlice with endpoints has port \"{}\" ({}), so it has no backends; name the port in the slices as in the service",
                port.name,
                port.protocol.name(),
            ),
        ));
    }
}

#[cfg(test)]
pub(crate) mod tests;
