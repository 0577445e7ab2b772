//! What sets say of groups, and whether one says no less than another.

use std::collections::BTreeMap;

use agent_common::{GROUP_ANY, RuleKey, Verdict, rule_bits};

use crate::datapath::Bits;
use crate::datapath::contents::longest;

/// Rules, as the maps hold them.
pub(super) type Rules = BTreeMap<Bits<RuleKey>, Verdict>;

/// What a set says of a group, without the numbers of both.
pub(super) type Said = BTreeMap<Bits<RuleKey>, Verdict>;

/// What a set says of a group. None of [`GROUP_ANY`], of which every peer is.
pub(super) fn said(
    rules: &Rules,
    set: u32,
    group: u32,
) -> impl Iterator<Item = (&Bits<RuleKey>, &Verdict)> {
    let lengths = [rule_bits::GROUP]
        .into_iter()
        .chain(rule_bits::PROTOCOL..=rule_bits::PORT)
        .filter(move |_| group != GROUP_ANY);
    let key = move |length, group| Bits {
        length,
        data: RuleKey::packet(set, group, 0, 0),
    };
    lengths.flat_map(move |length| rules.range(key(length, group)..key(length, group + 1)))
}

/// The same key for another set and group.
pub(super) const fn named(bits: Bits<RuleKey>, set: u32, group: u32) -> Bits<RuleKey> {
    let data = RuleKey {
        set,
        group,
        ..bits.data
    };
    Bits { data, ..bits }
}

/// What a set says of a group, to be held against what another says.
pub(super) fn all_said(rules: &Rules, set: u32, group: u32) -> Said {
    said(rules, set, group)
        .map(|(bits, verdict)| (named(*bits, 0, 0), *verdict))
        .collect()
}

/// Whether two say the same of who passes.
pub(super) fn pass_the_same(a: &Said, b: &Said) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|((at, one), (there, other))| at == there && one.passes() == other.passes())
}

/// Whether a set passes all that a key covers, of peers of a group: where it says so of them or of any peer, in one rule. For sets that
/// only allow beside their default.
pub(super) fn passes(rules: &Rules, key: &Bits<RuleKey>, set: u32, group: u32) -> bool {
    let says = |group| {
        let data = named(*key, set, group).data;
        longest(rules, key.length, data).is_some_and(|(_, verdict)| verdict.passes())
    };
    // A key of the set's length is its default, and stands for any group.
    says(group) || (key.length > rule_bits::SET && group != GROUP_ANY && says(GROUP_ANY))
}
