//! The samples of the tour are read whole.

use std::collections::BTreeMap;
use std::path::Path;

use crate::model::Kind;
use crate::source::Event;
use crate::source::manifests::worker::Worker;

#[test]
fn every_sample_is_taken_without_a_word() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples");
    let inotify = inotify::Inotify::init().unwrap();
    let mut worker = Worker::new(std::path::absolute(directory).unwrap(), inotify.watches());
    let mut kinds = BTreeMap::new();
    for event in worker.look().unwrap() {
        match event {
            Event::Upsert(object) => *kinds.entry(object.id().kind).or_insert(0) += 1,
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        (Kind::Namespace, 2),
        (Kind::Node, 1),
        (Kind::Pod, 6),
        (Kind::Service, 2),
        (Kind::EndpointSlice, 4),
        (Kind::NetworkPolicy, 1),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
}
