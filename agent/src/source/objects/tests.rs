//! The conversion, rule by rule: YAML in, the model or the rejection out.

mod accepted;
mod rejected;

use serde_json::Value;

use super::{Converted, Read, read};
use crate::model::Object;
use crate::source::Rejected;

fn value(yaml: &str) -> Value {
    serde_yaml_ng::from_str(yaml).expect("the test's YAML is valid")
}

fn converted(yaml: &str) -> Converted {
    match read(value(yaml)) {
        Read::Converted(converted) => converted,
        other => panic!("not converted: {other:?}"),
    }
}

fn object(yaml: &str) -> Object {
    converted(yaml).object.expect("the object is for us")
}

fn rejected(yaml: &str) -> Rejected {
    match read(value(yaml)) {
        Read::Rejected(rejected) => rejected,
        other => panic!("not rejected: {other:?}\n{yaml}"),
    }
}

/// A Service whose `spec` has these lines.
fn service(spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}")
}

/// A NetworkPolicy whose `spec` has these lines.
fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web}}, spec: {{podSelector: {{}}, {spec}}}}}"
    )
}

/// An EndpointSlice of the service `web` with these fields.
fn slice(fields: &str) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
         metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}, {fields}}}"
    )
}

/// A Pod with these fields behind its metadata.
fn pod(fields: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, {fields}}}")
}
