//! The population as manifests: what a model's object was converted from. For agents that follow a directory.

use serde_json::{Value, json};
use sluice::model::{
    EndpointSlice, Family, Labels, NetworkPolicy, Object, ObjectKey, Operator, Peer, Pod,
    PolicyRule, PortMatch, PortSpec, Selector, Service,
};

/// The object as Kubernetes writes it. Of objects that [`super::population`] makes: what it never uses is left out.
///
/// Nodes are the lab's own (`lab::manifests`): they make nothing here.
pub fn manifest(object: &Object) -> Option<Value> {
    Some(match object {
        Object::Namespace(o) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": *o.name, "labels": pairs(&o.labels) },
        }),
        Object::Node(_) => return None,
        Object::Pod(o) => pod(o),
        Object::Service(o) => service(o),
        Object::EndpointSlice(o) => slice(o),
        Object::NetworkPolicy(o) => policy(o),
    })
}

/// Objects as one text of many documents. JSON is YAML, and is read faster.
pub fn text<'a>(objects: impl IntoIterator<Item = &'a Object>) -> String {
    let mut text = String::new();
    for value in objects.into_iter().filter_map(manifest) {
        text += "---\n";
        text += &value.to_string();
        text += "\n";
    }
    text
}

fn metadata(key: &ObjectKey) -> Value {
    json!({ "namespace": *key.namespace, "name": *key.name })
}

fn pairs(labels: &Labels) -> Value {
    let pairs = labels.iter();
    pairs
        .map(|(key, value)| (key.to_string(), Value::from(&**value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn pod(pod: &Pod) -> Value {
    let mut metadata = metadata(&pod.key);
    metadata["uid"] = json!(*pod.uid);
    metadata["labels"] = pairs(&pod.labels);
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": pod.node.as_deref(), "serviceAccountName": *pod.service_account,
            "containers": [{ "name": "main", "image": "none" }],
        },
        "status": { "phase": "Running", "podIP": pod.addresses.first(), "podIPs": ips },
    })
}

fn service(service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({ "name": *port.name, "port": port.port, "protocol": port.protocol.name() }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(&service.key),
        "spec": {
            "type": "ClusterIP", "clusterIP": service.cluster_ips.first(), "clusterIPs": service.cluster_ips,
            "ipFamilies": ["IPv4"], "ports": ports,
        },
    })
}

fn slice(slice: &EndpointSlice) -> Value {
    let mut metadata = metadata(&slice.key);
    metadata["labels"] = json!({ "kubernetes.io/service-name": *slice.service.name });
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.address], "nodeName": endpoint.placement.node.as_deref(),
                "conditions": {
                    "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating,
                },
            })
        })
        .collect();
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| json!({ "name": *port.name, "port": port.port, "protocol": port.protocol.name() }))
        .collect();
    let family = match slice.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

fn policy(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({ "podSelector": selector(&policy.selector), "policyTypes": [] });
    let directions = [
        ("Ingress", "ingress", "from", &policy.ingress),
        ("Egress", "egress", "to", &policy.egress),
    ];
    for (kind, field, peers, rules) in directions {
        if let Some(rules) = rules {
            if let Some(types) = spec["policyTypes"].as_array_mut() {
                types.push(kind.into());
            }
            spec[field] = rules.iter().map(|r| rule(r, peers)).collect();
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": metadata(&policy.key), "spec": spec,
    })
}

fn rule(rule: &PolicyRule, peers: &str) -> Value {
    let mut value = json!({});
    if let Some(list) = &rule.peers {
        value[peers] = list.iter().map(peer).collect();
    }
    if let Some(list) = &rule.ports {
        value["ports"] = list.iter().map(port).collect();
    }
    value
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let mut value = json!({ "podSelector": selector(pods) });
            if let Some(namespaces) = namespaces {
                value["namespaceSelector"] = selector(namespaces);
            }
            value
        }
        Peer::Block(block) => {
            let except: Vec<String> = block
                .except
                .iter()
                .map(|(address, length)| format!("{address}/{length}"))
                .collect();
            json!({ "ipBlock": { "cidr": format!("{}/{}", block.address, block.length), "except": except } })
        }
    }
}

fn port(port: &PortMatch) -> Value {
    let mut value = json!({ "protocol": port.protocol.name() });
    match &port.port {
        PortSpec::All => {}
        PortSpec::Range(first, last) => {
            value["port"] = json!(first);
            if first != last {
                value["endPort"] = json!(last);
            }
        }
        PortSpec::Named(name) => value["port"] = json!(**name),
    }
    value
}

fn selector(selector: &Selector) -> Value {
    let expressions: Vec<Value> = selector
        .requirements
        .iter()
        .map(|requirement| {
            let operator = match requirement.operator {
                Operator::In => "In",
                Operator::NotIn => "NotIn",
                Operator::Exists => "Exists",
                Operator::DoesNotExist => "DoesNotExist",
            };
            let values: Vec<&str> = requirement.values.iter().map(|v| &**v).collect();
            json!({ "key": *requirement.key, "operator": operator, "values": values })
        })
        .collect();
    json!({ "matchExpressions": expressions })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice::source::{Documents, Event};

    use super::super::population::{Own, Size, alone, others};
    use super::*;

    #[test]
    fn manifests_say_what_the_model_has() {
        let size = Size {
            services: 4,
            endpoints: 9,
            policies: 120,
            pods: 5,
        };
        let server = Own {
            name: "server".into(),
            node: "a".into(),
            addresses: vec!["10.244.1.3".parse().unwrap()],
        };
        let mut objects: Vec<Object> = others(&size).collect();
        objects.extend(alone(&size, &server));
        let mut documents = Documents::new();
        documents.put("all.yaml", &text(&objects));
        let mut told = BTreeMap::new();
        for event in documents.changes() {
            match event {
                Event::Upsert(object) => {
                    told.insert(object.id(), object);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told.len(), objects.len());
        for object in objects {
            assert_eq!(told.get(&object.id()), Some(&object));
        }
    }
}
