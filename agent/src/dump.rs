//! One line for each entry, sorted, in names: what golden tests hold and the CLI prints.
//!
//! No number that differs from run to run is shown: an identity is what its pods have in common, a group the identities in it, a
//! set the policies in it, a pool its service's port. So the dump of one cluster is one text, whatever came first.

mod names;
mod policy;
mod services;

use std::fmt;

use agent_common::Prefix;

use crate::datapath::Bits;
use crate::reconcile::State;
use names::Names;

/// Ends the line of a backend that no new flow chooses.
pub const FOR_ITS_FLOWS: &str = ", for the flows that it has";

/// What the maps hold, in names: one line for each entry, sorted. Numbers that lead nowhere are shown as such.
pub fn maps(state: &State) -> String {
    let names = Names::new(state);
    let mut lines = Vec::new();
    services::lines(state, &mut lines);
    policy::lines(state, &names, &mut lines);
    lines.sort();
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

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

/// The service side of the desired state, one line for each frontend and for each backend, sorted.
pub struct Services<'a>(pub &'a crate::desired::Desired);

impl fmt::Display for Services<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, frontend) in &self.0.frontends {
            let pool = &frontend.pool;
            writeln!(
                f,
                "frontend {}/{} port {}: service {} port \"{}\" {:?} flags {}",
                key.address,
                pool.protocol.name(),
                u16::from_be(key.port_be),
                pool.service,
                pool.port,
                pool.set,
                frontend.flags,
            )?;
        }
        for (key, pool) in &self.0.pools {
            for ((ip, port), spec) in &pool.backends {
                writeln!(
                    f,
                    "backend of {} port \"{}\" {} {:?}: {ip} port {port} {}{}{}",
                    key.service,
                    key.port,
                    key.protocol.name(),
                    key.set,
                    state(spec.state),
                    if spec.flags & agent_common::backend_flag::LOCAL != 0 {
                        " local"
                    } else {
                        ""
                    },
                    if spec.chosen { "" } else { " not chosen" },
                )?;
            }
        }
        Ok(())
    }
}

/// A backend state in words.
pub const fn state(state: u8) -> &'static str {
    use agent_common::backend_state::{NOT_SERVING, SERVING, TERMINATING};
    match state {
        SERVING => "serving",
        TERMINATING => "terminating",
        NOT_SERVING => "not serving",
        _ => "gone",
    }
}
