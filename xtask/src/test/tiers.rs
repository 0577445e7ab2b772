//! The table of tiers, by the least power that can fail.

use std::time::Duration;

use crate::setup::Need;

/// One tier: test targets that need the same power.
#[derive(Debug)]
pub(crate) struct Tier<'a> {
    /// What `cargo xtask test NAME` calls it.
    pub(crate) name: &'static str,
    /// One line for people.
    pub(crate) about: &'static str,
    /// What `cargo test` is told to build.
    pub(crate) cargo: &'a [&'a str],
    /// Whether the tests themselves run as root.
    pub(crate) root: bool,
    /// How many tests run beside each other; `None` leaves it to the harness.
    pub(crate) threads: Option<u32>,
    /// What the tier needs of the machine beside a build.
    pub(crate) needs: &'static [Need],
    /// The longest that its tests may take, without their build.
    pub(crate) bound: Duration,
    /// Fewer tests than this count as a failure.
    pub(crate) least: u32,
}

/// `cargo test`'s arguments for one file of tests.
macro_rules! target {
    ($name:literal) => {
        &["--package", "tests", "--test", $name]
    };
}
pub(crate) use target;

/// Tests that run anywhere.
const fn anywhere(
    name: &'static str,
    about: &'static str,
    cargo: &'static [&'static str],
    minutes: u64,
) -> Tier<'static> {
    Tier {
        name,
        about,
        cargo,
        root: false,
        threads: None,
        needs: &[],
        bound: Duration::from_mins(minutes),
        least: 1,
    }
}

/// Tests that run as root, so many at a time.
const fn root(
    name: &'static str,
    about: &'static str,
    cargo: &'static [&'static str],
    threads: u32,
    needs: &'static [Need],
    minutes: u64,
) -> Tier<'static> {
    Tier {
        name,
        about,
        cargo,
        root: true,
        threads: Some(threads),
        needs,
        bound: Duration::from_mins(minutes),
        least: 1,
    }
}

/// Every tier that exists, in the order in which they run. A new file of tests gets its row here: a test below
/// fails while a target has none.
pub(crate) const TIERS: &[Tier<'static>] = &[
    anywhere(
        "unit",
        "model, compile, diff, conversion, properties",
        &["--workspace", "--exclude", "agent-ebpf", "--lib", "--bins"],
        10,
    ),
    Tier {
        least: 0,
        ..anywhere(
            "doc",
            "examples in the documentation",
            &["--package", "sluice", "--package", "agent-common", "--doc"],
            5,
        )
    },
    anywhere(
        "scenario",
        "manifests in, dump out",
        target!("scenarios"),
        5,
    ),
    root(
        "packet",
        "packet in, packet out, verdict, counters, conntrack: through the kernel",
        target!("packets"),
        2,
        &[Need::Lab],
        5,
    ),
    root(
        "fuzz",
        "sequences of random and mutated packets, held against a model of the node",
        target!("fuzz"),
        2,
        &[Need::Lab],
        // A minute, and as long as somebody asks for with SLUICE_CASES.
        120,
    ),
    root(
        "lab-self",
        "the lab's own namespaces, links and probes",
        target!("lab_self"),
        2,
        &[Need::Lab],
        5,
    ),
    root(
        "lab",
        "the agent as a process, real sockets in pods' namespaces; the tour",
        target!("lab"),
        2,
        &[Need::Lab],
        15,
    ),
    root(
        "load",
        "what changes cost the traffic that stands, with the machine to itself",
        target!("load"),
        1,
        &[Need::Lab],
        15,
    ),
    root(
        "kernel",
        "pins, maps, attaching, netlink, on the real object",
        target!("kernel"),
        1,
        &[Need::Lab],
        5,
    ),
    root(
        "soak",
        "two minutes of random changes, kills and traffic on two nodes, held against the oracle",
        target!("soak"),
        1,
        &[Need::Lab],
        6,
    ),
    root(
        "controlplane",
        "the control plane of the cluster tier itself",
        target!("controlplane"),
        1,
        &[Need::Lab, Need::ControlPlane],
        20,
    ),
    root(
        "cluster",
        "real objects decide real packets: the real control plane, its outages, the time from a change to a packet",
        target!("cluster"),
        1,
        &[Need::Lab, Need::ControlPlane],
        10,
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{TIERS, root};
    use crate::workspace;

    /// Packages that may have targets of tests beside their code.
    const PACKAGES: [(&str, &str); 4] = [
        ("sluice", "agent"),
        ("tests", "tests"),
        ("agent-common", "agent-common"),
        ("xtask", "xtask"),
    ];

    /// `(package, target)` of each file that cargo would take for a target of tests.
    fn on_disk() -> BTreeSet<(String, String)> {
        let mut targets = BTreeSet::new();
        for (package, directory) in PACKAGES {
            let Ok(entries) = std::fs::read_dir(workspace::root().join(directory).join("tests"))
            else {
                continue;
            };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path.extension().is_some_and(|extension| extension == "rs")
                    || path.join("main.rs").is_file()
                {
                    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                    targets.insert((package.to_owned(), name));
                }
            }
        }
        targets
    }

    /// `(package, target)` of each `--test` in the table.
    fn in_table() -> BTreeSet<(String, String)> {
        let mut targets = BTreeSet::new();
        for tier in TIERS {
            let after = |option: &str| -> Vec<&str> {
                tier.cargo
                    .windows(2)
                    .filter(|pair| pair[0] == option)
                    .map(|pair| pair[1])
                    .collect()
            };
            for target in after("--test") {
                for package in after("--package") {
                    targets.insert((package.to_owned(), target.to_owned()));
                }
            }
        }
        targets
    }

    #[test]
    fn each_target_of_tests_is_in_one_tier_and_each_tier_has_its_targets() {
        assert_eq!(
            on_disk(),
            in_table(),
            "files of tests (left) and the table's --test (right)"
        );
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = TIERS.iter().map(|tier| tier.name).collect();
        assert_eq!(names.len(), TIERS.len());
    }

    #[test]
    fn tests_of_root_run_so_many_at_a_time() {
        let tier = root("lab", "", &[], 2, &[], 1);
        assert!(tier.root);
        assert_eq!(tier.threads, Some(2));
    }
}
