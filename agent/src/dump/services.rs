//! Frontends and the backends of their pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use agent_common::{Backend, backend_flag, backend_state, protocol, service_flag};

use crate::desired::{EndpointSet, PoolKey};
use crate::model::Family;
use crate::reconcile::State;

/// Flags of a frontend, in words.
const FLAGS: [(u16, &str); 5] = [
    (service_flag::DROP_WHEN_EMPTY, "drop when empty"),
    (service_flag::EXTERNAL, "external"),
    (service_flag::SOURCE_RANGES, "source ranges"),
    (service_flag::AFFINITY, "affinity"),
    (service_flag::KEEP_SOURCE, "keep source"),
];

/// A line for each frontend, and for each backend of a pool.
pub(super) fn lines(state: &State, lines: &mut Vec<String>) {
    let maps = &state.contents;
    let mut pools: BTreeMap<u32, String> = BTreeMap::new();
    let mut keys: BTreeMap<u32, &PoolKey> = BTreeMap::new();
    for (key, entry) in &maps.services {
        let desired = state.desired.frontends.get(key);
        let name = match desired {
            Some(frontend) => pool_name(&frontend.pool),
            None => "a service that is gone".to_owned(),
        };
        if let Some(frontend) = desired {
            keys.insert(entry.pool, &frontend.pool);
        }
        let flags: Vec<&str> = FLAGS
            .iter()
            .filter(|(flag, _)| entry.flags & flag != 0)
            .map(|(_, name)| *name)
            .collect();
        let flags = if flags.is_empty() {
            String::new()
        } else {
            format!(" ({})", flags.join(", "))
        };
        let count = maps.heads.get(&entry.pool).map_or(0, |head| head.count);
        let backends = match count {
            0 => "no backend".to_owned(),
            1 => "1 backend".to_owned(),
            n => format!("{n} backends"),
        };
        let socket = SocketAddr::new(IpAddr::from(key.address), u16::from_be(key.port_be));
        let protocol = protocol_name(key.protocol);
        lines.push(format!(
            "service {socket}/{protocol}: {name}, {backends}{flags}"
        ));
        pools.insert(entry.pool, name);
    }
    let firsts: BTreeSet<u32> = maps.heads.values().map(|head| head.first).collect();
    for (number, head) in &maps.heads {
        let name = pools
            .get(number)
            .map_or("a pool that no service leads to", String::as_str);
        for index in 0..head.count {
            let slot = maps.slots.get(&head.first.wrapping_add(index));
            let backend = slot.and_then(|slot| maps.backends.get(&slot.backend));
            match backend {
                Some(backend) => lines.push(format!("backend {name}: {}", backend_text(backend))),
                None => lines.push(format!("backend {name}: nothing stands there")),
            }
        }
        // Behind the live ones stand those that no new flow chooses; what is not the pool's any more is left where it stood.
        let Some(pool) = keys
            .get(number)
            .and_then(|key| state.desired.pools.get(key))
        else {
            continue;
        };
        let behind = (head.first.saturating_add(head.count)..)
            .take_while(|at| *at == head.first || !firsts.contains(at))
            .map_while(|at| maps.slots.get(&at));
        let mut told = BTreeSet::new();
        for slot in behind {
            let Some(backend) = maps.backends.get(&slot.backend) else {
                continue;
            };
            let endpoint = (
                IpAddr::from(backend.address),
                u16::from_be(backend.word.port_be),
            );
            let kept = pool
                .backends
                .get(&endpoint)
                .is_some_and(|spec| !spec.chosen);
            if kept && backend.word.state != backend_state::GONE && told.insert(endpoint) {
                lines.push(format!(
                    "backend {name}: {}{}",
                    backend_text(backend),
                    super::FOR_ITS_FLOWS,
                ));
            }
        }
    }
}

fn pool_name(key: &PoolKey) -> String {
    let family = match key.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let set = match key.set {
        EndpointSet::Cluster => "",
        EndpointSet::Local => " local",
    };
    format!(
        "{} port \"{}\" {} {family}{set}",
        key.service,
        key.port,
        key.protocol.name()
    )
}

fn backend_text(backend: &Backend) -> String {
    let socket = SocketAddr::new(
        IpAddr::from(backend.address),
        u16::from_be(backend.word.port_be),
    );
    let local = if backend.word.flags & backend_flag::LOCAL != 0 {
        ", on this node"
    } else {
        ""
    };
    format!("{socket} {}{local}", super::state(backend.word.state))
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}
