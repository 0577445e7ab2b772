//! The packet tier: one packet into one program by `BPF_PROG_TEST_RUN`; what comes out, why, and what conntrack says then.
//!
//! - [`object`] loads the programs, with maps of their own for each row.
//! - [`world`] writes the state a row begins with: pods, services, policies. [`rules`] has its policy part, [`flows`] reads
//!   and writes conntrack.
//! - [`build`] makes packets with right checksums, and [`build::Packet::damage`] makes wrong ones; [`seen`] reads what comes out and
//!   holds every checksum against the RFCs. Both are written without the programs' code.
//! - [`outcome`] is what a run did, with the assertions that rows are made of.
//! - [`bulk`] is the same for many packets, with less told of each.
//! - [`row`] runs each row once and remembers which reasons and counts all of them have seen; [`unreached`] has those that none can see.
//!
//! Needs root; nothing skips. What `BPF_PROG_TEST_RUN` cannot do (VLAN, offloaded checksums, socket programs, where a redirect
//! goes) is the lab's.

pub mod address;
mod budgets;
pub mod build;
pub mod bulk;
pub mod crc32c;
pub mod flows;
pub mod links;
pub mod object;
pub mod outcome;
pub mod row;
pub mod rules;
pub mod seen;
pub mod unreached;
pub mod world;
