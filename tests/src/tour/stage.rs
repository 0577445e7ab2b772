//! The lab that mirrors the samples, and the agent in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ending;
use super::print;
use super::samples::{Samples, Service};
use crate::lab::Lab;
use crate::lab::agent::{Agent, AgentPlan, Source};
use crate::lab::manifests::ManifestDir;
use crate::lab::node::Node;
use crate::lab::pinned::Pinned;
use crate::lab::pod::Pod;
use crate::lab::traffic::Server;

/// The port that backends and frontend call `http`.
const HTTP: u16 = 8080;
/// The service of the backends.
const BACKEND: &str = "backend";
/// The service of the frontend.
const FRONTEND: &str = "frontend";
/// However busy the machine is.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Everything that the tour is given on. What must go first stands first.
#[derive(Debug)]
pub(super) struct Stage {
    /// The agent.
    pub(super) agent: Agent,
    /// Servers by name.
    pub(super) servers: BTreeMap<String, Server>,
    pods: BTreeMap<String, Pod>,
    /// The service of the backends.
    pub(super) backend: Service,
    /// The service of the frontend.
    pub(super) frontend: Service,
    /// The agent's copy of the samples.
    pub(super) copy: ManifestDir,
    /// The file of the copy with the backends' slices, and its text.
    pub(super) slices: (String, String),
    /// The node.
    pub(super) node: Node,
    /// The lab.
    _lab: Lab,
}

impl Stage {
    /// Makes the lab and starts the agent, and says so.
    pub(super) fn set(samples: &Samples) -> Result<Self> {
        let lab = Lab::new("tour")?;
        ending::leave_nothing_behind(&lab)?;
        let node = lab.node(&samples.node()?)?;
        let pods: BTreeMap<String, Pod> = node
            .pods(samples.pods()?)?
            .into_iter()
            .map(|pod| (pod.name.clone(), pod))
            .collect();
        print::step(
            1,
            &format!("{} pods on {}, and the agent", pods.len(), node.name),
        );
        for pod in pods.values() {
            print::line(&format!(
                "{:<16} {:<12} {}",
                pod.full_name(),
                pod.ipv4,
                pod.ipv6
            ));
        }
        let mut servers = BTreeMap::new();
        for pod in pods
            .values()
            .filter(|pod| pod.name.starts_with(BACKEND) || pod.name == FRONTEND)
        {
            let server = Server::on_ports(pod.netns(), &pod.name, &pod.addresses(), &[HTTP])?;
            servers.insert(pod.name.clone(), server);
        }
        let copy = ManifestDir::create(lab.dir(), "manifests")?;
        for (name, text) in &samples.files {
            copy.put_file(name, text)?;
        }
        let slices = samples.file_with_slices_of(BACKEND)?.to_owned();
        let began = Instant::now();
        let plan = AgentPlan::new(&node, Source::Manifests(copy.path().to_owned()))?;
        let agent = Agent::start(&node, plan)?;
        let stage = Self {
            agent,
            servers,
            pods,
            backend: samples.service(BACKEND)?,
            frontend: samples.service(FRONTEND)?,
            slices: (slices.clone(), samples.files[&slices].clone()),
            copy,
            node,
            _lab: lab,
        };
        stage.say_ready(began.elapsed())?;
        Ok(stage)
    }

    fn say_ready(&self, took: Duration) -> Result<()> {
        let status = self.agent.status()?;
        ensure!(status["ready"] == true, "the agent is not ready: {status}");
        let places = status["attachments"].as_array().map_or(0, Vec::len);
        let objects: Vec<String> = status["objects"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|of| {
                Some(format!(
                    "{} {}",
                    of["count"].as_u64()?,
                    of["kind"].as_str()?
                ))
            })
            .collect();
        print::good(&format!(
            "ready in {:.1} s: {}; programs attached in {places} places",
            took.as_secs_f64(),
            objects.join(", ")
        ));
        Ok(())
    }

    /// A pod.
    pub(super) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .get(name)
            .with_context(|| format!("the samples have no Pod {name}"))
    }

    /// The names of the backends.
    pub(super) fn backends(&self) -> impl Iterator<Item = &str> {
        let names = self.servers.keys().map(String::as_str);
        names.filter(|name| *name != FRONTEND)
    }

    /// The agent's maps.
    pub(super) fn pinned(&self) -> Pinned {
        Pinned::new(&self.agent.plan().pin_root)
    }

    /// Waits until what `sluice service list` says of the backends' service satisfies `wanted`.
    pub(super) fn wait_for_backends(&self, wanted: impl Fn(&[Value]) -> bool) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            let list = self
                .agent
                .cli(&["service", "list", "-n", &self.backend.namespace])?;
            let services = list["services"].as_array().into_iter().flatten();
            let frontends: Vec<&Value> = services
                .filter(|service| service["name"] == BACKEND)
                .flat_map(|service| service["frontends"].as_array().into_iter().flatten())
                .collect();
            let all = |frontend: &&Value| {
                let backends = frontend["backends"].as_array();
                backends.is_some_and(|backends| wanted(backends))
            };
            if !frontends.is_empty() && frontends.iter().all(all) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the change of the service is not in force after {DEADLINE:?}: {list}"
            );
        }
    }
}

/// Where a service is asked for, by family.
pub(super) fn at(service: &Service) -> impl Iterator<Item = SocketAddr> {
    let port = service.port;
    let addresses = service.addresses.clone();
    addresses
        .into_iter()
        .map(move |ip| SocketAddr::new(ip, port))
}
