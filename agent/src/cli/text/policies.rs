//! `sluice policy list`.

use super::{NONE, counted, listed};
use crate::cli::color::{Color, Tint};
use crate::cli::table::{Cell, Table};
use crate::observe::view::{PolicyList, PolicyRulesView, PolicyView};

/// Pods that a row names; of more it says how many.
const NAMED: usize = 4;

/// The text.
pub(in crate::cli) fn render(list: &PolicyList, color: Color) -> String {
    if list.policies.is_empty() {
        return "No network policies: every pod is open.\n".to_owned();
    }
    let mut table = Table::new(&[
        "POLICY",
        "INGRESS",
        "EGRESS",
        "AUDIT",
        "PODS",
        "ON THIS NODE",
        "NOTICES",
    ]);
    for policy in &list.policies {
        table.row(vec![
            format!("{}/{}", policy.namespace, policy.name).into(),
            rules(policy.ingress.as_ref()).into(),
            rules(policy.egress.as_ref()).into(),
            if policy.audit {
                Cell::tinted("audit", Tint::Warn)
            } else {
                NONE.into()
            },
            Cell::number(u64::try_from(policy.pods).unwrap_or(u64::MAX)),
            local(policy).into(),
            Cell::tinted(policy.notices.join("; "), Tint::Warn),
        ]);
    }
    table.render(color)
}

fn rules(rules: Option<&PolicyRulesView>) -> String {
    match rules {
        None => NONE.to_owned(),
        Some(PolicyRulesView { rules: 0 }) => "denies all".to_owned(),
        Some(PolicyRulesView { rules }) => counted(*rules, "rule"),
    }
}

fn local(policy: &PolicyView) -> String {
    let pods = &policy.local_pods;
    match pods.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", listed(&pods[..NAMED], ", ")),
        _ => listed(pods, ", "),
    }
}
