//! Random changes, one after the other: endpoints, services, policies, labels, pods, links; and kills of the agents.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::agents::Kill;
use super::cast::{Cast, Shape};
use super::policy::{NAMESPACES, PORTS, namespace_labels, policy};
use super::world::World;
use crate::dice::Dice;
use crate::lab::manifests::{self, Endpoint, ServicePort};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::traffic::Proto;

/// Services.
const SERVICES: usize = 5;
/// Policies there may be at once.
const POLICIES: usize = 6;
/// Pods that may be down, gone or unlisted at once.
const AWAY: usize = 2;
/// Between two changes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(80), Duration::from_millis(450));
/// So many in a hundred pauses are long, so that what was changed must be in force alone for a while.
const LONG_PAUSES: usize = 9;
/// See [`LONG_PAUSES`].
const LONG_PAUSE: Duration = Duration::from_millis(2500);
/// How long a link is down or a pod away.
const AWAY_FOR: (Duration, Duration) = (Duration::from_millis(30), Duration::from_secs(3));
/// How long an uplink is down, at most: while it is, nothing between the nodes can be judged.
const UPLINK_FOR: Duration = Duration::from_millis(800);
/// How long a pod that is back waits for its object, at most.
const UNLISTED_FOR: Duration = Duration::from_millis(600);
/// From one kill to the next.
const KILLS: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(8));
/// Of the kills, in hundredths: those of both agents at once.
const BOTH: usize = 20;
/// Of the kills, in hundredths: those again while it starts.
const AGAIN: usize = 30;
/// From a change to the kill that follows it, at most: an apply takes a few milliseconds.
const INTO_APPLY: Duration = Duration::from_millis(40);
/// From a kill to the next start, at most.
const DOWN_FOR: Duration = Duration::from_millis(2500);
/// From a start to the kill of what has just been started, at most.
const INTO_START: Duration = Duration::from_millis(900);

#[derive(Debug)]
struct Service {
    namespace: &'static str,
    name: String,
    number: u8,
    there: bool,
    port: u16,
    target: u16,
    local: bool,
    /// Pods by slot, and whether they are ending.
    members: Vec<(usize, bool)>,
}

impl Service {
    fn addresses(&self) -> [IpAddr; 2] {
        let number = self.number;
        [
            Ipv4Addr::new(10, 96, 0, number).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
        ]
    }

    fn ports(&self) -> [ServicePort<'static>; 2] {
        let (port, target) = (self.port, self.target);
        [("tcp", Proto::Tcp), ("udp", Proto::Udp)].map(|(name, proto)| ServicePort {
            name,
            port,
            target,
            proto,
        })
    }

    fn object(&self) -> Value {
        let addresses = self.addresses();
        let mut object = manifests::service(self.namespace, &self.name, &addresses, &self.ports());
        if self.local {
            object["spec"]["internalTrafficPolicy"] = json!("Local");
        }
        object
    }

    fn slices(&self, cast: &Cast) -> [Value; 2] {
        let endpoint = |(slot, ending): &(usize, bool)| {
            let pod = cast.slots[*slot].pod.as_ref()?;
            Some(match ending {
                true => Endpoint::terminating(pod),
                false => Endpoint::ready(pod),
            })
        };
        let endpoints: Vec<Endpoint<'_>> = self.members.iter().filter_map(endpoint).collect();
        manifests::endpoint_slices(self.namespace, &self.name, &self.ports(), &endpoints)
    }
}

/// What changes, and when next.
#[derive(Debug)]
pub(super) struct Churn<'a> {
    dice: Dice,
    nodes: &'a [Node; 2],
    world: World,
    cast: Cast,
    services: Vec<Service>,
    policies: Vec<Option<Value>>,
    agents: Vec<Sender<Kill>>,
    wire: &'a Arc<Netns>,
    /// The node whose uplink is down, and until when.
    uplink: Option<(usize, Instant)>,
    next_kill: Instant,
    /// Changes made so far.
    pub(super) changes: u64,
}

