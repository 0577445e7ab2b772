//! Names, labels and annotations.

use std::collections::BTreeMap;
use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Fault;
use crate::model::{Kind, Labels, ObjectId, ObjectKey, intern};

/// The namespace of a namespaced object that names none, as kubectl assumes it.
const DEFAULT_NAMESPACE: &str = "default";
/// Characters of a name, and of a label key's prefix, at most (RFC 1123 subdomain).
const SUBDOMAIN_MAX: usize = 253;
/// Characters of a label value, and of a label key without its prefix, at most.
const LABEL_MAX: usize = 63;

/// Kind and key of an object.
pub(crate) fn id_of(kind: Kind, meta: &ObjectMeta) -> Result<ObjectId, Fault> {
    let name = meta.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(Fault::new(
            "metadata.name",
            "it is missing; give the object a name (generateName works through an API server only)",
        ));
    }
    check_name("metadata.name", name)?;
    let namespace = match kind {
        Kind::Namespace | Kind::Node => "",
        Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy => {
            match meta.namespace.as_deref() {
                None | Some("") => DEFAULT_NAMESPACE,
                Some(namespace) => {
                    check_name("metadata.namespace", namespace)?;
                    namespace
                }
            }
        }
    };
    Ok(ObjectId {
        kind,
        key: ObjectKey::new(namespace, name),
    })
}

/// What to call an object whose id cannot be made out.
pub(super) fn display_name(meta: &ObjectMeta) -> String {
    let name = match meta.name.as_deref() {
        None | Some("") => "(without a name)",
        Some(name) => name,
    };
    match meta.namespace.as_deref() {
        None | Some("") => name.to_owned(),
        Some(namespace) => format!("{namespace}/{name}"),
    }
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_MAX
        && text.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

fn check_name(field: &str, name: &str) -> Result<(), Fault> {
    if is_subdomain(name) {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format_args!(
            "{name:?} is no name; write a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
        ),
    ))
}

/// The part of a label key behind the prefix, or a value that is not empty.
fn is_label_text(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= LABEL_MAX
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A label key (`IsQualifiedName`).
pub(super) fn check_label_key(field: impl Display, key: &str) -> Result<(), Fault> {
    let valid = match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_label_text(name),
        None => is_label_text(key),
    };
    if valid {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format_args!(
            "{key:?} is no label key; write [prefix/]name, name of at most {LABEL_MAX} letters, digits, '-', '_' and '.'"
        ),
    ))
}

/// A label value (`IsValidLabelValue`); it may be empty.
pub(super) fn check_label_value(field: impl Display, value: &str) -> Result<(), Fault> {
    if value.is_empty() || is_label_text(value) {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format_args!(
            "{value:?} is no label value; write at most {LABEL_MAX} letters, digits, '-', '_' and '.'"
        ),
    ))
}

/// Checks every label of an object.
pub(super) fn check_labels(meta: &ObjectMeta) -> Result<(), Fault> {
    for (key, value) in meta.labels.iter().flatten() {
        check_label_key("metadata.labels", key)?;
        check_label_value(format_args!("metadata.labels[{key}]"), value)?;
    }
    Ok(())
}

/// The labels of an object.
pub(super) fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels
        .iter()
        .flatten()
        .map(|(key, value)| (intern(key), intern(value)))
        .collect()
}

/// A label's value.
pub(super) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    text(&meta.labels, key)
}

/// A switch among the annotations: `true`, `false`, or None where it is absent or, with a notice, neither.
pub(super) fn switch(meta: &ObjectMeta, key: &str, notices: &mut Vec<String>) -> Option<bool> {
    match text(&meta.annotations, key)? {
        "true" => Some(true),
        "false" => Some(false),
        other => {
            notices.push(format!(
                "metadata.annotations[{key}]: {other:?} is neither \"true\" nor \"false\", and has no effect"
            ));
            None
        }
    }
}

fn text<'a>(map: &'a Option<BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map.as_ref()?.get(key).map(String::as_str)
}
