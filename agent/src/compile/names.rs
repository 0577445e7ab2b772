//! The numbers that verdicts carry, and what they stand for.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::model::{Direction, ObjectKey};

/// What a verdict's number stands for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RuleName {
    /// A rule of a policy.
    Rule {
        /// The policy.
        policy: ObjectKey,
        /// Its direction.
        direction: Direction,
        /// Place in the policy's `ingress` or `egress`, from 0.
        index: u32,
    },
    /// No rule of the policies that isolate the pod in a direction.
    Default {
        /// Those policies, sorted.
        policies: Vec<ObjectKey>,
        /// The direction.
        direction: Direction,
    },
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule {
                policy,
                direction,
                index,
            } => write!(f, "{policy} {}[{index}]", direction.name()),
            Self::Default {
                policies,
                direction,
            } => {
                write!(f, "no {} rule of ", direction.name())?;
                for (i, policy) in policies.iter().enumerate() {
                    write!(f, "{}{policy}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// Names that are out of use are kept for the events and flows that still carry their numbers; the oldest go first.
const DEPARTED: usize = 4_096;

/// Numbers of rules and defaults. A number is a hash of what it stands for, so that it means the same after a restart and in
/// the entries of conntrack; where two fall together, the later one is hashed again.
#[derive(Clone, Default, Debug)]
pub struct RuleNames {
    names: BTreeMap<u32, RuleName>,
    numbers: BTreeMap<RuleName, (u32, u32)>,
    departed: VecDeque<RuleName>,
}

/// FNV-1a, 32 bits (draft-eastlake-fnv).
fn fnv1a(bytes: &[u8], mut hash: u32) -> u32 {
    const PRIME: u32 = 0x0100_0193;
    for byte in bytes {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(PRIME);
    }
    hash
}

/// FNV's offset basis.
const BASIS: u32 = 0x811c_9dc5;

impl RuleNames {
    /// What a number stands for.
    pub fn get(&self, number: u32) -> Option<&RuleName> {
        self.names.get(&number)
    }

    /// The number of a name that is in use, or was lately.
    pub fn number(&self, name: &RuleName) -> Option<u32> {
        self.numbers.get(name).map(|(number, _)| *number)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &RuleName)> {
        self.names.iter().map(|(number, name)| (*number, name))
    }

    /// The number of a name, where no other has it.
    pub(super) fn hash(name: &RuleName) -> u32 {
        fnv1a(name.to_string().as_bytes(), BASIS)
    }

    /// Takes a name into use, once more.
    pub(super) fn acquire(&mut self, name: RuleName) -> u32 {
        if let Some((number, users)) = self.numbers.get_mut(&name) {
            *users += 1;
            return *number;
        }
        let text = name.to_string();
        let mut number = Self::hash(&name);
        while number == 0 || self.names.contains_key(&number) {
            number = fnv1a(&number.to_le_bytes(), fnv1a(text.as_bytes(), number));
        }
        self.names.insert(number, name.clone());
        self.numbers.insert(name, (number, 1));
        number
    }

    /// One use of a name ends.
    pub(super) fn release(&mut self, name: &RuleName) {
        let Some((_, users)) = self.numbers.get_mut(name) else {
            return;
        };
        *users = users.saturating_sub(1);
        if *users > 0 {
            return;
        }
        self.departed.push_back(name.clone());
        while self.departed.len() > DEPARTED {
            let Some(oldest) = self.departed.pop_front() else {
                break;
            };
            if let Some((number, 0)) = self.numbers.get(&oldest).copied() {
                self.numbers.remove(&oldest);
                self.names.remove(&number);
            }
        }
    }
}
