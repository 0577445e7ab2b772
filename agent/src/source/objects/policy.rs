//! Network policies (`networking.k8s.io/v1`).

use std::fmt::Display;
use std::sync::Arc;

use k8s_openapi::api::networking::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::selector;
use super::{Convert, Fault, address, meta, port};
use crate::model::{
    IpBlock, Kind, NetworkPolicy, Object, ObjectId, Peer, PolicyRule, PortMatch, PortSpec, Selector,
};

/// Annotation: `"true"` reports what the policy denies, and passes it.
const AUDIT: &str = "sluice.dev/audit";

impl Convert for v1::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn convert(&self, id: &ObjectId, notices: &mut Vec<String>) -> Result<Option<Object>, Fault> {
        let Some(spec) = &self.spec else {
            return Err(Fault::new(
                "spec",
                "it is missing; `spec: {podSelector: {}}` would isolate the ingress of every pod of the namespace",
            ));
        };
        let selector = match &spec.pod_selector {
            Some(pods) => selector("spec.podSelector", pods)?,
            None => Selector::default(),
        };
        let mut ingress = Vec::new();
        for (i, rule) in spec.ingress.iter().flatten().enumerate() {
            let field = format!("spec.ingress[{i}]");
            ingress.push(PolicyRule {
                peers: peers(&format!("{field}.from"), rule.from.as_deref())?,
                ports: ports(&format!("{field}.ports"), rule.ports.as_deref())?,
            });
        }
        let mut egress = Vec::new();
        for (i, rule) in spec.egress.iter().flatten().enumerate() {
            let field = format!("spec.egress[{i}]");
            egress.push(PolicyRule {
                peers: peers(&format!("{field}.to"), rule.to.as_deref())?,
                ports: ports(&format!("{field}.ports"), rule.ports.as_deref())?,
            });
        }
        let (isolates_ingress, isolates_egress) = policy_types(spec)?;
        Ok(Some(Object::NetworkPolicy(Arc::new(NetworkPolicy {
            key: id.key.clone(),
            selector,
            ingress: isolates_ingress.then_some(ingress),
            egress: isolates_egress.then_some(egress),
            audit: meta::switch(&self.metadata, AUDIT, notices) == Some(true),
        }))))
    }
}

/// Whether ingress and egress are isolated. Without `policyTypes`: ingress always, and egress when there are egress rules
/// (`SetDefaults_NetworkPolicy`: an empty list is none).
fn policy_types(spec: &v1::NetworkPolicySpec) -> Result<(bool, bool), Fault> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Ok((true, spec.egress.as_ref().is_some_and(|e| !e.is_empty())));
    }
    let (mut ingress, mut egress) = (false, false);
    for (i, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => {
                return Err(Fault::new(
                    format_args!("spec.policyTypes[{i}]"),
                    format_args!("{other:?} is an unknown policy type; write Ingress or Egress"),
                ));
            }
        }
    }
    Ok((ingress, egress))
}

/// None for everyone.
fn peers(field: &str, list: Option<&[v1::NetworkPolicyPeer]>) -> Result<Option<Vec<Peer>>, Fault> {
    let list = list.unwrap_or_default();
    if list.is_empty() {
        return Ok(None);
    }
    list.iter()
        .enumerate()
        .map(|(i, entry)| peer(format_args!("{field}[{i}]"), entry))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn peer(field: impl Display, peer: &v1::NetworkPolicyPeer) -> Result<Peer, Fault> {
    let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    match (&peer.ip_block, selects) {
        (None, false) => Err(Fault::new(
            field,
            "the peer has nothing in it; write podSelector, namespaceSelector or ipBlock (leave the whole list out to mean everyone)",
        )),
        (Some(_), true) => Err(Fault::new(
            field,
            "ipBlock stands beside a selector; write two peers",
        )),
        (Some(block), false) => ip_block(format_args!("{field}.ipBlock"), block).map(Peer::Block),
        (None, true) => {
            let namespaces = match &peer.namespace_selector {
                Some(s) => Some(selector(format_args!("{field}.namespaceSelector"), s)?),
                None => None,
            };
            let pods = match &peer.pod_selector {
                Some(s) => selector(format_args!("{field}.podSelector"), s)?,
                None => Selector::default(),
            };
            Ok(Peer::Pods { namespaces, pods })
        }
    }
}

fn ip_block(field: impl Display, block: &v1::IPBlock) -> Result<IpBlock, Fault> {
    let outer = address::cidr(format_args!("{field}.cidr"), &block.cidr)?;
    let mut except = Vec::new();
    for (i, text) in block.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{i}]");
        let inner = address::cidr(&field, text)?;
        if !address::is_strictly_inside(inner, outer) {
            return Err(Fault::new(
                field,
                format_args!(
                    "{text} is not a smaller block inside {}; an exception takes away from its own cidr only",
                    block.cidr
                ),
            ));
        }
        except.push(inner);
    }
    except.sort();
    except.dedup();
    Ok(IpBlock {
        address: outer.0,
        length: outer.1,
        except,
    })
}

/// None for every port.
fn ports(
    field: &str,
    list: Option<&[v1::NetworkPolicyPort]>,
) -> Result<Option<Vec<PortMatch>>, Fault> {
    let list = list.unwrap_or_default();
    if list.is_empty() {
        return Ok(None);
    }
    list.iter()
        .enumerate()
        .map(|(i, entry)| port_match(format_args!("{field}[{i}]"), entry))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn port_match(field: impl Display, entry: &v1::NetworkPolicyPort) -> Result<PortMatch, Fault> {
    let protocol = port::protocol(format_args!("{field}.protocol"), entry.protocol.as_deref())?;
    let end = entry
        .end_port
        .map(|end| port::number(format_args!("{field}.endPort"), end))
        .transpose()?;
    let without_number = || {
        Fault::new(
            format_args!("{field}.endPort"),
            "it needs a numeric port beside it, where the range begins",
        )
    };
    let port = match (&entry.port, end) {
        (None, None) => PortSpec::All,
        (None, Some(_)) => return Err(without_number()),
        (Some(IntOrString::String(name)), end) => {
            let name = port::name(format_args!("{field}.port"), name)?;
            if end.is_some() {
                return Err(without_number());
            }
            PortSpec::Named(name)
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = port::number(format_args!("{field}.port"), *first)?;
            let last = end.unwrap_or(first);
            if last < first {
                return Err(Fault::new(
                    format_args!("{field}.endPort"),
                    format_args!("{last} is below port, which is {first}; swap them"),
                ));
            }
            PortSpec::Range(first, last)
        }
    };
    Ok(PortMatch { protocol, port })
}
