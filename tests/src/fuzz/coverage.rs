//! What a run reached: verdicts, reasons and deeds at each hook, and the other counts. Each that can be reached must be, often enough to mean
//! something; each that cannot stands here with the reason why, and must not be.

use std::collections::BTreeMap;
use std::fmt;

use agent_common::{Count, Reason, hook};

use super::model::{Deed, Verdict};

/// Times that each verdict, reason and count must be met.
pub const LEAST: u64 = 100;

const FROM_POD: u32 = hook::FROM_POD;
const TO_POD: u32 = hook::TO_POD;
const FROM_UPLINK: u32 = hook::FROM_UPLINK;
/// The hooks that packets of this tier go through; the sockets' hook takes no packet, and nothing is attached to the uplink's egress.
const HOOKS: [u32; 3] = [FROM_POD, TO_POD, FROM_UPLINK];

const VERDICTS: [Verdict; 3] = [Verdict::Next, Verdict::Drop, Verdict::Redirect];

/// Verdicts that no packet can get, and why.
const NO_VERDICT: &[(u32, Verdict, &str)] = &[(
    TO_POD,
    Verdict::Redirect,
    "what reaches a pod through the stack goes on there",
)];

/// Reasons that no packet can get at these hooks, and why.
const NO_REASON: &[(&[u32], &[Reason], &str)] = &[
    (
        &HOOKS,
        &[Reason::ConntrackFull],
        "an LRU map evicts instead of refusing, unless the kernel is out of memory",
    ),
    (
        &HOOKS,
        &[Reason::TtlExceeded],
        "no path of this version decides it: the stack answers",
    ),
    (
        &HOOKS,
        &[Reason::SourceRange],
        "loadBalancerSourceRanges come with external addresses",
    ),
    (
        &HOOKS,
        &[Reason::RewriteFailed],
        "a packet whose headers are whole is rewritten, and no slot of a program array is empty; rows show both",
    ),
    (
        &[FROM_POD],
        &[Reason::SourceMartian, Reason::ClusterIpFromOutside],
        "a pod's wrong source is spoofed; its ClusterIPs are translated or refused",
    ),
    (
        &[TO_POD],
        &[
            Reason::SourceSpoofed,
            Reason::NeighbourSpoofed,
            Reason::BackendGone,
            Reason::DestinationMartian,
        ],
        "sources, loopback and backends are checked where packets enter the node",
    ),
    (
        &[TO_POD],
        &[
            Reason::NoEndpoint,
            Reason::NoLocalEndpoint,
            Reason::NoServicePort,
            Reason::ServiceProtocol,
        ],
        "nothing is translated where a packet leaves the stack: a ClusterIP there is dropped as one that came round the hooks",
    ),
    (
        &[FROM_UPLINK],
        &[
            Reason::PolicyEgress,
            Reason::PolicyIngress,
            Reason::SourceSpoofed,
            Reason::Malformed,
            Reason::Fragment,
            Reason::ExtensionHeader,
            Reason::IcmpError,
            Reason::Ethertype,
            Reason::NoEndpoint,
            Reason::NoLocalEndpoint,
            Reason::NoServicePort,
            Reason::BackendGone,
            Reason::Midstream,
            Reason::PortClash,
            Reason::UnknownPod,
            Reason::ServiceProtocol,
            Reason::NeighbourSpoofed,
        ],
        "what comes from outside is judged in to_pod, where every packet to a pod passes",
    ),
];

/// Reasons that packets get at these hooks only where somebody sends what the stack would not: they may be met, and need not be.
const RARE: &[(&[u32], &[Reason], &str)] = &[(
    &[TO_POD],
    &[Reason::PortClash],
    "the stack routes no packet past its translation",
)];

/// Counts that no packet can raise, and why.
const NO_COUNT: &[(Count, &str)] = &[
    (
        Count::SocketTranslated,
        "BPF_PROG_TEST_RUN does not run socket programs: a lab case",
    ),
    (
        Count::InsertFailed,
        "an LRU map evicts instead of refusing, unless the kernel is out of memory",
    ),
    (Count::EventLost, "the ring is read behind every packet"),
];

/// How often each thing was met.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    verdicts: BTreeMap<(u32, Verdict), u64>,
    reasons: BTreeMap<(u32, Reason), u64>,
    counts: BTreeMap<Count, u64>,
    deeds: BTreeMap<(u32, Deed), u64>,
}

impl Coverage {
    /// A packet got a verdict.
    pub fn saw(&mut self, at: u32, verdict: Verdict) {
        *self.verdicts.entry((at, verdict)).or_default() += 1;
    }

