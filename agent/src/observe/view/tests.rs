//! The contract, held by files.

use super::*;
use crate::observe::{fixture, golden};

fn json<T: Serialize>(name: &str, document: &T) {
    let text = serde_json::to_string_pretty(document).unwrap();
    golden::check(&format!("{name}.json"), &text);
}

#[test]
fn status() {
    json(
        "status",
        &Status::build(&fixture::summary(), &fixture::state()),
    );
}

#[test]
fn services() {
    json("services", &ServiceList::build(&fixture::state(), None));
}

#[test]
fn endpoints() {
    json("endpoints", &EndpointList::build(&fixture::state(), None));
}

#[test]
fn policies() {
    let (summary, state) = (fixture::summary(), fixture::state());
    json("policies", &PolicyList::build(&summary, &state, None));
}

#[test]
fn flows() {
    let state = fixture::state();
    let records = fixture::records();
    let flows = records.iter().filter_map(|r| FlowEvent::build(r, &state));
    json(
        "flows",
        &FlowList {
            flows: flows.collect(),
        },
    );
}

#[test]
fn a_namespace_cuts_lists_down() {
    let (summary, state) = (fixture::summary(), fixture::state());
    let other = Some("other");
    let names = |list: EndpointList| -> Vec<_> {
        list.endpoints
            .into_iter()
            .map(|e| e.name.unwrap_or_default())
            .collect()
    };
    assert_eq!(
        names(EndpointList::build(&state, other)),
        ["stranger", "waiting"]
    );
    assert_eq!(ServiceList::build(&state, other).services, []);
    assert_eq!(PolicyList::build(&summary, &state, other).policies, []);
    assert_eq!(
        PolicyList::build(&summary, &state, Some("shop"))
            .policies
            .len(),
        2
    );
}

#[test]
fn an_event_of_an_unknown_kind_is_left_out() {
    let mut record = fixture::records().remove(0);
    record.event.kind = 200;
    assert_eq!(FlowEvent::build(&record, &fixture::state()), None);
}

#[test]
fn flows_are_matched_by_any_end_and_by_reason() {
    let state = fixture::state();
    let event = FlowEvent::build(&fixture::records()[0], &state).unwrap();
    let takes = |object: Option<&str>, reason: Option<&str>| {
        FlowMatch {
            object: object.map(str::to_owned),
            reason: reason.map(str::to_owned),
        }
        .takes(&event)
    };
    for object in [
        "other/stranger",
        "shop/backend",
        "shop/backend-1",
        "shop/",
        "other/",
    ] {
        assert!(takes(Some(object), None), "{object}");
    }
    for object in ["shop/backend-2", "sho", "shop", "third/"] {
        assert!(!takes(Some(object), None), "{object}");
    }
    assert!(takes(None, Some("policy-ingress")));
    assert!(!takes(None, Some("policy-egress")));
    assert!(!takes(Some("shop/"), Some("no-endpoint")));
}
