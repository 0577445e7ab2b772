//! `sluice endpoint list`.

use super::{NONE, listed};
use crate::cli::color::{Color, Tint};
use crate::cli::table::{Cell, Table};
use crate::observe::view::{DirectionView, EndpointList, EndpointState, EndpointView};

/// The text.
pub(in crate::cli) fn render(list: &EndpointList, color: Color) -> String {
    if list.endpoints.is_empty() {
        return "No pods on this node.\n".to_owned();
    }
    let mut table = Table::new(&[
        "POD",
        "STATE",
        "ADDRESSES",
        "INTERFACE",
        "INGRESS",
        "EGRESS",
        "IDENTITY LABELS",
    ]);
    for endpoint in &list.endpoints {
        let labels = endpoint.identity_labels.iter();
        let labels: Vec<_> = labels.map(|(k, v)| format!("{k}={v}")).collect();
        table.row(vec![
            name(endpoint).into(),
            state(endpoint.state),
            listed(&endpoint.addresses, ", ").into(),
            endpoint.interface.as_deref().unwrap_or(NONE).into(),
            isolation(&endpoint.ingress),
            isolation(&endpoint.egress),
            listed(&labels, ", ").into(),
        ]);
    }
    table.render(color)
}

fn name(endpoint: &EndpointView) -> String {
    match (&endpoint.namespace, &endpoint.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => "unknown pod".to_owned(),
    }
}

fn state(state: EndpointState) -> Cell {
    match state {
        EndpointState::Ready => Cell::tinted("ready", Tint::Good),
        EndpointState::UnknownPod => Cell::tinted("unknown pod", Tint::Warn),
        EndpointState::NoInterface => Cell::tinted("no interface", Tint::Warn),
        EndpointState::Pending => Cell::tinted("pending", Tint::Warn),
    }
}

fn isolation(direction: &DirectionView) -> Cell {
    match (direction.isolated, direction.policies.is_empty()) {
        (false, true) => "open".into(),
        (false, false) => Cell::tinted(
            format!("open; to be isolated by {}", direction.policies.join(", ")),
            Tint::Warn,
        ),
        (true, true) => Cell::tinted("isolated", Tint::Warn),
        (true, false) => format!("isolated by {}", direction.policies.join(", ")).into(),
    }
}
