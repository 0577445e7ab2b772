//! Which endpoints of a service port are used (KEP-1669, 1672, 2086, 2433, 3015, 4444; SEMANTICS.md "Choosing endpoints").

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_common::{backend_flag, backend_state};

use crate::desired::{BackendSpec, EndpointSet, Pool};
use crate::model::{Endpoint, EndpointSlice, Family, Protocol, Text};

/// Where this node stands: what the choice depends on beside the endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The node's name.
    pub node: Text,
    /// The node's zone label; without it, zone hints are ignored.
    pub zone: Option<Text>,
}

/// The endpoints of one service port in one family: one for each address and port.
pub type Endpoints<'a> = BTreeMap<(IpAddr, u16), &'a Endpoint>;

/// Both endpoint sets of a service port: the addresses and ports that new flows may go to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sets {
    /// Endpoints of the whole cluster.
    pub cluster: std::collections::BTreeSet<(IpAddr, u16)>,
    /// Endpoints of this node.
    pub local: std::collections::BTreeSet<(IpAddr, u16)>,
}

impl Place {
    /// Whether an endpoint is on this node.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        endpoint.placement.node.as_ref() == Some(&self.node)
    }
}

/// The endpoints that slices give a service port, one for each address and port. An endpoint may stand in several slices
/// while the EndpointSlice controller moves it: the copy on this node counts, then the one that is more alive.
pub fn gather<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &Text,
    protocol: Protocol,
    place: &Place,
) -> Endpoints<'a> {
    let rank = |e: &Endpoint| (place.has(e), e.ready, e.serving, !e.terminating);
    let mut found = Endpoints::new();
    for slice in slices.filter(|s| s.family == family) {
        let ports = slice
            .ports
            .iter()
            .filter(|p| p.name == *port && p.protocol == protocol);
        for number in ports.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let seen = found.entry((endpoint.address, number)).or_insert(endpoint);
                if rank(endpoint) > rank(seen) {
                    *seen = endpoint;
                }
            }
        }
    }
    found
}

/// Chooses both sets.
pub fn choose(endpoints: &Endpoints<'_>, place: &Place) -> Sets {
    let keys = |accept: &dyn Fn(&Endpoint) -> bool| -> std::collections::BTreeSet<(IpAddr, u16)> {
        endpoints
            .iter()
            .filter(|(_, e)| accept(e))
            .map(|(key, _)| *key)
            .collect()
    };
    let fading = |e: &Endpoint| e.serving && e.terminating;
    let hint = Hint::of(endpoints, place);
    let mut cluster = keys(&|e| e.ready && hint.accepts(e, place));
    if cluster.is_empty() {
        cluster = keys(&fading);
    }
    let mut local = keys(&|e| e.ready && place.has(e));
    if local.is_empty() {
        local = keys(&|e| fading(e) && place.has(e));
    }
    Sets { cluster, local }
}

/// Which hints count. Either kind counts only while every ready endpoint has one and at least one matches.
enum Hint {
    Nodes,
    Zones,
    None,
}

impl Hint {
    fn of(endpoints: &Endpoints<'_>, place: &Place) -> Self {
        let usable = |names: fn(&Endpoint) -> Option<&Vec<Text>>, here: &Text| {
            let mut ready = endpoints.values().filter(|e| e.ready).peekable();
            ready.peek().is_some()
                && ready
                    .clone()
                    .all(|e| names(e).is_some_and(|n| !n.is_empty()))
                && ready.any(|e| names(e).is_some_and(|n| n.contains(here)))
        };
        if usable(|e| e.placement.hint_nodes.as_ref(), &place.node) {
            Self::Nodes
        } else if place
            .zone
            .as_ref()
            .is_some_and(|zone| usable(|e| e.placement.hint_zones.as_ref(), zone))
        {
            Self::Zones
        } else {
            Self::None
        }
    }

    fn accepts(&self, endpoint: &Endpoint, place: &Place) -> bool {
        let names = |list: &Option<Vec<Text>>, here: &Text| {
            list.as_ref().is_some_and(|names| names.contains(here))
        };
        match (self, &place.zone) {
            (Self::Nodes, _) => names(&endpoint.placement.hint_nodes, &place.node),
            (Self::Zones, Some(zone)) => names(&endpoint.placement.hint_zones, zone),
            _ => true,
        }
    }
}

/// The state of an endpoint's backend. An endpoint that is neither ready nor serving to its end keeps its TCP flows
/// and loses the others.
pub const fn state(endpoint: &Endpoint) -> u8 {
    if endpoint.ready {
        backend_state::SERVING
    } else if endpoint.terminating && endpoint.serving {
        backend_state::TERMINATING
    } else {
        backend_state::NOT_SERVING
    }
}

