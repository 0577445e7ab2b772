//! Dice for a sequence: a small cluster, then packets with changes of the cluster between them.

use std::net::{IpAddr, SocketAddr};

use agent_common::{action, backend_state};

use super::machine::FAMILIES;
use super::model::policy::{Ports, Rule};
use super::step::Step;
use super::traffic::Traffic;
use super::wire;
use crate::dice::Dice;
use crate::packet::address::{Family, at};

/// Packets of a sequence: few enough to be made shorter, enough that emptying the maps costs little beside them.
const LENGTH: std::ops::Range<usize> = 300..500;
/// Sets of rules, and groups of peers.
const SETS: [u32; 3] = [11, 12, 13];
const GROUPS: [u32; 4] = [0, 5, 6, 7];
/// Identities of prefixes begin here, below those of pods.
const PREFIXES: u32 = 50;
/// Ports of services, and of their backends.
pub(super) const PORTS: [u16; 4] = [53, 80, 443, 8080];
/// A protocol that has no ports (GRE).
const PORTLESS: u8 = 47;
/// Ages of flows, in ticks: nothing is over, echoes and unanswered datagrams are, datagrams and unanswered connections, all but established
/// connections, those too. Sums of a few of them come to no timeout.
const AGES: [u32; 5] = [17, 53, 199, 1_999, 99_991];

/// What a sequence's cluster has.
#[derive(Clone, Debug, Default)]
pub(super) struct Cast {
    /// Local pods.
    pub(super) pods: Vec<u8>,
    /// Frontends of services with their protocols, and how many backends each has.
    pub(super) services: Vec<(SocketAddr, u8, usize)>,
    /// A ClusterIP without a service, in each family.
    pub(super) bare: Vec<IpAddr>,
}

/// A sequence.
pub fn make(dice: &mut Dice) -> Vec<Step> {
    let mut steps = Vec::new();
    let cast = cluster(dice, &mut steps);
    let mut traffic = Traffic::new(cast);
    let length = LENGTH.start + dice.below(LENGTH.len());
    // Clashes that leave no port are dear to make, and limits that are spent hide what is told.
    let (crowd, spend) = (dice.chance(3), dice.chance(35));
    let spent_at = length - length / 6;
    for at in 0..length {
        if dice.chance(5) {
            let change = change(dice, &traffic.cast);
            steps.push(change);
        }
        if dice.chance(1) {
            steps.push(befall(dice, &traffic));
        }
        if dice.chance(1) {
            steps.extend(traffic.outage(dice));
        }
        if dice.chance(1) {
            steps.extend(traffic.borrowed(dice));
        }
        if dice.chance(3) {
            steps.extend(traffic.datagram(dice));
        }
        if dice.chance(1) {
            steps.extend(traffic.unreached(dice));
        }
        if crowd && at == length / 2 {
            steps.extend(traffic.crowd(dice));
        }
        if spend && at >= spent_at && at % 5 == 0 {
            steps.push(Step::Spend);
        }
        steps.push(traffic.packet(dice));
    }
    steps
}

fn cluster(dice: &mut Dice, steps: &mut Vec<Step>) -> Cast {
    let mut cast = Cast::default();
    for n in 1..=u8::try_from(3 + dice.below(4)).unwrap_or(6) {
        cast.pods.push(n);
        steps.push(Step::Pod(n));
    }
    for family in FAMILIES {
        steps.push(Step::Remote(family, 1));
        steps.push(Step::Remote(family, 2));
        let bare = family.cluster_ip(99);
        cast.bare.push(bare);
        steps.push(Step::ClusterIp(bare));
        for number in 1..=u8::try_from(2 + dice.below(3)).unwrap_or(2) {
            service(dice, &mut cast, steps, family, number);
        }
    }
    for _ in 0..dice.below(10) {
        steps.push(isolation(dice, &cast));
    }
    for _ in 0..3 + dice.below(10) {
        steps.push(Step::Allow(*dice.pick(&SETS), rule(dice)));
    }
    for _ in 0..dice.below(8) {
        steps.push(grouping(dice, &cast));
    }
    for _ in 0..dice.below(3) {
        steps.push(prefix(dice));
    }
    if dice.chance(30) {
        steps.push(Step::Features(dice.chance(50), dice.chance(50)));
    }
    for n in cast.pods.clone() {
        if dice.chance(15) {
            steps.push(Step::Flags(n, dice.chance(60), dice.chance(30)));
        }
        if dice.chance(15) {
            steps.push(Step::Share(
                n,
                u32::try_from(1 + dice.below(4)).unwrap_or(1),
            ));
        }
        if dice.chance(3) {
            steps.push(Step::Unknown(n));
        }
    }
    cast
}

