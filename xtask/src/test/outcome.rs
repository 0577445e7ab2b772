//! What a run of tests came to.

use std::fmt;
use std::time::Duration;

/// Counts over any number of test binaries, and what went wrong beside failed tests.
#[derive(Clone, Default, Debug)]
pub(crate) struct Outcome {
    /// Tests that passed.
    pub(crate) passed: u32,
    /// Tests that failed, and one for each of `troubles`.
    pub(crate) failed: u32,
    /// Names of failed tests, as the harness prints them.
    pub(crate) failures: Vec<String>,
    /// What failed tests printed, each with its heading.
    pub(crate) told: Vec<String>,
    /// What failed without being a test: a build, a time bound, a test that ignores itself.
    pub(crate) troubles: Vec<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// What the failed test printed whose part of the output is being read; empty before that part.
    reading: Vec<String>,
}

/// Lines kept of what a failed test printed: from where it says why, and of the end.
const KEPT: [usize; 2] = [30, 15];

/// What is worth keeping of what a failed test printed: its first line, some from its panic or its error on, and its last ones.
pub(crate) fn gist(lines: &[String]) -> Vec<String> {
    let [why, last] = KEPT;
    let says = |line: &String| line.contains("panicked at") || line.starts_with("Error: ");
    let begin = lines.iter().position(says).unwrap_or(1).max(1);
    let rest = lines.len().saturating_sub(last).max(begin + why);
    let mut kept: Vec<String> = lines.iter().take(1).cloned().collect();
    kept.extend(lines.iter().skip(begin).take(why).cloned());
    kept.extend(lines.iter().skip(rest).cloned());
    kept
}

impl Outcome {
    /// Takes in one line of what `cargo test` prints.
    pub(crate) fn read_line(&mut self, line: &str) {
        self.keep(line);
        // Also a line of the first kind starts with `test `, so the order matters.
        if let Some(rest) = line.strip_prefix("test result: ") {
            let counts = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            let ignored = count(counts, "ignored");
            if ignored > 0 {
                self.trouble_of(
                    ignored,
                    format!("{ignored} tests ignored: the gate allows none"),
                );
            }
        } else if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, result)) = rest.rsplit_once(" ... ")
            && result.starts_with("FAILED")
        {
            self.failures.push(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("---- ")
            && let Some(name) = rest.strip_suffix(" stdout ----")
            && !self.failures.iter().any(|known| known == name)
        {
            // A test that prints figures has them between its name and its result.
            self.failures.push(name.to_owned());
        }
    }

    /// Keeps what a failed test printed, which the harness shows between a heading and the next one, or the list of failures.
    fn keep(&mut self, line: &str) {
        let heading = line.starts_with("---- ") && line.ends_with(" stdout ----");
        if heading || line == "failures:" {
            self.told.extend(gist(&std::mem::take(&mut self.reading)));
        }
        if heading || !self.reading.is_empty() {
            self.reading.push(line.to_owned());
        }
    }

    /// Notes one failure that is no test.
    pub(crate) fn trouble(&mut self, text: String) {
        self.trouble_of(1, text);
    }

    fn trouble_of(&mut self, count: u32, text: String) {
        self.failed += count;
        self.troubles.push(text);
    }

    /// Adds another's counts to these.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.told.extend_from_slice(&other.told);
        self.took += other.took;
    }
}

/// The number before `word` in `5 passed; 0 failed; 1 ignored; ...`.
fn count(counts: &str, word: &str) -> u32 {
    counts
        .split(';')
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed in {} s",
            self.passed,
            self.failed,
            self.took.as_secs()
        )?;
        for name in &self.failures {
            write!(formatter, "\n    failed: {name}")?;
        }
        for trouble in &self.troubles {
            write!(formatter, "\n    {trouble}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, gist};

    fn read(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.read_line(line));
        outcome
    }

    #[test]
    fn summaries_of_several_binaries_add_up() {
        let outcome = read(
            "running 2 tests\ntest a::b ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test c ... FAILED\n\
             test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.10s\n",
        );
        assert_eq!((outcome.passed, outcome.failed), (5, 1));
        assert_eq!(outcome.failures, ["c"]);
    }

    #[test]
    fn a_failed_test_that_prints_figures_has_its_name() {
        let outcome = read(
            "test a::b ... 7 packets\nFAILED\ntest c ... FAILED\n\nfailures:\n\n---- a::b stdout ----\nwhy\n\n---- c stdout ----\nwhy\n\n\
             failures:\n    a::b\n    c\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        assert_eq!((outcome.passed, outcome.failed), (0, 2));
        assert_eq!(outcome.failures, ["c", "a::b"]);
        let told = [
            "---- a::b stdout ----",
            "why",
            "",
            "---- c stdout ----",
            "why",
            "",
        ];
        assert_eq!(outcome.told, told);
    }

    #[test]
    fn what_a_failed_test_says_of_itself_is_kept_wherever_it_stands() {
        let mut lines = vec!["---- a stdout ----".to_owned()];
        lines.extend((0..100).map(|n| format!("before {n}")));
        lines.push("Error: why".to_owned());
        lines.extend((0..100).map(|n| format!("after {n}")));
        let kept = gist(&lines);
        assert_eq!(kept.len(), 1 + 30 + 15, "{kept:?}");
        assert_eq!(kept[..2], ["---- a stdout ----", "Error: why"]);
        assert_eq!(kept.last().unwrap(), "after 99");
        assert_eq!(gist(&lines[..3]), lines[..3]);
        assert!(gist(&[]).is_empty());
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        let outcome =
            read("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        assert_eq!((outcome.passed, outcome.failed), (2, 1));
    }

    #[test]
    fn what_a_test_prints_is_not_counted() {
        let outcome = read(
            "result: 5 passed; 3 failed\n  test result: ok. 9 passed; 0 failed\ntest data ... arrived",
        );
        assert_eq!((outcome.passed, outcome.failed), (0, 0));
    }
}
