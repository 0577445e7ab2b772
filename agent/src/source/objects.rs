//! Kubernetes objects -> the model: the one conversion that every source uses.
//!
//! A converted object needs no further check. What a field may say is what the API server's own validation allows
//! (`k8s.io/kubernetes/pkg/apis/*/validation`), never more: addresses without leading zeros, and no IPv4-mapped IPv6
//! address at all (it is rejected, not rewritten, because packets never carry it and so nothing would ever match).
//! Server defaults may be missing, since people write manifests without them.

mod address;
mod beta;
mod meta;
mod node;
mod pod;
mod policy;
mod port;
mod selector;
mod service;
mod slice;
mod slim;
mod value;

#[cfg(test)]
mod tests;

use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Rejected;
use crate::model::{Kind, Object, ObjectId};

pub(crate) use meta::id_of;
pub(crate) use slim::Pod;
pub(crate) use value::{Read, read};

/// A field that says what it must not, and the mend.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct Fault {
    /// The field's path, as `kubectl explain` names it.
    field: String,
    /// What is wrong, and what to do.
    problem: String,
}

impl Fault {
    fn new(field: impl Display, problem: impl Display) -> Self {
        Self {
            field: field.to_string(),
            problem: problem.to_string(),
        }
    }
}

/// An object that was read.
#[derive(Clone, Debug)]
pub(crate) struct Converted {
    /// Kind and key.
    pub(crate) id: ObjectId,
    /// The object; None for one that is valid but not for us (a headless service): no object of that id is there.
    pub(crate) object: Option<Object>,
    /// What an operator would want to know of it, though it is no error.
    pub(crate) notices: Vec<String>,
}

/// A typed Kubernetes object that the model holds.
pub(crate) trait Convert {
    /// Its kind.
    const KIND: Kind;
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The model's object; None where it is not for us. `id` is what [`id_of`] made of the metadata.
    fn convert(&self, id: &ObjectId, notices: &mut Vec<String>) -> Result<Option<Object>, Fault>;
}

/// Converts one object. The rejection names the object, the field and the mend.
pub(crate) fn convert<K: Convert>(object: &K) -> Result<Converted, Rejected> {
    let meta = object.meta();
    let id = id_of(K::KIND, meta).map_err(|fault| Rejected {
        object: format!("{} {}", K::KIND, meta::display_name(meta)),
        id: None,
        reason: fault.to_string(),
    })?;
    let mut notices = Vec::new();
    let converted = meta::check_labels(meta).and_then(|()| object.convert(&id, &mut notices));
    match converted {
        Ok(object) => Ok(Converted {
            id,
            object,
            notices,
        }),
        Err(fault) => Err(Rejected {
            object: id.to_string(),
            reason: fault.to_string(),
            id: Some(id),
        }),
    }
}
