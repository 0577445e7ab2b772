//! The rules by which maps answer, as one generic function each: compiled into the programs, into the in-memory
//! datapath, and into what explains a verdict. The oracle is the only one that answers by other means.

use crate::{
    Address, AddressEntry, Backend, GROUP_ANY, Head, PrefixEntry, RuleKey, ServiceEntry,
    ServiceKey, SetWord, Verdict, action, address_kind, backend_state, service_flag, set_flag,
};

/// The maps, for reading. Each method is one look-up.
pub trait Tables {
    /// `addresses`; entries whose check byte does not fit the address are not answers (see [`AddressEntry::check`]).
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// `prefixes`, longest match of a full address.
    fn prefix(&self, address: &Address) -> Option<PrefixEntry>;
    /// `groups`; [`GROUP_ANY`] for an identity that is not there.
    fn group(&self, identity: u32) -> u32;
    /// `rules`, longest match of a packet's key.
    fn rule(&self, key: &RuleKey) -> Option<Verdict>;
    /// `services`; entries whose check does not fit the key are not answers.
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry>;
    /// `heads`, read as one word.
    fn head(&self, pool: u32) -> Option<Head>;
    /// `slots`.
    fn slot(&self, index: u32) -> Option<u32>;
    /// `backends`: the address, and the word read once after it.
    fn backend(&self, backend: u32) -> Option<Backend>;
    /// Whether ipBlocks match addresses that `addresses` knows ([`crate::feature::LITERAL`]).
    fn literal(&self) -> bool;
}

/// What a set says of a peer: at most three rule look-ups (any, the peer's own group, its prefix's group).
///
/// `entry` is what `addresses` says of the peer; `protocol` and `port_be` are the destination's after translation (for
/// protocols without ports: 0).
#[inline(always)]
pub fn judge<T: Tables>(
    tables: &T,
    word: SetWord,
    peer: &Address,
    entry: Option<AddressEntry>,
    protocol: u8,
    port_be: u16,
) -> Verdict {
    if word.flags & set_flag::ISOLATED == 0 {
        return Verdict::OPEN;
    }
    let stop = |v: &Verdict| {
        word.flags & set_flag::TIERED == 0 && v.action & action::MASK == action::ALLOW
    };
    let ask = |group: u32| tables.rule(&RuleKey::packet(word.set, group, protocol, port_be));
    let mut verdict = match ask(GROUP_ANY) {
        Some(v) => v,
        None => Verdict::CLOSED,
    };
    if stop(&verdict) {
        return verdict;
    }
    if let Some(entry) = entry {
        let group = tables.group(entry.identity);
        if group != GROUP_ANY
            && let Some(v) = ask(group)
        {
            verdict = verdict.stronger(v);
            if stop(&verdict) {
                return verdict;
            }
        }
    }
    // In cilium mode ipBlocks match whatever is no pod and no node; a service's external address is neither.
    let block = match entry {
        Some(entry) => entry.kind > address_kind::HOST || tables.literal(),
        None => true,
    };
    if block && let Some(prefix) = tables.prefix(peer) {
        let group = tables.group(prefix.identity);
        if group != GROUP_ANY
            && let Some(v) = ask(group)
        {
            verdict = verdict.stronger(v);
        }
    }
    verdict
}

/// What a destination is to the service tables.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(Debug))]
pub enum Target {
    /// No service: the packet goes where it says.
    Direct,
    /// A service with backends.
    Pool {
        /// Number of the pool.
        pool: u32,
        /// Flags of the frontend, see [`service_flag`].
        flags: u16,
        /// The pool's run of slots.
        head: Head,
    },
    /// A service that has no endpoint: reject.
    NoEndpoint,
    /// A service whose endpoints are all elsewhere, under a Local traffic policy: drop.
    NoLocalEndpoint,
    /// A ClusterIP where nothing has this port and protocol: reject.
    NoServicePort,
}

/// Finds the service behind a destination. `entry` is what `addresses` says of it.
#[inline(always)]
pub fn target<T: Tables>(tables: &T, key: &ServiceKey, entry: Option<AddressEntry>) -> Target {
    let Some(entry) = entry else {
        return Target::Direct;
    };
    let kind = entry.kind;
    if kind != address_kind::CLUSTER_IP
        && kind != address_kind::EXTERNAL
        && kind != address_kind::HOST
    {
        return Target::Direct;
    }
    let Some(found) = tables.service(key) else {
        return if kind == address_kind::CLUSTER_IP {
            Target::NoServicePort
        } else {
            Target::Direct
        };
    };
    if kind == address_kind::HOST && found.flags & service_flag::EXTERNAL == 0 {
        // A ClusterIP that this host owns itself is served by a process of its own (NodeLocal DNS).
        return Target::Direct;
    }
    let head = tables.head(found.pool).unwrap_or_default();
    if head.count == 0 {
        return if found.flags & service_flag::DROP_WHEN_EMPTY != 0 {
            Target::NoLocalEndpoint
        } else {
            Target::NoEndpoint
        };
    }
    Target::Pool {
        pool: found.pool,
        flags: found.flags,
        head,
    }
}

/// The backend at a random place of a pool: its number and content, unless it is gone by now.
#[inline(always)]
pub fn backend_at<T: Tables>(tables: &T, head: Head, random: u32) -> Option<(u32, Backend)> {
    if head.count == 0 {
        return None;
    }
    let number = tables.slot(head.first.wrapping_add(random % head.count))?;
    let backend = tables.backend(number)?;
    if backend.word.state == backend_state::GONE {
        return None;
    }
    Some((number, backend))
}
