//! The life of pods, as a scheduler and a kubelet would report it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Error};
use serde_json::{Value, json};

use super::Cluster;
use crate::controlplane::wait;

impl Cluster {
    /// The pods of a namespace that `labels` (a selector such as `app=web`; empty for all) selects, without
    /// those being deleted, by name.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>> {
        let list = self
            .pod_api(namespace)
            .list(&ListParams::default().labels(labels))
            .await;
        Ok(living(
            &list.with_context(|| format!("pods of {namespace}"))?.items,
        ))
    }

    /// Waits until a controller has made (or deleted down to) `count` pods, and returns them by name.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn wait_for_pods(
        &self,
        namespace: &str,
        labels: &str,
        count: usize,
    ) -> Result<Vec<Pod>> {
        let what = format!("{count} pods {labels} in {namespace}");
        let wanted = |pods: &[Pod]| living(pods).len() == count;
        let pods = wait::until(&self.pod_api(namespace), labels, &what, wanted).await?;
        Ok(living(&pods))
    }

    /// Plays scheduler and kubelet: binds the pod to `node` if it is on none, and reports it Running and Ready
    /// with these addresses (its `podIPs`, at most one of each family, the first being its `podIP`). The host's
    /// addresses are the node's InternalIPs.
    ///
    /// # Errors
    /// When pod or node do not exist or the server refuses.
    pub async fn run_pod(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        addresses: &[IpAddr],
    ) -> Result<Pod> {
        let pods = self.pod_api(namespace);
        let pod = pods
            .get(name)
            .await
            .with_context(|| format!("pod {namespace}/{name}"))?;
        if pod.spec.and_then(|spec| spec.node_name).is_none() {
            self.bind(namespace, name, node).await?;
        }
        let node: Node = Api::all(self.client())
            .get(node)
            .await
            .with_context(|| format!("node {node}"))?;
        let hosts = node
            .status
            .and_then(|status| status.addresses)
            .unwrap_or_default();
        let hosts: Vec<Value> = hosts
            .iter()
            .filter(|address| address.type_ == "InternalIP")
            .map(|address| json!({ "ip": address.address }))
            .collect();
        let mut status = json!({
            "phase": "Running",
            "startTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "podIP": addresses.first(),
            "podIPs": addresses.iter().map(|address| json!({ "ip": address })).collect::<Vec<_>>(),
            "conditions": conditions(true),
        });
        if let Some(first) = hosts.first() {
            status["hostIP"] = first["ip"].clone();
            status["hostIPs"] = hosts.into();
        }
        self.patch_pod_status(namespace, name, status).await
    }

    /// Reports a running pod ready or not.
    ///
    /// # Errors
    /// When the pod does not exist or the server refuses.
    pub async fn set_pod_ready(&self, namespace: &str, name: &str, ready: bool) -> Result<Pod> {
        self.patch_pod_status(namespace, name, json!({ "conditions": conditions(ready) }))
            .await
    }

    /// Reports a pod ended, `Succeeded` or `Failed`: its address may then be another's.
    ///
    /// # Errors
    /// When the pod does not exist or the server refuses.
    pub async fn set_pod_phase(&self, namespace: &str, name: &str, phase: &str) -> Result<Pod> {
        self.patch_pod_status(
            namespace,
            name,
            json!({ "phase": phase, "conditions": conditions(false) }),
        )
        .await
    }

    /// Begins the end of a pod as `kubectl delete` does: it gets a deletion timestamp and, having no kubelet,
    /// stays terminating until [`Cluster::delete_pod`]. A pod on no node goes at once.
    ///
    /// # Errors
    /// When the pod does not exist or the server refuses.
    pub async fn terminate_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let answer = self
            .pod_api(namespace)
            .delete(name, &DeleteParams::default())
            .await;
        answer.with_context(|| format!("terminating pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Removes a pod at once, as a kubelet does when the last container has ended. One that does not exist is
    /// well removed.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        match self
            .pod_api(namespace)
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
        {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting pod {namespace}/{name}")),
        }
    }

    /// Removes the pods of a namespace that are being deleted: those that a controller scaled away, or a deleted
    /// namespace's, which wait for a kubelet for ever. Returns their names.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn reap_terminating_pods(&self, namespace: &str) -> Result<Vec<String>> {
        let list = self.pod_api(namespace).list(&ListParams::default()).await?;
        let mut reaped = Vec::new();
        for pod in list
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_some())
        {
            let Some(name) = pod.metadata.name else {
                continue;
            };
            self.delete_pod(namespace, &name).await?;
            reaped.push(name);
        }
        Ok(reaped)
    }

    fn pod_api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }

    async fn bind(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let answer: kube::Result<Value> = self
            .pod_api(namespace)
            .create_subresource("binding", name, &PostParams::default(), &binding)
            .await;
        answer.with_context(|| format!("binding pod {namespace}/{name} to node {node}"))?;
        Ok(())
    }

    async fn patch_pod_status(&self, namespace: &str, name: &str, status: Value) -> Result<Pod> {
        let patch = json!({ "status": status });
        self.pod_api(namespace)
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("status of pod {namespace}/{name}"))
    }
}

fn living(pods: &[Pod]) -> Vec<Pod> {
    let mut living: Vec<Pod> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    living.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    living
}

/// The conditions of a scheduled pod whose containers run.
fn conditions(ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!([
        { "type": "PodScheduled", "status": "True" },
        { "type": "Initialized", "status": "True" },
        { "type": "ContainersReady", "status": ready },
        { "type": "Ready", "status": ready },
    ])
}
