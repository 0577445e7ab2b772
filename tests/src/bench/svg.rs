//! The report as a picture: ratios to the plain path around a line at 1, other figures against their bars. Written by hand: it is bars
//! and words.

use std::fmt::Write as _;

use super::report::{Bar, Met, Report, Row};
use super::table::figure;

/// Everything in pixels.
const WIDTH: f64 = 1_200.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 30.0;
const MARGIN: f64 = 16.0;
/// Where bars begin, and how long the longest may be.
const LEFT: f64 = 640.0;
const LENGTH: f64 = 430.0;
/// The ratios that the axis shows, at least.
const LEAST: f64 = 0.6;
const MOST: f64 = 1.1;

/// The whole picture.
pub fn picture(report: &Report) -> String {
    let ratios: Vec<&Row> = report.rows.iter().filter(|r| r.ratio.is_some()).collect();
    let barred: Vec<&Row> = report
        .rows
        .iter()
        .filter(|r| r.ratio.is_none() && r.bar.is_some())
        .collect();
    let mut canvas = Canvas::default();
    canvas.title(&format!("Sluice, {}", report.machine));
    if !ratios.is_empty() {
        canvas.heading(
            "Of the plain path in the same round (quarters as a line, must and goal as ticks)",
        );
        canvas.ratios(&ratios);
    }
    if !barred.is_empty() {
        canvas.heading("Of what they may be at most (full length: the bar that must hold)");
        canvas.barred(&barred);
    }
    canvas.end()
}

#[derive(Default)]
struct Canvas {
    body: String,
    y: f64,
}

impl Canvas {
    fn title(&mut self, text: &str) {
        self.y += HEAD;
        self.text(MARGIN, "title", text);
    }

    fn heading(&mut self, text: &str) {
        self.y += HEAD;
        self.text(MARGIN, "heading", text);
        self.y += ROW / 3.0;
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"{class}\">{}</text>",
            self.y,
            escaped(text)
        );
    }

    fn bar(&mut self, x: f64, width: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" class=\"{class}\"/>",
            self.y - ROW * 0.6,
            ROW * 0.65
        );
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    fn label(&mut self, row: &Row) {
        let text = format!("{}: {}, {}", row.group, row.name, row.side);
        self.text(MARGIN, "label", &text);
    }

    fn ratios(&mut self, rows: &[&Row]) {
        let all = || rows.iter().filter_map(|r| r.ratio.as_ref());
        let least = all().map(|r| r.low).fold(LEAST, f64::min).max(0.0);
        let most = all().map(|r| r.high).fold(MOST, f64::max);
        let place =
            |ratio: f64| LEFT + LENGTH * ((ratio.clamp(least, most) - least) / (most - least));
        let top = self.y;
        for row in rows {
            let Some(ratio) = &row.ratio else { continue };
            self.y += ROW;
            self.label(row);
            self.bar(LEFT, place(ratio.median) - LEFT, class(row.judged()));
            let middle = self.y - ROW * 0.28;
            self.line(
                (place(ratio.low), middle),
                (place(ratio.high), middle),
                "quarters",
            );
            if let Some(Bar { must, goal, .. }) = row.bar {
                for (ratio, class) in [(must, "must"), (goal, "goal")] {
                    let x = place(ratio);
                    self.line((x, self.y - ROW * 0.7), (x, self.y + ROW * 0.15), class);
                }
            }
            self.text(
                LEFT + LENGTH + 8.0,
                "value",
                &format!("{:.3}", ratio.median),
            );
        }
        let bottom = self.y + ROW * 0.3;
        self.line((place(1.0), top), (place(1.0), bottom), "one");
        self.y += ROW * 0.5;
    }

    fn barred(&mut self, rows: &[&Row]) {
        for row in rows {
            let Some(bar) = row.bar else { continue };
            self.y += ROW;
            self.label(row);
            // Where less is better the bar is the full length; where more is, the figure is.
            let part = if bar.must == 0.0 {
                1.0
            } else {
                (row.value.median / bar.must).clamp(0.0, 1.0)
            };
            self.bar(LEFT, LENGTH * part, class(row.judged()));
            let goal = (bar.goal / bar.must).clamp(0.0, 1.0);
            for (part, class) in [(1.0, "must"), (goal, "goal")] {
                let x = LEFT + LENGTH * part;
                self.line((x, self.y - ROW * 0.7), (x, self.y + ROW * 0.15), class);
            }
            let value = format!("{} {}", figure(row.value.median), row.unit);
            self.text(LEFT + LENGTH + 8.0, "value", &value);
        }
        self.y += ROW * 0.5;
    }

    fn end(self) -> String {
        let height = self.y + MARGIN;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\">\n\
             <style>\n\
             text {{ font-family: sans-serif; font-size: 11px; fill: #222; }}\n\
             .title {{ font-size: 16px; }} .heading {{ font-size: 13px; fill: #555; }}\n\
             .fine {{ fill: #4b9e6a; }} .enough {{ fill: #8bbf9f; }} .missed {{ fill: #c9604f; }} .unjudged {{ fill: #9aa5b1; }}\n\
             .quarters {{ stroke: #222; stroke-width: 1.5; }} .one {{ stroke: #222; stroke-dasharray: 3 2; }}\n\
             .must {{ stroke: #222; stroke-width: 2; }} .goal {{ stroke: #777; stroke-width: 1; }}\n\
             </style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn class(judged: Option<Met>) -> &'static str {
    match judged {
        None => "unjudged",
        Some(Met::Missed) => "missed",
        Some(Met::Must) => "enough",
        Some(Met::Goal) => "fine",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn the_picture_is_whole_and_shows_what_is_judged() {
        let text = picture(&sample());
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert_eq!(
            text.matches("<text").count(),
            text.matches("</text>").count()
        );
        assert!(text.contains("&lt;1,000 policies&gt;"), "{text}");
        assert_eq!(text.matches("class=\"enough\"").count(), 1);
        assert_eq!(text.matches("class=\"missed\"").count(), 1);
        // One row has a ratio, one a bar alone; each has its two ticks.
        assert_eq!(text.matches("class=\"must\"").count(), 2);
        assert_eq!(text.matches("class=\"goal\"").count(), 2);
    }

    #[test]
    fn a_better_ratio_is_a_longer_bar() {
        let length = |median: f64| -> f64 {
            let mut report = sample();
            report.rows.truncate(2);
            report.rows[1].ratio = Some(super::super::stats::Summary::one(median));
            let text = picture(&report);
            let at = text
                .find("class=\"enough\"")
                .or(text.find("class=\"fine\""));
            let line = text[..at.unwrap()].rsplit("width=\"").next().unwrap();
            line.split('"').next().unwrap().parse().unwrap()
        };
        assert!(length(1.05) > length(0.98));
    }

    #[test]
    fn nothing_measured_is_an_empty_picture() {
        assert!(picture(&Report::default()).ends_with("</svg>\n"));
    }
}
