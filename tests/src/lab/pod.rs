//! A pod as Azure CNI's transparent mode makes it: point to point, no bridge, no shared subnet.
//!
//! The pod has `x/32` and `y/128` on eth0 and a default route through a link-local next hop that exists only as a
//! static neighbour entry (the host side's MAC). The node has a gateway-less host route to the pod's device. Source:
//! Azure/azure-container-networking, `network/transparent_endpointclient_linux.go`.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;

use super::netns::{self, Netns};
use super::node::Node;
use super::owner::LabId;

/// The pod's next hop, IPv4.
const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's next hop, IPv6.
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The MAC of every host side, as Azure CNI gives it.
const HOST_MAC: &str = "aa:aa:aa:aa:aa:aa";
/// What a host side's name begins with; eleven hex digits follow; an interface name has at most 15 bytes.
const HOST_PREFIX: &str = "azv";
/// Bits of the hash that eleven hex digits hold.
const HOST_HASH_BITS: u32 = 44;

/// Pods of this process so far.
static NEXT_UID: AtomicU64 = AtomicU64::new(0);

/// Clients in pods open many short connections to few servers: a wide port range, and reuse of TIME_WAIT ports after a
/// second (RFC 6191), or a generator would run out of ports within a minute.
const POD_SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_local_port_range", "20000 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// What pod to make.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// Its IPv4 address, or the node's next.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, or the node's next.
    pub ipv6: Option<Ipv6Addr>,
    /// The index of its link on the node, or the kernel's next.
    pub ifindex: Option<u32>,
}

impl PodSpec {
    /// A pod in the namespace `default` with addresses of the node's choice.
    pub fn new(name: &str) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            ipv4: None,
            ipv6: None,
            ifindex: None,
        }
    }

    /// The same in another Kubernetes namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The same with these addresses.
    #[must_use]
    pub fn at(mut self, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        (self.ipv4, self.ipv6) = (Some(ipv4), Some(ipv6));
        self
    }
}

impl PodSpec {
    /// The same with this index of the link on the node, which must be free: what a pod made again may get by chance.
    #[must_use]
    pub fn with_ifindex(mut self, ifindex: u32) -> Self {
        self.ifindex = Some(ifindex);
        self
    }
}

/// A spec with its addresses settled.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) ifindex: Option<u32>,
}

/// A pod of the lab. When the handle and all that runs in its namespace are gone, the kernel removes its link some time
/// later; [`Pod::delete`] removes it at once.
#[derive(Debug)]
pub struct Pod {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The name of the node it is on.
    pub node: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The name of its link on the node.
    pub device: String,
    /// Its UID: a pod made again under the same name has another.
    pub uid: String,
    /// When it was made, RFC 3339, as `metadata.creationTimestamp`.
    pub created: String,
    netns: Arc<Netns>,
    node_netns: Arc<Netns>,
}

impl Pod {
    /// The pod side's interface.
    pub const DEVICE: &'static str = "eth0";

    /// The pod's namespace; its servers and clients run here.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// `namespace/name`, as people write it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// A spec that makes this pod again with the same addresses (and so the same device name).
    pub fn spec(&self) -> PodSpec {
        PodSpec::new(&self.name)
            .in_namespace(&self.namespace)
            .at(self.ipv4, self.ipv6)
    }

    /// The index of its link on the node.
    ///
    /// # Errors
    /// The link is gone.
    pub fn ifindex(&self) -> Result<u32> {
        let index = self
            .node_netns
            .run(|| nix::net::if_::if_nametoindex(self.device.as_str()))?;
        index.with_context(|| format!("the index of {}", self.device))
    }

    /// Sets the host side down, as a CNI or an operator might; the kernel drops the host routes with it.
    ///
    /// # Errors
    /// The link is gone.
    pub fn link_down(&self) -> Result<()> {
        self.node_netns
            .ip(&format!("link set {} down", self.device))
    }

    /// Sets the host side up and gives the node its host routes back.
    ///
    /// # Errors
    /// The link is gone.
    pub fn link_up(&self) -> Result<()> {
        let mut script = format!("link set {} up\n", self.device);
        host_routes(&mut script, &self.device, self.ipv4, self.ipv6)?;
        self.node_netns.ip(&script)
    }

