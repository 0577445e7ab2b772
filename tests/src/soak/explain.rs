//! What one state says of a connection, in words.

use std::net::{IpAddr, SocketAddr};

use sluice::oracle::policy::Flow as Connection;
use sluice::oracle::services::ServiceAnswer;

use super::flow::{Done, Kind, Place};
use super::history::State;
use super::view::{NODES, protocol};

/// A line for where it leads, and two for each backend: what the client's node and the backend's say.
pub(super) fn explain(state: &State, done: &Done) -> Vec<String> {
    let flow = &done.flow;
    let mut lines = Vec::new();
    let (client_node, from_host) = match flow.client.place {
        Place::Pod(node) => (Some(node), false),
        Place::Host(node) => (Some(node), true),
        Place::World => (None, false),
    };
    let answer = client_node.map(|node| state.services.answer(node, flow.to, flow.proto));
    let targets: Vec<SocketAddr> = match (&done.kind, &answer) {
        (Kind::Round { backend, .. }, _) => vec![*backend],
        (_, Some(ServiceAnswer::Backends(all))) => all
            .iter()
            .map(|(ip, port)| SocketAddr::new(*ip, *port))
            .collect(),
        (_, Some(ServiceAnswer::NotAService) | None) => vec![flow.to],
        (_, Some(other)) => {
            lines.push(format!("  {other:?}"));
            Vec::new()
        }
    };
    let behind = |ip: IpAddr| state.links.get(&ip);
    for target in targets {
        let there = behind(target.ip());
        let name = there.map_or("nobody", |plugged| &plugged.server);
        let node = there.map(|plugged| plugged.node);
        let connection = |here: bool| Connection {
            source: flow.source(),
            destination: target.ip(),
            protocol: protocol(flow.proto).number(),
            port: target.port(),
            from_host: from_host && here,
        };
        let mut line = format!("  {target} is {name}");
        if let Some(node) = client_node {
            let verdicts = state.policy.verdicts(node, &connection(true));
            line += &format!("; egress on {}: {:?}", NODES[node], verdicts.egress);
        }
        if let Some(node) = node {
            let verdicts = state
                .policy
                .verdicts(node, &connection(client_node == Some(node)));
            line += &format!("; ingress on {}: {:?}", NODES[node], verdicts.ingress);
        }
        lines.push(line);
    }
    lines
}
