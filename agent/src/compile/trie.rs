//! The trie of prefixes: each with an identity of its own.

use agent_common::{Address, IDENTITY_UNKNOWN, PrefixEntry};

use super::enforcement::{Dirty, Enforcement};
use super::identity::{PrefixKey, Who};
use crate::datapath::Bits;
use crate::desired::Delta;
use crate::problem::Problem;

impl Enforcement {
    /// Makes the trie say what `prefixes` wants of one prefix.
    pub(super) fn reprefix(&mut self, key: PrefixKey, dirty: &mut Dirty, delta: &mut Delta) {
        let bits = Bits {
            length: key.length,
            data: key.prefix,
        };
        let wanted = self.prefixes.users.contains_key(&key);
        match (wanted, self.trie.get(&key).copied()) {
            (true, None | Some(None)) => {
                let identity = self.identities.acquire(Who::Prefix(key));
                if let Some((number, _)) = identity {
                    dirty.identities.insert(number);
                }
                let number = identity.map(|(number, _)| number);
                if number.is_none() {
                    self.starved_prefixes.insert(key);
                }
                self.trie.insert(key, number);
                let entry = PrefixEntry {
                    identity: number.unwrap_or(IDENTITY_UNKNOWN),
                    _zero: 0,
                };
                delta.prefixes.insert(bits, Some(entry));
            }
            (true, Some(Some(number))) => drop(dirty.identities.insert(number)),
            (false, Some(number)) => {
                self.trie.remove(&key);
                if let Some(number) = number {
                    self.identities.release(number);
                }
                delta.prefixes.insert(bits, None);
            }
            (false, None) => {}
        }
    }

    /// Gives prefixes for which there was no identity one that there is now, and names those that still have none.
    pub(super) fn retry_prefixes(
        &mut self,
        dirty: &mut Dirty,
        delta: &mut Delta,
        problems: &mut Vec<Problem>,
    ) {
        for key in std::mem::take(&mut self.starved_prefixes) {
            self.reprefix(key, dirty, delta);
            if self.trie.get(&key) == Some(&None) {
                let address = Address {
                    bytes: key.prefix.bytes,
                };
                problems.push(Problem::full(
                    format!("ipBlock {address}, {} bits", key.length),
                    "groups",
                    self.options.limits.identities,
                ));
            }
        }
    }
}
