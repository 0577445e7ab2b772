//! What the machine says, line by line, and what cargo says of its builds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::super::outcome::Outcome;

/// Begins each line of the machine's first process.
const SAYS: &str = "vm-init: ";

/// Reads the machine's lines into an outcome. Whatever is not said in time (a part's end, the machine's own) is a failure:
/// a machine that dies says nothing.
pub(super) struct Report<'a> {
    outcome: &'a mut Outcome,
    /// The part that runs, and how many tests had run and failed before it.
    running: Option<(String, u32, u32)>,
    /// Tests that ran, by part.
    ran: BTreeMap<String, u32>,
    done: bool,
}

impl<'a> Report<'a> {
    pub(super) fn new(outcome: &'a mut Outcome) -> Self {
        Self {
            outcome,
            running: None,
            ran: BTreeMap::new(),
            done: false,
        }
    }

    fn count(&self) -> u32 {
        self.outcome.passed + self.outcome.failed
    }

    /// Takes in one line.
    pub(super) fn read_line(&mut self, line: &str) {
        let Some(said) = line.strip_prefix(SAYS) else {
            self.outcome.read_line(line);
            return;
        };
        if said == "done" {
            self.done = true;
        } else if let Some(part) = said.strip_prefix("begin ") {
            self.running = Some((part.to_owned(), self.count(), self.outcome.failed));
        } else if said.starts_with("end ") {
            let Some((part, ran_before, failed_before)) = self.running.take() else {
                return self.outcome.trouble(format!("the machine: {said}"));
            };
            let ran = self.count() - ran_before;
            // A failed test ends its binary so, and was counted as such.
            let ended_well = said.contains(": exit status: 0 ");
            if !ended_well && self.outcome.failed == failed_before {
                self.outcome.trouble(format!("the machine: {said}"));
            }
            self.ran.insert(part, ran);
        } else if said.starts_with("failed: ") {
            self.outcome.trouble(format!("the machine: {said}"));
        }
    }

    /// After the last line: what was not said. `expected` are the parts, each with the least number of its tests.
    pub(super) fn end(self, expected: impl Iterator<Item = (&'static str, u32)>) {
        for (part, least) in expected {
            match self.ran.get(part) {
                Some(ran) if *ran >= least => {}
                Some(ran) => self.outcome.trouble(format!(
                    "{part}: {ran} tests ran in the machine, at least {least} should"
                )),
                None => self
                    .outcome
                    .trouble(format!("{part}: the machine died before its end")),
            }
        }
        if !self.done {
            self.outcome
                .trouble("the machine died, or did not start".to_owned());
        }
    }
}

/// The executables in cargo's messages, by name of their target.
pub(super) fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let executable = message["executable"].as_str()?;
            let name = message["target"]["name"].as_str()?;
            Some((name.to_owned(), PathBuf::from(executable)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Report, executables};

    const PASSED: &str = "test result: ok. 5 passed; 0 failed; 0 ignored";

    fn read(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut report = Report::new(&mut outcome);
        lines.iter().for_each(|line| report.read_line(line));
        report.end([("packets", 5)].into_iter());
        outcome
    }

    #[test]
    fn a_machine_that_says_all_has_passed() {
        let outcome = read(&[
            "vm-init: Linux 6.1.0",
            "vm-init: begin packets",
            PASSED,
            "vm-init: end packets: exit status: 0 in 3 s",
            "vm-init: done",
        ]);
        assert_eq!((outcome.passed, outcome.failed), (5, 0), "{outcome}");
    }

    #[test]
    fn a_machine_that_dies_anywhere_has_failed() {
        let whole = [
            "vm-init: begin packets",
            PASSED,
            "vm-init: end packets: exit status: 0 in 3 s",
            "vm-init: done",
        ];
        for lines in 0..whole.len() {
            assert_ne!(read(&whole[..lines]).failed, 0, "after {lines} lines");
        }
    }

    #[test]
    fn a_binary_that_dies_or_takes_too_long_or_runs_too_little_has_failed() {
        for end in [
            "signal: 11 (SIGSEGV) in 3 s",
            "stopped, not done after 60 s",
        ] {
            let end = format!("vm-init: end packets: {end}");
            let outcome = read(&["vm-init: begin packets", PASSED, &end, "vm-init: done"]);
            assert_eq!(outcome.failed, 1, "{outcome}");
        }
        let few = "test result: ok. 4 passed; 0 failed; 0 ignored";
        let end = "vm-init: end packets: exit status: 0 in 3 s";
        let outcome = read(&["vm-init: begin packets", few, end, "vm-init: done"]);
        assert_eq!(outcome.failed, 1, "{outcome}");
    }

    #[test]
    fn executables_are_found_by_name_among_other_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lab\"},\"executable\":\"/t/lab-1\"}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"x\"},\"executable\":null}\nnot json";
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["lab"].to_str(), Some("/t/lab-1"));
    }
}
