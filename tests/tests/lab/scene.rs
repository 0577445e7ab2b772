//! A stage for one test: a node with pods whose servers answer, their manifests, and the agent that runs on them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_common::{ServiceKey, protocol};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::Lab;
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::manifests::{self, Endpoint, ManifestDir, NamedPort, ServicePort};
use tests::lab::netns::Netns;
use tests::lab::node::Node;
use tests::lab::patience;
use tests::lab::pinned::Pinned;
use tests::lab::pod::{Pod, PodSpec};
use tests::lab::traffic::{Proto, Server};
use tests::lab::wire::Wire;

/// Every server answers on these, TCP and UDP, on both of its addresses.
pub(crate) const PORTS: [u16; 3] = [8080, 8081, 9090];
/// The first of [`PORTS`]; pods call its TCP half `http`.
pub(crate) const HTTP: u16 = PORTS[0];
/// The second of [`PORTS`]; pods call its UDP half `dns`.
pub(crate) const DNS: u16 = PORTS[1];
/// The third of [`PORTS`], which has no name.
pub(crate) const OTHER: u16 = PORTS[2];
/// The port of every service here.
pub(crate) const SERVICE: u16 = 80;
/// For what is to come, however busy the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// The Kubernetes namespace of the services that say how far the agent has come.
const MARKS: &str = "marks";
/// The number of that service.
const MARK: u8 = 250;
/// Between two looks at a map.
pub(crate) const POLL: Duration = Duration::from_millis(1);
/// The name of the node of a scene.
pub(crate) const NODE: &str = "a";

/// The names of ports that a pod has unless the test says otherwise.
pub(crate) const NAMED: [NamedPort<'static>; 2] = [
    NamedPort {
        name: "http",
        port: HTTP,
        proto: Proto::Tcp,
    },
    NamedPort {
        name: "dns",
        port: DNS,
        proto: Proto::Udp,
    },
];

/// A pod to put on the stage.
#[derive(Debug, Clone)]
pub(crate) struct Role<'a> {
    /// Kubernetes namespace.
    pub(crate) namespace: &'a str,
    /// Name, unique in the scene.
    pub(crate) name: &'a str,
    /// Labels.
    pub(crate) labels: Vec<(&'a str, &'a str)>,
    /// Names of ports.
    pub(crate) ports: Vec<NamedPort<'a>>,
}

impl<'a> Role<'a> {
    /// A pod in the namespace `default`, with its own name as label `app` and the names of ports that all have.
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            namespace: "default",
            name,
            labels: vec![("app", name)],
            ports: NAMED.to_vec(),
        }
    }

    /// The same elsewhere.
    pub(crate) fn in_namespace(mut self, namespace: &'a str) -> Self {
        self.namespace = namespace;
        self
    }

    /// The same with these labels only.
    pub(crate) fn labelled(mut self, labels: &[(&'a str, &'a str)]) -> Self {
        self.labels = labels.to_vec();
        self
    }

    /// The same with these names of ports only.
    pub(crate) fn with_ports(mut self, ports: &[NamedPort<'a>]) -> Self {
        self.ports = ports.to_vec();
        self
    }
}

/// Names as roles.
pub(crate) fn roles<'a>(names: &[&'a str]) -> Vec<Role<'a>> {
    names.iter().map(|name| Role::new(name)).collect()
}

/// A pod on the stage, and its server, which has its name.
#[derive(Debug)]
pub(crate) struct Actor {
    /// The server.
    pub(crate) server: Server,
    /// The pod.
    pub(crate) pod: Pod,
}

/// The stage. What is removed first stands first.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The agent on the node.
    pub(crate) agent: Agent,
    /// Its manifests.
    pub(crate) dir: ManifestDir,
    /// A server in the world outside, called `world`.
    pub(crate) world: Server,
    actors: BTreeMap<String, Actor>,
    /// The node.
    pub(crate) node: Node,
    /// The lab.
    pub(crate) lab: Lab,
    marks: AtomicU32,
}

