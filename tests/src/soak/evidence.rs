//! What is there to be seen of a connection that failed: the entries of both nodes' maps that speak of its ends.

use std::net::IpAddr;

use agent_common::{Flow as Entry, Tuple, flow_flag};

use super::bench::Asked;
use super::flow::{Done, Kind};
use super::view::protocol;

/// Entries that are told of one node.
const MOST: usize = 12;
/// Flags of an entry, in words.
const FLAGS: [(u32, &str); 8] = [
    (flow_flag::REPLY, "reply"),
    (flow_flag::TRANSLATE, "translate"),
    (flow_flag::HOST, "host"),
    (flow_flag::SELF, "self"),
    (flow_flag::MIDSTREAM, "midstream"),
    (flow_flag::PORT_REWRITTEN, "port-rewritten"),
    (flow_flag::AUDIT, "audit"),
    (flow_flag::ANSWERED, "answered"),
];

/// The entries of one node between the client and whom it asked, or the backend that it came to.
pub(super) fn entries(asked: &Asked, done: &Done) -> Vec<String> {
    let mut others = vec![done.flow.to.ip()];
    if let Kind::Round { backend, .. } = &done.kind {
        others.push(backend.ip());
    }
    let (client, kind) = (done.flow.source(), protocol(done.flow.proto).number());
    let ours = |key: &Tuple, entry: &Entry| {
        let ends = [
            key.source,
            key.destination,
            entry.new_source,
            entry.new_destination,
        ]
        .map(IpAddr::from);
        key.protocol == kind
            && ends.contains(&client)
            && ends.iter().any(|end| others.contains(end))
    };
    let pods = asked.pinned.epochs().unwrap_or_default();
    let mut lines = vec![format!(
        "  epochs on {} by interface: {pods:?}, now {}",
        asked.name,
        sluice::datapath::conntrack::now()
    )];
    for (map, flows) in [
        ("conntrack", asked.pinned.flows()),
        ("unreplied", asked.pinned.unreplied()),
    ] {
        let found = flows.unwrap_or_default().into_iter();
        let found = found.filter(|(key, entry)| ours(key, entry)).take(MOST);
        lines.extend(found.map(|(key, entry)| {
            let told = entry_line(&key, &entry);
            format!("  {map} on {}: {told}", asked.name)
        }));
    }
    lines
}

fn entry_line(key: &Tuple, entry: &Entry) -> String {
    let flags: Vec<&str> = FLAGS
        .iter()
        .filter(|(bit, _)| entry.flags & bit != 0)
        .map(|(_, word)| *word)
        .collect();
    let end = |address: agent_common::Address, port_be: u16| {
        format!("{} {}", IpAddr::from(address), u16::from_be(port_be))
    };
    format!(
        "{} -> {}: becomes {} -> {}; {}; enters by {}, delivered to {}, opener {} in epoch {}, responder {} in epoch {}, backend {}, \
         made at {}, seen at {}, closing {}",
        end(key.source, key.source_port_be),
        end(key.destination, key.destination_port_be),
        end(entry.new_source, entry.new_source_port_be),
        end(entry.new_destination, entry.new_destination_port_be),
        flags.join(" "),
        signed(entry.ifindex),
        signed(entry.deliver),
        signed(entry.opener),
        entry.egress.epoch,
        signed(entry.responder),
        entry.ingress.epoch,
        signed(entry.backend),
        entry.created,
        entry.last_seen,
        entry.closing,
    )
}

/// A number whose greatest value stands for none.
fn signed(number: u32) -> String {
    match number {
        u32::MAX => "-".to_owned(),
        number => number.to_string(),
    }
}
