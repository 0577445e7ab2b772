//! `sluice flows`: a line for each event.

use super::NONE;
use crate::admin::{FlowLine, Lost, LostAt};
use crate::cli::color::{Color, Tint};
use crate::observe::view::{EndKind, FlowEvent, FlowKind, FlowList};

/// Widths of the columns before the names: enough for the longest kind, reason and protocol that are common.
const KIND: usize = 6;
const REASON: usize = 15;
const PROTOCOL: usize = 6;

/// The text of events that have happened.
pub(in crate::cli) fn render(list: &FlowList, color: Color) -> String {
    if list.flows.is_empty() {
        return "No such events are kept.\n".to_owned();
    }
    let lines = list.flows.iter().map(|flow| event(flow, color) + "\n");
    lines.collect()
}

/// One line of a stream.
pub(in crate::cli) fn line(line: &FlowLine, color: Color) -> String {
    match line {
        FlowLine::Event(flow) => event(flow, color),
        FlowLine::Lost(lost) => color.tint(Tint::Warn, &lost_text(*lost)).into_owned(),
    }
}

fn lost_text(lost: Lost) -> String {
    let why = match lost.at {
        LostAt::Client => "they came faster than this reader reads",
        LostAt::Ring => "they came faster than the agent reads the kernel's ring",
        LostAt::RateLimit => {
            "beyond the programs' rate limit; the counters of `sluice status` have them"
        }
    };
    format!("... {} events are not shown: {why}", lost.events)
}

fn event(flow: &FlowEvent, color: Color) -> String {
    let (kind, tint) = match flow.kind {
        FlowKind::Drop => ("DROP", Tint::Bad),
        FlowKind::Reject => ("REJECT", Tint::Bad),
        FlowKind::Allow => ("ALLOW", Tint::Good),
        FlowKind::Audit => ("AUDIT", Tint::Warn),
    };
    let kind = format!("{kind:KIND$}");
    let reason = flow.reason.as_deref().unwrap_or(NONE);
    let mut text = format!(
        "{} {} {reason:REASON$} {:PROTOCOL$} {} -> {}",
        color.tint(Tint::Dim, &flow.time.clock()),
        color.tint(tint, &kind),
        protocol(flow),
        flow.source,
        flow.destination,
    );
    if let Some(backend) = &flow.backend {
        text += &format!(" ({backend})");
    } else if flow.destination.kind == EndKind::Service
        && flow.service.as_ref().is_some_and(|s| s.port_name.is_none())
    {
        text += " (no such port)";
    }
    for rule in [&flow.egress, &flow.ingress].into_iter().flatten() {
        let (by, allows) = if rule.known && rule.rule.is_none() {
            ("", " allows it")
        } else {
            ("by ", "")
        };
        text += &format!("  {by}{rule}{allows}");
    }
    if !flow.tcp_flags.is_empty() {
        text += &format!("  {}", color.tint(Tint::Dim, &flow.tcp_flags.join(",")));
    }
    let place = flow.interface.as_deref().unwrap_or_default();
    let place = format!("{} {place}", flow.hook);
    text += &format!("  [{}]", color.tint(Tint::Dim, place.trim_end()));
    text
}

/// `TCP`, or `TCP6`: names do not tell the family.
fn protocol(flow: &FlowEvent) -> String {
    let six = flow.source.address.is_ipv6() && flow.protocol != "ICMPv6";
    format!("{}{}", flow.protocol, if six { "6" } else { "" })
}
