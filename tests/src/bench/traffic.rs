//! Work over real sockets, pod to pod, against the same work on nodes without an agent.
//!
//! A round does every kind of work on every side, one window each, in an order that turns with the round. A figure's ratio is to the mean
//! of both plain pairs in the same round; the ratio of the plain pairs to each other is the noise. Windows have one length for all.
//!
//! Before anything is timed, each side and work has a window in which the kernel counts the programs' runs: on nodes with an agent one
//! for each packet that a pod sent and that the uplink received; on plain ones none on the whole machine.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bars;
use super::field::{Counts, Field, Served, Side, Wanted, Way, Where, ensure_pairs, packets};
use super::population::Size;
use super::report::{Bar, Row};
use super::runs::{self, Classifiers};
use super::stats::{Summary, ratios};
use super::work::{Done, Job, Work, Worker};
use crate::lab::pod::Pod;

/// The length of a window in which packets are counted.
pub(super) const CHECK: Duration = Duration::from_millis(60);
/// So many windows may see runs of others' programs before it counts.
const WINDOWS: u32 = 8;
/// How long after it late packets (a delayed acknowledgement, 40 to 200 ms) may come, before counts must match.
const LATE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// What is in force, and where.
    pub wanted: &'static [Wanted],
    /// Rounds.
    pub rounds: usize,
    /// The length of a window.
    pub window: Duration,
    /// Whether servers on the client's node are called, and those on another.
    pub places: [bool; 2],
}

/// 10 services with all policies, and 10,000 with none: what of the two costs.
const FEW_SERVICES: Size = Size {
    services: 10,
    endpoints: 20,
    ..Size::FULL
};
const NO_POLICIES: Size = Size {
    policies: 0,
    ..Size::FULL
};

impl Effort {
    /// Enough for a developer's look.
    pub const QUICK: Self = Self {
        wanted: &[
            Wanted {
                size: Size::FULL,
                across: true,
            },
            Wanted {
                size: Size::SMALL,
                across: false,
            },
        ],
        rounds: 7,
        window: Duration::from_millis(150),
        places: [true; 2],
    };
    /// Enough to be written down.
    pub const WHOLE: Self = Self {
        wanted: &[
            Wanted {
                size: Size::FULL,
                across: true,
            },
            Wanted {
                size: Size::SMALL,
                across: true,
            },
            Wanted {
                size: FEW_SERVICES,
                across: false,
            },
            Wanted {
                size: NO_POLICIES,
                across: false,
            },
        ],
        rounds: 21,
        window: Duration::from_millis(300),
        places: [true; 2],
    };
}

/// What came of it.
#[derive(Debug)]
pub struct Measured {
    /// Figures.
    pub rows: Vec<Row>,
    /// What did not match; with anything here no figure can be trusted.
    pub mismatches: Vec<String>,
}

/// Measures all of it.
///
/// # Errors
/// The lab failed, or a call did.
pub fn measure(effort: &Effort, cpu: usize) -> Result<Measured> {
    let mut field = Field::build(effort.wanted)?;
    ensure_pairs(&field.sides)?;
    let worker = Worker::start(cpu)?;
    let [same, across] = effort.places;
    field.sides.retain(|side| match side.place {
        Where::Same => same,
        Where::Across => across,
    });
    let mismatches = check(&field, &worker)?;
    let figures = rounds(&field.sides, &worker, effort.rounds, effort.window)?;
    let mut rows = rows(&field, &figures);
    rows.extend(agents(&mut field)?);
    Ok(Measured { rows, mismatches })
}

/// Some work of a side.
pub(super) fn job(side: &Side, work: Work, time: Duration) -> Job {
    Job {
        work,
        client: side.client.clone(),
        to: side.to,
        servers: side.servers.clone(),
        time,
    }
}

/// Whether each packet had its run; what does not match, in words.
fn check(field: &Field, worker: &Worker) -> Result<Vec<String>> {
    let _counting = runs::count()?;
    let plain: Vec<&Pod> = field.plain.iter().collect();
    let mut mismatches = Vec::new();
    for side in &field.sides {
        for work in Work::ALL {
            let job = job(side, work, CHECK);
            let wrong = match side.cluster {
                Some(number) => check_served(&field.clusters[number].nodes, worker, &job)?,
                None => check_plain(&plain, worker, &job)?,
            };
            mismatches.extend(
                wrong.map(|what| format!("{work}, {}, {}: {what}", side.place, title(field, side))),
            );
        }
    }
    Ok(mismatches)
}

