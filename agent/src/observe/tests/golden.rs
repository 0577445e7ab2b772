//! Comparing with files under `testdata/observe`; `BLESS=1` writes them anew.

use std::path::PathBuf;

pub(crate) fn check(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/observe")
        .join(name);
    let actual = format!("{}\n", actual.trim_end());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; BLESS=1 writes it", path.display()));
    assert_eq!(
        actual, expected,
        "{name} is different; BLESS=1 writes it anew if this is meant"
    );
}
