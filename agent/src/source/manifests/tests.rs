//! The manifests source against real directories and the kernel's own events, and its parser against anything.

mod bounds;
mod live;
mod merging;
mod outage;
mod samples;

use crate::source::Event;

/// An event in short: `+kind name`, `-kind name`, `!object`, `~object` mended, `?object` notice, `=kind`, `stale kind`.
fn short(event: &Event) -> String {
    match event {
        Event::Upsert(object) => format!("+{}", object.id()),
        Event::Delete(id) => format!("-{id}"),
        Event::Rejected(r) => format!("!{}", r.object),
        Event::Mended(object) => format!("~{object}"),
        Event::Notice(r) => format!("?{}", r.object),
        Event::Synced(kind) => format!("={kind}"),
        Event::Stale { kind, .. } => format!("stale {kind}"),
    }
}

/// A namespace with one label.
fn namespace(name: &str, team: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    team: {team}\n"
    )
}