impl Scene {
    /// A scene with these pods, and an agent that is ready and has them in force.
    pub(crate) fn new(roles: &[Role<'_>]) -> Result<Self> {
        Self::with_arguments(roles, &[])
    }

    /// The same, with more arguments for the agent.
    pub(crate) fn with_arguments(roles: &[Role<'_>], arguments: &[&str]) -> Result<Self> {
        let lab = Lab::new("lab")?;
        let node = lab.node(NODE)?;
        let dir = ManifestDir::create(lab.dir(), "manifests")?;
        let specs = roles
            .iter()
            .map(|role| PodSpec::new(role.name).in_namespace(role.namespace));
        let pods = node.pods(specs)?;
        let mut actors = BTreeMap::new();
        dir.put(&manifests::node(&node, &[]))?;
        dir.put(&manifests::namespace(MARKS, &[]))?;
        for (role, pod) in roles.iter().zip(pods) {
            dir.put(&manifests::namespace(
                role.namespace,
                &[("team", role.namespace)],
            ))?;
            dir.put(&manifests::pod(&pod, &role.labels, &role.ports))?;
            let server = Server::on_ports(pod.netns(), role.name, &pod.addresses(), &PORTS)?;
            actors.insert(role.name.to_owned(), Actor { server, pod });
        }
        let world = [IpAddr::from(Wire::WORLD_V4), IpAddr::from(Wire::WORLD_V6)];
        let world = Server::on_ports(lab.wire().netns(), "world", &world, &PORTS)?;
        let mut plan = AgentPlan::new(&node, Source::Manifests(dir.path().to_owned()))?;
        for argument in arguments {
            plan = plan.arg(argument);
        }
        let agent = Agent::start(&node, plan)?;
        Ok(Self {
            agent,
            dir,
            world,
            actors,
            node,
            lab,
            marks: AtomicU32::new(0),
        })
    }

    /// A pod and its server.
    pub(crate) fn actor(&self, name: &str) -> Result<&Actor> {
        self.actors
            .get(name)
            .with_context(|| format!("the scene has no pod {name}"))
    }

    /// All pods, by name.
    pub(crate) fn actors(&self) -> impl Iterator<Item = &Actor> {
        self.actors.values()
    }

    /// Where a client called `name` is: a pod's namespace, or that of `node` or `world`.
    pub(crate) fn netns(&self, name: &str) -> Result<&Arc<Netns>> {
        match name {
            "node" => Ok(self.node.netns()),
            "world" => Ok(self.lab.wire().netns()),
            pod => Ok(self.actor(pod)?.pod.netns()),
        }
    }

    /// The addresses of a pod, of `node` or of `world`, IPv4 first.
    pub(crate) fn addresses(&self, name: &str) -> Result<[IpAddr; 2]> {
        Ok(match name {
            "node" => self.node.addresses(),
            "world" => [Wire::WORLD_V4.into(), Wire::WORLD_V6.into()],
            pod => self.actor(pod)?.pod.addresses(),
        })
    }

    /// The server of a pod or of the world.
    pub(crate) fn server(&self, name: &str) -> Result<&Server> {
        match name {
            "world" => Ok(&self.world),
            pod => Ok(&self.actor(pod)?.server),
        }
    }

    /// Deletes a pod and makes it again with its addresses, as another one of that name; its server too. Its manifest is the caller's to write.
    pub(crate) fn make_again(&mut self, name: &str, ifindex: Option<u32>) -> Result<()> {
        self.make_heir(name, name, ifindex)
    }

    /// Deletes a pod, and makes one of another name with its addresses, on another link. Both manifests are the caller's.
    pub(crate) fn make_heir(&mut self, of: &str, name: &str, ifindex: Option<u32>) -> Result<()> {
        let actor = self.actors.remove(of).context("no such pod")?;
        let mut spec = actor.pod.spec();
        name.clone_into(&mut spec.name);
        spec.ifindex = ifindex;
        actor.server.stop()?;
        actor.pod.delete()?;
        let pod = self.node.pod_with(spec)?;
        let server = Server::on_ports(pod.netns(), name, &pod.addresses(), &PORTS)?;
        self.actors.insert(name.to_owned(), Actor { server, pod });
        Ok(())
    }

    /// Deletes a pod and its server, but for its manifest.
    pub(crate) fn delete(&mut self, name: &str) -> Result<()> {
        let actor = self.actors.remove(name).context("no such pod")?;
        actor.server.stop()?;
        actor.pod.delete()
    }

    /// Where the lab's agents have their pin roots, and others may pin beside them.
    pub(crate) fn pins_of_lab(&self) -> Result<PathBuf> {
        let parent = self.agent.plan().pin_root.parent();
        Ok(parent.context("the lab's pins")?.to_owned())
    }

    /// The agent's maps.
    pub(crate) fn pinned(&self) -> Pinned {
        Pinned::new(&self.agent.plan().pin_root)
    }

    /// Writes objects and waits until they are in force.
    pub(crate) fn apply<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        self.dir.put_all(objects)?;
        self.settle()
    }

    /// Removes objects and waits until they are in force no more.
    pub(crate) fn remove<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        for object in objects {
            self.dir.remove(object)?;
        }
        self.settle()
    }

