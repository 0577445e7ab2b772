//! The parser on everything that is no manifest: it ends soon, and never panics.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::namespace;
use crate::source::manifests::document::{split, yaml};
use crate::source::manifests::parse::{Contents, Format, parse};

/// Far more than any of these takes, and far less than a quadratic one would.
const SOON: Duration = Duration::from_secs(20);

fn parse_soon(text: &str) -> Contents {
    let began = Instant::now();
    let contents = parse(Format::Yaml, text);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    contents
}

#[test]
fn documents_are_cut_at_their_markers() {
    let cut = |text| {
        split(text)
            .iter()
            .map(|d| (d.line, d.text.trim()))
            .collect::<Vec<_>>()
    };
    assert_eq!(cut("a: 1\n---\nb: 2\n"), [(1, "a: 1"), (2, "b: 2")]);
    assert_eq!(
        cut("---\n# nothing\n---\n\n--- # c\nc: 3\n...\n"),
        [(5, "# c\nc: 3")]
    );
    assert_eq!(
        cut("%YAML 1.1\n---\na: 1\r\n---\r\nb: 2"),
        [(2, "a: 1"), (4, "b: 2")]
    );
    assert_eq!(cut("--- {a: 1}\n---b: c\n"), [(1, "{a: 1}\n---b: c")]);
    assert_eq!(cut("a: |\n  ---\n  x\n"), [(1, "a: |\n  ---\n  x")]);
    assert_eq!(cut(""), []);
    assert_eq!(cut("---"), []);
}

#[test]
fn a_billion_laughs() {
    let mut text = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for i in 1..12 {
        let all = vec![format!("*a{}", i - 1); 9].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{all}]\n"));
    }
    let contents = parse_soon(&text);
    assert!(
        contents.broken[0].contains("aliases"),
        "{:?}",
        contents.broken
    );
    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(1_000_000),
        "*a, ".repeat(50_000)
    );
    assert!(parse_soon(&long).broken[0].contains("aliases"));
}

#[test]
fn a_few_aliases_and_merges_are_fine() {
    let value =
        yaml("x: &x {app: web, tier: a}\ny: {<<: *x, tier: b}\nz: [*x, *x]\n1: one\n").unwrap();
    assert_eq!(value["y"], serde_json::json!({"app": "web", "tier": "b"}));
    assert_eq!(value["z"][1]["app"], "web");
    assert_eq!(value["1"], "one");
}

#[test]
fn deep_nesting_and_odd_documents_are_rejected() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(50_000),
        "? ".repeat(50_000),
        "a: 1\na: 2\n".to_owned(),
        "a: *nowhere\n".to_owned(),
        "!custom {a: 1}\n".to_owned(),
        "? [a]\n: b\n".to_owned(),
        "a: \"\u{0}\"\n".to_owned(),
        "\tkey: value\n".to_owned(),
    ] {
        let contents = parse_soon(&text);
        let start: String = text.chars().take(20).collect();
        assert_eq!(contents.broken.len(), 1, "{start}: {contents:?}");
    }
    for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        assert_eq!(parse(Format::Json, &text).broken.len(), 1);
    }
}

#[test]
fn seventy_thousand_endpoints_in_one_slice() {
    let endpoints: String = (0..70_000)
        .map(|i| {
            format!(
                "- addresses: [\"10.1.{}.{}\"]\n  nodeName: node-a\n",
                i / 256 % 256,
                i % 256
            )
        })
        .collect();
    let contents = parse_soon(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: a, labels: {{kubernetes.io/service-name: a}}}}\n\
         addressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n{endpoints}"
    ));
    assert_eq!(
        contents.objects.len(),
        1,
        "{:?} {:?}",
        contents.rejected,
        contents.broken
    );
}

#[test]
fn json_files() {
    let contents = parse(
        Format::Json,
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n\n{\"apiVersion\": \"v1\",\t\"kind\": \"Node\", \"metadata\": {\"name\": \"b\"}} x",
    );
    assert_eq!(contents.objects.len(), 2);
    assert_eq!(contents.broken.len(), 1);
    assert_eq!(parse(Format::Json, "").broken, [""; 0]);
}

#[test]
fn half_a_file_never_parses_as_another_object() {
    let whole = namespace("abcdef", "x");
    for end in 0..whole.len() {
        parse(Format::Yaml, &whole[..end]);
    }
}

/// A sample with a few bytes changed, cut out or doubled.
fn mutated() -> impl Strategy<Value = String> {
    let text = concat!(
        include_str!("../../../../../deploy/samples/20-backends.yaml"),
        "---\n",
        include_str!("../../../../../deploy/samples/30-service-backend.yaml"),
        "---\n",
        include_str!("../../../../../deploy/samples/40-policy.yaml"),
    );
    let edit = (
        0..text.len(),
        0..24_usize,
        "[-:{}\\[\\]\"',&*!#|>%@a0 \n\t]{0,3}",
    );
    prop::collection::vec(edit, 1..8).prop_map(move |edits| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, cut, put) in edits {
            let at = at.min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put.into_bytes());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let text = String::from_utf8_lossy(&bytes);
        parse(Format::Yaml, &text);
        parse(Format::Json, &text);
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "([-:{}\\[\\]\"',&*!#|>%@?a-c0-2 \n\t<]|---\n|: |- ){0,200}") {
        parse(Format::Yaml, &text);
        parse(Format::Json, &text);
    }

    #[test]
    fn no_broken_manifest_makes_it_panic(text in mutated()) {
        parse(Format::Yaml, &text);
    }
}
