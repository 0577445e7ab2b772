//! `cargo xtask test mutants`: each mechanism that guards something is removed in turn, and a test must notice.
//!
//! One build has them all (`SLUICE_MUTANTS=1`, see `agent/build.rs`), and `SLUICE_MUTANT=name` chooses when a test runs. Adding one
//! takes `mutant::removed("name")` around the mechanism (in the programs `removed!("name")`) and a row here.
//! The build is in the ordinary target directory, where only what the switches change is built again; with it this is the last tier.

mod flows;
mod kind;
mod running;

use crate::test::tiers::target;
use kind::{fuzz, kernel, lab, packets, root, soak, unit, upgrade};

pub(crate) use running::run;

/// A mechanism that can be removed, and the test that must fail without it.
#[derive(Debug)]
pub(crate) struct Mutant {
    /// The value of `SLUICE_MUTANT`.
    pub(crate) name: &'static str,
    /// What it removes, and in which file.
    pub(crate) removes: &'static str,
    /// `cargo test`'s arguments for the target of the test.
    pub(crate) cargo: &'static [&'static str],
    /// The test's whole name.
    pub(crate) test: &'static str,
    /// Whether the test runs as root.
    pub(crate) root: bool,
}

/// The soak's target.
pub(crate) const SOAK: &[&str] = target!("soak");

/// Every mutant. One that must be caught in two ways has two rows.
pub(crate) fn all() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().chain(flows::MUTANTS)
}

