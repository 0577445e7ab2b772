//! Ordinary Kubernetes YAML for what the lab contains, and a directory of it that changes as a careful person's does:
//! every file is written elsewhere and renamed into place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::node::Node;
use super::owner::absent_is_fine;
use super::pod::Pod;
use super::traffic::Proto;
use super::wire::Wire;

/// Labels of an object.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

fn labels(labels: Labels<'_>) -> BTreeMap<&str, &str> {
    labels.iter().copied().collect()
}

/// A Namespace; the API server adds the name's own label, so this does too.
pub fn namespace(name: &str, own: Labels<'_>) -> Value {
    let mut labels = labels(own);
    labels.insert("kubernetes.io/metadata.name", name);
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A Node with its InternalIPs and pod ranges.
pub fn node(node: &Node, own: Labels<'_>) -> Value {
    let mut labels = labels(own);
    labels.insert("kubernetes.io/hostname", &node.name);
    let addresses = node
        .addresses()
        .map(|ip| json!({ "type": "InternalIP", "address": ip }));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node.name, "labels": labels },
        "spec": { "podCIDR": node.pod_range_v4(), "podCIDRs": [node.pod_range_v4(), node.pod_range_v6()] },
        "status": { "addresses": addresses },
    })
}

/// A named container port: what a policy's named port resolves to.
#[derive(Debug, Clone, Copy)]
pub struct NamedPort<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub proto: Proto,
}

/// A running Pod with the addresses of the lab's pod.
pub fn pod(pod: &Pod, labels: Labels<'_>, ports: &[NamedPort<'_>]) -> Value {
    pod_in_phase(pod, labels, ports, "Running")
}

/// A Pod in any phase (`Pending`, `Running`, `Succeeded`, `Failed`).
pub fn pod_in_phase(pod: &Pod, own: Labels<'_>, ports: &[NamedPort<'_>], phase: &str) -> Value {
    let port =
        |p: &NamedPort<'_>| json!({ "name": p.name, "containerPort": p.port, "protocol": p.proto });
    let ports: Vec<Value> = ports.iter().map(port).collect();
    let ready = if phase == "Running" { "True" } else { "False" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "labels": labels(own),
            "uid": pod.uid, "creationTimestamp": pod.created,
        },
        "spec": { "nodeName": pod.node, "containers": [{ "name": "main", "image": "none", "ports": ports }] },
        "status": {
            "phase": phase,
            "podIP": pod.ipv4, "podIPs": pod.addresses().map(|ip| json!({ "ip": ip })),
            "conditions": [{ "type": "Ready", "status": ready }],
        },
    })
}

/// One port of a Service: name, port, protocol, and the port of its backends.
#[derive(Debug, Clone, Copy)]
pub struct ServicePort<'a> {
    /// Its name; empty where there is only one.
    pub name: &'a str,
    /// The service's own port.
    pub port: u16,
    /// The backends' port.
    pub target: u16,
    /// Its protocol.
    pub proto: Proto,
}

impl ServicePort<'_> {
    /// The name, or nothing where the API leaves it out.
    fn name(&self) -> Option<&str> {
        (!self.name.is_empty()).then_some(self.name)
    }
}

/// A ClusterIP Service; the families follow from the addresses.
pub fn service(
    namespace: &str,
    name: &str,
    cluster_ips: &[std::net::IpAddr],
    ports: &[ServicePort<'_>],
) -> Value {
    let families: Vec<&str> = cluster_ips
        .iter()
        .map(|ip| if ip.is_ipv6() { "IPv6" } else { "IPv4" })
        .collect();
    let port = |p: &ServicePort<'_>| {
        let mut port = json!({ "port": p.port, "targetPort": p.target, "protocol": p.proto });
        if let Some(name) = p.name() {
            port["name"] = json!(name);
        }
        port
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips,
            "ipFamilies": families, "ports": ports.iter().map(port).collect::<Vec<_>>(),
        },
    })
}