    /// Deletes the pod's link and the name of its namespace at once; addresses and names are free again.
    ///
    /// # Errors
    /// The link was gone already, or the namespace could not be removed.
    pub fn delete(self) -> Result<()> {
        self.node_netns.ip(&format!("link del {}", self.device))?;
        netns::remove(self.netns.name())
            .with_context(|| format!("deleting the pod {}", self.full_name()))
    }
}

/// Makes the pods of `plans` on `node`: one call of `ip` for all namespaces, one for all links, one inside each pod.
pub(crate) fn create(lab: &LabId, node: &Node, plans: Vec<Plan>) -> Result<Vec<Pod>> {
    let role =
        |plan: &Plan| lab.netns(&format!("p-{}-{}-{}", node.name, plan.namespace, plan.name));
    let names: Vec<String> = plans.iter().map(role).collect();
    let namespaces = Netns::create_all(&names)?;
    let mut pods = Vec::new();
    let mut links = String::new();
    for (plan, netns) in plans.into_iter().zip(namespaces) {
        netns.sysctl(POD_SYSCTLS)?;
        let device = device_name(&plan.namespace, &plan.name);
        let index = plan
            .ifindex
            .map(|index| format!("index {index} "))
            .unwrap_or_default();
        writeln!(
            links,
            "link add {device} {index}address {HOST_MAC} type veth peer name {} netns {}\nlink set {device} up",
            Pod::DEVICE,
            netns.name()
        )?;
        let Plan {
            namespace,
            name,
            ipv4,
            ipv6,
            ..
        } = plan;
        let (node_name, node_netns) = (node.name.clone(), Arc::clone(node.netns()));
        let (uid, created) = (fresh_uid(), Timestamp::now().strftime("%FT%TZ").to_string());
        pods.push(Pod {
            namespace,
            name,
            node: node_name,
            ipv4,
            ipv6,
            device,
            uid,
            created,
            netns,
            node_netns,
        });
    }
    node.netns().ip(&links)?;
    let mut routes = String::new();
    for pod in &pods {
        pod.netns.ip(&inside(pod.ipv4, pod.ipv6))?;
        // Once the pod's side is up the link has carrier and takes the routes.
        host_routes(&mut routes, &pod.device, pod.ipv4, pod.ipv6)?;
    }
    node.netns().ip(&routes)?;
    Ok(pods)
}

fn inside(ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> String {
    let eth = Pod::DEVICE;
    format!(
        "addr add {ipv4}/32 dev {eth}\n\
         addr add {ipv6}/128 dev {eth} nodad\n\
         link set {eth} up\n\
         neigh add {NEXT_HOP_V4} lladdr {HOST_MAC} dev {eth} nud permanent\n\
         neigh add {NEXT_HOP_V6} lladdr {HOST_MAC} dev {eth} nud permanent\n\
         route add {NEXT_HOP_V4}/32 dev {eth} scope link\n\
         route add default via {NEXT_HOP_V4} dev {eth}\n\
         route add default via {NEXT_HOP_V6} dev {eth}\n"
    )
}

fn host_routes(script: &mut String, device: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<()> {
    // `replace`: setting a link down takes its IPv4 routes but may leave the IPv6 one.
    writeln!(
        script,
        "route replace {ipv4}/32 dev {device} scope link\nroute replace {ipv6}/128 dev {device}"
    )?;
    Ok(())
}

/// A UID in the API server's form, unique among all pods of all labs of this boot.
fn fresh_uid() -> String {
    let number = NEXT_UID.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
}

/// Azure CNI names the host side by a hash of the pod; so a pod made again gets the same name.
fn device_name(namespace: &str, name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (namespace, name).hash(&mut hasher);
    let hash = hasher.finish() & ((1 << HOST_HASH_BITS) - 1);
    format!("{HOST_PREFIX}{hash:011x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_fits_an_interface_and_stays_the_same() {
        let device = device_name("default", "client");
        assert!(device.len() < libc::IFNAMSIZ, "{device}");
        assert_eq!(device, device_name("default", "client"));
        assert_ne!(device, device_name("defaultc", "lient"));
    }
}
