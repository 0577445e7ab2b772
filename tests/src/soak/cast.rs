//! The pods of the two nodes: made, unplugged, deleted and made again, each time with a server of a new name.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::flow::{Client, Place};
use super::policy::{NAMESPACES, PORTS, labels};
use super::view::Plugged;
use super::world::World;
use crate::dice::Dice;
use crate::lab::lock;
use crate::lab::manifests::{self, NamedPort};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::pod::{Pod, PodSpec};
use crate::lab::traffic::{Proto, Server};

/// Pods on each node.
pub(super) const PODS_A_NODE: usize = 6;
/// Addresses of a node that wait to be given to another pod, at most: beyond them none is new.
const REST: usize = 4;

/// Nobody holds a deleted pod's network namespace for longer.
const OLD: Duration = Duration::from_mins(1);

/// Names of ports: the same names lead elsewhere in every second pod.
const NAMED: [[NamedPort<'static>; 2]; 2] = [
    [
        named("http", PORTS[0], Proto::Tcp),
        named("dns", PORTS[1], Proto::Udp),
    ],
    [
        named("http", PORTS[2], Proto::Tcp),
        named("dns", PORTS[1], Proto::Tcp),
    ],
];

const fn named(name: &'static str, port: u16, proto: Proto) -> NamedPort<'static> {
    NamedPort { name, port, proto }
}

/// Who may be asked to open connections, and the servers whose records are read: shared with traffic and judge.
pub(super) type Shared = Arc<Mutex<Vec<(Client, Arc<Server>)>>>;

/// How a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Its link is up, its object is there.
    Up,
    /// Its link is down until then.
    Down(Instant),
    /// It is deleted until then.
    Gone(Instant),
    /// Its link is up, its object is missing until then.
    Unlisted(Instant),
}

/// One pod's place.
#[derive(Debug)]
pub(super) struct Slot {
    /// Number of its node.
    pub(super) node: usize,
    /// Kubernetes namespace.
    namespace: &'static str,
    made: usize,
    labels: Vec<(&'static str, &'static str)>,
    /// How it is.
    pub(super) shape: Shape,
    /// The pod, unless it is gone.
    pub(super) pod: Option<Pod>,
    plugged: Option<Plugged>,
    /// Name and addresses that the last one had.
    last: Option<(String, Ipv4Addr, Ipv6Addr)>,
}

/// All pods.
#[derive(Debug)]
pub(super) struct Cast {
    /// By number.
    pub(super) slots: Vec<Slot>,
    /// See [`Shared`].
    pub(super) shared: Shared,
    free: [VecDeque<(Ipv4Addr, Ipv6Addr)>; 2],
    /// Network namespaces of deleted pods, and since when: the last handle of one removes its name, which may be another's by
    /// then.
    old: Vec<(Instant, Arc<Netns>)>,
}

impl Cast {
    /// Makes all pods.
    pub(super) fn new(dice: &mut Dice, nodes: &[Node; 2], world: &mut World) -> Result<Self> {
        let mut cast = Self {
            slots: Vec::new(),
            shared: Shared::default(),
            free: Default::default(),
            old: Vec::new(),
        };
        for number in 0..2 * PODS_A_NODE {
            cast.slots.push(Slot {
                node: number % 2,
                namespace: NAMESPACES[number / 2 % NAMESPACES.len()],
                made: 0,
                labels: labels(dice),
                shape: Shape::Up,
                pod: None,
                plugged: None,
                last: None,
            });
            cast.make(dice, nodes, world, number)?;
            cast.list(world, number)?;
        }
        Ok(cast)
    }

    /// Slots that are up.
    pub(super) fn up(&self) -> Vec<usize> {
        let up = |number: &usize| self.slots[*number].shape == Shape::Up;
        (0..self.slots.len()).filter(up).collect()
    }

    /// Makes a pod with its link and its server: under its old name or a new one, with its old addresses or others.
    pub(super) fn make(
        &mut self,
        dice: &mut Dice,
        nodes: &[Node; 2],
        world: &mut World,
        number: usize,
    ) -> Result<()> {
        let names: Vec<&str> = self
            .slots
            .iter()
            .filter_map(|slot| Some(slot.pod.as_ref()?.netns().name()))
            .collect();
        self.old
            .retain(|(since, netns)| since.elapsed() < OLD || names.contains(&netns.name()));
        let slot = &mut self.slots[number];
        slot.made += 1;
        let mut spec =
            PodSpec::new(&format!("p{number}-{}", slot.made)).in_namespace(slot.namespace);
        let free = &mut self.free[slot.node];
        if let Some((name, ipv4, ipv6)) = slot.last.take() {
            if dice.chance(40) {
                spec.name = name;
            }
            // Unless they are another pod's by now.
            if dice.chance(50) && free.contains(&(ipv4, ipv6)) {
                free.retain(|own| *own != (ipv4, ipv6));
                spec = spec.at(ipv4, ipv6);
            }
        }
        if spec.ipv4.is_none() && free.len() >= REST {
            // The one that has been free for the longest, which may have been another pod's.
            if let Some((ipv4, ipv6)) = free.pop_front() {
                spec = spec.at(ipv4, ipv6);
            }
        }
        if spec.ipv4.is_none() {
            let (ipv4, ipv6) = nodes[slot.node].spare_addresses()?;
            spec = spec.at(ipv4, ipv6);
        }
        let server: Arc<str> = format!("p{number}.{}", slot.made).into();
        let (Some(ipv4), Some(ipv6)) = (spec.ipv4, spec.ipv6) else {
            anyhow::bail!("a pod without addresses");
        };
        let addresses = [IpAddr::from(ipv4), IpAddr::from(ipv6)];
        let plugged = Plugged {
            server: Arc::clone(&server),
            node: slot.node,
            device: server.to_string(),
        };
        let node = &nodes[slot.node];
        let what = format!(
            "plug {server} in as {}/{} at {ipv4}",
            spec.namespace, spec.name
        );
        let (pod, running) = world.link(&what, addresses, Some(&plugged), || {
            let pod = node.pod_with(spec)?;
            let running = Server::on_ports(pod.netns(), &server, &addresses, &PORTS)?;
            Ok((pod, running))
        })?;
        let client = Client {
            name: server,
            place: Place::Pod(slot.node),
            addresses,
            netns: Arc::clone(pod.netns()),
        };
        lock(&self.shared).push((client, Arc::new(running)));
        slot.plugged = Some(plugged);
        slot.pod = Some(pod);
        Ok(())
    }

    /// Writes the pod's object.
    pub(super) fn list(&mut self, world: &mut World, number: usize) -> Result<()> {
        let object = self.object(number)?;
        world.put(&object)?;
        self.slots[number].shape = Shape::Up;
        Ok(())
    }

    fn object(&self, number: usize) -> Result<Value> {
        let slot = &self.slots[number];
        let pod = slot
            .pod
            .as_ref()
            .context("a pod that is gone has no object")?;
        Ok(manifests::pod(
            pod,
            &slot.labels,
            &NAMED[number % NAMED.len()],
        ))
    }

    /// Gives a pod other labels.
    pub(super) fn relabel(
        &mut self,
        dice: &mut Dice,
        world: &mut World,
        number: usize,
    ) -> Result<()> {
        self.slots[number].labels = labels(dice);
        let object = self.object(number)?;
        world.put(&object)
    }

    /// Deletes a pod: its object and its link, in either order. It comes back at `until`.
    pub(super) fn delete(
        &mut self,
        dice: &mut Dice,
        world: &mut World,
        number: usize,
        until: Instant,
    ) -> Result<()> {
        let object = self.object(number)?;
        let object_first = dice.chance(50);
        if object_first {
            world.remove(&object)?;
        }
        let slot = &mut self.slots[number];
        let pod = slot.pod.take().context("a pod is deleted once")?;
        let name = slot.plugged.take().map(|plugged| plugged.server);
        lock(&self.shared).retain(|(client, _)| Some(&client.name) != name.as_ref());
        slot.last = Some((pod.name.clone(), pod.ipv4, pod.ipv6));
        self.free[slot.node].push_back((pod.ipv4, pod.ipv6));
        slot.shape = Shape::Gone(until);
        self.old.push((Instant::now(), Arc::clone(pod.netns())));
        let what = format!("unplug {} for good", name.as_deref().unwrap_or("?"));
        world.link(&what, pod.addresses(), None, || pod.delete())?;
        if !object_first {
            world.remove(&object)?;
        }
        Ok(())
    }

    /// Sets a pod's link down until then.
    pub(super) fn down(&mut self, world: &mut World, number: usize, until: Instant) -> Result<()> {
        let slot = &mut self.slots[number];
        let pod = slot
            .pod
            .as_ref()
            .context("a pod that is gone has no link")?;
        let what = format!("link of {} down", pod.full_name());
        world.link(&what, pod.addresses(), None, || pod.link_down())?;
        slot.shape = Shape::Down(until);
        Ok(())
    }

    /// Sets it up again.
    pub(super) fn restore(&mut self, world: &mut World, number: usize) -> Result<()> {
        let slot = &mut self.slots[number];
        let pod = slot
            .pod
            .as_ref()
            .context("a pod that is gone has no link")?;
        let what = format!("link of {} up", pod.full_name());
        world.link(&what, pod.addresses(), slot.plugged.as_ref(), || {
            pod.link_up()
        })?;
        slot.shape = Shape::Up;
        Ok(())
    }
}