fn service(dice: &mut Dice, cast: &mut Cast, steps: &mut Vec<Step>, family: Family, number: u8) {
    // No agent writes a service of a protocol without ports.
    let protocol = *dice.pick(&[
        wire::TCP,
        wire::TCP,
        wire::UDP,
        wire::UDP,
        wire::SCTP,
        PORTLESS,
    ]);
    let port = if protocol == PORTLESS {
        0
    } else {
        *dice.pick(&PORTS)
    };
    let frontend = at(family.cluster_ip(number), port);
    if cast
        .services
        .iter()
        .any(|(f, p, _)| (*f, *p) == (frontend, protocol))
    {
        return;
    }
    let mut backends = Vec::new();
    for _ in 0..dice.below(4) {
        let address = match dice.below(10) {
            0 => family.remote_pod(1),
            1 => family.host(),
            2 => family.outside(9),
            _ => family.pod(*dice.pick(&cast.pods)),
        };
        let backend = at(address, *dice.pick(&PORTS[..2]));
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    cast.services.push((frontend, protocol, backends.len()));
    steps.push(Step::Service(frontend, protocol, backends, dice.chance(40)));
}

fn isolation(dice: &mut Dice, cast: &Cast) -> Step {
    Step::Isolate(*dice.pick(&cast.pods), dice.chance(50), *dice.pick(&SETS))
}

fn rule(dice: &mut Dice) -> Rule {
    let protocol = *dice.pick(&[
        wire::TCP,
        wire::TCP,
        wire::UDP,
        wire::UDP,
        wire::SCTP,
        wire::ICMP,
    ]);
    let ports = match dice.below(6) {
        0 | 1 => Ports::Any,
        2 => Ports::Protocol(protocol),
        3 => {
            // 80 to 95, 8080 to 8095, 32 to 63.
            let (first, last) = *dice.pick(&[(80, 95), (8080, 8095), (32, 63), (40000, 40003)]);
            Ports::Range(protocol, first, last)
        }
        _ => {
            let port = *dice.pick(&PORTS);
            Ports::Range(protocol, port, port)
        }
    };
    Rule {
        group: *dice.pick(&GROUPS),
        ports,
        action: if dice.chance(12) {
            action::DENY | action::AUDIT
        } else {
            action::ALLOW
        },
    }
}

fn grouping(dice: &mut Dice, cast: &Cast) -> Step {
    let family = *dice.pick(&FAMILIES);
    let address = match dice.below(8) {
        0 => family.remote_pod(1),
        1 => family.host(),
        2 => family.node(),
        _ => family.pod(*dice.pick(&cast.pods)),
    };
    Step::Group(address, *dice.pick(&GROUPS))
}

fn prefix(dice: &mut Dice) -> Step {
    let family = *dice.pick(&FAMILIES);
    let (wide, narrow) = match family {
        Family::V4 => (24, 32),
        Family::V6 => (112, 128),
    };
    let identity = PREFIXES + u32::try_from(dice.below(4)).unwrap_or(0);
    let group = *dice.pick(&GROUPS);
    match dice.below(4) {
        0 => Step::Prefix(family.outside(9), narrow, identity, group),
        1 => Step::Prefix(family.pod(0), wide, identity, group),
        2 => Step::Prefix(family.node(), narrow, identity, group),
        _ => Step::Prefix(family.outside(0), wide, identity, group),
    }
}

/// A change of what the node was told.
fn change(dice: &mut Dice, cast: &Cast) -> Step {
    let pod = *dice.pick(&cast.pods);
    let service = dice.below(cast.services.len());
    let backends = cast.services[service].2.max(1);
    let family = *dice.pick(&FAMILIES);
    match dice.weighted(&[8, 8, 10, 6, 14, 3, 4, 3, 4, 4, 5, 2, 1, 4, 2, 2, 1]) {
        0 => isolation(dice, cast),
        1 => Step::Open(pod, dice.chance(50)),
        2 => Step::Allow(*dice.pick(&SETS), rule(dice)),
        3 => Step::Withdraw(*dice.pick(&SETS), rule(dice)),
        4 => Step::Epoch(pod),
        5 => grouping(dice, cast),
        6 => {
            let state = *dice.pick(&[
                backend_state::GONE,
                backend_state::SERVING,
                backend_state::SERVING,
                backend_state::TERMINATING,
                backend_state::NOT_SERVING,
            ]);
            Step::State(service, dice.below(backends), state)
        }
        7 => Step::Reborn(service, dice.below(backends)),
        8 => Step::Resize(service, dice.below(backends + 1)),
        9 => Step::Slot(service, dice.below(backends), dice.below(backends)),
        10 => {
            // An address moves, or comes back.
            let to = if dice.chance(70) {
                pod
            } else {
                *dice.pick(&cast.pods)
            };
            Step::Move(family.pod(pod), to)
        }
        11 => Step::Forget(family.pod(pod)),
        12 if dice.chance(50) => Step::Detach(pod),
        12 => Step::Ended(pod),
        13 => Step::Share(pod, u32::try_from(dice.below(4)).unwrap_or(0)),
        14 => Step::Flags(pod, dice.chance(70), dice.chance(20)),
        15 => Step::Features(dice.chance(50), dice.chance(50)),
        _ => Step::Unknown(pod),
    }
}

/// Something that befalls the tables.
fn befall(dice: &mut Dice, traffic: &Traffic) -> Step {
    match dice.below(3) {
        0 => Step::Age(*dice.pick(&AGES)),
        _ => Step::Evict(traffic.recent(dice), dice.chance(50)),
    }
}
