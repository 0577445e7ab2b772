//! What a run measured: rows of figures, with what they are held against. The JSON of it is `bench.json`.

use serde::{Deserialize, Serialize};

use super::stats::Summary;

/// A whole run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The machine: kernel, CPUs.
    pub machine: String,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// Whether it was the short run.
    pub quick: bool,
    /// Whether every part that checks its packets found them right.
    pub packets_matched: bool,
    /// What was measured, in the order in which people read it.
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What it belongs to: rows of one group stand together.
    pub group: String,
    /// What was done.
    pub name: String,
    /// On what: `plain`, `address`, `service`, with what was in force.
    pub side: String,
    /// The figure itself.
    pub value: Summary,
    /// Its unit: `1/s`, `Gbit/s`, `ns`, `ms`, `s`, `MiB`.
    pub unit: String,
    /// The figure by that of the plain path in the same round.
    pub ratio: Option<Summary>,
    /// What it is held against.
    pub bar: Option<Bar>,
    /// Something that the reader should know.
    pub note: Option<String>,
}

impl Row {
    /// A row that is held against nothing.
    pub fn new(group: &str, name: &str, side: &str, value: Summary, unit: &str) -> Self {
        Self {
            group: group.to_owned(),
            name: name.to_owned(),
            side: side.to_owned(),
            value,
            unit: unit.to_owned(),
            ratio: None,
            bar: None,
            note: None,
        }
    }

    /// The same with its ratio.
    #[must_use]
    pub fn ratio(self, ratio: Option<Summary>) -> Self {
        Self { ratio, ..self }
    }

    /// The same held against something.
    #[must_use]
    pub fn bar(self, bar: Option<Bar>) -> Self {
        Self { bar, ..self }
    }

    /// The same with a word for the reader.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }

    /// What the bar says of it: of the ratio where there is one.
    pub fn judged(&self) -> Option<Met> {
        let figure = self.ratio.as_ref().unwrap_or(&self.value).median;
        self.bar.map(|bar| bar.judge(figure))
    }
}

/// What a figure is held against.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bar {
    /// What it must be.
    pub must: f64,
    /// What it should be.
    pub goal: f64,
    /// Whether more is better.
    pub more: bool,
}

/// How a figure stands to its bar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Met {
    /// Not even what it must be.
    Missed,
    /// What it must be.
    Must,
    /// What it should be.
    Goal,
}

impl Met {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missed => "MISSED",
            Self::Must => "must",
            Self::Goal => "goal",
        }
    }
}

impl Bar {
    /// At least so much.
    pub const fn least(must: f64, goal: f64) -> Self {
        Self {
            must,
            goal,
            more: true,
        }
    }

    /// At most so much.
    pub const fn most(must: f64, goal: f64) -> Self {
        Self {
            must,
            goal,
            more: false,
        }
    }

    /// Holds a figure against it.
    pub fn judge(&self, figure: f64) -> Met {
        let reaches = |bar: f64| {
            if self.more {
                figure >= bar
            } else {
                figure <= bar
            }
        };
        if reaches(self.goal) {
            Met::Goal
        } else if reaches(self.must) {
            Met::Must
        } else {
            Met::Missed
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn sample() -> Report {
        let value = Summary::of(&[30_000.0, 31_000.0, 32_000.0]).unwrap();
        let ratio = Summary::of(&[0.98, 1.01, 1.04]);
        Report {
            machine: "Linux 6.18, 2 CPUs".to_owned(),
            began: 1,
            quick: true,
            packets_matched: true,
            rows: vec![
                Row::new(
                    "same node",
                    "TCP connect-request-close",
                    "plain",
                    value,
                    "1/s",
                ),
                Row::new(
                    "same node",
                    "TCP connect-request-close",
                    "service, 10,000 services <1,000 policies>",
                    value,
                    "1/s",
                )
                .ratio(ratio)
                .bar(Some(Bar::least(0.97, 1.03)))
                .note("a & b"),
                Row::new(
                    "packet",
                    "established",
                    "from_pod",
                    Summary::one(161.0),
                    "ns",
                )
                .bar(Some(Bar::most(150.0, 100.0))),
            ],
        }
    }

    #[test]
    fn bars_go_both_ways() {
        let least = Bar::least(0.97, 1.03);
        assert_eq!(least.judge(0.969), Met::Missed);
        assert_eq!(least.judge(0.97), Met::Must);
        assert_eq!(least.judge(1.03), Met::Goal);
        let most = Bar::most(150.0, 100.0);
        assert_eq!(most.judge(151.0), Met::Missed);
        assert_eq!(most.judge(150.0), Met::Must);
        assert_eq!(most.judge(100.0), Met::Goal);
        assert_eq!(most.judge(f64::NAN), Met::Missed);
    }

    #[test]
    fn a_row_with_a_ratio_is_judged_by_it() {
        let report = sample();
        let judged: Vec<_> = report.rows.iter().map(Row::judged).collect();
        assert_eq!(judged, [None, Some(Met::Must), Some(Met::Missed)]);
    }

    #[test]
    fn json_gives_the_report_back() {
        let report = sample();
        let text = serde_json::to_string_pretty(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(back, report);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["rows"][1]["bar"]["must"], 0.97);
        assert_eq!(value["rows"][1]["ratio"]["median"], 1.01);
        assert_eq!(value["packets_matched"], true);
    }
}
