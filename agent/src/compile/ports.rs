//! Ports of rules as prefixes of a longest-prefix map.
//!
//! The map answers with the longest match alone, so each prefix must carry the strongest verdict of all that contain it.

use std::collections::BTreeMap;

use agent_common::{RuleKey, Verdict, rule_bits};

use crate::datapath::Bits;

/// Bits of a port.
const PORT_BITS: u32 = 16;

/// What a rule says of protocol and port, before it is cut into prefixes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reach {
    /// Every protocol and port.
    Everything,
    /// Ports of a protocol, first and last.
    Ports(u8, u16, u16),
}

/// A prefix: how many of the port's bits count (None: not even the protocol), protocol, port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PortPrefix {
    bits: Option<u32>,
    protocol: u8,
    port: u16,
}

impl PortPrefix {
    const EVERYTHING: Self = Self {
        bits: None,
        protocol: 0,
        port: 0,
    };

    /// The prefixes that contain this one, the longest first.
    fn parents(self) -> impl Iterator<Item = Self> {
        let bits = self.bits.unwrap_or(0);
        let ports = (0..bits).rev().map(move |bits| Self {
            bits: Some(bits),
            protocol: self.protocol,
            port: masked(self.port, bits),
        });
        ports.chain(self.bits.map(|_| Self::EVERYTHING))
    }

    fn key(self, set: u32, group: u32) -> Bits<RuleKey> {
        Bits {
            length: self
                .bits
                .map_or(rule_bits::GROUP, |bits| rule_bits::PROTOCOL + bits),
            data: RuleKey::packet(set, group, self.protocol, self.port.to_be()),
        }
    }
}

fn masked(port: u16, bits: u32) -> u16 {
    let mask = u32::from(u16::MAX) << (PORT_BITS - bits);
    port & (mask & u32::from(u16::MAX)) as u16
}

/// The fewest prefixes that cover a range, as (port, bits).
fn cover(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut out = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        let aligned = if at == 0 {
            PORT_BITS
        } else {
            at.trailing_zeros().min(PORT_BITS)
        };
        let fits = (end - at).ilog2();
        let free = aligned.min(fits);
        out.push((at as u16, PORT_BITS - free));
        at += 1 << free;
    }
    out
}

/// Joins overlapping and adjacent ranges that carry one verdict.
fn joined(mut reaches: Vec<(Verdict, Reach)>) -> Vec<(Verdict, Reach)> {
    reaches.sort_unstable();
    let mut out: Vec<(Verdict, Reach)> = Vec::with_capacity(reaches.len());
    for (verdict, reach) in reaches {
        if let (Reach::Ports(protocol, first, last), Some((before, Reach::Ports(p, _, l)))) =
            (reach, out.last_mut())
            && *before == verdict
            && *p == protocol
            && u32::from(first) <= u32::from(*l) + 1
        {
            *l = (*l).max(last);
            continue;
        }
        out.push((verdict, reach));
    }
    out
}

/// The map entries of one set and group: of each prefix the strongest verdict that holds there, without those that a
/// shorter prefix already answers.
pub(super) fn entries(
    set: u32,
    group: u32,
    reaches: Vec<(Verdict, Reach)>,
) -> Vec<(Bits<RuleKey>, Verdict)> {
    let mut said: BTreeMap<PortPrefix, Verdict> = BTreeMap::new();
    let mut say = |prefix: PortPrefix, verdict: Verdict| {
        said.entry(prefix)
            .and_modify(|v| *v = v.stronger(verdict))
            .or_insert(verdict);
    };
    for (verdict, reach) in joined(reaches) {
        match reach {
            Reach::Everything => say(PortPrefix::EVERYTHING, verdict),
            Reach::Ports(protocol, first, last) => {
                for (port, bits) in cover(first, last) {
                    say(
                        PortPrefix {
                            bits: Some(bits),
                            protocol,
                            port,
                        },
                        verdict,
                    );
                }
            }
        }
    }
    // In the map's order a shorter prefix stands before those that it contains (None before Some, fewer bits before more).
    let mut kept: BTreeMap<PortPrefix, Verdict> = BTreeMap::new();
    for (prefix, verdict) in said {
        let parent = prefix.parents().find_map(|p| kept.get(&p).copied());
        match parent {
            Some(parent) => {
                let strongest = parent.stronger(verdict);
                if (strongest.rank(), strongest.action) != (parent.rank(), parent.action) {
                    kept.insert(prefix, strongest);
                }
            }
            None => drop(kept.insert(prefix, verdict)),
        }
    }
    kept.into_iter()
        .map(|(prefix, verdict)| (prefix.key(set, group), verdict))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_common::{PRIORITY_RULE, action, tier};

    fn allow(rule: u32) -> Verdict {
        Verdict {
            rule,
            priority: PRIORITY_RULE,
            tier: tier::NETWORK_POLICY,
            action: action::ALLOW,
        }
    }

    #[test]
    fn a_range_is_covered_exactly_and_minimally() {
        for (first, last) in [
            (1u16, 65535u16),
            (80, 80),
            (8000, 8999),
            (0, 65535),
            (5, 6),
            (65535, 65535),
        ] {
            let cover = cover(first, last);
            let mut hit = vec![0u8; 65536];
            for (port, bits) in &cover {
                for p in u32::from(*port)..u32::from(*port) + (1 << (16 - bits)) {
                    hit[p as usize] += 1;
                }
            }
            for p in 0..=65535u16 {
                assert_eq!(
                    hit[p as usize],
                    u8::from(p >= first && p <= last),
                    "{first}-{last}: {p}"
                );
            }
            assert!(cover.len() <= 30);
        }
        assert_eq!(cover(0, 65535), [(0, 0)]);
        assert_eq!(cover(8080, 8080), [(8080, 16)]);
    }

    #[test]
    fn adjacent_ports_of_a_rule_join_and_what_is_contained_goes() {
        let ports = (1024..2048).map(|p| (allow(1), Reach::Ports(6, p, p)));
        let all = entries(7, 3, ports.collect());
        assert_eq!(all.len(), 1);
        let within = entries(
            7,
            3,
            vec![
                (allow(1), Reach::Ports(6, 1024, 2047)),
                (allow(2), Reach::Ports(6, 1500, 1500)),
                (allow(3), Reach::Ports(17, 1500, 1500)),
            ],
        );
        assert_eq!(within.len(), 2);
        let everything = entries(
            7,
            3,
            vec![
                (allow(1), Reach::Everything),
                (allow(2), Reach::Ports(6, 1, 9)),
            ],
        );
        assert_eq!(everything.len(), 1);
    }

    #[test]
    fn a_longer_prefix_carries_the_stronger_verdict_around_it() {
        let deny = Verdict {
            tier: tier::ADMIN,
            action: action::DENY,
            ..allow(9)
        };
        let out = entries(
            1,
            0,
            vec![
                (deny, Reach::Ports(6, 0, 65535)),
                (allow(1), Reach::Ports(6, 80, 80)),
                (allow(2), Reach::Ports(17, 80, 80)),
            ],
        );
        assert_eq!(out.len(), 2, "{out:?}");
        assert!(
            out.iter()
                .all(|(k, v)| k.data.protocol == 17 || v.action == action::DENY)
        );
    }
}
