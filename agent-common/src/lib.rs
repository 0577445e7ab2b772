//! The contract between Sluice's eBPF programs and its agent.
//!
//! | map | key -> value | kind | written by | read |
//! | --- | --- | --- | --- | --- |
//! | `conntrack` | [`Tuple`] -> [`Flow`] | LRU hash | programs; the agent collects by age | every packet, once |
//! | `unreplied` | [`Tuple`] -> [`Flow`] | LRU hash | programs; the agent collects by age | packets without an entry in `conntrack` |
//! | `shares` | slot -> [`Share`] | array, mapped | programs (`made`), agent (the rest) | a flow's first answer |
//! | `pods` | slot -> [`Pod`] | array, mapped | agent | every packet, the slots of its local ends |
//! | `backends` | backend -> [`Backend`] | array, mapped | agent | every packet of a service flow |
//! | `links` | ifindex -> [`LinkEntry`] | hash | agent | new flow |
//! | `addresses` | [`Address`] -> [`AddressEntry`] | hash | agent | new flow, both ends |
//! | `prefixes` | [`Prefix`] -> [`PrefixEntry`] | LPM trie | agent | new flow, where `addresses` has no answer; always in literal mode |
//! | `groups` | identity -> [`GroupEntry`] | array, mapped | agent | new flow |
//! | `rules` | [`RuleKey`] -> [`Verdict`] | LPM trie | agent | new flow, at most three times a direction |
//! | `services` | [`ServiceKey`] -> [`ServiceEntry`] | hash | agent | new flow to a service address |
//! | `heads` | pool -> [`Head`] | array, mapped | agent | new service flow |
//! | `slots` | index -> [`Slot`] | array, mapped | agent | new service flow |
//! | `fragments` | [`FragmentKey`] -> [`Fragment`] | LRU hash | programs | fragments |
//! | `sock_reverse` | [`SocketReverseKey`] -> [`SocketReverse`] | LRU hash | socket programs | host processes' datagrams and `getpeername` |
//! | `config` | 0 -> [`Config`] | array, mapped | agent | new flow, socket programs |
//! | `counters` | index -> [`Counter`] | per-CPU array | programs | drops, new flows |
//! | `budget` | index -> [`Budget`] | per-CPU array | programs | drops, rejections |
//! | `events` | [`Event`] | ring buffer | programs | the agent |
//! | `programs` | slot -> program | program array | agent | rare cases |
//! | `gate`, `gate_*` | side and hook -> program | program arrays | agent | every packet (the stubs), see [`gate`] |
//!
//! Settled now, created when used: `affinity` ([`AffinityKey`] -> [`Affinity`]), `source_ranges` ([`SourceRangeKey`]), `maglev`
//! (index -> [`Slot`]), `source_ports` ([`SourcePortKey`] -> [`Tuple`]), `seen_flows` ([`SeenFlowKey`] -> [`SeenFlow`]).
//!
//! Addresses and ports in maps are in network order; fields that hold such a number end in `_be`. All else is in the
//! machine's order. All padding is explicit and zero.
#![no_std]

mod address;
pub mod clock;
mod config;
mod conntrack;
pub mod crc32c;
mod event;
mod fragment;
pub mod gate;
pub mod hook;
#[cfg(feature = "user")]
pub mod layout;
pub mod limits;
pub mod lookup;
pub mod mutant;
mod pod;
mod policy;
mod reason;
mod service;
mod share;
mod timeouts;
mod tuple;

pub use address::*;
pub use config::*;
pub use conntrack::*;
pub use event::*;
pub use fragment::*;
pub use pod::*;
pub use policy::*;
pub use reason::*;
pub use service::*;
pub use share::*;
pub use timeouts::*;
pub use tuple::*;

#[cfg(feature = "user")]
mod user;