impl<'a> Churn<'a> {
    /// Writes the first services and policies.
    pub(super) fn new(
        mut dice: Dice,
        nodes: &'a [Node; 2],
        wire: &'a Arc<Netns>,
        mut world: World,
        cast: Cast,
    ) -> Result<Self> {
        let mut services = Vec::new();
        for index in 0..SERVICES {
            let service = Service {
                namespace: NAMESPACES[index % NAMESPACES.len()],
                name: format!("service-{index}"),
                number: u8::try_from(10 + index)?,
                there: true,
                port: 80,
                target: PORTS[0],
                local: false,
                members: some_members(&mut dice, &cast),
            };
            world.put(&service.object())?;
            for slice in service.slices(&cast) {
                world.put(&slice)?;
            }
            services.push(service);
        }
        let mut policies = vec![None; POLICIES];
        for (number, place) in policies.iter_mut().enumerate().take(POLICIES / 2) {
            let new = policy(&mut dice, number);
            world.put(&new)?;
            *place = Some(new);
        }
        Ok(Self {
            dice,
            nodes,
            world,
            cast,
            services,
            policies,
            agents: Vec::new(),
            wire,
            uplink: None,
            next_kill: Instant::now(),
            changes: 0,
        })
    }

    /// What is written.
    pub(super) fn world(&mut self) -> &mut World {
        &mut self.world
    }

    /// The pods.
    pub(super) fn cast(&self) -> &Cast {
        &self.cast
    }

    /// From now on agents are killed through these.
    pub(super) fn kill_through(&mut self, agents: Vec<Sender<Kill>>) {
        self.agents = agents;
        self.next_kill = Instant::now() + self.dice.between(KILLS.0, KILLS.1);
    }

    /// Makes a change, perhaps a kill, and answers how long to wait for the next.
    pub(super) fn step(&mut self) -> Result<Duration> {
        self.bring_back()?;
        self.change()?;
        self.changes += 1;
        if Instant::now() >= self.next_kill {
            self.kill();
        }
        if self.dice.chance(LONG_PAUSES) {
            return Ok(LONG_PAUSE);
        }
        Ok(self.dice.between(PAUSE.0, PAUSE.1))
    }

    /// Brings pods and links back that were away for long enough.
    fn bring_back(&mut self) -> Result<()> {
        let now = Instant::now();
        if let Some((node, until)) = self.uplink
            && until <= now
        {
            self.set_uplink(node, true)?;
            self.uplink = None;
            self.changes += 1;
        }
        for number in 0..self.cast.slots.len() {
            match self.cast.slots[number].shape {
                Shape::Down(until) if until <= now => {
                    self.cast.restore(&mut self.world, number)?;
                }
                Shape::Gone(until) if until <= now => {
                    let (dice, world) = (&mut self.dice, &mut self.world);
                    self.cast.make(dice, self.nodes, world, number)?;
                    // As the API does: the object has the pod's address some time after the link is up.
                    let late = self.dice.between(Duration::ZERO, UNLISTED_FOR);
                    self.cast.slots[number].shape = Shape::Unlisted(now + late);
                }
                Shape::Unlisted(until) if until <= now => {
                    self.cast.list(&mut self.world, number)?;
                }
                _ => continue,
            }
            self.changes += 1;
        }
        Ok(())
    }

    fn change(&mut self) -> Result<()> {
        match self.dice.weighted(&[26, 4, 6, 26, 16, 5, 9, 7, 1]) {
            0 => self.scale(),
            1 => self.come_or_go(),
            2 => self.change_ports(),
            3 => self.change_policy(),
            4 => self.relabel(),
            5 => {
                let namespace = *self.dice.pick(&NAMESPACES);
                let labels = namespace_labels(&mut self.dice);
                self.world.put(&manifests::namespace(namespace, &labels))
            }
            6 => self.delete_pod(),
            7 => self.link_down(),
            _ => self.uplink_down(),
        }
    }

    fn service(&mut self) -> usize {
        self.dice.below(self.services.len())
    }

    fn write_slices(&mut self, index: usize) -> Result<()> {
        for slice in self.services[index].slices(&self.cast) {
            self.world.put(&slice)?;
        }
        Ok(())
    }

    fn scale(&mut self) -> Result<()> {
        let index = self.service();
        let members = match self.dice.below(4) {
            // Everybody else.
            0 => some_members(&mut self.dice, &self.cast),
            // Nobody, for a while.
            1 if self.dice.chance(15) => Vec::new(),
            // One goes or comes.
            _ => {
                let mut members = self.services[index].members.clone();
                let slot = self.dice.below(self.cast.slots.len());
                match members.iter().position(|(member, _)| *member == slot) {
                    Some(place) if self.dice.chance(30) => members[place].1 = true,
                    Some(place) => drop(members.remove(place)),
                    None => members.push((slot, false)),
                }
                members
            }
        };
        self.services[index].members = members;
        self.write_slices(index)
    }