fn check_served(nodes: &[Served], worker: &Worker, job: &Job) -> Result<Option<String>> {
    let read = || {
        nodes
            .iter()
            .map(Served::counts)
            .collect::<Result<Vec<Counts>>>()
    };
    let before = read()?;
    let done = worker.run(job)?;
    let end = Instant::now() + LATE;
    loop {
        let now = read()?;
        let counted: Vec<Counts> = now.iter().zip(&before).map(|(n, b)| n.since(b)).collect();
        let sent: u64 = counted.iter().map(|c| c.sent).sum();
        if counted.iter().all(Counts::match_up) {
            return Ok(enough(sent, &done, job.work));
        }
        if Instant::now() >= end {
            return Ok(Some(format!("runs and packets differ: {counted:?}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Work that no program may see. Others may use the machine, and their programs run now and then; one on these packets' way would run in each
/// window, once a packet.
pub(super) fn check_plain(pods: &[&Pod], worker: &Worker, job: &Job) -> Result<Option<String>> {
    let mut wrong = None;
    for _ in 0..WINDOWS {
        let before = (sent_by(pods)?, Classifiers::read()?);
        let done = worker.run(job)?;
        let sent = sent_by(pods)? - before.0;
        let ran = Classifiers::read()?.since(&before.1);
        if ran == 0 {
            return Ok(enough(sent, &done, job.work));
        }
        wrong = Some(format!(
            "{ran} runs of programs on the way of {sent} packets that should meet none"
        ));
    }
    Ok(wrong)
}

/// Packets that pods have sent so far.
fn sent_by(pods: &[&Pod]) -> Result<u64> {
    let mut sent = 0;
    for pod in pods {
        sent += packets(pod.netns(), Pod::DEVICE)?.1;
    }
    Ok(sent)
}

/// Whether so many packets can have done it.
fn enough(sent: u64, done: &Done, work: Work) -> Option<String> {
    let least = (done.units * work.least_packets()).max(1);
    (sent < least).then(|| {
        format!(
            "{sent} packets were sent where {} units need {least}: they went another way",
            done.units
        )
    })
}

/// Figures by side, work and round.
pub(super) struct Figures(Vec<[Vec<f64>; Work::ALL.len()]>);

impl Figures {
    /// Those of a side and a kind of work, by its place in [`Work::ALL`].
    pub(super) fn of(&self, side: usize, work: usize) -> &[f64] {
        self.0
            .get(side)
            .and_then(|works| works.get(work))
            .map_or(&[], Vec::as_slice)
    }
}

/// Does every work on every side, in turns.
pub(super) fn rounds(
    sides: &[Side],
    worker: &Worker,
    rounds: usize,
    window: Duration,
) -> Result<Figures> {
    ensure!(!sides.is_empty(), "no side was asked for");
    let mut figures = Figures(vec![Default::default(); sides.len()]);
    // What fills the tables of flows comes last: who comes after it would be measured on full ones.
    let works: Vec<(usize, Work)> = Work::ALL.into_iter().enumerate().collect();
    let (others, filling): (Vec<_>, Vec<_>) = works
        .into_iter()
        .partition(|(_, work)| *work != Work::FreshPorts);
    for works in [others, filling] {
        for round in 0..rounds {
            for (number, work) in &works {
                for turn in 0..sides.len() {
                    // Each side comes first, last and between the others in turn.
                    let at = (turn + round) % sides.len();
                    let done = worker.run(&job(&sides[at], *work, window))?;
                    figures.0[at][*number].push(done.rate(*work));
                }
            }
        }
    }
    Ok(figures)
}

/// The plain path of each round: the mean of both pairs; and the noise, one of the other.
pub(super) fn plain(a: &[f64], b: &[f64]) -> (Vec<f64>, Option<Summary>) {
    let both = a.iter().zip(b);
    let mean = both.map(|(a, b)| f64::midpoint(*a, *b)).collect();
    (mean, Summary::of(&ratios(b, a)))
}

fn title(field: &Field, side: &Side) -> String {
    match side.cluster {
        Some(number) => format!("{}, {}", side.way, field.clusters[number].title()),
        None => side.way.to_string(),
    }
}

fn bar(place: Where, work: Work, size: &Size) -> Option<Bar> {
    if *size != Size::FULL {
        return None;
    }
    match (place, work) {
        (Where::Across, _) => bars::ACROSS,
        (Where::Same, Work::Connect) => bars::CONNECTS,
        (Where::Same, Work::RoundTrips | Work::Datagrams) => bars::ROUND_TRIPS,
        (Where::Same, Work::Stream) => bars::STREAM,
        (Where::Same, Work::FreshPorts) => None,
    }
}

fn rows(field: &Field, figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    for place in [Where::Same, Where::Across] {
        for (number, work) in Work::ALL.into_iter().enumerate() {
            let here = |way: Way| {
                let of = |s: &Side| s.place == place && s.way == way;
                field
                    .sides
                    .iter()
                    .position(of)
                    .map(|at| figures.of(at, number))
            };
            let (Some(a), Some(b)) = (here(Way::PlainA), here(Way::PlainB)) else {
                continue;
            };
            let (plain, noise) = plain(a, b);
            // By how a client gets there: the ratios of each cluster, smallest first in services.
            let mut scales: Vec<(Way, u32, u32, Vec<f64>)> = Vec::new();
            for (at, side) in field
                .sides
                .iter()
                .enumerate()
                .filter(|(_, s)| s.place == place)
            {
                let own = figures.of(at, number);
                let Some(value) = Summary::of(own) else {
                    continue;
                };
                let row = Row::new(
                    &place.to_string(),
                    &work.to_string(),
                    &title(field, side),
                    value,
                    work.unit(),
                );
                rows.push(match (side.way, side.cluster) {
                    (Way::PlainB, _) => row
                        .ratio(noise)
                        .note("the noise: one plain pair of the other"),
                    (_, Some(cluster)) => {
                        let size = field.clusters[cluster].size;
                        let of_plain = ratios(own, &plain);
                        let row = row
                            .ratio(Summary::of(&of_plain))
                            .bar(bar(place, work, &size));
                        scales.push((side.way, size.services, size.policies, of_plain));
                        row
                    }
                    _ => row,
                });
            }
            rows.extend(scale(
                place,
                work,
                &scales,
                noise.map_or(0.0, |n| n.spread()),
            ));
        }
    }
    rows
}

/// How ratios change from few services to many: with the policies that come nearest to each other.
fn scale(place: Where, work: Work, all: &[(Way, u32, u32, Vec<f64>)], noise: f64) -> Vec<Row> {
    let mut rows = Vec::new();
    for way in [Way::Address, Way::Service] {
        let of_way = || all.iter().filter(|(w, ..)| *w == way);
        let Some(many) = of_way().max_by_key(|(_, services, policies, _)| (*services, *policies))
        else {
            continue;
        };
        let few = of_way()
            .filter(|(_, services, ..)| *services < many.1)
            .min_by_key(|(_, services, policies, _)| (policies.abs_diff(many.2), *services));
        let Some(few) = few else { continue };
        let changes: Vec<f64> = ratios(&many.3, &few.3).iter().map(|r| r - 1.0).collect();
        let Some(change) = Summary::of(&changes) else {
            continue;
        };
        let bar = bars::SCALE + noise;
        let (from, to) = ((few.1, few.2), (many.1, many.2));
        let side = format!(
            "{way}: from {} services, {} policies to {}, {}",
            from.0, from.1, to.0, to.1
        );
        let row = Row::new(
            &place.to_string(),
            &work.to_string(),
            &side,
            change.scaled(100.0),
            "%",
        );
        // It may be better by as much as it likes.
        rows.push(row.bar(Some(Bar::least(-100.0 * bar, -100.0 * bar))));
    }
    rows
}

/// What the agents themselves took.
fn agents(field: &mut Field) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for cluster in &mut field.clusters {
        let title = cluster.title();
        let group = "agents of the lab, from manifests";
        for served in &mut cluster.nodes {
            let started = Summary::one(served.started.as_secs_f64());
            rows.push(Row::new(group, "start to READY=1", &title, started, "s"));
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let memory = served.resident()? as f64 / f64::from(1 << 20);
            let memory = Summary::one(memory);
            rows.push(Row::new(
                group,
                "resident at the end",
                &title,
                memory,
                "MiB",
            ));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_packets_are_noticed() {
        let done = Done {
            units: 100,
            took: CHECK,
        };
        assert!(enough(299, &done, Work::Connect).is_some());
        assert!(enough(300, &done, Work::Connect).is_none());
        assert!(enough(0, &done, Work::Stream).is_some());
        assert!(enough(1, &done, Work::Stream).is_none());
    }

    #[test]
    fn scales_compare_what_has_the_same_policies() {
        let way = Way::Service;
        let all = [
            (way, 10_000, 1_000, vec![0.9, 0.9]),
            (way, 10, 0, vec![2.0, 2.0]),
            (way, 10, 1_000, vec![1.0, 1.0]),
            (way, 10_000, 0, vec![3.0, 3.0]),
        ];
        let rows = scale(Where::Same, Work::Connect, &all, 0.01);
        assert_eq!(rows.len(), 1);
        assert!((rows[0].value.median + 10.0).abs() < 1e-6, "{rows:?}");
        assert_eq!(rows[0].judged(), Some(super::super::report::Met::Missed));
        let better = [(way, 10_000, 1_000, vec![1.2]), (way, 10, 1_000, vec![1.0])];
        let rows = scale(Where::Same, Work::Connect, &better, 0.01);
        assert_eq!(rows[0].judged(), Some(super::super::report::Met::Goal));
    }

    #[test]
    fn bars_are_for_what_is_full() {
        assert!(bar(Where::Same, Work::Connect, &Size::FULL).is_some());
        assert!(bar(Where::Same, Work::Connect, &Size::SMALL).is_none());
        assert_eq!(bar(Where::Across, Work::Stream, &Size::FULL), bars::ACROSS);
    }
}
