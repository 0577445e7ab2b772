//! What tests do to a cluster: objects from YAML, and the parts that a kubelet and a scheduler would play.

mod objects;
mod pods;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::wait;

/// Who the server notes as owner of the fields that the harness applies.
pub(super) const FIELD_MANAGER: &str = "sluice-tests";

/// An administrator's hands on a cluster. Cheap to clone; belongs to the runtime that it was made in.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// What the server calls the kinds seen so far: one request per kind, not per object.
    kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>>,
}

impl Cluster {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            kinds: Arc::default(),
        }
    }

    /// The client behind it.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Makes a namespace (or gives it these labels) and waits for its default ServiceAccount, without which the
    /// server admits no pod.
    ///
    /// # Errors
    /// When the server refuses, or the controllers do not make the ServiceAccount.
    pub async fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": map(labels) },
        });
        let api: Api<Namespace> = Api::all(self.client());
        let namespace = apply_one(&api, name, &namespace)
            .await
            .with_context(|| format!("namespace {name}"))?;
        self.wait_for_default_service_account(name).await?;
        Ok(namespace)
    }

    pub(super) async fn wait_for_default_service_account(&self, namespace: &str) -> Result<()> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let what = format!("ServiceAccount {namespace}/default");
        wait::until(&api, "", &what, |accounts| {
            accounts
                .iter()
                .any(|account| account.metadata.name.as_deref() == Some("default"))
        })
        .await?;
        Ok(())
    }

    /// Makes a node (or changes it) that is Ready and has these InternalIPs.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_node(
        &self,
        name: &str,
        addresses: &[IpAddr],
        labels: &[(&str, &str)],
    ) -> Result<Node> {
        let api: Api<Node> = Api::all(self.client());
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": map(labels) },
        });
        apply_one(&api, name, &node)
            .await
            .with_context(|| format!("node {name}"))?;
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        let status = json!({ "status": {
            "addresses": addresses,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "" }],
        }});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .with_context(|| format!("status of node {name}"))
    }

    /// Sets how many pods a Deployment wants. The controllers make or delete them.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client(), namespace);
        let patch = json!({ "spec": { "replicas": replicas } });
        api.patch_scale(deployment, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("scaling Deployment {namespace}/{deployment}"))?;
        Ok(())
    }

    /// Waits until the EndpointSlices of a Service are what `wanted` accepts, and returns them.
    ///
    /// # Errors
    /// When the deadline passes; the text then holds the slices as they are.
    pub async fn wait_for_slices(
        &self,
        namespace: &str,
        service: &str,
        wanted: impl FnMut(&[EndpointSlice]) -> bool,
    ) -> Result<Vec<EndpointSlice>> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client(), namespace);
        let labels = format!("kubernetes.io/service-name={service}");
        wait::until(
            &api,
            &labels,
            &format!("EndpointSlices of {namespace}/{service}"),
            wanted,
        )
        .await
    }

    /// Waits until exactly these addresses are ready endpoints of a Service, in all its slices together.
    ///
    /// # Errors
    /// When the deadline passes; the text then holds the slices as they are.
    pub async fn wait_for_endpoints(
        &self,
        namespace: &str,
        service: &str,
        ready: &[IpAddr],
    ) -> Result<()> {
        let mut expected: Vec<String> = ready.iter().map(IpAddr::to_string).collect();
        expected.sort();
        self.wait_for_slices(namespace, service, |slices| {
            ready_addresses(slices) == expected
        })
        .await?;
        Ok(())
    }
}

/// The addresses of the ready endpoints of these slices, sorted. Only the first address of an endpoint counts,
/// and an endpoint that does not say is ready (API reference of discovery.k8s.io/v1).
fn ready_addresses(slices: &[EndpointSlice]) -> Vec<String> {
    let mut addresses: Vec<String> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
        })
        .filter_map(|endpoint| endpoint.addresses.first().cloned())
        .collect();
    addresses.sort();
    addresses
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// Server-side apply of one object of a known kind.
async fn apply_one<K>(api: &Api<K>, name: &str, object: &Value) -> kube::Result<K>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(
        name,
        &PatchParams::apply(FIELD_MANAGER).force(),
        &Patch::Apply(object),
    )
    .await
}
