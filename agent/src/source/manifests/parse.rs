//! A file's text -> what it says, object by object.

use serde_json::Value;

use super::document;
use crate::source::Rejected;
use crate::source::objects::{Converted, Read, read};

/// How a file is written, by the end of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// `.yaml`, `.yml`: YAML, of which JSON is nearly a part.
    Yaml,
    /// `.json`.
    Json,
}

/// What a file says.
#[derive(Default, Debug)]
pub(super) struct Contents {
    /// Objects, in order.
    pub(super) objects: Vec<Converted>,
    /// Objects that cannot be taken, with what they are called in the file.
    pub(super) rejected: Vec<Rejected>,
    /// Documents that are no objects at all, each as one line for people. While there is one, the file may hold any object.
    pub(super) broken: Vec<String>,
    /// Kinds that were skipped, as `apiVersion kind`.
    pub(super) other_kinds: Vec<String>,
}

/// Reads a file's text.
pub(super) fn parse(format: Format, text: &str) -> Contents {
    let mut contents = Contents::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => {
            for (i, document) in document::split(text).into_iter().enumerate() {
                match document::yaml(document.text) {
                    Ok(value) => take(&mut contents, value),
                    Err(error) => contents.broken.push(format!(
                        "document {}, which begins on line {}: {error}",
                        i + 1,
                        document.line
                    )),
                }
            }
        }
        Format::Json => {
            let (values, error) = document::json(text);
            for value in values {
                take(&mut contents, value);
            }
            contents.broken.extend(error);
        }
    }
    contents
}

/// Takes an object, or each of a list's. Lists within lists are bounded by the depth that a document may have.
fn take(contents: &mut Contents, mut value: Value) {
    if value.is_null() {
        return;
    }
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let item_kind = match kind.strip_suffix("List") {
        Some(item_kind) => item_kind.to_owned(),
        None => return take_object(contents, value),
    };
    let api_version = value.get("apiVersion").cloned().unwrap_or_default();
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        Some(Value::Null) => return,
        // A kind of someone's that happens to end so, or a list that is none.
        _ if item_kind.is_empty() => {
            contents
                .broken
                .push("kind List: items is no list; write the objects there".to_owned());
            return;
        }
        _ => return take_object(contents, value),
    };
    for mut item in items {
        // The API server leaves both out of the items of a PodList.
        if let Value::Object(item) = &mut item
            && !item_kind.is_empty()
        {
            item.entry("kind")
                .or_insert_with(|| item_kind.as_str().into());
            item.entry("apiVersion")
                .or_insert_with(|| api_version.clone());
        }
        take(contents, item);
    }
}

fn take_object(contents: &mut Contents, value: Value) {
    match read(value) {
        Read::Converted(converted) => contents.objects.push(converted),
        Read::OtherKind(kind) => contents.other_kinds.push(kind),
        // Without an id it may be any object of the file.
        Read::Rejected(rejected) if rejected.id.is_none() => {
            contents.broken.push(rejected.to_string());
        }
        Read::Rejected(rejected) => contents.rejected.push(rejected),
    }
}
