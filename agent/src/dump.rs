//! One line for each entry, sorted, in names: what golden tests hold and the CLI prints.

use std::fmt;

use agent_common::Prefix;

use crate::datapath::Bits;

/// A prefix as people write it; IPv4 without its mapping.
pub fn prefix(prefix: &Bits<Prefix>) -> impl fmt::Display {
    let address = agent_common::Address {
        bytes: prefix.data.bytes,
    };
    let mapped = if address.is_v4() { MAPPED_BITS } else { 0 };
    match prefix.length.checked_sub(mapped) {
        Some(length) => format!("{address}/{length}"),
        None => format!("{address}/{} (of the mapped form)", prefix.length),
    }
}

/// Bits before an IPv4 address in its mapped form (RFC 4291 2.5.5.2).
const MAPPED_BITS: u32 = 96;
