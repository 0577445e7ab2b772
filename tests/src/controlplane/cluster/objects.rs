//! Objects of any kind, from YAML, as `kubectl` would send them.

use anyhow::{Context as _, Result, bail};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersion, GroupVersionKind};
use kube::discovery::Scope;
use kube::{Api, Error};
use serde::Deserialize as _;

use super::{Cluster, FIELD_MANAGER};

impl Cluster {
    /// Applies every document of `yaml` (server-side), in order. What names no namespace goes to `default`.
    ///
    /// # Errors
    /// When a document is not an object, the server does not know its kind, or it refuses; the objects before it
    /// were applied.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        let mut applied = Vec::new();
        for object in parse(yaml)? {
            let (api, name, title) = self.api_of(&object).await?;
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let answer = api.patch(&name, &params, &Patch::Apply(&object)).await;
            applied.push(answer.with_context(|| format!("applying {title}"))?);
        }
        Ok(applied)
    }

    /// Deletes every object that `yaml` names; one that does not exist is well deleted. Pods go at once
    /// ([`Cluster::delete_pod`]), the rest as their finalizers and controllers want.
    ///
    /// # Errors
    /// As [`Cluster::apply`].
    pub async fn delete(&self, yaml: &str) -> Result<()> {
        for object in parse(yaml)? {
            let (api, name, title) = self.api_of(&object).await?;
            let is_pod = object
                .types
                .as_ref()
                .is_some_and(|types| types.kind == "Pod" && types.api_version == "v1");
            let params = if is_pod {
                DeleteParams::default().grace_period(0)
            } else {
                DeleteParams::background()
            };
            match api.delete(&name, &params).await {
                Ok(_) => {}
                Err(Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error).with_context(|| format!("deleting {title}")),
            }
        }
        Ok(())
    }

    /// Where an object lives: the API of its kind and namespace, its name, and what to call it in an error.
    async fn api_of(&self, object: &DynamicObject) -> Result<(Api<DynamicObject>, String, String)> {
        let types = object
            .types
            .as_ref()
            .context("an object without apiVersion and kind")?;
        let name = object
            .metadata
            .name
            .clone()
            .with_context(|| format!("a {} without a name", types.kind))?;
        let version: GroupVersion = types
            .api_version
            .parse()
            .with_context(|| format!("{} {name}", types.kind))?;
        let kind = GroupVersionKind::gvk(&version.group, &version.version, &types.kind);
        let mut kinds = self.kinds.lock().await;
        let (resource, scope) = match kinds.get(&kind) {
            Some(known) => known.clone(),
            None => {
                let found = kube::discovery::pinned_kind(&self.client, &kind).await;
                let (resource, capabilities) = found.with_context(|| {
                    format!("what the server calls {} {}", types.api_version, types.kind)
                })?;
                kinds
                    .entry(kind)
                    .or_insert((resource, capabilities.scope))
                    .clone()
            }
        };
        drop(kinds);
        let client = self.client();
        Ok(match scope {
            Scope::Cluster => (
                Api::all_with(client, &resource),
                name.clone(),
                format!("{} {name}", types.kind),
            ),
            Scope::Namespaced => {
                let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
                let title = format!("{} {namespace}/{name}", types.kind);
                (
                    Api::namespaced_with(client, namespace, &resource),
                    name,
                    title,
                )
            }
        })
    }
}

/// The documents of a YAML stream; empty ones are left out.
fn parse(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(yaml).enumerate() {
        let value = serde_yaml_ng::Value::deserialize(document)
            .with_context(|| format!("YAML document {index}"))?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject = serde_yaml_ng::from_value(value)
            .with_context(|| format!("YAML document {index} is no object"))?;
        objects.push(object);
    }
    if objects.is_empty() {
        bail!("no object in the YAML:\n{yaml}");
    }
    Ok(objects)
}