/// The pool of one set. Endpoints that are not chosen are in it too, so that their flows live on.
pub fn pool(endpoints: &Endpoints<'_>, sets: &Sets, set: EndpointSet, place: &Place) -> Pool {
    let chosen = match set {
        EndpointSet::Cluster => &sets.cluster,
        EndpointSet::Local => &sets.local,
    };
    Pool {
        backends: endpoints
            .iter()
            .map(|(key, endpoint)| {
                let flags = if place.has(endpoint) {
                    backend_flag::LOCAL
                } else {
                    0
                };
                let spec = BackendSpec {
                    state: state(endpoint),
                    flags,
                    chosen: chosen.contains(key),
                };
                (*key, spec)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Placement, intern};

    fn endpoint(last: u8, conditions: &str) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 0, 0, last]),
            ready: conditions.contains('r'),
            serving: conditions.contains('s'),
            terminating: conditions.contains('t'),
            placement: Arc::new(Placement {
                node: conditions.contains('l').then(|| intern("here")),
                ..Placement::default()
            }),
        }
    }

    fn zones(mut e: Endpoint, names: &[&str]) -> Endpoint {
        Arc::make_mut(&mut e.placement).hint_zones =
            Some(names.iter().map(|n| intern(n)).collect());
        e
    }

    fn nodes(mut e: Endpoint, names: &[&str]) -> Endpoint {
        Arc::make_mut(&mut e.placement).hint_nodes =
            Some(names.iter().map(|n| intern(n)).collect());
        e
    }

    fn chosen(endpoints: &[Endpoint], zone: Option<&str>) -> (Vec<u8>, Vec<u8>) {
        let place = Place {
            node: intern("here"),
            zone: zone.map(intern),
        };
        let map = endpoints.iter().map(|e| ((e.address, 80), e)).collect();
        let sets = choose(&map, &place);
        let last = |set: &std::collections::BTreeSet<(IpAddr, u16)>| {
            set.iter()
                .map(|(ip, _)| match ip {
                    IpAddr::V4(a) => a.octets()[3],
                    IpAddr::V6(_) => 0,
                })
                .collect()
        };
        (last(&sets.cluster), last(&sets.local))
    }

    #[test]
    fn ready_endpoints_come_first_then_those_serving_to_their_end() {
        let e = endpoint;
        let set = |list: &[Endpoint]| chosen(list, None).0;
        assert_eq!(set(&[e(1, "rs"), e(2, "st"), e(3, "")]), [1]);
        assert_eq!(set(&[e(1, ""), e(2, "st"), e(3, "t")]), [2]);
        assert_eq!(set(&[e(1, "s"), e(2, "t")]), Vec::<u8>::new());
    }

    #[test]
    fn the_local_set_is_chosen_by_itself() {
        let e = endpoint;
        assert_eq!(
            chosen(&[e(1, "rs"), e(2, "stl"), e(3, "l")], None),
            (vec![1], vec![2])
        );
        assert_eq!(
            chosen(&[e(1, "rs"), e(2, "rsl"), e(3, "stl")], None),
            (vec![1, 2], vec![2])
        );
        assert_eq!(chosen(&[e(1, "rs")], None), (vec![1], vec![]));
    }

    #[test]
    fn zone_hints_count_when_every_ready_endpoint_has_one_and_one_matches() {
        let a = || zones(endpoint(1, "rs"), &["a"]);
        let b = || zones(endpoint(2, "rs"), &["b", "c"]);
        let bare = || endpoint(3, "rs");
        assert_eq!(chosen(&[a(), b()], Some("a")).0, [1]);
        assert_eq!(chosen(&[a(), b()], Some("c")).0, [2]);
        assert_eq!(chosen(&[a(), b()], Some("d")).0, [1, 2]);
        assert_eq!(chosen(&[a(), b()], None).0, [1, 2]);
        assert_eq!(chosen(&[a(), b(), bare()], Some("a")).0, [1, 2, 3]);
        // An endpoint that is not ready needs no hint.
        assert_eq!(chosen(&[a(), b(), endpoint(3, "st")], Some("a")).0, [1]);
    }

    #[test]
    fn node_hints_come_before_zone_hints() {
        let a = zones(nodes(endpoint(1, "rs"), &["here"]), &["z"]);
        let b = zones(nodes(endpoint(2, "rs"), &["there"]), &["a"]);
        assert_eq!(chosen(&[a.clone(), b.clone()], Some("a")).0, [1]);
        let c = zones(nodes(endpoint(3, "rs"), &["there"]), &["z"]);
        assert_eq!(chosen(&[b, c], Some("a")).0, [2]);
    }

    #[test]
    fn of_copies_the_one_on_this_node_counts() {
        let place = Place {
            node: intern("here"),
            zone: None,
        };
        let slice = |name: &str, endpoint: Endpoint| EndpointSlice {
            key: crate::model::ObjectKey::new("d", name),
            service: crate::model::ObjectKey::new("d", "s"),
            family: Family::V4,
            endpoints: vec![endpoint],
            ports: vec![crate::model::EndpointPort {
                name: intern("p"),
                protocol: Protocol::Tcp,
                port: 80,
            }],
        };
        let (far, near) = (
            slice("a", endpoint(1, "rs")),
            slice("b", endpoint(1, "stl")),
        );
        for order in [[&far, &near], [&near, &far]] {
            let found = gather(
                order.into_iter(),
                Family::V4,
                &intern("p"),
                Protocol::Tcp,
                &place,
            );
            assert_eq!(found.len(), 1);
            assert!(found.values().all(|e| place.has(e)));
        }
    }
}
