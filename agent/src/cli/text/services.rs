//! `sluice service list`.

use super::NONE;
use crate::cli::color::{Color, Tint};
use crate::cli::table::{Cell, Table};
use crate::observe::view::{
    BackendState, BackendView, FrontendKind, FrontendView, ServiceList, ServiceView, WhenEmpty,
    socket_text,
};

/// The text: a row for each backend; what is as in the row above is left out.
pub(in crate::cli) fn render(list: &ServiceList, color: Color) -> String {
    if list.services.is_empty() {
        return "No services.\n".to_owned();
    }
    let mut table = Table::new(&[
        "SERVICE", "ADDRESS", "PROTO", "PORT", "BACKEND", "POD", "NODE", "STATE",
    ]);
    for service in &list.services {
        rows(service, &mut table);
    }
    table.render(color)
}

fn rows(service: &ServiceView, table: &mut Table) {
    let name = format!("{}/{}", service.namespace, service.name);
    if service.frontends.is_empty() {
        let why = Cell::tinted("not in force; `sluice status` says why", Tint::Bad);
        table.row(vec![name.as_str().into(), why]);
    }
    for (i, frontend) in service.frontends.iter().enumerate() {
        let name = if i == 0 { name.as_str() } else { "" };
        let start = vec![
            name.into(),
            address(frontend).into(),
            frontend.protocol.as_str().into(),
            port(frontend).into(),
        ];
        if let Some(empty) = frontend.empty {
            let says = match empty {
                WhenEmpty::Reject => "no endpoints: connections are refused",
                WhenEmpty::Drop => "no endpoint here: connections are dropped",
            };
            let mut row = start.clone();
            row.push(Cell::tinted(says, Tint::Warn));
            table.row(row);
        }
        let blank = vec![Cell::from(""); start.len()];
        let first = if frontend.empty.is_none() {
            &start
        } else {
            &blank
        };
        for (j, backend) in frontend.backends.iter().enumerate() {
            let mut row = if j == 0 { first.clone() } else { blank.clone() };
            row.extend(backend_cells(backend));
            table.row(row);
        }
    }
}

fn address(frontend: &FrontendView) -> String {
    let at = socket_text(frontend.address, frontend.port);
    match frontend.kind {
        FrontendKind::ClusterIp => at,
        FrontendKind::ExternalIp => format!("{at} (external)"),
        FrontendKind::LoadBalancer => format!("{at} (load balancer)"),
        FrontendKind::NodePort => format!("{at} (node port)"),
    }
}

fn port(frontend: &FrontendView) -> &str {
    if frontend.port_name.is_empty() {
        NONE
    } else {
        &frontend.port_name
    }
}

fn backend_cells(backend: &BackendView) -> [Cell; 4] {
    let state = match backend.state {
        BackendState::Serving => "serving",
        BackendState::Terminating => "terminating",
        BackendState::NotServing => "not serving",
    };
    let state = match (backend.chosen, backend.state) {
        (true, BackendState::Serving) => Cell::tinted(state, Tint::Good),
        (true, _) => Cell::tinted(format!("{state}, chosen"), Tint::Warn),
        (false, _) => Cell::tinted(format!("{state}, not chosen"), Tint::Dim),
    };
    [
        socket_text(backend.address, backend.port).into(),
        backend.pod.as_deref().unwrap_or(NONE).into(),
        backend.node.as_deref().unwrap_or(NONE).into(),
        state,
    ]
}
