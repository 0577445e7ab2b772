//! The length of source files: what is longer holds more than one noun.

use anyhow::{Context, Result};

use crate::workspace;

/// Lines before the first inline module of tests.
const LIMIT: usize = 500;

/// Checks every Rust file but those of tests.
pub(super) fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in workspace::files()? {
        let name = file.to_string_lossy();
        if file.extension().is_none_or(|extension| extension != "rs") || is_tests(&name) {
            continue;
        }
        let text = std::fs::read_to_string(workspace::root().join(&file))
            .with_context(|| format!("cannot read {name}"))?;
        let lines = production_lines(&text);
        if lines > LIMIT {
            findings.push(format!(
                "{name}: {lines} lines before its tests, {LIMIT} at most: split it"
            ));
        }
    }
    Ok(findings)
}

fn is_tests(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

fn production_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]"
            && pair[1].trim_start().starts_with("mod ")
            && pair[1].ends_with('{')
    });
    tests.unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::production_lines;

    #[test]
    fn tests_do_not_count() {
        assert_eq!(production_lines("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(production_lines("#[cfg(test)]\nuse a;\nb\n"), 3);
    }
}
