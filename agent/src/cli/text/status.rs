//! `sluice status`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{NONE, counted, duration};
use crate::cli::color::{Color, Tint};
use crate::cli::table::{Cell, Table};
use crate::observe::time::Time;
use crate::observe::view::{AttachedKind, AttachmentView, MapView, SourceView, Status};

/// Spaces before what stands under a heading.
const INDENT: usize = 2;
/// From this share of its capacity on, in percent, a map is worth a look.
const FULL_SOON: f64 = 80.0;

/// The text.
pub(in crate::cli) fn render(status: &Status, now: Time, color: Color) -> String {
    let parts = [
        head(status, now, color),
        sources(status, now, color),
        attachments(status, color),
        maps(status, color),
        flows(status, color),
        drops(status, color),
        told(status, color),
        apply(status, now) + &drift(status, now, color),
    ];
    parts.join("\n")
}

fn heading(text: &str, color: Color) -> String {
    format!("{}\n", color.tint(Tint::Head, text))
}

fn head(status: &Status, now: Time, color: Color) -> String {
    let ready = if status.ready {
        color.tint(Tint::Good, "ready").into_owned()
    } else {
        let waiting = format!("not ready, waits for {}", status.waiting_for.join(", "));
        color.tint(Tint::Warn, &waiting).into_owned()
    };
    let links = counted(status.unknown_pods, "pod link");
    let verdict = if status.unknown_pod == "deny" {
        "denied"
    } else {
        "allowed"
    };
    let objects = status
        .objects
        .iter()
        .map(|o| format!("{} {}", o.count, o.kind));
    let objects: Vec<_> = objects.collect();
    format!(
        "sluice {} on node {}: {ready}; up {}\n{}\n{links} of unknown pods ({verdict}); ipBlock mode {}; map layout {}\n",
        status.version,
        status.node,
        duration(now.since(status.started)),
        objects.join(", "),
        status.ip_block_mode,
        status.layout,
    )
}

fn sources(status: &Status, now: Time, color: Color) -> String {
    let mut text = heading("Sources", color);
    if status.sources.is_empty() {
        return text + "  none yet\n";
    }
    let mut table = Table::new(&["SOURCE", "KIND", "STATE"]).indented(INDENT);
    for source in &status.sources {
        table.row(vec![
            source.name.as_str().into(),
            source.kind.as_str().into(),
            source_state(source, now),
        ]);
    }
    text += &table.render(color);
    text
}

fn source_state(source: &SourceView, now: Time) -> Cell {
    match (&source.stale_since, source.synced) {
        (Some(since), synced) => {
            let since = duration(now.since(*since));
            let kept = if synced {
                "the last state stays in force"
            } else {
                "never synced"
            };
            let reason = source.reason.as_deref().unwrap_or("no reason given");
            Cell::tinted(format!("stale for {since} ({kept}): {reason}"), Tint::Bad)
        }
        (None, true) => Cell::tinted("synced", Tint::Good),
        (None, false) => Cell::tinted("not synced yet", Tint::Warn),
    }
}

fn attachments(status: &Status, color: Color) -> String {
    let mut text = heading("Attached", color);
    if status.attachments.is_empty() {
        return text + "  nothing yet: packets are not touched\n";
    }
    // One row for each place and way, with all its hooks.
    let mut rows: Vec<(&AttachmentView, Vec<&str>)> = Vec::new();
    for attachment in &status.attachments {
        let same = |(a, _): &&mut (&AttachmentView, Vec<&str>)| {
            (a.ifindex, &a.cgroup, &a.mode)
                == (attachment.ifindex, &attachment.cgroup, &attachment.mode)
        };
        match rows.iter_mut().find(same) {
            Some((_, hooks)) => hooks.push(&attachment.hook),
            None => rows.push((attachment, vec![&attachment.hook])),
        }
    }
    let mut table = Table::new(&["WHERE", "WHAT", "HOOKS", "BY"]).indented(INDENT);
    for (attachment, hooks) in rows {
        let what = match (attachment.of, &attachment.pod) {
            (AttachedKind::Pod, Some(pod)) => format!("pod {pod}"),
            (AttachedKind::Pod, None) => "unknown pod".to_owned(),
            (AttachedKind::Uplink, _) => "uplink".to_owned(),
            (AttachedKind::Cgroup, _) => "the host's processes".to_owned(),
        };
        let place = attachment.interface.as_ref().or(attachment.cgroup.as_ref());
        table.row(vec![
            place.map_or(NONE, String::as_str).into(),
            what.into(),
            hooks.join(", ").into(),
            attachment.mode.as_str().into(),
        ]);
    }
    text += &table.render(color);
    text
}

