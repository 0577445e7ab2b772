//! The report as a table for people.

use std::fmt::Write as _;

use super::report::{Bar, Report, Row};
use super::stats::Summary;

/// Columns after the first two, which are texts, are numbers.
const TEXTS: usize = 2;
const HEAD: [&str; 7] = [
    "",
    "side",
    "median",
    "quarters",
    "of plain",
    "must, goal",
    "",
];

/// The whole report.
pub fn table(report: &Report) -> String {
    let mut out = format!("{}\n", report.machine);
    let mut groups: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    for group in groups {
        let rows: Vec<&Row> = report.rows.iter().filter(|r| r.group == group).collect();
        let _ = writeln!(out, "\n{group}");
        out += &grid(&rows);
    }
    if !report.packets_matched {
        out += "\nPACKETS DID NOT MATCH: what stands above cannot be trusted\n";
    }
    out
}

fn grid(rows: &[&Row]) -> String {
    let mut lines: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).to_vec()];
    let mut last = "";
    for row in rows {
        // What is done stands once; the sides of it below each other.
        let name = if row.name == last { "" } else { &row.name };
        last = &row.name;
        lines.push(cells(row, name));
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|c| {
            lines
                .iter()
                .map(|l| l[c].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for (number, line) in lines.iter().enumerate() {
        let mut text = String::from(" ");
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if column < TEXTS || column + 1 == HEAD.len() {
                write!(text, " {cell:<width$} ")
            } else {
                write!(text, " {cell:>width$} ")
            };
        }
        let _ = writeln!(out, "{}", text.trim_end());
        if let Some(note) = number.checked_sub(1).and_then(|n| rows[n].note.as_ref()) {
            let _ = writeln!(out, "      {note}");
        }
    }
    out
}

fn cells(row: &Row, name: &str) -> Vec<String> {
    let value = &row.value;
    let quarters = if value.count > 1 {
        format!("{} to {}", figure(value.low), figure(value.high))
    } else {
        String::new()
    };
    vec![
        name.to_owned(),
        row.side.clone(),
        format!("{} {}", figure(value.median), row.unit),
        quarters,
        row.ratio.as_ref().map(ratio).unwrap_or_default(),
        row.bar.as_ref().map(bar).unwrap_or_default(),
        row.judged()
            .map(|met| met.name().to_owned())
            .unwrap_or_default(),
    ]
}

fn ratio(ratio: &Summary) -> String {
    format!(
        "{:.3} ({:.3} to {:.3})",
        ratio.median, ratio.low, ratio.high
    )
}

fn bar(bar: &Bar) -> String {
    let sign = if bar.more { '≥' } else { '≤' };
    format!("{sign} {}, {}", figure(bar.must), figure(bar.goal))
}

/// A number with three digits that say something, and thousands apart.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if size >= 1_000.0 {
        let whole = format!("{:.0}", size);
        let mut out = String::new();
        for (place, digit) in whole.chars().enumerate() {
            if place > 0 && (whole.len() - place) % 3 == 0 {
                out.push(',');
            }
            out.push(digit);
        }
        return if value < 0.0 { format!("-{out}") } else { out };
    }
    match size {
        s if s >= 100.0 => format!("{value:.0}"),
        s if s >= 10.0 => format!("{value:.1}"),
        s if s >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn a_table_reads_as_people_expect() {
        let text = table(&sample());
        let expected = "\
Linux 6.18, 2 CPUs

same node
                             side                                              median          quarters                of plain    must, goal
   TCP connect-request-close  plain                                      31,000 1/s  30,500 to 31,500
                              service, 10,000 services <1,000 policies>  31,000 1/s  30,500 to 31,500  1.010 (0.995 to 1.025)  ≥ 0.970, 1.03  must
      a & b
";
        // The form is what counts, not the number of blanks.
        let words = |text: &str| -> Vec<Vec<String>> {
            text.lines()
                .map(|l| l.split_whitespace().map(str::to_owned).collect())
                .collect()
        };
        let (got, expected) = (words(&text), words(expected));
        assert_eq!(got[..expected.len()], expected[..], "{text}");
        assert!(text.contains("MISSED"), "{text}");
        assert!(!text.contains("CANNOT BE TRUSTED"));
    }

    #[test]
    fn columns_stand_below_each_other() {
        let text = table(&sample());
        let lines: Vec<&str> = text.lines().filter(|l| l.contains("31,000")).collect();
        let places: Vec<_> = lines
            .iter()
            .map(|l| l.find("31,000").map(|at| l[..at].chars().count()))
            .collect();
        assert_eq!(places.len(), 2);
        assert_eq!(places[0], places[1], "{text}");
    }

    #[test]
    fn packets_that_do_not_match_are_told() {
        let report = Report {
            packets_matched: false,
            ..sample()
        };
        assert!(table(&report).contains("PACKETS DID NOT MATCH"));
    }

    #[test]
    fn figures_have_three_digits_and_thousands_apart() {
        let all = [1_234_567.0, 1_000.0, 161.4, 15.26, 1.0, 0.97, -2_500.0].map(figure);
        assert_eq!(
            all,
            [
                "1,234,567",
                "1,000",
                "161",
                "15.3",
                "1.00",
                "0.970",
                "-2,500"
            ]
        );
    }
}