    /// Packets were dropped or refused for a reason.
    pub fn reached(&mut self, at: u32, reason: Reason, times: u64) {
        if times > 0 {
            *self.reasons.entry((at, reason)).or_default() += times;
        }
    }

    /// Something else was counted.
    pub fn counted(&mut self, count: Count, times: u64) {
        if times > 0 {
            *self.counts.entry(count).or_default() += times;
        }
    }

    /// Something was done at a hook that no counter tells.
    pub fn done(&mut self, at: u32, deed: Deed, times: u64) {
        *self.deeds.entry((at, deed)).or_default() += times;
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (what, times) in &other.verdicts {
            *self.verdicts.entry(*what).or_default() += times;
        }
        for ((at, reason), times) in &other.reasons {
            self.reached(*at, *reason, *times);
        }
        for (count, times) in &other.counts {
            self.counted(*count, *times);
        }
        for ((at, deed), times) in &other.deeds {
            self.done(*at, *deed, *times);
        }
    }

    /// Packets that went through.
    pub fn packets(&self) -> u64 {
        self.verdicts.values().sum()
    }

    /// What was met too seldom, and what although it cannot be.
    pub fn gaps(&self, least: u64) -> Vec<String> {
        let mut gaps = Vec::new();
        for at in HOOKS {
            for verdict in VERDICTS {
                let why = NO_VERDICT
                    .iter()
                    .find(|(h, v, _)| (*h, *v) == (at, verdict))
                    .map(|(.., why)| *why);
                let met = self.verdicts.get(&(at, verdict)).copied().unwrap_or(0);
                judge(
                    &mut gaps,
                    &format!("{verdict:?} at {}", hook::name(at)),
                    met,
                    why,
                    least,
                );
            }
            for reason in Reason::ALL {
                let listed = |list: &[(&[u32], &[Reason], &'static str)]| {
                    list.iter()
                        .find(|(hooks, reasons, _)| hooks.contains(&at) && reasons.contains(reason))
                        .map(|(.., why)| *why)
                };
                if listed(RARE).is_some() {
                    continue;
                }
                let met = self.reasons.get(&(at, *reason)).copied().unwrap_or(0);
                let what = format!("{} at {}", reason.name(), hook::name(at));
                judge(&mut gaps, &what, met, listed(NO_REASON), least);
            }
            for deed in Deed::ALL {
                let met = self.deeds.get(&(at, deed)).copied().unwrap_or(0);
                let what = format!("{deed:?} at {}", hook::name(at));
                judge(&mut gaps, &what, met, None, least);
            }
        }
        for count in Count::ALL {
            let why = NO_COUNT
                .iter()
                .find(|(c, _)| c == count)
                .map(|(_, why)| *why);
            let met = self.counts.get(count).copied().unwrap_or(0);
            judge(&mut gaps, count.name(), met, why, least);
        }
        gaps
    }
}

fn judge(gaps: &mut Vec<String>, what: &str, met: u64, excused: Option<&str>, least: u64) {
    match excused {
        Some(why) if met > 0 => gaps.push(format!("{what}: met {met} times, although {why}")),
        None if met < least => gaps.push(format!("{what}: met {met} times, {least} at least")),
        _ => {}
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for at in HOOKS {
            write!(f, "{}:", hook::name(at))?;
            for verdict in VERDICTS {
                let met = self.verdicts.get(&(at, verdict)).copied().unwrap_or(0);
                write!(f, " {verdict:?} {met}")?;
            }
            for ((of, reason), times) in &self.reasons {
                if *of == at {
                    write!(f, ", {} {times}", reason.name())?;
                }
            }
            for ((of, deed), times) in &self.deeds {
                if *of == at {
                    write!(f, ", {deed:?} {times}")?;
                }
            }
            writeln!(f)?;
        }
        write!(f, "counted:")?;
        for (count, times) in &self.counts {
            write!(f, " {} {times}", count.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_seldom_is_a_gap_and_so_is_what_cannot_be() {
        let mut coverage = Coverage::default();
        assert!(!coverage.gaps(1).is_empty());
        assert!(coverage.gaps(0).is_empty(), "{:?}", coverage.gaps(0));
        coverage.saw(TO_POD, Verdict::Redirect);
        coverage.reached(FROM_POD, Reason::TtlExceeded, 1);
        coverage.counted(Count::InsertFailed, 1);
        assert_eq!(coverage.gaps(0).len(), 3);
    }
}
