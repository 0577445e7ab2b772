//! A namespace that plays a Kubernetes node: forwarding, an uplink, default routes, pods on veths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

use super::cgroup::Cgroup;
use super::netns::Netns;
use super::owner::LabId;
use super::pod::{self, Pod, PodSpec};
use super::wire::{PREFIX_V4, PREFIX_V6, Wire};

/// Nodes per lab: a node's number is a byte of its addresses, and the router and its neighbours have the first ten.
pub(crate) const MAX_NODES: u8 = 200;
/// The last byte of node 1's address is this plus 1.
const ADDRESS_BASE: u8 = 10;
/// The first pod of a node gets this as the last byte of its address; .1 is customarily a bridge's.
const FIRST_POD: u8 = 2;
/// Prefix lengths of a node's pod range.
const POD_PREFIX_V4: u8 = 24;
/// See [`POD_PREFIX_V4`].
const POD_PREFIX_V6: u8 = 64;

/// The kernel's reverse path filter on a node (`net.ipv4.conf.*.rp_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RpFilter {
    /// 0: no check, what Kubernetes nodes with policy routing run with.
    #[default]
    Off,
    /// 2: the source must be reachable by some interface (systemd's default).
    Loose,
}

/// What may differ between nodes.
#[derive(Debug, Clone, Copy)]
pub struct NodeOptions {
    /// The reverse path filter.
    pub rp_filter: RpFilter,
    /// The uplink's MTU in bytes.
    pub uplink_mtu: u32,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            rp_filter: RpFilter::Off,
            uplink_mtu: 1500,
        }
    }
}

/// How a node is seen from elsewhere on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) netns: Arc<Netns>,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    pods_v4: String,
    pods_v6: String,
}

impl Peer {
    /// `ip` lines that route this node's pod ranges to it.
    pub(crate) fn routes_to_pods(&self) -> String {
        format!(
            "route add {} via {}\nroute add {} via {}\n",
            self.pods_v4, self.ipv4, self.pods_v6, self.ipv6
        )
    }
}

/// A node of the lab. The lab removes its namespace; the handle may be dropped earlier.
#[derive(Debug)]
pub struct Node {
    /// The node's name, as in its Node object.
    pub name: String,
    /// Its InternalIP on the wire, IPv4: `192.168.50.(10 + n)`.
    pub ipv4: Ipv4Addr,
    /// Its InternalIP on the wire, IPv6: `fd00:50::(10 + n)`.
    pub ipv6: Ipv6Addr,
    index: u8,
    netns: Arc<Netns>,
    lab: LabId,
    lab_dir: PathBuf,
    cgroup: Cgroup,
    next_pod: AtomicU8,
}

impl Node {
    /// The uplink's name on the node.
    pub const UPLINK: &'static str = "eth0";