/// An endpoint of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// The pod behind it.
    pub pod: &'a Pod,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl<'a> Endpoint<'a> {
    /// A ready endpoint.
    pub fn ready(pod: &'a Pod) -> Self {
        Self {
            pod,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// One that still serves while it ends.
    pub fn terminating(pod: &'a Pod) -> Self {
        Self {
            pod,
            ready: false,
            serving: true,
            terminating: true,
        }
    }
}

/// Both EndpointSlices of a service, IPv4 and IPv6, as the controller makes one per family.
pub fn endpoint_slices(
    namespace: &str,
    service: &str,
    ports: &[ServicePort<'_>],
    endpoints: &[Endpoint<'_>],
) -> [Value; 2] {
    let ports: Vec<Value> = ports
        .iter()
        .map(|p| json!({ "name": p.name, "port": p.target, "protocol": p.proto }))
        .collect();
    [("IPv4", 0), ("IPv6", 1)].map(|(family, index)| {
        let endpoint = |e: &Endpoint<'_>| {
            json!({
                "addresses": [e.pod.addresses()[index]],
                "conditions": { "ready": e.ready, "serving": e.serving, "terminating": e.terminating },
                "nodeName": e.pod.node,
                "targetRef": { "kind": "Pod", "namespace": e.pod.namespace, "name": e.pod.name },
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()), "namespace": namespace,
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": family, "ports": ports, "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    })
}

/// A NetworkPolicy with a `spec` written out by the caller: policies are what tests are about.
pub fn network_policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    })
}

/// An ipBlock's CIDR for exactly the world's address of one family.
pub fn world_cidr(ipv6: bool) -> String {
    if ipv6 {
        format!("{}/128", Wire::WORLD_V6)
    } else {
        format!("{}/32", Wire::WORLD_V4)
    }
}

/// A directory of manifests, one object a file, for `--manifests`.
#[derive(Debug)]
pub struct ManifestDir {
    path: PathBuf,
    /// Beside the directory, on the same file system: a half-written file is never in it.
    staging: PathBuf,
}

impl ManifestDir {
    /// Makes an empty directory `name` in a lab's run directory.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn create(lab_dir: &Path, name: &str) -> Result<Self> {
        let this = Self {
            path: lab_dir.join(name),
            staging: lab_dir.join(format!("{name}.staging")),
        };
        for dir in [&this.path, &this.staging] {
            fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(this)
    }

    /// A directory that is there, with one beside it on the same file system: another's, perhaps, seen through `/proc`.
    pub fn seen_at(path: PathBuf, staging: PathBuf) -> Self {
        Self { path, staging }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes or replaces one object.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, object: &Value) -> Result<()> {
        self.put_file(
            &file_name(object)?,
            &serde_yaml_ng::to_string(object).context("writing YAML")?,
        )
    }

    /// Writes or replaces several objects.
    ///
    /// # Errors
    /// As [`ManifestDir::put`].
    pub fn put_all<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        objects.into_iter().try_for_each(|object| self.put(object))
    }

    /// Writes any text as a file, for what is no good manifest.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_file(&self, name: &str, text: &str) -> Result<()> {
        let (staged, file) = (self.staging.join(name), self.path.join(name));
        fs::write(&staged, text).with_context(|| format!("writing {}", staged.display()))?;
        fs::rename(&staged, &file).with_context(|| format!("renaming into {}", file.display()))
    }

    /// Removes an object's file; one that is not there is no error.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, object: &Value) -> Result<()> {
        let file = self.path.join(file_name(object)?);
        absent_is_fine(fs::remove_file(&file))
            .with_context(|| format!("removing {}", file.display()))
    }
}

/// `Kind.namespace.name.yaml`: one object has one file, whatever its content.
fn file_name(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").context("a manifest without a kind")?;
    let name = text("/metadata/name").with_context(|| format!("a {kind} without a name"))?;
    let namespace = text("/metadata/namespace").unwrap_or("cluster");
    Ok(format!("{kind}.{namespace}.{name}.yaml"))
}
