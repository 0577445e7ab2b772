//! What the agent writes, from the old maps into the new ones, while nothing points to those.

use agent_common::{
    Address, AddressEntry, Backend, GroupEntry, Head, LinkEntry, NO_ADDRESS_SLOT, Pod, Prefix,
    PrefixEntry, RuleKey, ServiceEntry, ServiceKey, Slot, Verdict,
};

use super::super::{Bits, Datapath, Write};
use super::{MigrateError, OldMaps};

/// Reads what the agent of the old layout wrote, and writes it. Returns how many entries there were.
///
/// # Errors
/// An old map cannot be read, or a new one does not take an entry (it may hold less than the old one).
pub(in super::super) fn seed(
    old: &OldMaps,
    datapath: &mut dyn Datapath,
) -> Result<usize, MigrateError> {
    let writes = writes(old)?;
    for write in &writes {
        datapath
            .write(write)
            .map_err(|source| MigrateError::Write {
                layout: old.number(),
                source,
            })?;
    }
    Ok(writes.len())
}

/// Everything as writes, in no order that matters: no program reads these maps yet.
fn writes(old: &OldMaps) -> Result<Vec<Write>, MigrateError> {
    const NO_PREFIX: PrefixEntry = PrefixEntry {
        identity: 0,
        _zero: 0,
    };
    const NO_ADDRESS: AddressEntry = AddressEntry {
        identity: 0,
        slot: NO_ADDRESS_SLOT,
        kind: 0,
        check: 0,
    };
    const NO_SERVICE: ServiceEntry = ServiceEntry {
        pool: 0,
        flags: 0,
        check: 0,
    };
    let no_prefix = Prefix { bytes: [0; 16] };
    let no_link = LinkEntry { slot: 0, _zero: 0 };
    let no_rule = RuleKey::packet(0, 0, 0, 0);
    let no_frontend = ServiceKey::new(Address::NONE, 0, 0);

    let mut writes = Vec::new();
    for (_, index, backend) in old.read("backends", 0, Backend::default())? {
        writes.push(Write::Backend(index, backend));
    }
    for (_, index, slot) in old.read("slots", 0, Slot::default())? {
        writes.push(Write::Slot(index, slot));
    }
    for (_, pool, head) in old.read("heads", 0, Head::default())? {
        writes.push(Write::Head(pool, head));
    }
    for (_, key, entry) in old.read("services", no_frontend, NO_SERVICE)? {
        writes.push(Write::Service(key, Some(entry)));
    }
    for (_, key, entry) in old.read("addresses", Address::NONE, NO_ADDRESS)? {
        writes.push(Write::Address(key, Some(entry)));
    }
    for (length, data, entry) in old.read("prefixes", no_prefix, NO_PREFIX)? {
        writes.push(Write::Prefix(Bits { length, data }, Some(entry)));
    }
    for (_, identity, group) in old.read("groups", 0, GroupEntry::default())? {
        writes.push(Write::Group(identity, group));
    }
    for (length, data, verdict) in old.read("rules", no_rule, Verdict::CLOSED)? {
        writes.push(Write::Rule(Bits { length, data }, Some(verdict)));
    }
    for (_, slot, pod) in old.read("pods", 0, Pod::default())? {
        writes.push(Write::Pod(slot, pod));
        writes.push(Write::Epoch(slot, pod.epoch));
    }
    for (_, ifindex, link) in old.read("links", 0, no_link)? {
        writes.push(Write::Link(ifindex, Some(link)));
    }
    Ok(writes)
}
