//! `discovery.k8s.io/v1beta1` EndpointSlices, which manifests may still hold: rewritten to `v1` before they are read.

use serde_json::{Map, Value};

/// Where `v1beta1` keeps, and `v1` has fields for, what we need of an endpoint (KEP-752, "v1 graduation").
const MOVED: [(&str, &str); 2] = [
    ("kubernetes.io/hostname", "nodeName"),
    ("topology.kubernetes.io/zone", "zone"),
];

/// Rewrites a slice: the `topology` map of each endpoint becomes `nodeName` and `zone`, where those are not there already.
pub(super) fn upgrade(slice: &mut Value) {
    if let Some(slice) = slice.as_object_mut() {
        slice.insert("apiVersion".to_owned(), "discovery.k8s.io/v1".into());
    }
    let Some(endpoints) = slice.get_mut("endpoints").and_then(Value::as_array_mut) else {
        return;
    };
    for endpoint in endpoints.iter_mut().filter_map(Value::as_object_mut) {
        upgrade_endpoint(endpoint);
    }
}

fn upgrade_endpoint(endpoint: &mut Map<String, Value>) {
    let Some(Value::Object(mut topology)) = endpoint.remove("topology") else {
        return;
    };
    for (key, field) in MOVED {
        if let Some(value) = topology.remove(key) {
            endpoint.entry(field).or_insert(value);
        }
    }
}
