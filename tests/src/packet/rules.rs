//! The policy part of a row's state.

use std::net::IpAddr;

use agent_common::{
    Address, GROUP_ANY, GroupEntry, PRIORITY_DEFAULT, PRIORITY_RULE, Prefix, PrefixEntry, RuleKey,
    SetWord, Verdict, action, rule_bits, set_flag, tier,
};
use aya::maps::lpm_trie::Key;

use super::world::{LocalPod, World};

/// Number of the default of a row's sets, as entries and events show it.
pub const DEFAULT_RULE: u32 = 7_000;
/// Number of the rules that allow.
pub const ALLOW_RULE: u32 = 8_000;

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug)]
pub enum Ports {
    /// Any protocol and port.
    Any,
    /// One protocol.
    Protocol(u8),
    /// One port of a protocol.
    One(u8, u16),
    /// The ports that share the first so many bits with this one.
    Prefix(u8, u16, u32),
}

impl World {
    /// A set that denies what nothing allows.
    pub fn set(&mut self, set: u32) -> SetWord {
        self.put(
            set,
            GROUP_ANY,
            rule_bits::SET,
            (0, 0),
            Verdict {
                rule: DEFAULT_RULE,
                priority: PRIORITY_DEFAULT,
                tier: tier::NETWORK_POLICY,
                action: action::DENY,
            },
        );
        SetWord {
            set,
            flags: set_flag::ISOLATED,
        }
    }

    /// Isolates what the pod sends, by a set that denies what nothing allows. Nothing that is judged already is judged again.
    pub fn isolate_egress(&mut self, pod: &LocalPod, set: u32) {
        let word = self.set(set);
        self.edit(pod, |p| p.egress = word);
    }

    /// Likewise for what reaches the pod.
    pub fn isolate_ingress(&mut self, pod: &LocalPod, set: u32) {
        let word = self.set(set);
        self.edit(pod, |p| p.ingress = word);
    }

    /// Allows a group ([`GROUP_ANY`]: everybody).
    pub fn allow(&mut self, set: u32, group: u32, ports: Ports) {
        self.rule(set, group, ports, action::ALLOW);
    }

    /// A rule with any action.
    pub fn rule(&mut self, set: u32, group: u32, ports: Ports, action: u8) {
        let (bits, key) = match ports {
            Ports::Any => (rule_bits::GROUP, (0, 0)),
            Ports::Protocol(p) => (rule_bits::PROTOCOL, (p, 0)),
            Ports::One(p, port) => (rule_bits::PORT, (p, port)),
            Ports::Prefix(p, port, bits) => (rule_bits::PROTOCOL + bits, (p, port)),
        };
        self.put(
            set,
            group,
            bits,
            key,
            Verdict {
                rule: ALLOW_RULE,
                priority: PRIORITY_RULE,
                tier: tier::NETWORK_POLICY,
                action,
            },
        );
    }

    /// Takes a rule away again.
    pub fn withdraw(&mut self, set: u32, group: u32, ports: Ports) {
        let (bits, (protocol, port)) = match ports {
            Ports::Any => (rule_bits::GROUP, (0, 0)),
            Ports::Protocol(p) => (rule_bits::PROTOCOL, (p, 0)),
            Ports::One(p, port) => (rule_bits::PORT, (p, port)),
            Ports::Prefix(p, port, bits) => (rule_bits::PROTOCOL + bits, (p, port)),
        };
        let key = Key::new(bits, RuleKey::packet(set, group, protocol, port.to_be()));
        self.must(|w| Ok(w.rules.remove(&key)?));
    }

    /// Puts an identity into a group.
    pub fn group(&mut self, identity: u32, group: u32) {
        self.must(|w| Ok(w.groups.set(identity, GroupEntry { group, _zero: 0 }, 0)?));
    }

    /// Gives a CIDR an identity and a group. `bits` counts the family's own bits.
    pub fn prefix(&mut self, network: IpAddr, bits: u32, identity: u32, group: u32) {
        let bits = if network.is_ipv4() { bits + 96 } else { bits };
        let key = Key::new(
            bits,
            Prefix {
                bytes: Address::from(network).bytes,
            },
        );
        self.must(|w| {
            Ok(w.prefixes
                .insert(&key, PrefixEntry { identity, _zero: 0 }, 0)?)
        });
        self.group(identity, group);
    }

    fn put(
        &mut self,
        set: u32,
        group: u32,
        bits: u32,
        (protocol, port): (u8, u16),
        verdict: Verdict,
    ) {
        let key = Key::new(bits, RuleKey::packet(set, group, protocol, port.to_be()));
        self.must(|w| Ok(w.rules.insert(&key, verdict, 0)?));
    }
}
