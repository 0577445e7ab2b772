//! Everything that the sources have told, by key, with the few indexes that keep work per change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    EndpointSlice, Few, Kind, Namespace, NetworkPolicy, Node, ObjectKey, Pod, Service, Text,
};

/// An object of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// Namespace.
    Namespace(Arc<Namespace>),
    /// Node.
    Node(Arc<Node>),
    /// Pod.
    Pod(Arc<Pod>),
    /// Service.
    Service(Arc<Service>),
    /// EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// NetworkPolicy.
    NetworkPolicy(Arc<NetworkPolicy>),
}

/// Kind and key of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: ObjectKey,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

impl Object {
    /// Kind and key.
    pub fn id(&self) -> ObjectId {
        let cluster_wide = |name: &Text| ObjectKey {
            namespace: super::intern(""),
            name: Arc::clone(name),
        };
        match self {
            Self::Namespace(o) => ObjectId {
                kind: Kind::Namespace,
                key: cluster_wide(&o.name),
            },
            Self::Node(o) => ObjectId {
                kind: Kind::Node,
                key: cluster_wide(&o.name),
            },
            Self::Pod(o) => ObjectId {
                kind: Kind::Pod,
                key: o.key.clone(),
            },
            Self::Service(o) => ObjectId {
                kind: Kind::Service,
                key: o.key.clone(),
            },
            Self::EndpointSlice(o) => ObjectId {
                kind: Kind::EndpointSlice,
                key: o.key.clone(),
            },
            Self::NetworkPolicy(o) => ObjectId {
                kind: Kind::NetworkPolicy,
                key: o.key.clone(),
            },
        }
    }
}

/// What an upsert or a delete did: the object before and after. Equal ones are no change.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it was about.
    pub id: ObjectId,
    /// The object before.
    pub before: Option<Object>,
    /// The object after.
    pub after: Option<Object>,
}

/// The cluster.
#[derive(Clone, Default, Debug)]
pub struct Cluster {
    /// By name.
    pub namespaces: BTreeMap<Text, Arc<Namespace>>,
    /// By name.
    pub nodes: BTreeMap<Text, Arc<Node>>,
    /// By namespace and name.
    pub pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// By namespace and name of the slice.
    pub slices: BTreeMap<ObjectKey, Arc<EndpointSlice>>,
    /// By namespace and name.
    pub policies: BTreeMap<ObjectKey, Arc<NetworkPolicy>>,
    /// Slices of a service.
    pub slices_of: BTreeMap<ObjectKey, Few<ObjectKey>>,
    /// Pods that claim an address, finished and host-network ones too.
    pub pods_at: BTreeMap<IpAddr, Few<ObjectKey>>,
    /// Nodes that claim an address.
    pub nodes_at: BTreeMap<IpAddr, Few<Text>>,
    /// Services that claim an address, as ClusterIP, external IP or load-balancer address.
    pub services_at: BTreeMap<IpAddr, Few<ObjectKey>>,
}

