//! Objects as JSON values, whose kind is known only when they are read.

use k8s_openapi::api::{core, discovery, networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Convert, Converted, beta, convert, id_of, meta, slim};
use crate::model::Kind;
use crate::source::Rejected;

/// What a value turned out to be.
#[derive(Debug)]
pub(crate) enum Read {
    /// An object of a kind that the model holds.
    Converted(Converted),
    /// One that cannot be taken.
    Rejected(Rejected),
    /// An object of another kind, as `apiVersion kind`.
    OtherKind(String),
}

/// The API group and the version of each kind.
const fn version_of(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service => ("", "v1"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1"),
        Kind::NetworkPolicy => ("networking.k8s.io", "v1"),
    }
}

/// A group that once had kinds of ours; a manifest that still says so is meant for us.
const LEGACY_GROUP: &str = "extensions";
/// The one older version that is read.
const BETA: &str = "v1beta1";

/// Reads one object.
pub(crate) fn read(mut value: Value) -> Read {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    if api_version.is_empty() || kind_name.is_empty() {
        return Read::Rejected(Rejected {
            object: value_name(&value),
            id: None,
            reason: "apiVersion, kind: one is missing; write both, as `kubectl get -o yaml` does"
                .to_owned(),
        });
    }
    let other = || Read::OtherKind(format!("{api_version} {kind_name}"));
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == kind_name) else {
        return other();
    };
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let (our_group, our_version) = version_of(kind);
    if group != our_group && group != LEGACY_GROUP {
        return other();
    }
    let beta_slice = kind == Kind::EndpointSlice && version == BETA;
    if group != our_group || (version != our_version && !beta_slice) {
        let mend = if our_group.is_empty() {
            our_version.to_owned()
        } else {
            format!("{our_group}/{our_version}")
        };
        let reason = format!("apiVersion: {api_version} is not read; write {mend}");
        return Read::Rejected(reject(kind, &value, reason));
    }
    if beta_slice {
        beta::upgrade(&mut value);
    }
    let read = match kind {
        Kind::Namespace => typed::<core::v1::Namespace>(value),
        Kind::Node => typed::<core::v1::Node>(value),
        Kind::Pod => typed::<slim::Pod>(value),
        Kind::Service => typed::<core::v1::Service>(value),
        Kind::EndpointSlice => typed::<discovery::v1::EndpointSlice>(value),
        Kind::NetworkPolicy => typed_strictly::<networking::v1::NetworkPolicy>(value),
    };
    match read {
        Ok(converted) => Read::Converted(converted),
        Err(rejected) => Read::Rejected(rejected),
    }
}

fn typed<K: Convert + DeserializeOwned>(value: Value) -> Result<Converted, Rejected> {
    convert(&deserialize::<K>(&value)?)
}

/// Takes no field of `spec` that it does not know: a misspelled `ports:` would allow every port. (The API server, too,
/// refuses unknown fields of what kubectl applies.)
fn typed_strictly<K: Convert + DeserializeOwned + Serialize>(
    value: Value,
) -> Result<Converted, Rejected> {
    let object = deserialize::<K>(&value)?;
    let known = serde_json::to_value(&object).unwrap_or_default();
    if let (Some(spec), Some(known)) = (value.get("spec"), known.get("spec"))
        && let Some(field) = unknown_field(spec, known)
    {
        let reason =
            format!("spec{field}: it is an unknown field; check its spelling and its indentation");
        return Err(reject(K::KIND, &value, reason));
    }
    convert(&object)
}

/// The path of a field that was lost on the way into the typed object and back.
fn unknown_field(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            match known.get(key) {
                Some(known) => unknown_field(value, known),
                None if value.is_null() => None,
                None => Some(String::new()),
            }
            .map(|path| format!(".{key}{path}"))
        }),
        (Value::Array(given), Value::Array(known)) => {
            given
                .iter()
                .zip(known)
                .enumerate()
                .find_map(|(i, (given, known))| {
                    unknown_field(given, known).map(|path| format!("[{i}]{path}"))
                })
        }
        _ => None,
    }
}

fn deserialize<K: Convert + DeserializeOwned>(value: &Value) -> Result<K, Rejected> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let reason = format!("{}: {}", error.path(), error.inner());
        reject(K::KIND, value, reason)
    })
}

fn reject(kind: Kind, value: &Value, reason: String) -> Rejected {
    let meta = metadata(value);
    Rejected {
        object: format!("{kind} {}", meta::display_name(&meta)),
        id: id_of(kind, &meta).ok(),
        reason,
    }
}

/// Name and namespace only, so that no other broken field of the metadata is in the way.
fn metadata(value: &Value) -> ObjectMeta {
    let text = |field: &str| {
        let text = value.get("metadata")?.get(field)?.as_str()?;
        Some(text.to_owned())
    };
    ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        ..ObjectMeta::default()
    }
}

/// What to call a value that may be anything.
fn value_name(value: &Value) -> String {
    let kind = value.get("kind").and_then(Value::as_str);
    match value {
        Value::Object(_) => format!(
            "{} {}",
            kind.unwrap_or("(without a kind)"),
            meta::display_name(&metadata(value))
        ),
        _ => "a document that is no object".to_owned(),
    }
}
