//! What files say together.

use std::path::Path;

use super::{namespace, short};
use crate::source::Event;
use crate::source::manifests::parse::{Format, parse};
use crate::source::manifests::store::Store;

/// A store, and what it tells.
#[derive(Default)]
struct Fixture(Store);

impl Fixture {
    fn put(&mut self, path: &str, yaml: &str) -> &mut Self {
        self.0.put(Path::new(path), parse(Format::Yaml, yaml));
        self
    }

    fn remove(&mut self, path: &str) -> &mut Self {
        self.0.remove(Path::new(path));
        self
    }

    fn events(&mut self) -> Vec<Event> {
        self.0.flush()
    }

    fn told(&mut self) -> Vec<String> {
        self.events().iter().map(short).collect()
    }
}

/// Documents of one file.
fn file(documents: &[String]) -> String {
    documents.join("---\n")
}

const BAD: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels: {'-': x}\n";
const BROKEN: &str = "a: [\n";

#[test]
fn only_what_changed_is_told() {
    let mut files = Fixture::default();
    let before = file(&[
        namespace("a", "x"),
        namespace("b", "x"),
        namespace("c", "x"),
    ]);
    assert_eq!(
        files.put("f.yaml", &before).told(),
        ["+Namespace a", "+Namespace b", "+Namespace c"]
    );
    assert_eq!(files.put("f.yaml", &before).told(), [""; 0]);
    let after = file(&[
        namespace("a", "x"),
        namespace("b", "y"),
        namespace("d", "x"),
    ]);
    assert_eq!(
        files.put("f.yaml", &after).told(),
        ["+Namespace b", "-Namespace c", "+Namespace d"]
    );
    assert_eq!(
        files.remove("f.yaml").told(),
        ["-Namespace a", "-Namespace b", "-Namespace d"]
    );
}

#[test]
fn an_object_that_moves_to_another_file_is_never_gone() {
    let mut files = Fixture::default();
    files.put("a.yaml", &namespace("a", "x")).events();
    files.remove("a.yaml");
    assert_eq!(files.put("b.yaml", &namespace("a", "x")).told(), [""; 0]);
}

#[test]
fn the_first_file_in_path_order_has_an_object() {
    let mut files = Fixture::default();
    files.put("b.yaml", &namespace("a", "from-b")).events();
    // A file that comes earlier takes over; the other is rejected, with both named.
    let events = files.put("a.yaml", &namespace("a", "from-a")).events();
    assert_eq!(
        events.iter().map(short).collect::<Vec<_>>(),
        ["+Namespace a", "!Namespace a"]
    );
    let Event::Rejected(rejected) = &events[1] else {
        panic!()
    };
    assert!(
        rejected
            .reason
            .contains("b.yaml has it too; a.yaml comes first"),
        "{rejected}"
    );
    // A change of the loser changes nothing that is told.
    assert_eq!(
        files.put("b.yaml", &namespace("a", "again")).told(),
        [""; 0]
    );
    // When the winner goes, the other takes over, and nothing is rejected any more.
    assert_eq!(files.remove("a.yaml").told(), ["+Namespace a"]);
    // When the loser goes, the rejection ends, which a good version says.
    files.put("a.yaml", &namespace("a", "from-a")).events();
    assert_eq!(files.remove("b.yaml").told(), ["+Namespace a"]);
    assert_eq!(files.remove("a.yaml").told(), ["-Namespace a"]);
}

#[test]
fn twice_in_one_file() {
    let mut files = Fixture::default();
    let twice = file(&[namespace("a", "first"), namespace("a", "second")]);
    let events = files.put("f.yaml", &twice).events();
    assert_eq!(
        events.iter().map(short).collect::<Vec<_>>(),
        ["+Namespace a", "!Namespace a"]
    );
    assert!(format!("{:?}", events[0]).contains("first"));
}

