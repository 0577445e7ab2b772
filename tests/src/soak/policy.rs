//! Random policies over a small world, so that most of what they say concerns somebody.

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::lab::manifests;

/// Namespaces of the pods.
pub(super) const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
/// Every server answers on these, TCP and UDP, on both of its addresses.
pub(super) const PORTS: [u16; 3] = [8080, 8081, 9090];

type Keys = [(&'static str, &'static [&'static str])];
/// Label keys of pods, with their values; a pod may lack any of them.
const POD_LABELS: &Keys = &[
    ("app", &["web", "db", "api"]),
    ("tier", &["front", "back"]),
    ("canary", &["yes"]),
];
/// Label keys of namespaces, likewise.
const NAMESPACE_LABELS: &Keys = &[
    ("team", &["red", "green", "blue"]),
    ("stage", &["prod", "test"]),
];
/// Blocks, each with a part of it; ranges as the lab gives them (nodes 1 and 2).
const BLOCKS: [(&str, &str); 6] = [
    ("0.0.0.0/0", "10.244.1.0/29"),
    ("::/0", "fd00:244:1::/125"),
    ("10.244.0.0/16", "10.244.2.0/29"),
    ("fd00:244::/32", "fd00:244:2::/125"),
    ("10.244.2.0/24", "10.244.2.4/31"),
    ("192.168.50.0/24", "192.168.50.12/32"),
];

/// A pod's labels.
pub(super) fn labels(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    some_of(dice, POD_LABELS)
}

/// A namespace's labels.
pub(super) fn namespace_labels(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    some_of(dice, NAMESPACE_LABELS)
}

fn some_of(dice: &mut Dice, all: &Keys) -> Vec<(&'static str, &'static str)> {
    let mut labels = Vec::new();
    for (key, values) in all {
        if dice.chance(75) {
            labels.push((*key, *dice.pick(values)));
        }
    }
    labels
}

/// A policy of this name, somewhere.
pub(super) fn policy(dice: &mut Dice, number: usize) -> Value {
    // Never everybody: what a policy says must leave others alone, or it is deny-all after a few of them.
    let mut spec = json!({ "podSelector": selector(dice, POD_LABELS, false), "policyTypes": [] });
    let directions: [&[(&str, &str, &str)]; 3] = [
        &[("Ingress", "ingress", "from")],
        &[("Egress", "egress", "to")],
        &[("Ingress", "ingress", "from"), ("Egress", "egress", "to")],
    ];
    let mut types = Vec::new();
    for (name, key, side) in *dice.pick(&directions) {
        let rules: Vec<Value> = (0..*dice.pick(&[0, 1, 2, 2, 3]))
            .map(|_| rule(dice, side))
            .collect();
        spec[*key] = json!(rules);
        types.push(*name);
    }
    spec["policyTypes"] = json!(types);
    let namespace = NAMESPACES[number % NAMESPACES.len()];
    manifests::network_policy(namespace, &format!("policy-{number}"), spec)
}

fn rule(dice: &mut Dice, side: &str) -> Value {
    let mut rule = json!({});
    if dice.chance(80) {
        let peers: Vec<Value> = (0..1 + dice.below(3)).map(|_| peer(dice)).collect();
        rule[side] = json!(peers);
    }
    if dice.chance(40) {
        let ports: Vec<Value> = (0..1 + dice.below(3)).map(|_| port(dice)).collect();
        rule["ports"] = json!(ports);
    }
    rule
}

fn peer(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!({ "podSelector": selector(dice, POD_LABELS, true) }),
        1 => json!({ "namespaceSelector": selector(dice, NAMESPACE_LABELS, true) }),
        2 => json!({
            "namespaceSelector": selector(dice, NAMESPACE_LABELS, true),
            "podSelector": selector(dice, POD_LABELS, true),
        }),
        _ => {
            let (cidr, except) = dice.pick(&BLOCKS);
            let mut block = json!({ "cidr": cidr });
            if dice.chance(50) {
                block["except"] = json!([except]);
            }
            json!({ "ipBlock": block })
        }
    }
}

fn port(dice: &mut Dice) -> Value {
    let mut port = match dice.below(4) {
        0 => json!({}),
        1 => json!({ "port": dice.pick(&["http", "dns"]) }),
        2 => json!({ "port": PORTS[0], "endPort": dice.pick(&[PORTS[1], u16::MAX]) }),
        _ => json!({ "port": dice.pick(&PORTS) }),
    };
    // Without a protocol it is TCP; a port without anything says nothing that the API server would take for one.
    if port == json!({}) || dice.chance(70) {
        port["protocol"] = json!(dice.pick(&["TCP", "UDP"]));
    }
    port
}

fn selector(dice: &mut Dice, all: &Keys, everybody: bool) -> Value {
    if everybody && dice.chance(25) {
        return json!({});
    }
    let (key, values) = dice.pick(all);
    if dice.chance(50) {
        return json!({ "matchLabels": { *key: dice.pick(values) } });
    }
    let operator = *dice.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
    let mut requirement = json!({ "key": key, "operator": operator });
    if operator.ends_with("In") {
        requirement["values"] = json!([dice.pick(values)]);
    }
    json!({ "matchExpressions": [requirement] })
}
