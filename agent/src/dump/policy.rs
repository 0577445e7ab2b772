//! Addresses, prefixes, groups, rules, pods and links.

use std::net::IpAddr;

use agent_common::{
    AddressEntry, GROUP_ANY, RuleKey, SetWord, Verdict, action, address_kind, pod_flag, protocol,
    rule_bits, set_flag,
};

use super::names::Names;
use crate::datapath::Bits;
use crate::reconcile::State;

/// A line for each entry.
pub(super) fn lines(state: &State, names: &Names<'_>, lines: &mut Vec<String>) {
    let maps = &state.contents;
    for (address, entry) in &maps.addresses {
        let what = address_of(state, names, &IpAddr::from(*address), entry);
        lines.push(format!("address {address}: {what}"));
    }
    for (bits, entry) in &maps.prefixes {
        let group = maps
            .groups
            .get(&entry.identity)
            .map_or(GROUP_ANY, |g| g.group);
        let group = match group {
            GROUP_ANY => "no group".to_owned(),
            group => format!("group {}", names.group(group)),
        };
        lines.push(format!("prefix {}: {group}", super::prefix(bits)));
    }
    for (identity, entry) in &maps.groups {
        lines.push(format!(
            "identity {}: group {}",
            names.identity(*identity),
            names.group(entry.group),
        ));
    }
    for (bits, verdict) in &maps.rules {
        lines.push(rule(names, bits, verdict));
    }
    for (slot, pod) in &maps.pods {
        // A free slot keeps its epoch.
        if pod.flags & pod_flag::USED == 0 {
            continue;
        }
        let mut line = format!(
            "pod {}: {}, {}",
            names.slot(*slot),
            word(names, "egress", pod.egress),
            word(names, "ingress", pod.ingress),
        );
        for (flag, name) in [
            (pod_flag::ANY_SOURCE, ", any source"),
            (pod_flag::REDIRECT, ", redirect"),
        ] {
            if pod.flags & flag != 0 {
                line.push_str(name);
            }
        }
        lines.push(line);
    }
    for (ifindex, entry) in &maps.links {
        lines.push(format!("link {ifindex}: pod {}", names.slot(entry.slot)));
    }
}

fn address_of(state: &State, names: &Names<'_>, ip: &IpAddr, entry: &AddressEntry) -> String {
    let cluster = &state.cluster;
    let services = || {
        let services = cluster.services_at.get(ip).into_iter().flatten();
        let all: Vec<String> = services.map(ToString::to_string).collect();
        all.join(", ")
    };
    let pod = |place: &str| match names.pod_at(ip, entry) {
        Some(pod) => format!(
            "{place} pod {}, identity {}",
            pod.key,
            names.identity(entry.identity)
        ),
        None => format!("{place} pod {}", names.slot(u32::from(entry.slot))),
    };
    match entry.kind {
        address_kind::LOCAL_POD => pod("local"),
        address_kind::REMOTE_POD => pod("remote"),
        address_kind::NODE => {
            let nodes = cluster.nodes_at.get(ip).into_iter().flatten();
            let all: Vec<&str> = nodes.map(|name| &**name).collect();
            format!("node {}", all.join(", "))
        }
        address_kind::HOST => "this host".to_owned(),
        address_kind::CLUSTER_IP => format!("ClusterIP of {}", services()),
        address_kind::EXTERNAL => format!("external address of {}", services()),
        kind => format!("of kind {kind}, which nobody knows"),
    }
}

/// A set says its direction itself.
fn word(names: &Names<'_>, direction: &str, word: SetWord) -> String {
    if word.flags & set_flag::ISOLATED == 0 {
        format!("{direction} open")
    } else if word.flags & set_flag::UNKNOWN != 0 {
        format!("{direction} closed until the pod is known")
    } else if word.set == 0 {
        format!("{direction} closed")
    } else {
        names.set(word.set).to_owned()
    }
}

fn rule(names: &Names<'_>, bits: &Bits<RuleKey>, verdict: &Verdict) -> String {
    let key = &bits.data;
    let does = match verdict.action & action::MASK {
        action::ALLOW => "allow",
        action::DENY => "deny",
        action::PASS => "pass",
        _ => "say nothing",
    };
    let audit = if verdict.action & action::AUDIT != 0 {
        " (audit)"
    } else {
        ""
    };
    let by = names.rule(verdict.rule);
    let set = names.set(key.set);
    if bits.length == rule_bits::SET {
        return format!("rule {set} default: {does}{audit}, {by}");
    }
    let peer = names.group(key.group);
    let what = ports(bits);
    format!("rule {set} peer {peer} {what}: {does}{audit}, {by}")
}

/// What a rule's prefix covers: everything, a protocol, or a range of its ports.
fn ports(bits: &Bits<RuleKey>) -> String {
    if bits.length <= rule_bits::GROUP {
        return "everything".to_owned();
    }
    let name = match bits.data.protocol {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    let Some(fixed) = bits
        .length
        .checked_sub(rule_bits::PROTOCOL)
        .filter(|f| *f > 0)
    else {
        return name;
    };
    let first = u16::from_be(bits.data.port_be);
    let last = first | u16::MAX.checked_shr(fixed).unwrap_or(0);
    if first == last {
        format!("{name} {first}")
    } else {
        format!("{name} {first}-{last}")
    }
}
