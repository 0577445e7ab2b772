//! Random policies over a small world, so that much of what they say concerns somebody: all selector operators, pods and
//! namespaces in one peer, blocks with exceptions over pods' addresses, ports by number, name and range, protocols alone.

use anyhow::Result;
use serde_json::{Value, json};
use tests::lab::manifests::{self, NamedPort, network_policy};
use tests::lab::traffic::Proto;

use crate::scene::{DNS, HTTP, OTHER, PORTS, Scene};
use tests::dice::Dice;

/// The namespaces of the pods.
pub(super) const NAMESPACES: [&str; 3] = ["red", "green", "blue"];

/// Label keys of pods, with their values; a pod may lack any of them.
const POD_LABELS: [(&str, &[&str]); 3] = [
    ("app", &["web", "db", "api"]),
    ("tier", &["front", "back"]),
    ("canary", &["yes"]),
];
/// Label keys of namespaces, likewise.
const NAMESPACE_LABELS: [(&str, &[&str]); 2] = [
    ("team", &["red", "green", "blue"]),
    ("stage", &["prod", "test"]),
];
/// A value that nothing has.
const NOBODY: &str = "nobody";
/// Policies of a set, at least and at most.
const POLICIES: (usize, usize) = (3, 9);

/// A pod's labels.
pub(super) fn labels(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    some_of(dice, &POD_LABELS)
}

/// A namespace's labels.
pub(super) fn namespace_labels(dice: &mut Dice, _name: &str) -> Vec<(&'static str, &'static str)> {
    some_of(dice, &NAMESPACE_LABELS)
}

