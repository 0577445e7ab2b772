//! Who reaches whom: requests over the backends, and a stranger who reaches nobody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use agent_common::Reason;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::print;
use super::samples::Service;
use super::stage::{DEADLINE, Stage, at};
use crate::lab::pod::Pod;
use crate::lab::traffic::{Outcome, Patience, Probe, Proto, probe};

/// Requests to each address.
const REQUESTS: usize = 120;
/// A fair third of them is 40; further than this from it (five standard deviations) is not fair.
const FAR: u64 = 26;
/// The pod that nothing allows.
const STRANGER: &str = "stranger";
/// Events that are looked through for the stranger's.
const LAST: &str = "200";

fn ask(from: &Pod, to: SocketAddr, times: usize) -> Result<Vec<Outcome>> {
    let probes = vec![Probe::new(from.netns(), Proto::Tcp, to); times];
    probe::run(&probes, Patience::deadline(DEADLINE))
}

/// How many requests each server answered; an error if one was not answered.
fn answers(from: &Pod, service: &Service, to: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let mut by: BTreeMap<String, u64> = BTreeMap::new();
    for outcome in ask(from, to, REQUESTS)? {
        let Some(server) = outcome.by() else {
            bail!(
                "{} asked {} at {to}: {outcome}",
                from.full_name(),
                service.full_name()
            );
        };
        *by.entry(server.to_owned()).or_default() += 1;
    }
    Ok(by)
}

/// The client asks the frontend's service, the frontend the backends'.
pub(super) fn requests_spread(stage: &Stage) -> Result<()> {
    for (from, service) in [("client", &stage.frontend), ("frontend", &stage.backend)] {
        let from = stage.pod(from)?;
        for to in at(service) {
            let by = answers(from, service, to)?;
            print::line(&format!(
                "{REQUESTS} requests of {} to {} at {to}",
                from.full_name(),
                service.full_name()
            ));
            for (server, count) in &by {
                print::bar(server, *count, REQUESTS as u64);
            }
            if service.name == stage.backend.name {
                let fair = REQUESTS as u64 / stage.backends().count() as u64;
                for backend in stage.backends() {
                    let count = by.get(backend).copied().unwrap_or(0);
                    ensure!(
                        count.abs_diff(fair) <= FAR,
                        "{backend} answered {count} of {REQUESTS}: that is not fair"
                    );
                }
            }
        }
    }
    print::good("all were answered, from the service's address, over all of its backends");
    Ok(())
}

/// The stranger asks the backends' service, and meets silence.
pub(super) fn stranger_is_dropped(stage: &Stage) -> Result<()> {
    let stranger = stage.pod(STRANGER)?;
    let marks: Vec<_> = stage.servers.values().map(|s| (s, s.mark())).collect();
    let before = stage.pinned().drops(Reason::PolicyIngress)?;
    for to in at(&stage.backend) {
        let probes = [Probe::new(stranger.netns(), Proto::Tcp, to)];
        let outcome = probe::run(&probes, Patience::MATRIX)?.pop();
        let outcome = outcome.context("one probe was made")?;
        ensure!(
            outcome == Outcome::TimedOut,
            "{} asked {} at {to}: {outcome}",
            stranger.full_name(),
            stage.backend.full_name()
        );
        print::dropped(&why(stage, stranger, to)?);
    }
    for (server, mark) in marks {
        let seen = server.seen_since(mark);
        ensure!(seen.is_empty(), "{} saw it: {seen:?}", server.name());
    }
    let counted = stage.pinned().drops(Reason::PolicyIngress)? - before;
    ensure!(
        counted >= 2,
        "only {counted} packets were counted as dropped by policy"
    );
    // The control: the same servers answer who may ask, and the stranger is answered where no policy is.
    for (from, service) in [("client", &stage.backend), (STRANGER, &stage.frontend)] {
        let from = stage.pod(from)?;
        for to in at(service) {
            let outcomes = ask(from, to, 1)?;
            ensure!(
                outcomes.iter().all(Outcome::is_answered),
                "{} asked {} at {to}: {outcomes:?}",
                from.full_name(),
                service.full_name()
            );
        }
    }
    print::good(
        "no backend saw anything of it; shop/client is answered, and so is the stranger by shop/frontend",
    );
    Ok(())
}

/// What the agent says of the stranger's packet to `to`, once it does.
fn why(stage: &Stage, stranger: &Pod, to: SocketAddr) -> Result<String> {
    let end = Instant::now() + DEADLINE;
    loop {
        let list = stage.agent.cli(&["flows", "--last", LAST])?;
        let flows = list["flows"].as_array().into_iter().flatten();
        let wanted = |flow: &&Value| {
            flow["kind"] == "drop"
                && flow["source"]["name"] == stranger.full_name()
                && flow["destination"]["address"] == to.ip().to_string()
        };
        if let Some(flow) = flows.rev().find(wanted) {
            return in_words(stage, flow);
        }
        ensure!(
            Instant::now() < end,
            "`sluice flows` does not tell of the stranger's packet to {to}: {list}"
        );
    }
}

fn in_words(stage: &Stage, flow: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let reason = text(&flow["reason"]);
    ensure!(
        reason == Reason::PolicyIngress.name(),
        "the reason is {reason}: {flow}"
    );
    let policies: Vec<String> = flow["ingress"]["policies"]
        .as_array()
        .into_iter()
        .flatten()
        .map(&text)
        .collect();
    ensure!(!policies.is_empty(), "no policy is named: {flow}");
    let backend = text(&flow["backend"]["name"]);
    ensure!(
        stage.backends().any(|name| backend.ends_with(name)),
        "no backend is named: {flow}"
    );
    Ok(format!(
        "{} -> {} ({}) -> {backend}:{}  {reason}: no ingress rule of {} allows it",
        text(&flow["source"]["name"]),
        text(&flow["service"]["name"]),
        text(&flow["destination"]["address"]),
        flow["backend"]["port"],
        policies.join(", ")
    ))
}
