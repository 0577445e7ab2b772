//! The cluster and the lab beneath it: pods of the API server whose addresses are the lab's namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent_common::{Counter, Reason, drop_index, hook, limits};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use k8s_openapi::api::core::v1::{Pod as PodObject, Service};
use kube::Api;
use tests::controlplane::{Cluster, ControlPlane};
use tests::lab::agent::{Agent, AgentPlan, Source};
use tests::lab::node::Node;
use tests::lab::pod::{Pod, PodSpec};
use tests::lab::scrape;
use tests::lab::traffic::{Outcome, Patience, Probe, Proto, Server, probe};

/// The namespace of nearly everything.
pub(crate) const NAMESPACE: &str = "shop";
/// The namespace of the one pod that is elsewhere.
pub(crate) const ELSEWHERE: &str = "tools";
/// The port of every service.
pub(crate) const PORT: u16 = 80;
/// The port of every server.
pub(crate) const TARGET_PORT: u16 = 8080;
/// However busy the machine is.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at what tells no event.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks at the agent's status, each a process.
const LOOK_AT_STATUS: Duration = Duration::from_millis(100);
/// For probes that are all to be answered: on a busy machine that takes as long as it takes.
const ANSWERED: Patience = Patience::deadline(Duration::from_secs(20));
/// For probes half of which are not to be answered: long enough for the others on a busy machine.
const HALF_ANSWERED: Patience = Patience {
    quiet: Duration::from_millis(400),
    at_most: Duration::from_secs(20),
};
/// Probes of one address and protocol when every backend is to be seen.
const SPREAD: usize = 40;

/// What the agent may do, as it is deployed.
pub(crate) fn rbac() -> Result<String> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac.yaml");
    std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
}

/// A pod of the lab with a server on [`TARGET_PORT`], TCP and UDP, IPv4 and IPv6.
pub(crate) struct Backend {
    /// The lab's pod.
    pub(crate) pod: Pod,
    server: Server,
}

impl Backend {
    fn start(pod: Pod) -> Result<Self> {
        let server = Server::on_ports(pod.netns(), &pod.name, &pod.addresses(), &[TARGET_PORT])?;
        Ok(Self { pod, server })
    }

    /// As its answers name it.
    pub(crate) fn name(&self) -> &str {
        self.server.name()
    }
}

/// Cluster, node, pods and agent.
pub(crate) struct World {
    /// The administrator's hands.
    pub(crate) cluster: Cluster,
    /// The node that the agent runs on.
    pub(crate) node: Node,
    /// May ask what policies guard.
    pub(crate) client: Pod,
    /// May not.
    pub(crate) stranger: Pod,
    /// Asks from another namespace.
    pub(crate) tool: Pod,
    /// What pods of the Deployment may become.
    pub(crate) backends: Vec<Backend>,
    /// What policies guard.
    pub(crate) target: Backend,
    agent: Option<Agent>,
}

/// The probes of one client: every address of a service, TCP and UDP.
pub(crate) struct Asked {
    /// In the order of the probes.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Asked {
    /// Whether each was answered.
    pub(crate) fn all_answered(&self) -> bool {
        self.outcomes.iter().all(Outcome::is_answered)
    }

    /// Whether each met this word.
    pub(crate) fn all(&self, word: &str) -> bool {
        self.outcomes.iter().all(|outcome| outcome.word() == word)
    }
}

