//! What people see, held by files; and the command line.

use clap::{CommandFactory, Parser};

use super::color::Color;
use super::text;
use super::*;
use crate::admin::{FlowLine, Lost, LostAt};
use crate::observe::time::Time;
use crate::observe::view::*;
use crate::observe::{fixture, golden};

fn now() -> Time {
    fixture::at(0).into()
}

fn status() -> Status {
    Status::build(&fixture::summary(), &fixture::state())
}

#[test]
fn status_for_people() {
    golden::check(
        "status.txt",
        &text::status::render(&status(), now(), Color::Off),
    );
}

#[test]
fn status_of_an_agent_that_has_just_started() {
    let mut summary = fixture::summary();
    summary.waiting_for = vec!["Pod of manifests".to_owned(), "the first apply".to_owned()];
    summary.sources.clear();
    summary.attached.clear();
    summary.maps.clear();
    summary.counters = Default::default();
    summary.flows = Default::default();
    summary.rejected.clear();
    summary.notices.clear();
    summary.problems.clear();
    summary.applied = None;
    summary.drift = Default::default();
    let status = Status::build(&summary, &Default::default());
    golden::check(
        "status-started.txt",
        &text::status::render(&status, now(), Color::Off),
    );
}

#[test]
fn lists_for_people() {
    let (summary, state) = (fixture::summary(), fixture::state());
    let services = ServiceList::build(&state, None);
    golden::check(
        "services.txt",
        &text::services::render(&services, Color::Off),
    );
    let endpoints = EndpointList::build(&state, None);
    golden::check(
        "endpoints.txt",
        &text::endpoints::render(&endpoints, Color::Off),
    );
    let policies = PolicyList::build(&summary, &state, None);
    golden::check(
        "policies.txt",
        &text::policies::render(&policies, Color::Off),
    );
}

#[test]
fn flows_for_people() {
    let state = fixture::state();
    let records = fixture::records();
    let flows = records.iter().filter_map(|r| FlowEvent::build(r, &state));
    let flows = FlowList {
        flows: flows.collect(),
    };
    let mut text = text::flows::render(&flows, Color::Off);
    for at in [LostAt::Client, LostAt::Ring, LostAt::RateLimit] {
        let lost = FlowLine::Lost(Lost { events: 12, at });
        text += &text::flows::line(&lost, Color::Off);
        text += "\n";
    }
    golden::check("flows.txt", &text);
}

#[test]
fn what_is_empty_says_so() {
    let none = ServiceList {
        services: Vec::new(),
    };
    assert_eq!(text::services::render(&none, Color::Off), "No services.\n");
    let none = EndpointList {
        endpoints: Vec::new(),
    };
    assert_eq!(
        text::endpoints::render(&none, Color::Off),
        "No pods on this node.\n"
    );
    let none = PolicyList {
        policies: Vec::new(),
    };
    assert!(text::policies::render(&none, Color::Off).starts_with("No network policies"));
    let none = FlowList { flows: Vec::new() };
    assert!(text::flows::render(&none, Color::Off).starts_with("No such events"));
}

#[test]
fn colours_change_no_text() {
    let plain = text::status::render(&status(), now(), Color::Off);
    let mut coloured = text::status::render(&status(), now(), Color::On);
    assert!(!plain.contains('\x1b') && coloured.contains('\x1b'));
    for code in ["0", "1", "2", "31", "32", "33"] {
        coloured = coloured.replace(&format!("\x1b[{code}m"), "");
    }
    assert_eq!(coloured, plain);
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

fn agent(args: &[&str]) -> Result<AgentArgs, clap::Error> {
    let start = ["sluice", "agent", "--node-name", "node-a"];
    match Cli::try_parse_from(start.iter().chain(args))?.command {
        Command::Agent(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_agents_flags() {
    let plain = agent(&[]).unwrap();
    assert_eq!(
        (plain.manifests, plain.kubeconfig, plain.metrics_address),
        (None, None, None)
    );
    assert_eq!(plain.attach, agent::AttachFlag::Auto);
    assert_eq!((plain.conntrack.max, plain.conntrack.share), (None, 50));
    assert_eq!(plain.conntrack.timeouts(), agent_common::Timeouts::DEFAULT);
    let full = agent(&[
        "--manifests",
        "m",
        "--devices=eth0,eth1",
        "--attach=clsact",
        "--ip-block-mode=cilium",
        "--unknown-pod=deny",
        "--metrics-address=[::1]:9966",
        "--conntrack-max=5000",
        "--conntrack-share=100",
        "--conntrack-tcp-timeout-established=1h30m",
        "--conntrack-tcp-timeout-closing=11",
        "--conntrack-tcp-timeout-unreplied=22s",
        "--conntrack-udp-timeout-stream=3m",
        "--conntrack-udp-timeout=7",
        "--conntrack-icmp-timeout=44",
        "--conntrack-generic-timeout=1d",
    ])
    .unwrap();
    assert_eq!(full.devices, ["eth0", "eth1"]);
    assert_eq!(
        (full.conntrack.max, full.conntrack.share),
        (Some(5_000), 100)
    );
    let ticks = agent_common::clock::ticks;
    let told = agent_common::Timeouts {
        tcp_established: ticks(5_400),
        tcp_closing: ticks(11),
        tcp_unreplied: ticks(22),
        udp: ticks(180),
        udp_unreplied: ticks(7),
        echo: ticks(44),
        other: ticks(86_400),
    };
    assert_eq!(full.conntrack.timeouts(), told);
    assert_eq!(full.metrics_address, Some("[::1]:9966".parse().unwrap()));
    assert!(
        agent(&["--manifests", "m", "--kubeconfig", "k"]).is_err(),
        "one source"
    );
    assert!(agent(&["--conntrack-max=7"]).is_err());
    assert!(agent(&["--conntrack-share=0"]).is_err());
    assert!(agent(&["--conntrack-udp-timeout=0s"]).is_err());
    assert!(agent(&["--attach=xdp"]).is_err());
}

#[test]
fn flags_of_all_commands_may_stand_behind_them() {
    let cli =
        Cli::try_parse_from(["sluice", "status", "-o", "json", "--socket", "/tmp/s"]).unwrap();
    assert_eq!(
        (cli.global.output, cli.global.socket.to_str()),
        (Output::Json, Some("/tmp/s"))
    );
}

#[test]
fn flows_are_asked_for_by_known_reasons_and_whole_names() {
    let parse = |args: &[&str]| Cli::try_parse_from(["sluice", "flows"].iter().chain(args)).is_ok();
    assert!(parse(&[
        "--allowed",
        "--last",
        "5",
        "--follow",
        "--of",
        "shop/",
        "--reason",
        "policy-ingress"
    ]));
    assert!(parse(&["--of", "shop/client"]));
    assert!(!parse(&["--of", "shop"]));
    assert!(!parse(&["--of", "/client"]));
    assert!(!parse(&["--reason", "bad-luck"]));
}
