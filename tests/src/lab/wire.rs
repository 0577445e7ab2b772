//! The wire: a namespace with a bridge that joins the nodes, a router to every pod range, and the world outside.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;

use super::netns::Netns;
use super::node::Peer;
use super::owner::LabId;

/// The bridge that joins the nodes' uplinks.
const BRIDGE: &str = "br0";
/// Prefix lengths of the nodes' network.
pub(crate) const PREFIX_V4: u8 = 24;
/// See [`PREFIX_V4`].
pub(crate) const PREFIX_V6: u8 = 64;

/// The namespace between and around the nodes.
#[derive(Debug)]
pub struct Wire {
    netns: Arc<Netns>,
}

impl Wire {
    /// The router's address on the nodes' network: every node's default gateway.
    pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
    /// See [`Wire::GATEWAY_V4`].
    pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 1);
    /// A host somewhere in the world, reached by the default route (TEST-NET-3, RFC 5737).
    pub const WORLD_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    /// See [`Wire::WORLD_V4`] (documentation prefix, RFC 3849).
    pub const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

    pub(crate) fn new(id: &LabId) -> Result<Self> {
        let netns = Netns::create(&id.netns("wire"))?;
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            // Nodes and router share one link: without this every detour would be answered by a redirect.
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])?;
        netns.ip(&format!(
            "link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {BRIDGE} up\n\
             addr add {}/{PREFIX_V4} dev {BRIDGE}\n\
             addr add {}/{PREFIX_V6} dev {BRIDGE} nodad\n\
             addr add {}/32 dev lo\n\
             addr add {}/128 dev lo nodad\n",
            Self::GATEWAY_V4,
            Self::GATEWAY_V6,
            Self::WORLD_V4,
            Self::WORLD_V6,
        ))?;
        Ok(Self { netns })
    }

    /// The namespace; servers and clients that play the world run here.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Plugs the end of a node's uplink, already in this namespace, into the bridge and routes the node's pods to it.
    pub(crate) fn plug(&self, port: &str, node: &Peer) -> Result<()> {
        self.netns.ip(&format!(
            "link set {port} master {BRIDGE}\nlink set {port} up\n{}",
            node.routes_to_pods()
        ))
    }
}
