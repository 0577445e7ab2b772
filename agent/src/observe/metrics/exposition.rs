//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

use super::Family;

/// What a family's samples are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// They go up and down.
    Gauge,
    /// They only go up.
    Counter,
    /// Counts by size.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// A text that grows. Writing to a string cannot fail.
#[derive(Default, Debug)]
pub(super) struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a family: what follows are its samples.
    pub(super) fn family(&mut self, family: Family) {
        self.name = family.name;
        let _ = writeln!(self.text, "# HELP {} {}", family.name, family.help);
        let _ = writeln!(self.text, "# TYPE {} {}", family.name, family.kind.name());
    }

    /// A sample.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    /// A histogram's samples: `counts` has one more than `ends`, for what is beyond the last.
    pub(super) fn histogram(&mut self, ends: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        for (end, count) in ends.iter().zip(counts) {
            total += count;
            self.line("_bucket", &[("le", &end.to_string())], total);
        }
        total += counts.iter().skip(ends.len()).sum::<u64>();
        self.line("_bucket", &[("le", "+Inf")], total);
        self.line("_sum", &[], sum);
        self.line("_count", &[], total);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (i, (name, value)) in labels.iter().enumerate() {
            let _ = write!(
                self.text,
                "{}{name}=\"{}\"",
                if i == 0 { '{' } else { ',' },
                escaped(value)
            );
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut out = Exposition {
            name: "sluice_x",
            ..Exposition::default()
        };
        out.sample(&[("a", "b\"c\\d\ne"), ("f", "g")], 1);
        assert_eq!(out.finish(), "sluice_x{a=\"b\\\"c\\\\d\\ne\",f=\"g\"} 1\n");
    }

    #[test]
    fn a_histogram_adds_up() {
        let mut out = Exposition {
            name: "h",
            ..Exposition::default()
        };
        out.histogram(&[0.5, 1.0], &[1, 2, 3], 7.5);
        assert_eq!(
            out.finish(),
            "h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 6\nh_sum 7.5\nh_count 6\n"
        );
    }
}