    fn come_or_go(&mut self) -> Result<()> {
        let index = self.service();
        let there = !self.services[index].there;
        self.services[index].there = there;
        let object = self.services[index].object();
        if there {
            self.world.put(&object)
        } else {
            self.world.remove(&object)
        }
    }

    fn change_ports(&mut self) -> Result<()> {
        let index = self.service();
        let which = self.dice.below(3);
        let service = &mut self.services[index];
        match which {
            0 => service.port = if service.port == 80 { 81 } else { 80 },
            1 => {
                service.target = if service.target == PORTS[0] {
                    PORTS[1]
                } else {
                    PORTS[0]
                }
            }
            _ => service.local = !service.local,
        }
        if service.there {
            let object = service.object();
            self.world.put(&object)?;
        }
        self.write_slices(index)
    }

    fn change_policy(&mut self) -> Result<()> {
        let place = self.dice.below(self.policies.len());
        match self.policies[place].take() {
            Some(old) if self.dice.chance(50) => self.world.remove(&old),
            _ => {
                let new = policy(&mut self.dice, place);
                self.world.put(&new)?;
                self.policies[place] = Some(new);
                Ok(())
            }
        }
    }

    fn one_up(&mut self) -> Option<usize> {
        let up = self.cast.up();
        let away = self.cast.slots.len() - up.len();
        (away < AWAY).then(|| *self.dice.pick(&up))
    }

    fn relabel(&mut self) -> Result<()> {
        let up = self.cast.up();
        let number = *self.dice.pick(&up);
        self.cast.relabel(&mut self.dice, &mut self.world, number)
    }

    fn delete_pod(&mut self) -> Result<()> {
        let Some(number) = self.one_up() else {
            return self.relabel();
        };
        // Most of the time its endpoints go first, as Kubernetes does it.
        if self.dice.chance(70) {
            for index in 0..self.services.len() {
                let members = &mut self.services[index].members;
                let before = members.len();
                members.retain(|(member, _)| *member != number);
                if members.len() != before {
                    self.write_slices(index)?;
                }
            }
        }
        let until = Instant::now() + self.dice.between(AWAY_FOR.0, AWAY_FOR.1);
        self.cast
            .delete(&mut self.dice, &mut self.world, number, until)
    }

    fn link_down(&mut self) -> Result<()> {
        let Some(number) = self.one_up() else {
            return self.scale();
        };
        let until = Instant::now() + self.dice.between(AWAY_FOR.0, AWAY_FOR.1);
        self.cast.down(&mut self.world, number, until)
    }

    fn uplink_down(&mut self) -> Result<()> {
        if self.uplink.is_some() {
            return self.scale();
        }
        let node = self.dice.below(self.nodes.len());
        let until = Instant::now() + self.dice.between(AWAY_FOR.0, UPLINK_FOR);
        self.uplink = Some((node, until));
        self.set_uplink(node, false)
    }

    fn set_uplink(&mut self, node: usize, up: bool) -> Result<()> {
        let (wire, port) = (self.wire, self.nodes[node].wire_port());
        let word = if up { "up" } else { "down" };
        self.world
            .uplink(node, up, || wire.ip(&format!("link set {port} {word}")))
    }

    fn kill(&mut self) {
        self.next_kill = Instant::now() + self.dice.between(KILLS.0, KILLS.1);
        let one = self.dice.below(self.agents.len());
        let both = self.dice.chance(BOTH);
        for node in 0..self.agents.len() {
            let after = self.dice.between(Duration::ZERO, INTO_APPLY);
            let down = self.dice.between(Duration::ZERO, DOWN_FOR);
            let again = self.dice.chance(AGAIN);
            let into = self.dice.between(Duration::ZERO, INTO_START);
            if both || node == one {
                // An agent that has ended is found out by its keeper.
                let _ = self.agents[node].send(Kill {
                    after,
                    down,
                    again: again.then_some(into),
                });
            }
        }
    }
}

/// A few pods that are there.
fn some_members(dice: &mut Dice, cast: &Cast) -> Vec<(usize, bool)> {
    let mut members: Vec<(usize, bool)> = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let up = cast.up();
        let slot = *dice.pick(&up);
        if members.iter().all(|(member, _)| *member != slot) {
            members.push((slot, dice.chance(10)));
        }
    }
    members
}
