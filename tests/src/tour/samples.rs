//! The samples: which node, pods and services they speak of.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::lab::pod::PodSpec;

/// Endings of the files that the agent reads.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The samples as text and as objects.
#[derive(Debug)]
pub(super) struct Samples {
    /// Text by file name.
    pub(super) files: BTreeMap<String, String>,
    /// Every document of every file.
    objects: Vec<Value>,
}

/// A service's name, namespace, addresses and port.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
    /// ClusterIPs.
    pub(super) addresses: Vec<IpAddr>,
    /// Its first port.
    pub(super) port: u16,
}

impl Service {
    /// `namespace/name`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Whether the agent reads a file of this name.
pub(super) fn is_manifest(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|e| e.to_str());
    !name.starts_with('.') && ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

impl Samples {
    /// Reads all files of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            if is_manifest(name) {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                files.insert(name.to_owned(), text);
            }
        }
        let mut objects = Vec::new();
        for (name, text) in &files {
            objects.extend(documents(text).with_context(|| name.clone())?);
        }
        ensure!(!objects.is_empty(), "there are no manifests");
        Ok(Self { files, objects })
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |o| o["kind"] == kind)
    }

    /// The name of the only node.
    pub(super) fn node(&self) -> Result<String> {
        let node = self.of_kind("Node").next().context("no Node")?;
        text(node, "/metadata/name")
    }

    /// The pods, as the lab makes them.
    pub(super) fn pods(&self) -> Result<Vec<PodSpec>> {
        self.of_kind("Pod").map(pod).collect()
    }

    /// The service called `name`.
    pub(super) fn service(&self, name: &str) -> Result<Service> {
        let service = self
            .of_kind("Service")
            .find(|service| service["metadata"]["name"] == name)
            .with_context(|| format!("no Service {name}"))?;
        let addresses = service["spec"]["clusterIPs"].as_array();
        let addresses = addresses.context("a Service without clusterIPs")?;
        let port = service
            .pointer("/spec/ports/0/port")
            .and_then(Value::as_u64);
        Ok(Service {
            namespace: text(service, "/metadata/namespace")?,
            name: name.to_owned(),
            addresses: addresses
                .iter()
                .map(|ip| Ok(ip.as_str().unwrap_or_default().parse()?))
                .collect::<Result<_>>()?,
            port: port.context("a Service without a port")?.try_into()?,
        })
    }

    /// The file that holds the slices of a service.
    pub(super) fn file_with_slices_of(&self, service: &str) -> Result<&str> {
        for (name, text) in &self.files {
            if documents(text)?.iter().any(|o| is_slice_of(o, service)) {
                return Ok(name);
            }
        }
        bail!("no EndpointSlice of {service}")
    }
}

/// The documents of a file; empty ones left out.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>()?;
    Ok(documents.into_iter().filter(|o| !o.is_null()).collect())
}

/// Whether an object is a slice of this service.
pub(super) fn is_slice_of(object: &Value, service: &str) -> bool {
    object["kind"] == "EndpointSlice"
        && object["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

fn text(object: &Value, pointer: &str) -> Result<String> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    let kind = object["kind"].as_str().unwrap_or("an object");
    Ok(found
        .with_context(|| format!("{kind} without {pointer}"))?
        .to_owned())
}

fn pod(object: &Value) -> Result<PodSpec> {
    let name = text(object, "/metadata/name")?;
    let (mut ipv4, mut ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (None, None);
    for entry in object["status"]["podIPs"].as_array().into_iter().flatten() {
        match entry["ip"].as_str().unwrap_or_default().parse()? {
            IpAddr::V4(ip) => ipv4 = Some(ip),
            IpAddr::V6(ip) => ipv6 = Some(ip),
        }
    }
    let both = ipv4.zip(ipv6);
    let (ipv4, ipv6) =
        both.with_context(|| format!("Pod {name} wants an address of each family"))?;
    Ok(PodSpec::new(&name)
        .in_namespace(&text(object, "/metadata/namespace")?)
        .at(ipv4, ipv6))
}
