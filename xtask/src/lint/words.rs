//! What must not be in a tracked file: the host of a package registry, and a path of one machine.

use anyhow::Result;

use crate::workspace;

/// Hosts of registries; in pieces, so that this file does not name them either.
const HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("proxy.", "golang.org"),
    concat!("sum.", "golang.org"),
    concat!("deb.", "debian.org"),
    concat!("archive.", "ubuntu.com"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("gcr", ".io"),
    concat!("quay", ".io"),
    concat!("registry.", "k8s.io"),
    concat!("mcr.", "microsoft.com"),
    concat!("registry.", "npmjs.org"),
    concat!("pypi", ".org"),
    concat!("apt.", "llvm.org"),
];

/// Where people's own files lie: a path that starts here is some machine's.
const PATHS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
];

/// The line that cargo writes for each dependency: an identifier, and the only one allowed.
const LOCK_SOURCE: &str = concat!(
    "source = \"registry+https://github.com/rust-lang/crates",
    ".io-index\""
);

/// Checks every text file.
pub(super) fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in workspace::files()? {
        // Not text: nothing to read there.
        let Ok(text) = std::fs::read_to_string(workspace::root().join(&file)) else {
            continue;
        };
        let lock = file.file_name().is_some_and(|name| name == "Cargo.lock");
        for (number, line) in text.lines().enumerate() {
            if lock && line == LOCK_SOURCE {
                continue;
            }
            for word in words(line) {
                findings.push(format!(
                    "{}:{}: {word} does not belong into the repository",
                    file.display(),
                    number + 1
                ));
            }
        }
    }
    Ok(findings)
}

/// The words of both tables in a line.
fn words(line: &str) -> Vec<&'static str> {
    let part_of_name =
        |character: char| character.is_ascii_alphanumeric() || "_-.*}".contains(character);
    let hosts = HOSTS.iter().filter(|host| {
        line.match_indices(**host).any(|(at, _)| {
            // A longer first label is another host; one more label in front is the same one.
            let before = line[..at].chars().next_back();
            before.is_none_or(|character| !character.is_ascii_alphanumeric() && character != '-')
        })
    });
    let paths = PATHS.iter().filter(|path| {
        line.match_indices(**path)
            .any(|(at, _)| !line[..at].ends_with(part_of_name))
    });
    hosts.chain(paths).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::{HOSTS, PATHS, words};

    #[test]
    fn hosts_and_machine_paths_are_found() {
        for host in HOSTS {
            assert_eq!(words(&format!("image: {host}/a/b:1")), [*host]);
        }
        for path in PATHS {
            assert_eq!(words(&format!("cd {path}wt")), [*path]);
        }
    }

    #[test]
    fn what_only_looks_like_one_is_not() {
        assert!(words("/proc/1/root/sys, docs/work/x, kubernetes.io/os").is_empty());
    }
}
