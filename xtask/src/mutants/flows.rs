//! What guards single packets of single flows: where they may come from, what they may be, and which flow they are of.

use super::{Mutant, packets};

/// See [`super::all`].
pub(super) const MUTANTS: &[Mutant] = &[
    packets(
        "clock-moves",
        "agent-ebpf/src/report.rs: the clock is asked again with each interrupt of the timer",
        "direct::the_programs_clock_goes_on_between_packets",
    ),
    packets(
        "any-source",
        "agent-ebpf/src/from_pod.rs: a pod sends from its own addresses only",
        "sources::a_pod_sends_from_no_address_but_its_own",
    ),
    packets(
        "router-as-anybody",
        "agent-ebpf/src/from_pod.rs: a pod that sends for others does so for nobody of this node",
        "sources::a_router_ends_no_flow_of_another",
    ),
    packets(
        "anybody-routes",
        "agent-ebpf/src/from_pod.rs: only a router sends advertisements and redirects",
        "sources::only_a_router_speaks_as_one",
    ),
    packets(
        "uplink-any-source",
        "agent-ebpf/src/from_uplink.rs: sources that cannot be outside",
        "sources::the_uplink_brings_no_source_that_cannot_be",
    ),
    packets(
        "loopback-reached",
        "agent-ebpf/src/from_pod.rs: nothing reaches a loopback address by a link",
        "sources::nobody_reaches_a_loopback_address_by_a_link",
    ),
    packets(
        "masquerade-lost",
        "agent-ebpf/src/to_pod.rs: a service's answer that the stack has taken its masquerade from is translated back",
        "masquerade::an_answer_that_the_stack_gives_back_comes_from_the_service",
    ),
    packets(
        "hosts-flow-for-all",
        "agent-ebpf/src/to_pod.rs: the host's own flow, which no policy judges, is nobody else's",
        "hooks::nobody_else_may_use_the_hosts_own_flow",
    ),
    packets(
        "echo-by-id",
        "agent-ebpf/src/policy.rs: an echo is judged by its protocol, not by its id as if that were a port",
        "protocols::an_echos_id_is_no_port",
    ),
    packets(
        "closed-for-good",
        "agent-ebpf/src/conntrack.rs: a SYN on a connection that is over begins a new one",
        "reuse::a_port_used_again_within_time_wait_gets_a_backend_of_its_own",
    ),
    packets(
        "clash-unseen",
        "agent-ebpf/src/service.rs: a new flow's answers look like no other's",
        "reuse::datagrams_to_two_services_with_one_backend_are_two_flows",
    ),
    packets(
        "no-hairpin",
        "agent-ebpf/src/service.rs: a pod that reaches itself sees the service as its client",
        "hairpin::a_pod_reaches_itself_whatever_policy_says",
    ),
    packets(
        "one-key-for-both",
        "agent-ebpf/src/service.rs: a pod's flow to itself from the port that it serves has two entries",
        "hairpin::from_the_port_that_it_serves_it_gets_another_one",
    ),
    packets(
        "successor-opens",
        "agent-ebpf/src/from_pod.rs: an answer stays one when another pod took the place of the one that was asked",
        "unknown::a_pod_that_took_anothers_place_answers_its_flows_and_opens_none_by_that",
    ),
    packets(
        "self-anywhere",
        "agent-ebpf/src/conntrack.rs: a pod's flow to itself is looked at again when the pod's slot is another",
        "unknown::a_pod_that_comes_back_in_another_slot_still_reaches_itself_through_its_service",
    ),
    packets(
        "address-only",
        "agent-ebpf/src/policy.rs: the end at a pod's link is judged as that pod, whoever has the address",
        "unknown::the_policy_of_an_unknown_address_is_its_links",
    ),
    packets(
        "any-slot-here",
        "agent-ebpf/src/conntrack.rs: a flow that was judged for nobody at the pod's end is judged there again",
        "unknown::an_entry_that_knows_no_slot_at_the_pods_end_is_judged_with_the_next_packet",
    ),
    packets(
        "service-opens",
        "agent-ebpf/src/to_pod.rs: a service's answer whose flow has lost its opener's half opens nothing in its stead",
        "halves::a_service_opens_nothing",
    ),
    packets(
        "half-of-a-flow",
        "agent-ebpf/src/from_pod.rs: an opener's packets begin anew where nothing would know their answers",
        "halves::the_openers_half_alone_begins_anew",
    ),
    packets(
        "opening-answers",
        "agent-ebpf/src/to_pod.rs: what begins a connection is no answer, but judged as what it opens",
        "masquerade::what_begins_a_connection_answers_nothing",
    ),
    packets(
        "reset-options",
        "agent-ebpf/src/reject.rs: what stands between the headers is taken out of a segment before it becomes its reset",
        "reject::a_segment_with_ip_options_is_reset",
    ),
];