impl World {
    /// Makes the pods of the lab and of the cluster, the services, and starts the agent with the rights of `deploy/rbac.yaml`.
    pub(crate) async fn build(plane: &ControlPlane, node: Node) -> Result<Self> {
        let cluster = plane.cluster()?;
        let names = ["client", "stranger", "web-1", "web-2", "web-3", "target"];
        let mut specs: Vec<PodSpec> = names
            .map(|n| PodSpec::new(n).in_namespace(NAMESPACE))
            .into();
        specs.push(PodSpec::new("tool").in_namespace(ELSEWHERE));
        let mut pods = node.pods(specs)?.into_iter();
        let mut next = || pods.next().context("a pod for each spec");
        let (client, stranger) = (next()?, next()?);
        let backends = [next()?, next()?, next()?].map(Backend::start);
        let backends = backends.into_iter().collect::<Result<_>>()?;
        let (target, tool) = (Backend::start(next()?)?, next()?);
        let world = Self {
            cluster,
            node,
            client,
            stranger,
            tool,
            backends,
            target,
            agent: None,
        };
        world.objects().await?;
        Ok(world)
    }

    async fn objects(&self) -> Result<()> {
        let cluster = &self.cluster;
        cluster.apply(&rbac()?).await?;
        cluster
            .create_namespace(NAMESPACE, &[("team", "shop")])
            .await?;
        cluster
            .create_namespace(ELSEWHERE, &[("team", "ops")])
            .await?;
        cluster
            .create_node(&self.node.name, &self.node.addresses(), &[])
            .await?;
        for (pod, labels) in [
            (&self.client, "role: client"),
            (&self.stranger, "role: stranger"),
            (&self.tool, "role: tool"),
            (&self.target.pod, "app: target"),
        ] {
            self.run_as(pod, labels).await?;
        }
        cluster.apply(&service("target", "app: target")).await?;
        let wanted = self.target.pod.addresses();
        cluster
            .wait_for_endpoints(NAMESPACE, "target", &wanted)
            .await
    }

    /// A pod of the lab as an object of the same name.
    async fn run_as(&self, pod: &Pod, labels: &str) -> Result<()> {
        let (namespace, name) = (&pod.namespace, &pod.name);
        let yaml = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ {labels} }} }}
spec:
  nodeName: {}
  containers: [{{ name: main, image: main, ports: [{{ name: web, containerPort: {TARGET_PORT} }}] }}]
