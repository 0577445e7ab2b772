//! What restarts, faults and changes must not disturb, once more with clsact filters where the kernel has tcx too.
//!
//! Bodies are those of the tests by the way that the agent chooses, which is clsact on an older kernel: there these are left out.

use anyhow::Result;

use crate::clsact::CLSACT;
use crate::drift::often;
use crate::{cleanup, drift, late, node_parts, pressure, remains, revocation, two_nodes, upgrade};

#[test]
fn a_link_that_goes_down_and_up_is_served_again() -> Result<()> {
    node_parts::assert_link_is_served_again(CLSACT, 1)
}

/// A filter has no pin: that an index was given out again, nothing tells but that there is no filter.
#[test]
fn a_pod_that_is_made_again_inherits_nothing() -> Result<()> {
    node_parts::assert_made_again_it_inherits_nothing(CLSACT, true)
}

#[test]
fn an_uplink_that_is_replaced_is_served_and_addresses_are_followed() -> Result<()> {
    node_parts::assert_uplink_and_addresses_are_followed(CLSACT)
}

#[test]
fn pins_that_are_removed_come_back_and_no_packet_notices() -> Result<()> {
    drift::assert_pins_come_back(&[CLSACT, &[often().as_str()]].concat())
}

#[test]
fn elements_of_maps_that_are_changed_are_set_back_and_flows_judged_again() -> Result<()> {
    drift::assert_elements_are_set_back(&[CLSACT, &[often().as_str()]].concat())
}

#[test]
fn a_scan_evicts_nobodys_connections_idle_or_busy() -> Result<()> {
    pressure::assert_scan_evicts_nobody(CLSACT)
}

#[test]
fn a_pod_whose_partner_answers_takes_its_share_and_no_more() -> Result<()> {
    pressure::assert_share(CLSACT).map(drop)
}

#[test]
fn what_a_change_takes_away_ends_with_the_next_packet_either_way() -> Result<()> {
    revocation::assert_changes_cut(CLSACT)
}

#[test]
fn an_agent_ends_within_a_second_of_sigterm_and_the_datapath_stays_in_force() -> Result<()> {
    cleanup::assert_ends_at_sigterm(CLSACT, 1)
}

#[test]
fn two_agents_on_one_machine_do_not_interfere() -> Result<()> {
    two_nodes::assert_no_interference(CLSACT)
}

#[test]
fn a_restart_forgets_no_policy_of_a_pod_whose_object_went_before_its_link() -> Result<()> {
    remains::assert_restarts_forget_nothing(CLSACT, 1)
}

#[test]
fn a_flow_to_a_pod_that_was_not_known_is_judged_once_it_is() -> Result<()> {
    late::assert_late_pod_is_judged(CLSACT)
}

#[test]
fn killed_while_flows_move_the_next_start_goes_on() -> Result<()> {
    upgrade::assert_killed_the_next_goes_on(CLSACT)
}
