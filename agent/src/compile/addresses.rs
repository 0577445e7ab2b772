//! Addresses: what each is, and whose.

use std::net::IpAddr;
use std::sync::Arc;

use agent_common::{Address, AddressEntry, IDENTITY_UNKNOWN, NO_ADDRESS_SLOT, address_kind};

use super::IpBlockMode;
use super::enforcement::{Dirty, Enforcement, KnownAddress};
use super::identity::{PodIdentity, Who};
use crate::desired::Delta;
use crate::model::{Cluster, Pod};
use crate::problem::Problem;

/// What an address is.
struct Holder {
    kind: u8,
    slot: u16,
    pod: Option<Arc<Pod>>,
    /// Who it was before a restart, where no pod is told of.
    remains: Option<Arc<PodIdentity>>,
}

impl Enforcement {
    /// The pod that an address belongs to: that of the link where it is local, else the newest live one.
    pub(super) fn pod_at(&self, cluster: &Cluster, ip: &IpAddr) -> Option<Arc<Pod>> {
        self.holder(cluster, ip)?.pod
    }

    fn is_host(&self, cluster: &Cluster, ip: &IpAddr) -> bool {
        self.host_addresses.contains(ip)
            || cluster
                .nodes_at
                .get(ip)
                .is_some_and(|nodes| nodes.contains(&self.options.node_name))
    }

    /// What an address is. This host comes first, because what it owns it answers for, ClusterIPs included (NodeLocal DNS); then
    /// what is plugged in here, then what the cluster says.
    fn holder(&self, cluster: &Cluster, ip: &IpAddr) -> Option<Holder> {
        let plain = |kind| Holder {
            kind,
            slot: NO_ADDRESS_SLOT,
            pod: None,
            remains: None,
        };
        if self.is_host(cluster, ip) {
            return Some(plain(address_kind::HOST));
        }
        let link = self
            .links_at
            .get(ip)
            .into_iter()
            .flatten()
            .rev()
            .find_map(|ifindex| self.links.get(ifindex).filter(|link| link.slot.is_some()));
        if let Some(link) = link {
            return Some(Holder {
                kind: address_kind::LOCAL_POD,
                slot: link
                    .slot
                    .and_then(|slot| u16::try_from(slot).ok())
                    .unwrap_or(NO_ADDRESS_SLOT),
                pod: link.pod.clone(),
                remains: link.remains.as_ref().and_then(|r| r.who.get(ip).cloned()),
            });
        }
        if let Some(pod) = cluster.owner(ip) {
            return Some(Holder {
                pod: Some(Arc::clone(pod)),
                ..plain(address_kind::REMOTE_POD)
            });
        }
        if cluster.nodes_at.contains_key(ip) {
            return Some(plain(address_kind::NODE));
        }
        let services = cluster.services_at.get(ip)?;
        let cluster_ip = services
            .iter()
            .filter_map(|key| cluster.services.get(key))
            .any(|service| service.cluster_ips.contains(ip));
        Some(plain(if cluster_ip {
            address_kind::CLUSTER_IP
        } else {
            address_kind::EXTERNAL
        }))
    }

    /// Writes the entries of dirty addresses anew.
    pub(super) fn readdress(
        &mut self,
        cluster: &Cluster,
        dirty: &mut Dirty,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        let limits = self.options.limits;
        // What goes first makes room for what comes.
        let mut come = Vec::new();
        for ip in std::mem::take(&mut dirty.addresses) {
            match self.holder(cluster, &ip) {
                Some(holder) => come.push((ip, holder)),
                None => {
                    if let Some(known) = self.addresses.remove(&ip) {
                        if let Some(number) = known.identity {
                            self.identities.release(number);
                        }
                        delta.addresses.insert(Address::from(ip), None);
                        self.follow_overlaps(ip);
                    }
                }
            }
        }
        for (ip, holder) in come {
            let before = self.addresses.get(&ip).copied();
            let object = || match &holder.pod {
                Some(pod) => format!("Pod {}, address {ip}", pod.key),
                None => format!("address {ip}"),
            };
            if before.is_none() && self.addresses.len() >= limits.addresses as usize {
                self.starved.insert(ip);
                problems.push(Problem::full(object(), "addresses", limits.addresses));
                continue;
            }
            let mut identity = None;
            let pod = holder.pod.as_ref();
            let who = pod.map(|pod| Arc::new(self.vocabulary.cut(pod, &ip)));
            if let Some(who) = who.or(holder.remains) {
                match self.identities.acquire(Who::Pod(who)) {
                    Some((number, new)) => {
                        identity = Some(number);
                        if new {
                            dirty.identities.insert(number);
                        }
                    }
                    None => {
                        self.starved.insert(ip);
                        problems.push(Problem::full(object(), "groups", limits.identities));
                    }
                }
            }
            if let Some(number) = before.and_then(|before| before.identity) {
                self.identities.release(number);
            }
            let address = Address::from(ip);
            let entry = AddressEntry {
                identity: identity.unwrap_or(IDENTITY_UNKNOWN),
                slot: holder.slot,
                kind: holder.kind,
                check: address.check(),
            };
            self.addresses.insert(ip, KnownAddress { identity, entry });
            if before.map(|before| before.entry) != Some(entry) {
                delta.addresses.insert(address, Some(entry));
            }
            if before.map(|before| before.entry.kind) != Some(entry.kind) {
                self.follow_overlaps(ip);
            }
        }
    }

    fn follow_overlaps(&mut self, ip: IpAddr) {
        if self.options.ip_block_mode == IpBlockMode::Cilium {
            self.overlaps.address(ip, &self.addresses);
        }
    }
}