fn link<K: Ord, V: Ord>(index: &mut BTreeMap<K, Few<V>>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

fn unlink<K: Ord, V: Ord>(index: &mut BTreeMap<K, Few<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

impl Cluster {
    /// The object of an id.
    pub fn get(&self, id: &ObjectId) -> Option<Object> {
        match id.kind {
            Kind::Namespace => self
                .namespaces
                .get(&id.key.name)
                .cloned()
                .map(Object::Namespace),
            Kind::Node => self.nodes.get(&id.key.name).cloned().map(Object::Node),
            Kind::Pod => self.pods.get(&id.key).cloned().map(Object::Pod),
            Kind::Service => self.services.get(&id.key).cloned().map(Object::Service),
            Kind::EndpointSlice => self.slices.get(&id.key).cloned().map(Object::EndpointSlice),
            Kind::NetworkPolicy => self
                .policies
                .get(&id.key)
                .cloned()
                .map(Object::NetworkPolicy),
        }
    }

    /// Takes an object in, or replaces it. None where it is equal to what is there.
    pub fn upsert(&mut self, object: Object) -> Option<Change> {
        let id = object.id();
        let before = self.get(&id);
        if before.as_ref() == Some(&object) {
            return None;
        }
        if let Some(before) = &before {
            self.drop_indexes(before);
        }
        self.add_indexes(&object);
        match object.clone() {
            Object::Namespace(o) => drop(self.namespaces.insert(Arc::clone(&o.name), o)),
            Object::Node(o) => drop(self.nodes.insert(Arc::clone(&o.name), o)),
            Object::Pod(o) => drop(self.pods.insert(o.key.clone(), o)),
            Object::Service(o) => drop(self.services.insert(o.key.clone(), o)),
            Object::EndpointSlice(o) => drop(self.slices.insert(o.key.clone(), o)),
            Object::NetworkPolicy(o) => drop(self.policies.insert(o.key.clone(), o)),
        }
        Some(Change {
            id,
            before,
            after: Some(object),
        })
    }

    /// Removes an object. None where there is none.
    pub fn delete(&mut self, id: &ObjectId) -> Option<Change> {
        let before = self.get(id)?;
        self.drop_indexes(&before);
        match id.kind {
            Kind::Namespace => drop(self.namespaces.remove(&id.key.name)),
            Kind::Node => drop(self.nodes.remove(&id.key.name)),
            Kind::Pod => drop(self.pods.remove(&id.key)),
            Kind::Service => drop(self.services.remove(&id.key)),
            Kind::EndpointSlice => drop(self.slices.remove(&id.key)),
            Kind::NetworkPolicy => drop(self.policies.remove(&id.key)),
        }
        Some(Change {
            id: id.clone(),
            before: Some(before),
            after: None,
        })
    }

    fn add_indexes(&mut self, object: &Object) {
        match object {
            Object::Pod(pod) => {
                for ip in &pod.addresses {
                    link(&mut self.pods_at, *ip, pod.key.clone());
                }
            }
            Object::Node(node) => {
                for ip in node.internal_ips.iter().chain(&node.external_ips) {
                    link(&mut self.nodes_at, *ip, Arc::clone(&node.name));
                }
            }
            Object::Service(service) => {
                for ip in service.addresses() {
                    link(&mut self.services_at, ip, service.key.clone());
                }
            }
            Object::EndpointSlice(slice) => {
                link(
                    &mut self.slices_of,
                    slice.service.clone(),
                    slice.key.clone(),
                );
            }
            Object::Namespace(_) | Object::NetworkPolicy(_) => {}
        }
    }

    fn drop_indexes(&mut self, object: &Object) {
        match object {
            Object::Pod(pod) => {
                for ip in &pod.addresses {
                    unlink(&mut self.pods_at, ip, &pod.key);
                }
            }
            Object::Node(node) => {
                for ip in node.internal_ips.iter().chain(&node.external_ips) {
                    unlink(&mut self.nodes_at, ip, &node.name);
                }
            }
            Object::Service(service) => {
                for ip in service.addresses() {
                    unlink(&mut self.services_at, &ip, &service.key);
                }
            }
            Object::EndpointSlice(slice) => {
                unlink(&mut self.slices_of, &slice.service, &slice.key);
            }
            Object::Namespace(_) | Object::NetworkPolicy(_) => {}
        }
    }

    /// The pod that owns an address: the newest live one that claims it and is not on the host's network; of equally old
    /// ones the greatest UID, then name.
    pub fn owner(&self, ip: &IpAddr) -> Option<&Arc<Pod>> {
        self.pods_at
            .get(ip)?
            .iter()
            .filter_map(|key| self.pods.get(key))
            .filter(|pod| !pod.host_network && pod.phase == super::PodPhase::Live)
            .max_by(|a, b| (a.created, &a.uid, &a.key).cmp(&(b.created, &b.uid, &b.key)))
    }
}

impl Service {
    /// Every address of the service that is not a node's.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips
            .iter()
            .chain(&self.external_ips)
            .chain(&self.load_balancer_ips)
            .copied()
    }
}