/// Those that are in no file of their own.
const MUTANTS: &[Mutant] = &[
    packets(
        "redirect-without-ingress",
        "agent-ebpf/src/policy.rs: the ingress judgement of what a local pod sends",
        "policy::ingress_is_judged_before_a_redirect",
    ),
    // What shows that the soak finds anything: `cargo xtask soak --break=redirect-without-ingress`.
    soak(
        "redirect-without-ingress",
        "agent-ebpf/src/policy.rs: the ingress judgement of what a local pod sends",
    ),
    // What shows that the fuzz run finds anything.
    fuzz(
        "redirect-without-ingress",
        "agent-ebpf/src/policy.rs: the ingress judgement of what a local pod sends",
    ),
    fuzz(
        "no-epoch",
        "agent-ebpf/src/conntrack.rs: the comparison of a flow's epoch with its pods'",
    ),
    fuzz(
        "untranslated",
        "agent-ebpf/src/from_pod.rs: a flow that was opened before its service was there begins anew",
    ),
    fuzz(
        "no-share",
        "agent-ebpf/src/tables.rs: the bound on what one pod takes of conntrack",
    ),
    fuzz(
        "no-port-delta",
        "agent-ebpf/src/nat.rs: what new ports do to the transport's checksum",
    ),
    fuzz(
        "replies-as-they-are",
        "agent-ebpf/src/nat.rs: the translation of what a service's backend answers",
    ),
    fuzz(
        "fragment-anywhere",
        "agent-ebpf/src/fragment.rs: the offset of the place where a fragment must begin",
    ),
    fuzz(
        "extension-unwalked",
        "agent-ebpf/src/extension.rs: the walk through IPv6 extension headers",
    ),
    fuzz(
        "icmp-checksum",
        "agent-ebpf/src/icmp_error.rs: an ICMP error's own checksum covers what was translated",
    ),
    packets(
        "cluster-ip-at-pod",
        "agent-ebpf/src/service.rs: no flow begins with a ClusterIP where packets leave the stack",
        "hooks::a_cluster_ip_that_comes_round_to_a_pods_link_is_dropped_and_disturbs_nobody",
    ),
    packets(
        "again-and-again",
        "agent-ebpf/src/walk.rs: a packet whose ends are another flow's is looked at once more, and not again and again",
        "hooks::a_packet_whose_ends_are_a_live_flow_of_others_ends_at_once",
    ),
    packets(
        "fragment-anywhere",
        "agent-ebpf/src/fragment.rs: the offset of the place where a fragment must begin",
        "fragments::each_begins_where_the_last_ended_or_is_dropped",
    ),
    packets(
        "fragment-before-verdict",
        "agent-ebpf/src/fragment.rs: a first fragment leaves something to those behind it only once it has passed",
        "fragments::nothing_follows_what_is_denied",
    ),
    packets(
        "extension-unwalked",
        "agent-ebpf/src/extension.rs: the walk through IPv6 extension headers",
        "extensions::what_is_behind_an_extension_header_is_judged_by_its_port",
    ),
    packets(
        "routing-type-0",
        "agent-ebpf/src/extension.rs: routing headers of type 0 leave no pod",
        "extensions::a_routing_header_of_type_0_leaves_no_pod",
    ),
    lab(
        "priority-tag",
        "agent-ebpf/src/packet.rs: what is behind a tag of no VLAN is looked at as if there were none",
        "frames::a_priority_tag_hides_nothing",
    ),
    unit(
        "one-for-all",
        "agent/src/plan/unmoved.rs: a prefix that has no room keeps back only pods whose sets tell it from what is around it",
        "reconcile::tests::room::a_block_that_finds_no_room_is_told_of_its_policy_and_keeps_back_no_other_pod",
    ),
    unit(
        "wide-first",
        "agent/src/plan/steps/policy.rs: prefixes are written before what is around them",
        "plan::tests::nested::narrow_prefixes_come_before_what_is_around_them_and_go_after_it",
    ),
    unit(
        "wordless-last",
        "agent/src/plan/steps/policy.rs: an identity that somebody has loses its group before anybody comes to it",
        "plan::tests::nested::who_comes_to_an_identity_that_loses_its_group_never_meets_that",
    ),
    unit(
        "nobody-waits",
        "agent/src/plan/stage.rs: a pod that gets a set which another one leaves waits for that",
        "plan::tests::handed::a_pod_that_gets_a_set_which_another_one_leaves_waits_for_that",
    ),
    packets(
        "icmp-quote",
        "agent-ebpf/src/icmp_error.rs: what an ICMP error quotes is translated",
        "icmp::a_backends_error_comes_to_the_client_from_the_service",
    ),
    packets(
        "icmp-checksum",
        "agent-ebpf/src/icmp_error.rs: an ICMP error's own checksum covers what was translated",
        "icmp::checksums_stay_right_whatever_the_ports",
    ),
    packets(
        "icmp-epoch",
        "agent-ebpf/src/icmp_error.rs: the flow that an ICMP error is about was judged in the epoch in force",
        "icmp::an_error_waits_for_its_flow_to_be_judged_again",
    ),
    packets(
        "icmp-other-half",
        "agent-ebpf/src/icmp_error.rs: the judgement of a flow stands in either of its entries",
        "icmp::an_error_waits_for_its_flow_to_be_judged_again",
    ),
    packets(
        "icmp-anybodys",
        "agent-ebpf/src/icmp_error.rs: a pod's ICMP errors are about what came to that pod",
        "icmp::a_pod_speaks_of_what_came_to_it_only",
    ),
    packets(
        "icmp-lies",
        "agent-ebpf/src/quote.rs: an ICMP error goes to the source of what it quotes",
        "icmp::a_quote_that_lies_is_of_no_flow",
    ),
    packets(
        "icmp-padding",
        "agent-ebpf/src/quote.rs: what stands behind an ICMP error's end is no part of its quote",
        "icmp::padding_behind_the_error_is_no_part_of_its_quote",
    ),
    packets(
        "sctp-checksum",
        "agent-ebpf/src/sctp.rs: new ports change SCTP's checksum",
        "sctp::checksums_stay_right_whatever_the_ports_and_the_length",
    ),
    packets(
        "sctp-offloaded",
        "agent-ebpf/src/sctp.rs: a checksum that is left to the device stays zero",
        "sctp::a_checksum_that_is_left_to_the_device_stays_so",
    ),
    packets(
        "sctp-fragment",
        "agent-ebpf/src/sctp.rs: a first fragment gets no other ports, since its packet's checksum cannot be known",
        "sctp::a_fragment_does_not_tell_what_its_packets_checksum_becomes",
    ),
    packets(
        "sctp-tag",
        "agent-ebpf/src/sctp.rs: what ends an association bears its verification tag",
        "sctp::what_ends_an_association_bears_its_tag",
    ),
    packets(
        "sctp-init",
        "agent-ebpf/src/packet.rs: an INIT on an association that is over begins another",
        "sctp::an_init_begins_anew_where_an_association_ended_and_nowhere_else",
    ),
    packets(
        "reject-anybody",
        "agent-ebpf/src/reject.rs: an RST, a group's frame, another station's and nobody's packet are not answered",
        "reject::what_may_not_be_answered_is_dropped",
    ),
    packets(
        "reject-outside",
        "agent-ebpf/src/from_uplink.rs: who asks for a ClusterIP from outside is answered",
        "reject::a_cluster_ip_is_refused_to_the_outside",
    ),
    packets(
        "no-epoch",
        "agent-ebpf/src/conntrack.rs: the comparison of a flow's epoch with its pods'",
        "policy::a_flow_is_judged_again_when_something_was_taken_from_the_responder",
    ),
    lab(
        "no-epoch",
        "agent-ebpf/src/conntrack.rs: the comparison of a flow's epoch with its pods'",
        "revocation::what_a_change_takes_away_ends_with_the_next_packet_either_way",
    ),
    soak(
        "no-epoch",
        "agent-ebpf/src/conntrack.rs: the comparison of a flow's epoch with its pods'",
    ),
    packets(
        "no-share",
        "agent-ebpf/src/tables.rs: the bound on what one pod takes of conntrack",
        "shares::a_pod_at_its_share_goes_on_among_the_unanswered",
    ),
    packets(
        "untold-timeouts",
        "agent/src/datapath/load.rs: how long flows may be idle, which the programs are told when they are loaded",
        "timeouts::the_programs_obey_the_timeouts_that_they_are_told",
    ),
    kernel(
        "gc-without-recheck",
        "agent/src/datapath/conntrack.rs: the second look at a flow, and at what was deleted of it, when flows are collected",
        "flows::a_flow_that_comes_back_while_it_is_collected_stays",
    ),
    packets(
        "one-table",
        "agent-ebpf/src/flow.rs: the table of flows that nobody answered, beside that of the others",
        "direct::the_first_packet_of_a_flow_goes_straight_into_the_other_pod",
    ),
    unit(
        "no-evictions",
        "agent/src/datapath/evictions.rs: what is missing in a table that was full counts as evicted",
        "datapath::evictions::tests::what_is_missing_was_evicted",
    ),
    unit(
        "one-size",
        "agent/src/datapath/capacity.rs: the machine's memory in the size of the tables of flows",
        "datapath::capacity::tests::capacity_grows_with_memory_between_its_bounds",
    ),
    packets(
        "untranslated",
        "agent-ebpf/src/from_pod.rs: a flow that was opened before its service was there begins anew",
        "services::a_flow_to_an_address_that_becomes_a_services_goes_to_its_backend",
    ),
    unit(
        "no-grace",
        "agent/src/plan/apply.rs, agent/src/datapath/grace.rs: the grace period before anything is collected and used again",
        "plan::tests::services::a_slow_reader_never_meets_a_backend_of_nobody_or_of_another_service",
    ),
    unit(
        "turning-pool",
        "agent/src/plan/steps/services.rs: a service's pool that stays when the service turns to its local endpoints, or back",
        "plan::tests::services::every_write_leaves_the_old_answer_or_the_new",
    ),
    unit(
        "pool-twice",
        "agent/src/compile/services.rs: what is compiled again and is the same stays the array that the plan holds",
        "compile::services::tests::what_is_compiled_again_and_is_the_same_is_not_held_twice",
    ),
    unit(
        "live-at-restart",
        "agent/src/plan/restore.rs: a service's pool that is found again by backends that no new flow chooses",
        "plan::tests::moved::it_keeps_those_that_no_new_flow_chooses_too",
    ),
    unit(
        "port-at-restart",
        "agent/src/plan/restore.rs: a service's pool that is found again at a start although the service's port is another",
        "plan::tests::moved::a_service_that_changes_its_port_between_two_agents_keeps_its_backends",
    ),
    unit(
        "no-epoch-raise",
        "agent/src/plan/steps.rs: epochs that rise where something was taken away",
        "plan::tests::policy::every_write_and_every_slow_reader_is_told_the_old_or_the_new",
    ),
    unit(
        "epoch-before-write",
        "agent/src/plan/steps.rs: epochs that rise after the last write and not before the first",
        "plan::tests::policy::every_write_and_every_slow_reader_is_told_the_old_or_the_new",
    ),
    unit(
        "every-epoch",
        "agent/src/plan/epochs.rs: whose epochs a change raises",
        "plan::tests::concerned::a_policy_that_changes_concerns_the_pods_that_it_selects_and_nobody_else",
    ),
    root(
        "every-epoch",
        "agent/src/plan/epochs.rs: whose epochs a change raises",
        target!("load"),
        "changes_of_each_kind_concern_whom_they_take_something_from_and_nobody_else",
    ),
    unit(
        "keep-unpointed",
        "agent/src/plan/restore.rs: what a crash left in the maps and nobody points to is collected",
        "plan::tests::crash::every_prefix_of_a_batch_is_a_whole_state_from_which_a_start_converges",
    ),
    unit(
        "no-remains",
        "agent/src/compile/remains.rs: what the maps hold of a pod whose object went before its link, at a start",
        "compile::tests::remains::a_restart_forgets_nothing_of_a_pod_whose_link_is_still_there",
    ),
    upgrade(
        "upgrade-without-copy",
        "agent/src/datapath/migrate/moving.rs: the copy of flows from the tables of another layout",
    ),
    upgrade(
        "upgrade-without-sockets",
        "agent/src/datapath/migrate/moving.rs: the copy of whom the host's sockets asked, from the table of another layout",
    ),
    upgrade(
        "no-handover",
        "agent-ebpf/src/gate.rs: packets of flows that are not copied yet go to the programs of the other layout",
    ),
    upgrade(
        "flip-before-fill",
        "agent/src/datapath/load.rs: the new layout's maps are filled before its programs are in force",
    ),
    unit(
        "no-stage",
        "agent/src/plan/stage.rs: the stage of peers that become somebody else while pods turn to other policies",
        "plan::tests::crash::every_prefix_of_a_batch_is_a_whole_state_from_which_a_start_converges",
    ),
    unit(
        "nobody-enters",
        "agent/src/plan/steps/policy.rs: who an address is, which is written before it leads to its pod",
        "plan::tests::policy::a_write_that_fails_keeps_what_is_in_force_and_is_made_good",
    ),
    unit(
        "reuse-while-pointed",
        "agent/src/compile/binding.rs: the rest of numbers that something may still point to because a write failed",
        "plan::tests::faults::changes_under_a_fault_that_lasts_are_never_torn_and_made_good_when_it_ends",
    ),
    unit(
        "links-first",
        "agent/src/reconcile/enter.rs: a new link's element, which waits until both its programs are attached",
        "reconcile::tests::a_link_leads_to_its_pod_when_both_its_programs_are_attached",
    ),
    unit(
        "prune-before-sync",
        "agent/src/reconcile/intake.rs: the wait for every kind before the first apply",
        "reconcile::tests::nothing_is_removed_before_all_is_told_and_a_failed_write_is_tried_again",
    ),
    unit(
        "no-retry",
        "agent/src/reconcile.rs: what found no room, or failed, is tried again",
        "reconcile::tests::what_finds_no_room_is_named_with_its_limit_and_applied_when_there_is_some",
    ),
    unit(
        "relist-without-deletes",
        "agent/src/source/kube/known.rs: the deletions that a relist tells",
        "source::kube::follow::tests::outage::objects_that_changed_while_the_history_was_lost_are_one_difference",
    ),
    unit(
        "silent-watch",
        "agent/src/source/kube/follow.rs: the bound for a watch that says nothing",
        "source::kube::follow::tests::outage::a_silent_watch_is_opened_anew_from_its_place",
    ),
    unit(
        "stale-since-now",
        "agent/src/source/kube/follow.rs: the first failure's time, which later ones keep",
        "source::kube::follow::tests::outage::a_server_that_is_gone_for_minutes_is_asked_ever_less_and_then_watched_on",
    ),
    unit(
        "backoff-all-alike",
        "agent/src/source/kube/follow.rs: waits that grow, and are different for each agent",
        "source::kube::follow::tests::outage::agents_that_lost_the_server_together_do_not_come_back_together",
    ),
    unit(
        "backoff-for-ever",
        "agent/src/source/kube/follow.rs: short waits again where the server was followed well",
        "source::kube::follow::tests::outage::connections_that_break_now_and_then_are_opened_again_soon",
    ),
    unit(
        "deaf-to-retry-after",
        "agent/src/source/kube/follow.rs: the time that a server asks for",
        "source::kube::follow::tests::outage::a_server_that_asks_for_time_is_given_it",
    ),
    unit(
        "lost-but-ready",
        "agent/src/app/observed.rs: readiness that ends while a source is lost",
        "app::observed::tests::a_source_that_is_lost_ends_readiness_until_it_is_back",
    ),
    unit(
        "credentials-once",
        "agent/src/source/kube/access.rs: reading refused credentials again",
        "source::kube::follow::tests::outage::refused_credentials_are_read_again",
    ),
    unit(
        "vanished-at-once",
        "agent/src/source/manifests/worker.rs: waiting for what replaces a file that vanished",
        "source::manifests::tests::outage::removed_file_by_file_it_is_missing_and_not_emptied",
    ),
    unit(
        "empty-file-counts",
        "agent/src/source/manifests/files.rs: an emptied file as a broken one",
        "source::manifests::tests::outage::an_emptied_file_is_a_broken_one",
    ),
    lab(
        "either-end",
        "agent-ebpf/src/role.rs: which end opened a connection that nobody saw, told by the pod's sockets",
        "late::who_opened_a_connection_that_nobody_saw_is_told_by_the_pods_sockets",
    ),
    lab(
        "full-disk-counts",
        "agent/src/source/manifests/worker.rs: what was written to a full file system as broken",
        "directory::what_is_written_to_a_full_disk_changes_nothing",
    ),
    lab(
        "unmounted-is-empty",
        "agent/src/source/manifests/worker.rs: another file system without manifests as a failure",
        "directory::a_file_system_that_is_unmounted_is_missing_and_not_empty",
    ),
    lab(
        "pass-means-ok",
        "agent-ebpf/src/deliver.rs: packets that pass go on to the programs of others",
        "node_parts::by_tcx_a_program_of_somebody_else_behind_ours_still_runs",
    ),
    lab(
        "pass-means-ok",
        "agent-ebpf/src/deliver.rs: packets that pass go on to the programs of others",
        "node_parts::by_clsact_a_program_of_somebody_else_behind_ours_still_runs",
    ),
    lab(
        "no-drift-check",
        "agent/src/reconcile/drift.rs: the look whether what was made is still there",
        "drift::links_that_are_detached_come_back",
    ),
    lab(
        "no-rejudge",
        "agent/src/reconcile/drift.rs: flows judged while the maps were wrong are judged again",
        "drift::elements_of_maps_that_are_changed_are_set_back_and_flows_judged_again",
    ),
    lab(
        "cleanup-leaves-qdisc",
        "agent/src/datapath/attach/clsact.rs: the qdisc that goes with its last filter",
        "cleanup::cleanup_removes_filters_and_the_qdiscs_that_sluice_made",
    ),
    lab(
        "missing-is-failed",
        "agent/src/datapath/cleanup.rs: what is missing on a half-broken node is no failure",
        "cleanup::by_tcx_cleanup_works_on_a_node_that_is_half_broken",
    ),
    lab(
        "deaf-to-sigterm",
        "agent/src/app.rs: SIGTERM",
        "restart::an_agent_that_is_told_to_end_ends_and_leaves_its_work",
    ),
    lab(
        "unpinned-links",
        "agent/src/datapath/attach/tcx.rs: the pins by which links outlive the agent",
        "restart::an_agent_that_is_told_to_end_ends_and_leaves_its_work",
    ),
    lab(
        "any-netns",
        "agent-ebpf/src/socket.rs: the network namespace of the processes that an agent serves",
        "one_cgroup::agents_with_one_cgroup_serve_each_the_processes_of_its_own_node",
    ),
];

