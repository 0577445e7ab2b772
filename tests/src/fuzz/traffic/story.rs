//! A few packets that belong together, for what single throws of the dice meet too seldom.

use agent_common::backend_state;

use super::super::machine::FAMILIES;
use super::super::sequence::PORTS;
use super::super::step::{By, Edit, Origin, Place, Step, Teller};
use super::super::wire;
use super::{Traffic, any, packet};
use crate::dice::Dice;
use crate::packet::address::{Family, at};
use crate::packet::build::Packet;

impl Traffic {
    /// Two services with one backend and one client: with every port taken, the second flow has nowhere to go.
    pub(in crate::fuzz) fn crowd(&mut self, dice: &mut Dice) -> Vec<Step> {
        let family = *dice.pick(&FAMILIES);
        let (client, server) = (self.cast.pods[0], family.pod(self.cast.pods[1]));
        let backend = at(server, 9_090);
        let protocol = *dice.pick(&[wire::TCP, wire::UDP]);
        let from = at(family.pod(client), 41_000);
        let mut steps = Vec::new();
        for number in [101, 102] {
            let frontend = at(family.cluster_ip(number), 80);
            steps.push(Step::Service(frontend, protocol, vec![backend], false));
        }
        for pod in [client, self.cast.pods[1]] {
            steps.extend([true, false].map(|egress| Step::Open(pod, egress)));
            steps.push(Step::Move(family.pod(pod), pod));
        }
        let ask = |number| {
            let to = at(family.cluster_ip(number), 80);
            let packet = if protocol == wire::TCP {
                Packet::syn(from, to)
            } else {
                Packet::udp(from, to)
            };
            Origin::Frame(Place::FromPod(client), packet.bytes())
        };
        let first = self.next;
        steps.push(self.step(ask(101), Vec::new()));
        steps.push(Step::TakePorts(first));
        for _ in 0..25 {
            steps.push(self.step(ask(102), Vec::new()));
        }
        steps
    }

    /// A connection to a service whose backends go, or whose numbers go to others.
    pub(in crate::fuzz) fn outage(&mut self, dice: &mut Dice) -> Vec<Step> {
        let tcp: Vec<usize> = (0..self.cast.services.len())
            .filter(|n| {
                let (_, protocol, backends) = self.cast.services[*n];
                protocol == wire::TCP && backends > 0
            })
            .collect();
        if tcp.is_empty() {
            return Vec::new();
        }
        let service = *dice.pick(&tcp);
        let (frontend, _, backends) = self.cast.services[service];
        let family = if frontend.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let pod = *dice.pick(&self.cast.pods);
        let from = at(family.pod(pod), 42_000 + u16::from(pod));
        let syn = Packet::syn(from, frontend).bytes();
        let id = self.next;
        let mut steps = vec![self.step(Origin::Frame(Place::FromPod(pod), syn), Vec::new())];
        if dice.chance(50) {
            steps.push(self.step(Origin::AnswerTo(id), vec![Edit::Flags(18)]));
        }
        let reborn = dice.chance(30);
        for index in 0..backends {
            steps.push(if reborn {
                Step::Reborn(service, index)
            } else {
                Step::State(service, index, backend_state::GONE)
            });
        }
        let flags = *dice.pick(&[16, 24, 17, 4]);
        steps.push(self.step(Origin::Again(id), vec![Edit::Flags(flags)]));
        if !reborn {
            steps.extend(
                (0..backends).map(|index| Step::State(service, index, backend_state::SERVING)),
            );
        }
        steps
    }

    /// A service of a pod's, here or on another node, and errors about what was sent to it: by whom it reached, by routers, and by this host.
    pub(in crate::fuzz) fn unreached(&mut self, dice: &mut Dice) -> Vec<Step> {
        let family = *dice.pick(&FAMILIES);
        let pod = *dice.pick(&self.cast.pods);
        let (number, server) = if dice.chance(50) {
            (103, family.remote_pod(1))
        } else {
            (104, family.pod(self.cast.pods[0]))
        };
        let (frontend, backend) = (at(family.cluster_ip(number), 80), at(server, 9_091));
        let protocol = *dice.pick(&[wire::TCP, wire::UDP]);
        let from = at(family.pod(pod), 44_000);
        let packet = if protocol == wire::TCP {
            Packet::syn(from, frontend)
        } else {
            Packet::udp(from, frontend)
        };
        let mut steps = vec![Step::Service(frontend, protocol, vec![backend], false)];
        let id = self.next;
        let asked = Origin::Frame(Place::FromPod(pod), packet.bytes());
        steps.push(self.step(asked, Vec::new()));
        if dice.chance(50) {
            steps.push(self.step(Origin::AnswerTo(id), vec![Edit::Flags(18)]));
        }
        for teller in [Teller::End, Teller::Router, Teller::Host, Teller::Through] {
            let bytes = *dice.pick(&[8, 16, 18, 20, 400]);
            let error = self.next;
            steps.push(self.step(Origin::Error(id, teller, dice.below(4), bytes), Vec::new()));
            if dice.chance(50) {
                steps.push(self.step(Origin::Onward(error), Vec::new()));
            }
        }
        steps
    }

    /// A flow of the host's, and a packet of somebody else's with the same ends.
    pub(in crate::fuzz) fn borrowed(&mut self, dice: &mut Dice) -> Vec<Step> {
        let family = *dice.pick(&FAMILIES);
        let pod = *dice.pick(&self.cast.pods);
        let (from, to) = (
            at(family.host(), 43_000),
            at(family.pod(pod), *dice.pick(&PORTS)),
        );
        let protocol = any(dice);
        let frame = packet(dice, from, to, protocol).bytes();
        let id = self.next;
        let mut steps = vec![self.step(
            Origin::Frame(Place::ToPod(pod, By::Host), frame),
            Vec::new(),
        )];
        if dice.chance(50) {
            steps.push(self.step(Origin::AnswerTo(id), Vec::new()));
        }
        let by = self.by(dice);
        steps.push(self.step(Origin::Again(id), vec![Edit::At(Place::ToPod(pod, by))]));
        steps
    }
}