",
            pod.node
        );
        self.cluster.apply(&yaml).await?;
        self.cluster
            .run_pod(namespace, name, &pod.node, &pod.addresses())
            .await?;
        Ok(())
    }

    /// The pods of a Deployment named `web` that have no address yet get those of backends that are free; waits until there
    /// are `count` pods. Gives the backends that are in use.
    pub(crate) async fn run_web(&self, count: usize) -> Result<Vec<&Backend>> {
        let pods = self
            .cluster
            .wait_for_pods(NAMESPACE, "app=web", count)
            .await?;
        self.cluster.reap_terminating_pods(NAMESPACE).await?;
        let address = |pod: &PodObject| -> Option<IpAddr> {
            pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
        };
        let mut used: BTreeSet<IpAddr> = pods.iter().filter_map(address).collect();
        for pod in pods.iter().filter(|pod| address(pod).is_none()) {
            let free = self
                .backends
                .iter()
                .find(|backend| !used.contains(&IpAddr::V4(backend.pod.ipv4)));
            let free = free.context("more pods than backends")?;
            let name = pod.metadata.name.as_deref().context("a pod has a name")?;
            self.cluster
                .run_pod(NAMESPACE, name, &self.node.name, &free.pod.addresses())
                .await?;
            used.insert(free.pod.ipv4.into());
        }
        let used: Vec<&Backend> = self
            .backends
            .iter()
            .filter(|backend| used.contains(&IpAddr::V4(backend.pod.ipv4)))
            .collect();
        let ready: Vec<IpAddr> = used.iter().flat_map(|b| b.pod.addresses()).collect();
        self.cluster
            .wait_for_endpoints(NAMESPACE, "web", &ready)
            .await?;
        Ok(used)
    }

    /// The agent.
    pub(crate) fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    /// Starts the agent without waiting for it.
    pub(crate) fn launch_agent(&mut self, kubeconfig: &std::path::Path) -> Result<()> {
        let plan = AgentPlan::new(&self.node, Source::Kubeconfig(kubeconfig.to_owned()))?
            .arg(&format!("--metrics-address={}", scrape::ADDRESS));
        // The old one, if there is one, is killed first.
        self.agent = None;
        self.agent = Some(Agent::launch(&self.node, plan)?);
        Ok(())
    }

    /// Starts the agent anew and waits until it is ready: one that has lost the server a few times in two minutes asks for it ever less.
    pub(crate) fn fresh_agent(&mut self, kubeconfig: &std::path::Path) -> Result<()> {
        self.launch_agent(kubeconfig)?;
        self.wait_ready()
    }

    /// Waits until the agent is ready.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        self.agent()?.wait_ready(DEADLINE)
    }

    /// Waits until `sluice status` is as `wanted` says, and gives it.
    pub(crate) fn wait_status(
        &self,
        what: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        let end = Instant::now() + DEADLINE;
        loop {
            let status = agent.status();
            if let Ok(status) = &status
                && wanted(status)
            {
                return Ok(status.clone());
            }
            if Instant::now() > end {
                bail!(
                    "{what}: not so after {DEADLINE:?}; the status: {status:#?}\n{}",
                    agent.log_tail()
                );
            }
            std::thread::sleep(LOOK_AT_STATUS);
        }
    }

    /// The agent's and all earlier agents' log.
    pub(crate) fn agent_log(&self) -> String {
        self.agent.as_ref().map(Agent::log).unwrap_or_default()
    }

    /// The ClusterIPs of a service, IPv4 first.
    pub(crate) async fn addresses(&self, service: &str) -> Result<[IpAddr; 2]> {
        let api: Api<Service> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let spec = api.get(service).await?.spec.context("a spec")?;
        let mut addresses = spec
            .cluster_ips
            .unwrap_or_default()
            .iter()
            .map(|ip| ip.parse().context("a ClusterIP"))
            .collect::<Result<Vec<IpAddr>>>()?;
        addresses.sort();
        // A service of one family has its address twice: nobody asks the second.
        let first = *addresses
            .first()
            .with_context(|| format!("{service} has no ClusterIP"))?;
        Ok([first, *addresses.get(1).unwrap_or(&first)])
    }

    /// Packets dropped for a reason so far, at all hooks: the kernel's own word.
    pub(crate) fn drops(&self, reason: Reason) -> Result<u64> {
        let plan = self.agent.as_ref().context("no agent runs")?.plan();
        let pin = plan
            .pin_root
            .join(format!("v{}", limits::LAYOUT))
            .join("maps/counters");
        let map = MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
        let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
        let mut packets = 0;
        for hook in 0..hook::HOOKS {
            let values = counters.get(&drop_index(hook, reason), 0)?;
            packets += values.iter().map(|cpu| cpu.packets).sum::<u64>();
        }
        Ok(packets)
    }

    /// One probe to each address by TCP and UDP, at the service port.
    pub(crate) fn ask(&self, from: &Pod, to: &[IpAddr]) -> Result<Asked> {
        let outcomes = probe::run(&probes(from, to, 1), Patience::MATRIX)?;
        Ok(Asked { outcomes })
    }

    /// Waits until exactly these backends answer at every address and protocol; from then on nobody else may.
    pub(crate) fn served_by(
        &self,
        what: &str,
        from: &Pod,
        to: &[IpAddr],
        wanted: &[&str],
    ) -> Result<()> {
        let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
        let probes = probes(from, to, SPREAD);
        self.eventually(what, || {
            let asked = probe::run(&probes, Patience::MATRIX)?;
            ensure!(asked.iter().all(Outcome::is_answered), "{}", told(&asked));
            // The times of one address and protocol stand together.
            for outcomes in asked.chunks(SPREAD) {
                let by: BTreeSet<&str> = outcomes.iter().filter_map(Outcome::by).collect();
                ensure!(by == wanted, "answered by {by:?}, not {wanted:?}");
            }
            Ok(())
        })?;
        let asked = probe::run(&probes, ANSWERED)?;
        let strangers = asked
            .iter()
            .find(|outcome| !outcome.by().is_some_and(|by| wanted.contains(by)));
        ensure!(
            strangers.is_none(),
            "{what}: right, and then wrong again: {strangers:?}"
        );
        Ok(())
    }

    /// Waits until nothing of `from` is answered, and holds that against a control, the server's record and the drop counter.
    pub(crate) fn denied(
        &self,
        what: &str,
        from: &Pod,
        control: &Pod,
        to: &[IpAddr],
        reason: Reason,
    ) -> Result<()> {
        self.eventually(what, || {
            let asked = self.ask(from, to)?;
            ensure!(asked.all("timed out"), "{}", told(&asked.outcomes));
            Ok(())
        })?;
        let servers: Vec<&Backend> = self.backends.iter().chain([&self.target]).collect();
        let marks: Vec<usize> = servers
            .iter()
            .map(|backend| backend.server.mark())
            .collect();
        let dropped = self.drops(reason)?;
        let mut all = probes(from, to, 1);
        let denied = all.len();
        all.extend(probes(control, to, 1));
        let outcomes = probe::run(&all, HALF_ANSWERED)?;
        let (denied, passed) = outcomes.split_at(denied);
        ensure!(
            denied.iter().all(|o| o.word() == "timed out"),
            "{what}: denied, and then not: {}",
            told(denied)
        );
        ensure!(
            passed.iter().all(Outcome::is_answered),
            "{what}: the control does not pass: {}",
            told(passed)
        );
        for (backend, mark) in servers.iter().zip(marks) {
            for seen in backend.server.seen_since(mark) {
                ensure!(
                    !from.addresses().contains(&seen.peer.ip()),
                    "{what}: the server saw it: {seen:?}"
                );
            }
        }
        let rose = self.drops(reason)? - dropped;
        ensure!(
            rose >= denied.len() as u64,
            "{what}: {} rose by {rose} for {} probes",
            reason.name(),
            denied.len()
        );
        Ok(())
    }

    /// Waits until all of `from` is answered.
    pub(crate) fn allowed(&self, what: &str, from: &Pod, to: &[IpAddr]) -> Result<()> {
        self.eventually(what, || {
            let asked = self.ask(from, to)?;
            ensure!(asked.all_answered(), "{}", told(&asked.outcomes));
            Ok(())
        })
    }

    /// Probes again until it is so: a packet is what tells, and no event precedes it.
    pub(crate) fn eventually(&self, what: &str, mut so: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let began = Instant::now();
        loop {
            match so() {
                Ok(()) => {
                    println!("{what}: ok after {:.0?}", began.elapsed());
                    return Ok(());
                }
                Err(error) if Instant::now() > end => {
                    let log = self.agent.as_ref().map(Agent::log_tail).unwrap_or_default();
                    return Err(error.context(format!(
                        "{what}: not so after {DEADLINE:?}; the agent's log:\n{log}"
                    )));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

/// A dual-stack service of a selector, TCP and UDP from [`PORT`] to [`TARGET_PORT`].
pub(crate) fn service(name: &str, selector: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{ {selector} }}
  ports:
  - {{ name: tcp, protocol: TCP, port: {PORT}, targetPort: {TARGET_PORT} }}
  - {{ name: udp, protocol: UDP, port: {PORT}, targetPort: {TARGET_PORT} }}
"
    )
}

fn probes(from: &Pod, to: &[IpAddr], times: usize) -> Vec<Probe> {
    let mut probes = Vec::new();
    for address in to {
        for proto in Proto::ALL {
            let probe = Probe::new(from.netns(), proto, SocketAddr::new(*address, PORT));
            probes.extend(std::iter::repeat_n(probe, times));
        }
    }
    probes
}

fn told(outcomes: &[Outcome]) -> String {
    let words: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
    words.join("; ")
}