/// Asks `agent/build.rs` for both halves with their switches.
pub(crate) const BUILD: (&str, &str) = ("SLUICE_MUTANTS", "1");
/// Says which mechanism a process of such a build runs without; empty for none.
pub(crate) const CHOICE: &str = "SLUICE_MUTANT";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::all;
    use crate::workspace;

    /// What follows `opening` up to the closing quote, at each place in `text`; a line may break before the quote.
    fn names<'a>(text: &'a str, opening: &str) -> Vec<&'a str> {
        text.split(opening)
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
            .collect()
    }

    #[test]
    fn every_switch_has_a_test_and_every_test_a_switch() {
        let mut switches = BTreeSet::new();
        for file in workspace::files().unwrap() {
            let name = file.to_string_lossy();
            let ours = ["agent/src/", "agent-ebpf/src/", "agent-common/src/"];
            if !ours.iter().any(|directory| name.starts_with(directory)) {
                continue;
            }
            let text = std::fs::read_to_string(workspace::root().join(&file)).unwrap();
            let code: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            let text = code.join("\n");
            for opening in ["removed(", "removed!("] {
                switches.extend(names(&text, opening).into_iter().map(str::to_owned));
            }
        }
        let tested: BTreeSet<String> = all().map(|m| m.name.to_owned()).collect();
        assert_eq!(
            switches, tested,
            "switches in the code, and the table's rows"
        );
    }

    #[test]
    fn rows_name_files_that_have_the_switch() {
        for mutant in all() {
            let (files, _) = mutant.removes.split_once(": ").unwrap();
            for file in files.split(", ") {
                let text = std::fs::read_to_string(workspace::root().join(file)).unwrap();
                assert!(
                    text.contains(&format!("\"{}\"", mutant.name)),
                    "{file}: {}",
                    mutant.name
                );
            }
        }
    }
}
