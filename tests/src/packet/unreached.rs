//! Reasons and counts that no row reaches, and what stands in for one. Whatever is not here must be reached (`tests/packets/coverage.rs`), and
//! what is here must not; what is said of it is held against the source by the tests below.

use agent_common::{Count, Reason};

/// Why there is no row.
#[derive(Clone, Copy, Debug)]
pub enum Instead {
    /// No program gives it: its number is kept for what is to come. (What it waits for.)
    Nothing(&'static str),
    /// Single packets through single programs do not reach it; this test of the lab does, and reads the counter: its file, and its name.
    Lab(&'static str, &'static str),
    /// The kernel alone decides it, and nobody can make it do so. (When it would.)
    Kernel(&'static str),
}

/// When an LRU map takes no entry.
const NO_MEMORY: Instead =
    Instead::Kernel("an LRU map evicts instead of refusing, unless the kernel is out of memory");

/// Reasons without a row.
pub const REASONS: &[(Reason, Instead)] = &[
    (Reason::ConntrackFull, NO_MEMORY),
    (
        Reason::TtlExceeded,
        Instead::Nothing("a path without the stack: the stack answers for all there are"),
    ),
    (
        Reason::SourceRange,
        Instead::Nothing("loadBalancerSourceRanges, which come with external addresses"),
    ),
];

/// Counts without a row.
pub const COUNTS: &[(Count, Instead)] = &[
    (
        Count::SocketTranslated,
        // `BPF_PROG_TEST_RUN` runs no program of sockets.
        Instead::Lab(
            "services.rs",
            "a_process_of_the_host_reaches_services_and_is_refused_where_there_is_nobody",
        ),
    ),
    (Count::InsertFailed, NO_MEMORY),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::fs;
    use std::path::Path;

    use super::{COUNTS, Instead, REASONS};

    /// The text of all sources in a folder beside this crate.
    fn sources(folder: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect()
    }

    fn check(name: &str, instead: Instead, programs: &str) {
        let ends = |at: usize| !programs[at + name.len()..].starts_with(char::is_alphanumeric);
        let given = programs.match_indices(name).any(|(at, _)| ends(at));
        match instead {
            Instead::Nothing(what) => assert!(!given, "{name} is given, and needs a row: {what}"),
            Instead::Kernel(when) => assert!(given, "{name} is given by no program: {when}"),
            Instead::Lab(file, test) => {
                assert!(given, "{name} is given by no program");
                let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
                let text = fs::read_to_string(lab.join(file)).unwrap();
                assert!(text.contains(&format!("fn {test}()")), "no {test}");
                assert!(text.contains(name), "{file} does not read {name}");
            }
        }
    }

    #[test]
    fn what_stands_in_for_a_row_is_so() {
        let programs = sources("../agent-ebpf/src");
        for (reason, instead) in REASONS {
            check(&format!("Reason::{reason:?}"), *instead, &programs);
        }
        for (count, instead) in COUNTS {
            check(&format!("Count::{count:?}"), *instead, &programs);
        }
    }
}