#[test]
fn a_bad_object_leaves_its_last_good_version() {
    let mut files = Fixture::default();
    files
        .put("f.yaml", &file(&[namespace("a", "x"), namespace("b", "x")]))
        .events();
    let bad = file(&[BAD.to_owned(), namespace("b", "y")]);
    assert_eq!(
        files.put("f.yaml", &bad).told(),
        ["!Namespace a", "+Namespace b"]
    );
    assert_eq!(files.put("f.yaml", &bad).told(), [""; 0]);
    // The same good version again ends the rejection.
    let good = file(&[namespace("a", "x"), namespace("b", "y")]);
    assert_eq!(files.put("f.yaml", &good).told(), ["+Namespace a"]);
    files.put("f.yaml", &bad).events();
    assert_eq!(
        files.put("f.yaml", &namespace("b", "y")).told(),
        ["-Namespace a"],
        "removed for good"
    );
}

#[test]
fn a_bad_object_that_never_was_good_ends_as_a_deletion() {
    let mut files = Fixture::default();
    assert_eq!(files.put("f.yaml", BAD).told(), ["!Namespace a"]);
    assert_eq!(files.put("f.yaml", "").told(), ["-Namespace a"]);
    // A bad version does not stand in the way of another file's good one.
    files.put("a.yaml", BAD).events();
    assert_eq!(
        files.put("b.yaml", &namespace("a", "x")).told(),
        ["+Namespace a", "!Namespace a"]
    );
}

#[test]
fn a_broken_document_costs_nothing_but_itself() {
    let mut files = Fixture::default();
    files
        .put("f.yaml", &file(&[namespace("a", "x"), namespace("b", "x")]))
        .events();
    // b may be what is broken: it stays. a is read.
    let broken = file(&[namespace("a", "y"), BROKEN.to_owned(), namespace("c", "x")]);
    let events = files.put("f.yaml", &broken).events();
    assert_eq!(
        events.iter().map(short).collect::<Vec<_>>(),
        ["+Namespace a", "+Namespace c", "!f.yaml"]
    );
    let Event::Rejected(rejected) = &events[2] else {
        panic!()
    };
    assert!(
        rejected
            .reason
            .contains("document 2, which begins on line 7"),
        "{rejected}"
    );
    assert!(rejected.reason.contains("stays in force"), "{rejected}");
    assert_eq!(
        files.put("f.yaml", &namespace("c", "x")).told(),
        ["-Namespace a", "-Namespace b", "~f.yaml"]
    );
    // A broken file that goes is mended, too.
    files.put("f.yaml", BROKEN).events();
    assert_eq!(files.remove("f.yaml").told(), ["-Namespace c", "~f.yaml"]);
}

#[test]
fn a_service_that_becomes_headless_is_deleted() {
    let service = |ip: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}"
        )
    };
    let mut files = Fixture::default();
    assert_eq!(
        files.put("f.yaml", &service("10.0.0.1")).told(),
        ["+Service default/web"]
    );
    assert_eq!(
        files.put("f.yaml", &service("None")).told(),
        ["-Service default/web"]
    );
    assert_eq!(files.put("f.yaml", &service("None")).told(), [""; 0]);
    assert_eq!(
        files.put("f.yaml", &service("10.0.0.1")).told(),
        ["+Service default/web"]
    );
}

#[test]
fn one_notice_a_kind() {
    let mut files = Fixture::default();
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}".to_owned();
    let job = "{apiVersion: batch/v1, kind: Job, metadata: {name: a}}".to_owned();
    let text = [deployment.clone(), deployment.clone(), job].join("\n---\n");
    assert_eq!(
        files.put("a.yaml", &text).told(),
        ["?apps/v1 Deployment", "?batch/v1 Job"]
    );
    assert_eq!(files.put("b.yaml", &deployment).told(), [""; 0]);
}

#[test]
fn lists_of_every_sort() {
    let items = "[{metadata: {name: b}}, {metadata: {name: a}}]";
    let mut files = Fixture::default();
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: NamespaceList, items: {items}}}\n\
         - {{apiVersion: v1, kind: Node, metadata: {{name: n}}}}\n"
    );
    assert_eq!(
        files.put("f.yaml", &list).told(),
        ["+Namespace a", "+Namespace b", "+Node n"]
    );
    assert_eq!(
        files
            .put(
                "f.yaml",
                "{apiVersion: v1, kind: NamespaceList, items: null}"
            )
            .told(),
        ["-Namespace a", "-Namespace b", "-Node n"]
    );
    assert_eq!(
        files
            .put("f.yaml", "{apiVersion: v1, kind: List, items: 3}")
            .told(),
        ["!f.yaml"]
    );
}
