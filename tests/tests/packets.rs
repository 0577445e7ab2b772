//! The packet tier: see [`tests::packet`]. Each row is a sentence about one packet, or a few of one flow.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

/// Defines rows: a test for each, and `ROWS` for the test of coverage.
macro_rules! rows {
    ($($(#[$doc:meta])* $families:ident $name:ident($world:ident) $body:block)*) => {
        mod bodies {
            use super::*;
            $($(#[$doc])* pub(super) fn $name($world: &mut tests::packet::world::World) $body)*
        }
        #[allow(non_upper_case_globals, reason = "each is named for its row")]
        mod statics {
            use tests::packet::row::*;
            $(pub(super) static $name: Row = Row::new(stringify!($name), $families, super::bodies::$name);)*
        }
        pub(crate) static ROWS: &[&tests::packet::row::Row] = &[$(&statics::$name),*];
        $(
            #[test]
            fn $name() {
                statics::$name.pass();
            }
        )*
    };
}

#[path = "packets/coverage.rs"]
mod coverage;
#[path = "packets/direct.rs"]
mod direct;
#[path = "packets/extensions.rs"]
mod extensions;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/hairpin.rs"]
mod hairpin;
#[path = "packets/halves.rs"]
mod halves;
#[path = "packets/hooks.rs"]
mod hooks;
#[path = "packets/icmp.rs"]
mod icmp;
#[path = "packets/masquerade.rs"]
mod masquerade;
#[path = "packets/midstream.rs"]
mod midstream;
#[path = "packets/parsing.rs"]
mod parsing;
#[path = "packets/policy.rs"]
mod policy;
#[path = "packets/protocols.rs"]
mod protocols;
#[path = "packets/reject.rs"]
mod reject;
#[path = "packets/reuse.rs"]
mod reuse;
#[path = "packets/sctp.rs"]
mod sctp;
#[path = "packets/services.rs"]
mod services;
#[path = "packets/shares.rs"]
mod shares;
#[path = "packets/sources.rs"]
mod sources;
#[path = "packets/timeouts.rs"]
mod timeouts;
#[path = "packets/unknown.rs"]
mod unknown;
#[path = "packets/verifier.rs"]
mod verifier;
