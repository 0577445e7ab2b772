//! Names for what packets and verdicts carry as numbers: addresses, ports, rules.

use std::net::IpAddr;

use agent_common::{Address, ServiceKey};

use crate::compile::RuleName;
use crate::model::{Direction, ObjectKey};

use super::state::State;
use super::view::{End, EndKind, RuleView, ServiceRef};

/// Names things by a state.
#[derive(Clone, Copy, Debug)]
pub struct Namer<'a> {
    state: &'a State,
}

impl<'a> Namer<'a> {
    /// Names by this state.
    #[must_use]
    pub const fn new(state: &'a State) -> Self {
        Self { state }
    }

    /// What an address is, strongest claim first: a live pod, this host, a node, a service.
    #[must_use]
    pub fn end(&self, address: IpAddr, port: Option<u16>) -> End {
        let (kind, name) = self.who(&address);
        End {
            kind,
            name,
            address,
            port,
        }
    }

    fn who(&self, address: &IpAddr) -> (EndKind, Option<String>) {
        let cluster = &self.state.cluster;
        if let Some(pod) = cluster.owner(address) {
            return (EndKind::Pod, Some(pod.key.to_string()));
        }
        let node = cluster.nodes_at.get(address).and_then(|n| n.first());
        let node = node.map(ToString::to_string);
        if self.state.local.addresses.contains(address) {
            return (EndKind::Host, node);
        }
        if node.is_some() {
            return (EndKind::Node, node);
        }
        match cluster.services_at.get(address).and_then(|s| s.first()) {
            Some(service) => (EndKind::Service, Some(service.to_string())),
            None => (EndKind::Other, None),
        }
    }

    /// The service that an address and port of a protocol (IANA number) lead to. An address of a service with a port that the
    /// service has not is named without a port name.
    #[must_use]
    pub fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<ServiceRef> {
        let key = ServiceKey::new(Address::from(address), port.to_be(), protocol);
        if let Some(frontend) = self.state.desired.frontends.get(&key) {
            return Some(ServiceRef {
                name: frontend.pool.service.to_string(),
                port_name: Some(frontend.pool.port.to_string()),
            });
        }
        let at = self.state.cluster.services_at.get(&address)?;
        at.first().map(|service| ServiceRef {
            name: service.to_string(),
            port_name: None,
        })
    }

    /// The rule of a number; None for 0, which stands for "no policy applied".
    #[must_use]
    pub fn rule(&self, number: u32, direction: Direction) -> Option<RuleView> {
        if number == 0 {
            return None;
        }
        let strings = |keys: &[ObjectKey]| keys.iter().map(ToString::to_string).collect();
        let (policies, rule, direction, known) = match self.state.rules.get(&number) {
            Some(RuleName::Rule {
                policy,
                direction,
                index,
            }) => (vec![policy.to_string()], Some(*index), *direction, true),
            Some(RuleName::Default {
                policies,
                direction,
            }) => (strings(policies), None, *direction, true),
            None => (Vec::new(), None, direction, false),
        };
        Some(RuleView {
            number,
            direction: direction.name().to_owned(),
            policies,
            rule,
            known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fixture;

    #[test]
    fn an_address_is_named_by_its_strongest_claim() {
        let state = fixture::state();
        let namer = Namer::new(&state);
        let name = |address: &str| {
            let end = namer.end(address.parse().unwrap(), None);
            (end.kind, end.name.unwrap_or_default())
        };
        assert_eq!(name("10.244.1.10"), (EndKind::Pod, "shop/client".into()));
        assert_eq!(
            name("fd00:10:244:1::31"),
            (EndKind::Pod, "shop/backend-1".into())
        );
        assert_eq!(name("192.168.50.11"), (EndKind::Host, "node-a".into()));
        assert_eq!(name("192.168.50.12"), (EndKind::Node, "node-b".into()));
        assert_eq!(name("127.0.0.1"), (EndKind::Host, String::new()));
        assert_eq!(
            name("10.96.0.10"),
            (EndKind::Service, "shop/backend".into())
        );
        assert_eq!(name("192.0.2.7"), (EndKind::Other, String::new()));
    }

    #[test]
    fn a_service_port_is_named_and_an_unknown_port_is_not() {
        let state = fixture::state();
        let namer = Namer::new(&state);
        let at = "10.96.0.10".parse().unwrap();
        let tcp = agent_common::protocol::TCP;
        let named = namer.service(at, 80, tcp).unwrap();
        assert_eq!(
            (named.name.as_str(), named.port_name.as_deref()),
            ("shop/backend", Some("web"))
        );
        assert_eq!(namer.service(at, 81, tcp).unwrap().port_name, None);
        assert_eq!(namer.service("10.244.1.10".parse().unwrap(), 80, tcp), None);
    }

    #[test]
    fn a_number_without_a_rule_says_so() {
        let state = fixture::state();
        let namer = Namer::new(&state);
        assert_eq!(namer.rule(0, Direction::Ingress), None);
        let gone = namer.rule(99, Direction::Egress).unwrap();
        assert!(!gone.known);
        assert_eq!(
            gone.to_string(),
            "egress rule number 99, which no policy has any more"
        );
    }
}