fn maps(status: &Status, color: Color) -> String {
    let mut text = heading("Maps", color);
    if status.maps.is_empty() {
        return text + "  none yet\n";
    }
    let mut table = Table::new(&["MAP", "ENTRIES", "CAPACITY", "USED"]).indented(INDENT);
    for map in &status.maps {
        table.row(vec![
            map.name.as_str().into(),
            Cell::number(map.entries),
            Cell::number(map.capacity),
            used(map),
        ]);
    }
    text += &table.render(color);
    text
}

fn used(map: &MapView) -> Cell {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let percent = 100.0 * map.entries as f64 / map.capacity.max(1) as f64;
    let share = format!("{percent:.1}%");
    Cell::right(share).with(if percent >= FULL_SOON {
        Some(Tint::Bad)
    } else {
        None
    })
}

fn flows(status: &Status, color: Color) -> String {
    let flows = &status.flows;
    let mut text = heading("Connections", color);
    if flows.tables.is_empty() {
        return text + "  not counted yet\n";
    }
    text += &match flows.share {
        None => "  no bound for one pod\n".to_owned(),
        Some(share) => {
            let mut at_share = format!("{} at that", counted(flows.pods_at_share, "pod"));
            if flows.pods_at_share > 0 {
                at_share = color.tint(Tint::Warn, &at_share).into_owned();
            }
            format!(
                "  one pod may hold {share} of them ({}%), {at_share}\n",
                flows.share_percent
            )
        }
    };
    let biggest = flows
        .biggest
        .iter()
        .map(|b| format!("{} {}", b.pod, b.flows));
    let biggest: Vec<_> = biggest.collect();
    if !biggest.is_empty() {
        text += &format!("  most: {}\n", biggest.join(", "));
    }
    for table in &flows.tables {
        text += &format!(
            "  {}: {} entries removed by age, {} evicted since the start\n",
            table.map, table.expired, table.evicted
        );
    }
    text
}

fn drops(status: &Status, color: Color) -> String {
    let mut text = heading("Dropped and rejected", color);
    if status.drops.is_empty() {
        text += "  nothing\n";
    } else {
        let mut table = Table::new(&["HOOK", "REASON", "PACKETS", "BYTES"]).indented(INDENT);
        for drop in &status.drops {
            table.row(vec![
                drop.hook.as_str().into(),
                drop.reason.as_str().into(),
                Cell::number(drop.packets),
                Cell::number(drop.bytes),
            ]);
        }
        text += &table.render(color);
    }
    let counted: BTreeMap<_, _> = status
        .counts
        .iter()
        .filter(|c| c.count > 0)
        .map(|c| (&c.name, c.count))
        .collect();
    if !counted.is_empty() {
        text += "\n";
        text += &heading("Counted", color);
        let mut table = Table::new(&["WHAT", "COUNT"]).indented(INDENT);
        for (name, count) in counted {
            table.row(vec![name.as_str().into(), Cell::number(count)]);
        }
        text += &table.render(color);
    }
    text
}

fn told(status: &Status, color: Color) -> String {
    let section = |title: &str, tint: Tint, lines: Vec<(&String, &String)>| {
        if lines.is_empty() {
            return format!("{} none\n", color.tint(Tint::Head, &format!("{title}:")));
        }
        let mut text = heading(title, color);
        for (object, reason) in lines {
            text += &format!("  {}: {reason}\n", color.tint(tint, object));
        }
        text
    };
    let rejected = status.rejected.iter().map(|r| (&r.object, &r.reason));
    let problems = status.problems.iter().map(|p| (&p.object, &p.reason));
    let notices = status.notices.iter().map(|n| (&n.object, &n.reason));
    section("Rejected objects", Tint::Bad, rejected.collect())
        + &section("Problems", Tint::Bad, problems.collect())
        + &section("Notices", Tint::Warn, notices.collect())
}

fn apply(status: &Status, now: Time) -> String {
    match &status.last_apply {
        None => "Nothing was applied yet\n".to_owned(),
        Some(apply) => {
            let took = Duration::try_from_secs_f64(apply.duration_seconds).unwrap_or_default();
            format!(
                "Last apply {} ago, took {}, {} map writes\n",
                duration(now.since(apply.at)),
                duration(took),
                apply.writes
            )
        }
    }
}

/// One line: when was looked, and what had to be mended.
fn drift(status: &Status, now: Time, color: Color) -> String {
    let drift = &status.drift;
    let checked = match drift.checked {
        Some(at) => format!("checked {} ago", duration(now.since(at))),
        None => "not checked yet".to_owned(),
    };
    let mended = drift.repaired.iter().filter(|r| r.count > 0);
    let mended: Vec<_> = mended.map(|r| format!("{} {}", r.count, r.part)).collect();
    match &drift.last {
        Some(last) => {
            let text = format!(
                "mended {}; last {} ago: {}",
                mended.join(", "),
                duration(now.since(last.at)),
                last.what
            );
            format!("Drift {checked}: {}\n", color.tint(Tint::Warn, &text))
        }
        None => format!("Drift {checked}: nothing had to be mended\n"),
    }
}
