//! Every reason and count that a single packet can reach has a row that reaches it.

use agent_common::{Count, Reason, hook};
use tests::packet::row::{Row, coverage};
use tests::packet::unreached::{COUNTS, REASONS};

/// The hooks at which a packet may meet each of the reasons.
const AT_EACH_HOOK: &[(u32, &[Reason])] = &[
    (
        hook::FROM_POD,
        &[
            Reason::PolicyEgress,
            Reason::PolicyIngress,
            Reason::SourceSpoofed,
            Reason::NeighbourSpoofed,
            Reason::Midstream,
            Reason::Malformed,
            Reason::Fragment,
            Reason::IcmpError,
            Reason::ExtensionHeader,
            Reason::Vlan,
            Reason::Ethertype,
            Reason::UnknownPod,
            Reason::NoEndpoint,
            Reason::NoLocalEndpoint,
            Reason::NoServicePort,
            Reason::BackendGone,
            Reason::PortClash,
            Reason::RewriteFailed,
            Reason::DestinationMartian,
        ],
    ),
    (
        hook::TO_POD,
        &[
            Reason::PolicyEgress,
            Reason::PolicyIngress,
            Reason::Midstream,
            Reason::SourceMartian,
            Reason::ClusterIpFromOutside,
            Reason::PortClash,
            Reason::Malformed,
            Reason::Fragment,
            Reason::IcmpError,
            Reason::ExtensionHeader,
            Reason::Vlan,
            Reason::Ethertype,
            Reason::UnknownPod,
            Reason::RewriteFailed,
        ],
    ),
    (
        hook::FROM_UPLINK,
        &[
            Reason::SourceMartian,
            Reason::ClusterIpFromOutside,
            Reason::DestinationMartian,
            Reason::Vlan,
        ],
    ),
];

fn rows() -> impl Iterator<Item = &'static &'static Row> {
    [
        super::direct::ROWS,
        super::extensions::ROWS,
        super::fragments::ROWS,
        super::hairpin::ROWS,
        super::halves::ROWS,
        super::hooks::ROWS,
        super::icmp::ROWS,
        super::masquerade::ROWS,
        super::midstream::ROWS,
        super::parsing::ROWS,
        super::policy::ROWS,
        super::protocols::ROWS,
        super::reject::ROWS,
        super::reuse::ROWS,
        super::sctp::ROWS,
        super::services::ROWS,
        super::shares::ROWS,
        super::sources::ROWS,
        super::unknown::ROWS,
    ]
    .into_iter()
    .flatten()
}

#[test]
fn every_reason_and_count_has_a_row() {
    let failed: Vec<_> = rows()
        .filter_map(|row| row.result().as_ref().err())
        .collect();
    assert!(
        failed.is_empty(),
        "rows that fail reach nothing: {failed:#?}"
    );
    let seen = coverage();
    for reason in Reason::ALL {
        let reached = seen.reasons.iter().any(|(_, r)| r == reason);
        let excused = REASONS.iter().find(|(r, _)| r == reason);
        match excused {
            None => assert!(reached, "no row is dropped for {}", reason.name()),
            Some((_, why)) => assert!(!reached, "{} is reached, although: {why:?}", reason.name()),
        }
    }
    for count in Count::ALL {
        let reached = seen.counts.contains(count);
        let excused = COUNTS.iter().find(|(c, _)| c == count);
        match excused {
            None => assert!(reached, "no row counts {}", count.name()),
            Some((_, why)) => assert!(!reached, "{} is reached, although: {why:?}", count.name()),
        }
    }
    for (hook, reasons) in AT_EACH_HOOK {
        for reason in *reasons {
            assert!(
                seen.reasons.contains(&(*hook, *reason)),
                "no row is dropped for {} at {}",
                reason.name(),
                hook::name(*hook)
            );
        }
    }
}