    pub(crate) fn new(
        lab: &LabId,
        lab_dir: &Path,
        wire: &Wire,
        name: &str,
        index: u8,
        options: NodeOptions,
        cgroup: Cgroup,
    ) -> Result<Self> {
        ensure_label(name)?;
        let netns = Netns::create(&lab.netns(&format!("n-{name}")))?;
        let rp_filter = match options.rp_filter {
            RpFilter::Off => "0",
            RpFilter::Loose => "2",
        };
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            // The larger of `all` and the interface's own counts.
            ("net/ipv4/conf/all/rp_filter", rp_filter),
            ("net/ipv4/conf/default/rp_filter", rp_filter),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        let last = ADDRESS_BASE + index;
        let node = Self {
            name: name.to_owned(),
            ipv4: Ipv4Addr::new(192, 168, 50, last),
            ipv6: Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, u16::from(last)),
            index,
            netns,
            lab: lab.clone(),
            lab_dir: lab_dir.to_owned(),
            cgroup,
            next_pod: AtomicU8::new(FIRST_POD),
        };
        let port = node.wire_port();
        node.netns.ip(&format!(
            "link add {up} mtu {mtu} type veth peer name {port} mtu {mtu} netns {wire}\n\
             addr add {}/{PREFIX_V4} dev {up}\n\
             addr add {}/{PREFIX_V6} dev {up} nodad\n\
             link set {up} up\n",
            node.ipv4,
            node.ipv6,
            up = Self::UPLINK,
            mtu = options.uplink_mtu,
            wire = wire.netns().name(),
        ))?;
        wire.plug(&port, &node.as_peer())?;
        // After the far end is up: the kernel takes no IPv6 route over a link without carrier for good.
        node.netns.ip(&format!(
            "route add default via {}\nroute add default via {}\n",
            Wire::GATEWAY_V4,
            Wire::GATEWAY_V6,
        ))?;
        Ok(node)
    }

    pub(crate) fn as_peer(&self) -> Peer {
        Peer {
            name: self.name.clone(),
            netns: Arc::clone(&self.netns),
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            pods_v4: self.pod_range_v4(),
            pods_v6: self.pod_range_v6(),
        }
    }

    /// The node's namespace; the agent and host processes run here.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The wire's end of the uplink, in [`Wire::netns`]: setting it down takes the uplink's carrier away.
    pub fn wire_port(&self) -> String {
        format!("port{}", self.index)
    }

    /// The cgroup2 of this node's own processes, for the agent's `--cgroup`.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The lab's run directory.
    pub(crate) fn lab_dir(&self) -> &Path {
        &self.lab_dir
    }

    /// The id of the lab that this node belongs to.
    pub(crate) fn lab_id(&self) -> String {
        self.lab.to_string()
    }

    /// Both InternalIPs, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// The range of this node's pods, IPv4: `10.244.n.0/24`.
    pub fn pod_range_v4(&self) -> String {
        format!("{}/{POD_PREFIX_V4}", self.pod_ipv4(0))
    }

    /// The range of this node's pods, IPv6: `fd00:244:n::/64`.
    pub fn pod_range_v6(&self) -> String {
        format!("{}/{POD_PREFIX_V6}", self.pod_ipv6(0))
    }

    fn pod_ipv4(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.index, last)
    }

    fn pod_ipv6(&self, last: u8) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x244,
            u16::from(self.index),
            0,
            0,
            0,
            0,
            u16::from(last),
        )
    }

    /// Makes one pod in the namespace `default` with the next free addresses.
    ///
    /// # Errors
    /// As [`Node::pods`].
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_with(PodSpec::new(name))
    }

    /// Makes one pod as `spec` says.
    ///
    /// # Errors
    /// As [`Node::pods`].
    pub fn pod_with(&self, spec: PodSpec) -> Result<Pod> {
        self.pods([spec])?.pop().context("one pod was asked for")
    }

    /// Makes pods, all links in one go. Addresses that a spec leaves open are the next of the node's ranges that were
    /// never used; a spec with addresses plays a pod made again with its old ones.
    ///
    /// # Errors
    /// A name is unfit or taken, the range is used up, or the kernel refused a namespace, link or route.
    pub fn pods(&self, specs: impl IntoIterator<Item = PodSpec>) -> Result<Vec<Pod>> {
        let mut plans = Vec::new();
        for spec in specs {
            ensure_label(&spec.name)?;
            ensure_label(&spec.namespace)?;
            let (ipv4, ipv6) = match (spec.ipv4, spec.ipv6) {
                (Some(ipv4), Some(ipv6)) => (ipv4, ipv6),
                (ipv4, ipv6) => {
                    let last = self.take_address()?;
                    (
                        ipv4.unwrap_or_else(|| self.pod_ipv4(last)),
                        ipv6.unwrap_or_else(|| self.pod_ipv6(last)),
                    )
                }
            };
            plans.push(pod::Plan {
                namespace: spec.namespace,
                name: spec.name,
                ipv4,
                ipv6,
                ifindex: spec.ifindex,
            });
        }
        pod::create(&self.lab, self, plans)
    }

    /// The next addresses of the node's ranges that were never used, for a [`PodSpec`] that is to have them.
    ///
    /// # Errors
    /// The range is used up.
    pub fn spare_addresses(&self) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let last = self.take_address()?;
        Ok((self.pod_ipv4(last), self.pod_ipv6(last)))
    }

    fn take_address(&self) -> Result<u8> {
        let next = |last: u8| (last < u8::MAX - 1).then_some(last + 1);
        self.next_pod
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .ok()
            .with_context(|| {
                format!(
                    "node {}: the pod range {} is used up",
                    self.name,
                    self.pod_range_v4()
                )
            })
    }
}

/// Names become parts of file and namespace names, and of Kubernetes objects: DNS labels (RFC 1123).
fn ensure_label(name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    ensure!(
        !name.is_empty() && name.bytes().all(fits),
        "{name:?} is no DNS label (a-z, 0-9, -)"
    );
    Ok(())
}