fn some_of(
    dice: &mut Dice,
    all: &[(&'static str, &'static [&'static str])],
) -> Vec<(&'static str, &'static str)> {
    let mut labels = Vec::new();
    for (key, values) in all {
        if dice.chance(75) {
            labels.push((*key, *dice.pick(values)));
        }
    }
    labels
}

/// A pod's named ports: the same names lead elsewhere in every third pod, and another third has one of them only.
pub(super) fn named_ports(index: usize) -> Vec<NamedPort<'static>> {
    let port = |name, port, proto| NamedPort { name, port, proto };
    match index % 3 {
        0 => vec![port("http", HTTP, Proto::Tcp), port("dns", DNS, Proto::Udp)],
        1 => vec![
            port("http", OTHER, Proto::Tcp),
            port("dns", DNS, Proto::Tcp),
        ],
        _ => vec![port("http", HTTP, Proto::Udp)],
    }
}

/// Addresses to make blocks of.
#[derive(Debug)]
pub(super) struct Range {
    /// Each with blocks that lie inside it.
    blocks: Vec<(String, Vec<String>)>,
}

impl Range {
    /// The pods' range and its parts, the node's network, the world, everything, in both families.
    pub(super) fn of(scene: &Scene) -> Result<Self> {
        let mut blocks = Vec::new();
        let [v4, v6] = [scene.node.pod_range_v4(), scene.node.pod_range_v6()];
        // Pods have the last bytes 2 to 11: these cut between them.
        let v4_at = |last: u8, length: u8| v4.replace(".0/24", &format!(".{last}/{length}"));
        let v6_at = |last: u8, length: u8| v6.replace("::/64", &format!("::{last:x}/{length}"));
        let parts_v4 = vec![v4_at(4, 30), v4_at(8, 29), v4_at(2, 31), v4_at(7, 32)];
        let parts_v6 = vec![v6_at(4, 126), v6_at(8, 125), v6_at(2, 127), v6_at(7, 128)];
        blocks.push((v4.clone(), parts_v4.clone()));
        blocks.push((v6.clone(), parts_v6.clone()));
        blocks.push((v4_at(0, 29), vec![v4_at(4, 31), v4_at(3, 32)]));
        blocks.push((v6_at(0, 125), vec![v6_at(4, 127), v6_at(3, 128)]));
        // With host bits: they are masked.
        blocks.push((v4_at(9, 29), vec![v4_at(10, 31)]));
        blocks.push((v6_at(9, 125), vec![v6_at(10, 127)]));
        let mut all_v4 = parts_v4;
        all_v4.extend([
            v4.clone(),
            manifests::world_cidr(false),
            "192.168.50.0/24".to_owned(),
        ]);
        let mut all_v6 = parts_v6;
        all_v6.extend([
            v6.clone(),
            manifests::world_cidr(true),
            "fd00:50::/64".to_owned(),
        ]);
        blocks.push(("0.0.0.0/0".to_owned(), all_v4));
        blocks.push(("::/0".to_owned(), all_v6));
        for ipv6 in [false, true] {
            blocks.push((manifests::world_cidr(ipv6), Vec::new()));
        }
        for (pod, ipv6) in [("p1", 0), ("p5", 1)] {
            let length = [32, 128][ipv6];
            blocks.push((
                format!("{}/{length}", scene.addresses(pod)?[ipv6]),
                Vec::new(),
            ));
        }
        Ok(Self { blocks })
    }
}

/// One set.
pub(super) fn policies(dice: &mut Dice, range: &Range) -> Vec<Value> {
    let count = POLICIES.0 + dice.below(POLICIES.1 - POLICIES.0 + 1);
    (0..count)
        .map(|number| policy(dice, range, number))
        .collect()
}

fn policy(dice: &mut Dice, range: &Range, number: usize) -> Value {
    let mut spec = json!({ "podSelector": selector(dice, &POD_LABELS) });
    let (ingress, egress) = *dice.pick(&[(true, false), (false, true), (true, true)]);
    for (name, key, there) in [
        ("Ingress", "ingress", ingress),
        ("Egress", "egress", egress),
    ] {
        if !there {
            continue;
        }
        let rules: Vec<Value> = (0..*dice.pick(&[0, 1, 2, 2, 3]))
            .map(|_| {
                rule(
                    dice,
                    range,
                    if ingress && key == "ingress" {
                        "from"
                    } else {
                        "to"
                    },
                )
            })
            .collect();
        spec[key] = json!(rules);
        let types = spec["policyTypes"].as_array().cloned().unwrap_or_default();
        spec["policyTypes"] = types.into_iter().chain([json!(name)]).collect();
    }
    // Absent types mean ingress, and egress where there is an egress section: the same, said otherwise.
    if ingress && dice.chance(30) {
        spec.as_object_mut().map(|spec| spec.remove("policyTypes"));
    }
    let namespace = *dice.pick(&NAMESPACES);
    network_policy(namespace, &format!("policy-{number}"), spec)
}

fn rule(dice: &mut Dice, range: &Range, side: &str) -> Value {
    let mut rule = json!({});
    if dice.chance(85) {
        let peers: Vec<Value> = (0..1 + dice.below(3)).map(|_| peer(dice, range)).collect();
        rule[side] = json!(peers);
    }
    if dice.chance(60) {
        let ports: Vec<Value> = (0..1 + dice.below(3)).map(|_| port(dice)).collect();
        rule["ports"] = json!(ports);
    }
    rule
}

fn peer(dice: &mut Dice, range: &Range) -> Value {
    match dice.below(5) {
        0 => json!({ "podSelector": selector(dice, &POD_LABELS) }),
        1 => json!({ "namespaceSelector": selector(dice, &NAMESPACE_LABELS) }),
        2 => json!({
            "namespaceSelector": selector(dice, &NAMESPACE_LABELS),
            "podSelector": selector(dice, &POD_LABELS),
        }),
        _ => {
            let (cidr, inside) = &range.blocks[dice.below(range.blocks.len())];
            let mut block = json!({ "cidr": cidr });
            if !inside.is_empty() && dice.chance(60) {
                let except: Vec<&String> = (0..1 + dice.below(2))
                    .map(|_| &inside[dice.below(inside.len())])
                    .collect();
                block["except"] = json!(except);
            }
            json!({ "ipBlock": block })
        }
    }
}

fn port(dice: &mut Dice) -> Value {
    let mut port = match dice.below(5) {
        0 => json!({}),
        1 => json!({ "port": *dice.pick(&["http", "dns"]) }),
        2 => json!({ "port": HTTP, "endPort": *dice.pick(&[HTTP, DNS, OTHER]) }),
        3 => json!({ "port": DNS, "endPort": u16::MAX }),
        _ => json!({ "port": *dice.pick(&PORTS) }),
    };
    // Without a protocol it is TCP; a port without anything says nothing that the API server would take for one.
    if port == json!({}) || dice.chance(70) {
        port["protocol"] = json!(*dice.pick(&["TCP", "UDP", "UDP", "SCTP"]));
    }
    port
}

fn selector(dice: &mut Dice, all: &[(&'static str, &'static [&'static str])]) -> Value {
    if dice.chance(20) {
        return json!({});
    }
    let mut selector = json!({});
    if dice.chance(50) {
        let (key, values) = *dice.pick(all);
        selector["matchLabels"] = json!({ key: *dice.pick(values) });
    }
    if selector == json!({}) || dice.chance(30) {
        let (key, values) = *dice.pick(all);
        let mut some = vec![*dice.pick(values)];
        if dice.chance(40) {
            some.push(*dice.pick(&[values[0], NOBODY]));
        }
        some.sort_unstable();
        some.dedup();
        let operator = *dice.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
        let mut requirement = json!({ "key": key, "operator": operator });
        if operator.ends_with("In") {
            requirement["values"] = json!(some);
        }
        selector["matchExpressions"] = json!([requirement]);
    }
    selector
}
