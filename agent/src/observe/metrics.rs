//! Metrics: every name, its help and its labels, in one place; and how they are read.
//!
//! Names are a contract, as the JSON's are. All begin with `sluice_`.

mod exposition;
pub mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use agent_common::{Count, hook};

use crate::datapath::drift::Part;

use self::exposition::{Exposition, Kind};
use super::state::Summary;
use super::view::{ip_block_mode_name, unknown_pod_name};

/// A family of samples.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its help.
    pub help: &'static str,
    kind: Kind,
}

macro_rules! families {
    ($($(#[$doc:meta])* $id:ident: $kind:ident $name:literal, $help:literal;)*) => {
        $(
            $(#[$doc])*
            #[doc = $help]
            pub const $id: Family = Family { name: $name, help: $help, kind: Kind::$kind };
        )*

        /// Every family, in the order in which they are shown.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    BUILD: Gauge "sluice_build_info", "Always 1; the labels say what this is.";
    READY: Gauge "sluice_ready", "1 while everything was synced and applied once, programs are attached, and no source is lost.";
    STARTED: Gauge "sluice_start_time_seconds", "When the agent started, in seconds since 1970.";
    SYNCED: Gauge "sluice_source_synced", "1 where every object of the kind was told at least once.";
    STALE: Gauge "sluice_source_stale_seconds", "For how long the source of the kind has been lost; 0 where it is not. The last state stays in force.";
    REJECTED: Gauge "sluice_rejected_objects", "Objects that were not taken; what they replaced stays in force.";
    PROBLEMS: Gauge "sluice_problems", "Things that are not in force as the cluster asks, by the map that has no room for them (none: another reason); `sluice status` names them.";
    PROBLEM: Gauge "sluice_problem", "1 for an object that is not in force as the cluster asks, with the map that has no room for it and that one's capacity; the first hundred by name, `sluice_problems` counts all.";
    NOTICES: Gauge "sluice_notices", "Things worth knowing that are no error.";
    ATTACHED: Gauge "sluice_attached_programs", "Places where a program is attached, by hook.";
    MAP_ENTRIES: Gauge "sluice_map_entries", "Entries in use of a map.";
    MAP_CAPACITY: Gauge "sluice_map_capacity", "Entries that a map has room for.";
    DROP_PACKETS: Counter "sluice_drop_packets_total", "Packets dropped or rejected, since the maps were made.";
    DROP_BYTES: Counter "sluice_drop_bytes_total", "Bytes of packets dropped or rejected, since the maps were made.";
    FLOWS_CREATED: Counter "sluice_flows_created_total", "Flows made.";
    FLOWS_REPLIED: Counter "sluice_flows_replied_total", "Flows answered for the first time.";
    FLOWS_REJUDGED: Counter "sluice_flows_rejudged_total", "Flows judged again because of a change of policy.";
    BACKENDS_CHOSEN: Counter "sluice_backends_chosen_total", "New flows that chose a backend.";
    CLASHES: Counter "sluice_flow_clashes_total", "New flows that met a clash and chose another backend or port.";
    EVENTS_LOST: Counter "sluice_events_lost_total", "Events that found no room in the ring.";
    EVENTS_SUPPRESSED: Counter "sluice_events_suppressed_total", "Events left out by the rate limit.";
    REJECTS_SUPPRESSED: Counter "sluice_rejects_suppressed_total", "Rejections left out by the rate limit; the packets were dropped.";
    SOCKETS: Counter "sluice_sockets_translated_total", "Sockets of host processes that were translated.";
    AUDITED: Counter "sluice_flows_audited_total", "Flows that passed only because the policies that deny them are audited.";
    MIDSTREAM: Counter "sluice_flows_midstream_total", "Flows picked up in the middle.";
    INSERTS_FAILED: Counter "sluice_conntrack_inserts_failed_total", "Conntrack entries that found no room.";
    DRIFT: Counter "sluice_drift_repaired_total", "Parts of the datapath that somebody else removed or changed, and the agent set back.";
    BEYOND_SHARE: Counter "sluice_flows_beyond_share_total", "Flows that were answered and stayed on the slower path, because their pod holds its share of the map conntrack.";
    CONNTRACK_REMOVED: Counter "sluice_conntrack_removed_total", "Entries of the map conntrack removed by programs: of flows that were over.";
    UNREPLIED_REMOVED: Counter "sluice_unreplied_removed_total", "Entries of the map unreplied removed by programs: moved to conntrack, or of flows that were over.";
    EVICTED: Counter "sluice_conntrack_evictions_total", "Entries that the kernel evicted from a full map, since the agent's start: inferred at each pass from what came, went and is left.";
    EXPIRED: Counter "sluice_conntrack_expired_total", "Entries removed because they were idle for too long, since the agent's start.";
    SHARE: Gauge "sluice_conntrack_share_flows", "Flows that one pod may hold in the map conntrack; 0 without a bound.";
    AT_SHARE: Gauge "sluice_conntrack_pods_at_share", "Pods that hold all the flows they may; `sluice status` names the biggest.";
    BIGGEST_SHARE: Gauge "sluice_conntrack_biggest_share_flows", "Flows of the pod that holds the most.";
    PASSES: Counter "sluice_conntrack_pass_cpu_seconds_total", "CPU time of the passes that remove what is over and count the rest, since the agent's start.";
    APPLIES: Counter "sluice_apply_total", "Applies of changes to the maps, by result: `ok`, or `partial` where a write was refused.";
    MAP_WRITES: Counter "sluice_map_writes_total", "Writes to the maps, since the agent's start; none where nothing is different.";
    APPLY_SECONDS: Histogram "sluice_apply_duration_seconds", "How long an apply took: compile, plan and writes.";
}

/// The family of what is counted besides drops.
const fn counted(count: Count) -> Family {
    match count {
        Count::FlowCreated => FLOWS_CREATED,
        Count::FlowReplied => FLOWS_REPLIED,
        Count::FlowRejudged => FLOWS_REJUDGED,
        Count::BackendChosen => BACKENDS_CHOSEN,
        Count::Clash => CLASHES,
        Count::EventLost => EVENTS_LOST,
        Count::EventSuppressed => EVENTS_SUPPRESSED,
        Count::RejectSuppressed => REJECTS_SUPPRESSED,
        Count::SocketTranslated => SOCKETS,
        Count::Audited => AUDITED,
        Count::MidstreamAdmitted => MIDSTREAM,
        Count::InsertFailed => INSERTS_FAILED,
        Count::ConntrackShare => BEYOND_SHARE,
        Count::ConntrackRemoved => CONNTRACK_REMOVED,
        Count::UnrepliedRemoved => UNREPLIED_REMOVED,
    }
}

/// Upper ends of the buckets of an apply, in seconds: 20 ms is what an operator is promised, 5 s a cold start of the biggest cluster.
const APPLY_BUCKETS: [f64; 12] = [
    0.000_1, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// How an apply went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApplyResult {
    /// Everything is in force.
    Ok,
    /// A write was refused; the rest is in force.
    Partial,
}

#[derive(Default, Debug)]
struct Applies {
    ok: u64,
    partial: u64,
    /// Applies by the first bucket that holds them; the last is for those beyond.
    buckets: [u64; APPLY_BUCKETS.len() + 1],
    seconds: f64,
}

/// What is counted in the agent itself. Everything else is read when it is asked for.
#[derive(Default, Debug)]
pub struct Metrics {
    applies: Mutex<Applies>,
}

impl Metrics {
    /// An apply is over.
    pub fn applied(&self, took: Duration, result: ApplyResult) {
        let seconds = took.as_secs_f64();
        let holds = |end: &&f64| seconds <= **end;
        let bucket = APPLY_BUCKETS.iter().position(|end| holds(&end));
        let mut applies = self.applies.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            ApplyResult::Ok => applies.ok += 1,
            ApplyResult::Partial => applies.partial += 1,
        }
        applies.buckets[bucket.unwrap_or(APPLY_BUCKETS.len())] += 1;
        applies.seconds += seconds;
    }

    /// Everything, in the text format of Prometheus (version 0.0.4).
    #[must_use]
    pub fn render(&self, summary: &Summary, now: SystemTime) -> String {
        let mut out = Exposition::default();
        agent(&mut out, summary);
        sources(&mut out, summary, now);
        maps(&mut out, summary);
        traffic(&mut out, summary);
        drift(&mut out, summary);
        flows(&mut out, summary);
        self.applies(&mut out);
        out.family(MAP_WRITES);
        out.sample(&[], summary.writes);
        out.finish()
    }

    fn applies(&self, out: &mut Exposition) {
        let applies = self.applies.lock().unwrap_or_else(PoisonError::into_inner);
        out.family(APPLIES);
        out.sample(&[("result", "ok")], applies.ok);
        out.sample(&[("result", "partial")], applies.partial);
        out.family(APPLY_SECONDS);
        out.histogram(&APPLY_BUCKETS, &applies.buckets, applies.seconds);
    }
}

fn agent(out: &mut Exposition, summary: &Summary) {
    out.family(BUILD);
    out.sample(
        &[
            ("version", super::VERSION),
            ("node", &summary.node),
            ("ip_block_mode", ip_block_mode_name(summary.ip_block_mode)),
            ("unknown_pod", unknown_pod_name(summary.unknown_pod)),
        ],
        1,
    );
    out.family(READY);
    out.sample(&[], u64::from(summary.waiting_for.is_empty()));
    out.family(STARTED);
    let started = summary.started.duration_since(SystemTime::UNIX_EPOCH);
    out.sample(&[], started.unwrap_or_default().as_secs_f64());
    for (family, list) in [
        (REJECTED, summary.rejected.len()),
        (NOTICES, summary.notices.len()),
    ] {
        out.family(family);
        out.sample(&[], list as u64);
    }
    problems(out, summary);
    out.family(ATTACHED);
    for hook in 0..hook::HOOKS {
        let here = summary.attached.iter().filter(|a| a.hook == hook).count();
        out.sample(&[("hook", hook::name(hook))], here as u64);
    }
}

/// Objects named in `sluice_problem`, at most: whoever watches must be able to keep a series for each, and a hundred names lead to what is wrong.
const NAMED: usize = 100;

/// Problems by the map that is full; without one, under the empty label. Then each by its object.
fn problems(out: &mut Exposition, summary: &Summary) {
    let maps = summary.maps.iter().map(|map| (map.name.as_str(), 0));
    let mut counts: BTreeMap<&str, u64> = maps.chain([("", 0)]).collect();
    for problem in &summary.problems {
        let limit = problem.limit.map_or("", |limit| limit.map);
        *counts.entry(limit).or_default() += 1;
    }
    out.family(PROBLEMS);
    for (limit, count) in counts {
        out.sample(&[("limit", limit)], count);
    }
    out.family(PROBLEM);
    // One object may be told of for several reasons, and a series is told once.
    let named: BTreeSet<_> = summary
        .problems
        .iter()
        .map(|problem| (problem.object.as_str(), problem.limit))
        .collect();
    for (object, limit) in named.into_iter().take(NAMED) {
        let capacity = limit.map_or(String::new(), |limit| limit.capacity.to_string());
        let limit = limit.map_or("", |limit| limit.map);
        let labels = [
            ("object", object),
            ("limit", limit),
            ("capacity", &capacity),
        ];
        out.sample(&labels, 1);
    }
}

fn sources(out: &mut Exposition, summary: &Summary, now: SystemTime) {
    out.family(SYNCED);
    for source in &summary.sources {
        let labels = [
            ("source", source.name.as_str()),
            ("kind", source.kind.name()),
        ];
        out.sample(&labels, u64::from(source.synced));
    }
    out.family(STALE);
    for source in &summary.sources {
        let labels = [
            ("source", source.name.as_str()),
            ("kind", source.kind.name()),
        ];
        let since = source
            .stale_since
            .and_then(|since| now.duration_since(since).ok());
        out.sample(&labels, since.unwrap_or_default().as_secs_f64());
    }
}

fn maps(out: &mut Exposition, summary: &Summary) {
    out.family(MAP_ENTRIES);
    for map in &summary.maps {
        out.sample(&[("map", &map.name)], map.entries);
    }
    out.family(MAP_CAPACITY);
    for map in &summary.maps {
        out.sample(&[("map", &map.name)], map.capacity);
    }
}

fn traffic(out: &mut Exposition, summary: &Summary) {
    let counters = &summary.counters;
    out.family(DROP_PACKETS);
    for drop in &counters.drops {
        let labels = [
            ("hook", hook::name(drop.hook)),
            ("reason", drop.reason.name()),
        ];
        out.sample(&labels, drop.packets);
    }
    out.family(DROP_BYTES);
    for drop in &counters.drops {
        let labels = [
            ("hook", hook::name(drop.hook)),
            ("reason", drop.reason.name()),
        ];
        out.sample(&labels, drop.bytes);
    }
    for (count, number) in &counters.counts {
        out.family(counted(*count));
        out.sample(&[], *number);
    }
}

fn drift(out: &mut Exposition, summary: &Summary) {
    out.family(DRIFT);
    for part in Part::ALL {
        let count = summary.drift.repaired.get(&part).copied();
        out.sample(&[("part", part.name())], count.unwrap_or(0));
    }
}

fn flows(out: &mut Exposition, summary: &Summary) {
    let flows = &summary.flows;
    out.family(EVICTED);
    for table in &flows.tables {
        out.sample(&[("map", table.map)], table.evicted);
    }
    out.family(EXPIRED);
    for table in &flows.tables {
        out.sample(&[("map", table.map)], table.expired);
    }
    out.family(SHARE);
    out.sample(&[], flows.share);
    out.family(AT_SHARE);
    out.sample(&[], flows.at_share());
    out.family(BIGGEST_SHARE);
    out.sample(&[], flows.held.first().map_or(0, |held| held.flows));
    out.family(PASSES);
    out.sample(&[], flows.passes.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{fixture, golden};

    #[test]
    fn the_text_is_as_prometheus_wants_it() {
        let metrics = Metrics::default();
        metrics.applied(Duration::from_micros(1_250), ApplyResult::Ok);
        metrics.applied(Duration::from_micros(2_000), ApplyResult::Partial);
        metrics.applied(Duration::from_secs(9), ApplyResult::Ok);
        golden::check(
            "metrics.txt",
            &metrics.render(&fixture::summary(), fixture::at(0)),
        );
    }

    #[test]
    fn every_family_is_shown_and_named_once() {
        let text = Metrics::default().render(&fixture::summary(), fixture::at(0));
        let mut names: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        for family in FAMILIES {
            let head = format!("# HELP {} {}\n", family.name, family.help);
            assert_eq!(text.matches(&head).count(), 1, "{}", family.name);
            let counter = family.kind == Kind::Counter;
            assert_eq!(counter, family.name.ends_with("_total"), "{}", family.name);
        }
        assert_eq!(text.matches("# HELP ").count(), FAMILIES.len());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAMILIES.len());
    }
}