    /// Gives a pod other labels and waits until they are in force.
    pub(crate) fn relabel(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.apply([&manifests::pod(&self.actor(name)?.pod, labels, &NAMED)])
    }

    /// Waits until everything that was written so far is in force. A service is written behind it, and the maps are asked for
    /// it; three times. What the first was read with is told to the reconciler before the second is read; what the second was
    /// applied with is applied before the third.
    pub(crate) fn settle(&self) -> Result<()> {
        (0..3).try_for_each(|_| self.mark())
    }

    fn mark(&self) -> Result<()> {
        let number = self.marks.fetch_add(1, Ordering::Relaxed);
        let mark = ServicePort {
            port: u16::try_from(number % u32::from(u16::MAX) + 1)?,
            ..port(HTTP, Proto::Tcp)
        };
        let [address, _] = vip(MARK);
        let service = manifests::service(MARKS, "mark", &[address], &[mark]);
        self.dir
            .put_file("zz-mark.yaml", &serde_yaml_ng::to_string(&service)?)?;
        let key = ServiceKey::new(address.into(), mark.port.to_be(), protocol::TCP);
        let most = DEADLINE * patience();
        let end = Instant::now() + most;
        while !self.pinned().has_service(&key)? {
            ensure!(
                Instant::now() < end,
                "what was written is not in force after {most:?}:\n{}",
                self.agent.log_tail()
            );
            // Another process's map tells nobody that it changed.
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// The addresses of service number `n`, IPv4 first.
pub(crate) fn vip(n: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, n).into(),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(n)).into(),
    ]
}

/// Both addresses with one port.
pub(crate) fn at(addresses: [IpAddr; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|ip| SocketAddr::new(ip, port))
}

/// Port [`SERVICE`] of a service that leads to `target`.
pub(crate) fn port(target: u16, proto: Proto) -> ServicePort<'static> {
    ServicePort {
        name: match proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        },
        port: SERVICE,
        target,
        proto,
    }
}

/// Both protocols of [`port`].
pub(crate) fn both(target: u16) -> [ServicePort<'static>; 2] {
    Proto::ALL.map(|proto| port(target, proto))
}

/// A service of the namespace `default` at [`vip`], with its slices: TCP and UDP port [`SERVICE`] lead to [`HTTP`].
pub(crate) fn service(name: &str, number: u8, endpoints: &[Endpoint<'_>]) -> [Value; 3] {
    let [v4, v6] = slices(name, endpoints);
    let service = manifests::service("default", name, &vip(number), &both(HTTP));
    [service, v4, v6]
}

/// The slices of [`service`].
pub(crate) fn slices(name: &str, endpoints: &[Endpoint<'_>]) -> [Value; 2] {
    manifests::endpoint_slices("default", name, &both(HTTP), endpoints)
}
