//! Lines for whoever works on the programs, through aya-log into the agent's own log: only in objects with the feature `log`, which
//! `cargo xtask build --ebpf-log` makes. Users have events (report.rs), which are limited in rate and speak in names.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;

use crate::work::Work;

/// A packet that is dropped or rejected, and what was known of it.
#[inline(never)]
pub fn refused(ctx: &TcContext, work: &Work) -> u32 {
    let tuple = &work.tuple;
    debug!(
        ctx,
        "refused: reason {} hook {} interface {} protocol {} [{:i}]:{} -> [{:i}]:{} rules {} {}",
        work.reason,
        work.hook,
        work.ifindex,
        tuple.protocol,
        tuple.source.bytes,
        u16::from_be(tuple.source_port_be),
        tuple.destination.bytes,
        u16::from_be(tuple.destination_port_be),
        work.egress.rule,
        work.ingress.rule
    );
    0
}
