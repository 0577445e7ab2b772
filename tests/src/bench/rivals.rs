//! The real kube-proxy beside it: on nodes of its own, in each of its modes, under a real API server; the same work by ClusterIP on one
//! node, against plain nodes in the same rounds.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use sluice::model::Object;

use super::field::{Side, Way, Where};
use super::population::{FIRST_PORT, Own, OwnService, Size, others, own};
use super::report::Row;
use super::runs;
use super::stats::{Summary, ratios};
use super::traffic::{CHECK, Figures, check_plain, job, plain, rounds};
use super::work::{Servers, Work, Worker};
use super::yaml;
use crate::controlplane::{Binaries, Cluster, ControlPlane, Options};
use crate::lab::Lab;
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::pod::Pod;
use crate::lab::process::Process;
use crate::lab::wire::Wire;

const GROUP: &str = "kube-proxy beside it, same node";
/// Its modes that this kernel has.
const MODES: [&str; 2] = ["nftables", "iptables"];
/// Services of both measurements.
const SERVICES: [u32; 2] = [10, 10_000];
/// From kube-proxy's start until its service answers: iptables with 10,000 services took 77 s (FIELD.md).
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two tries, and how long one may take.
const TRY: Duration = Duration::from_millis(200);
/// Objects that are on their way to the API server at a time.
const AT_ONCE: usize = 32;
/// The range of all services, the bench's own and the others.
const SERVICE_RANGE: &str = "10.96.0.0/12";
const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds.
    pub rounds: usize,
    /// The length of a window.
    pub window: Duration,
}

/// A node with a client and a server.
struct Place {
    node: Node,
    pods: Vec<Pod>,
}

/// Measures all of it; what did not match is in the second list. Blocks for minutes: 10,000 services go to the API server, and from there to
/// both proxies.
///
/// # Errors
/// The control plane or a proxy did not start, or a call failed.
pub fn measure(effort: &Effort, cpu: usize) -> Result<(Vec<Row>, Vec<String>)> {
    let lab = Lab::new("benchproxy")?;
    // The control plane runs where the nodes' default gateway is, on this thread and those that it makes.
    lab.wire().netns().enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let options = Options {
        listen: Wire::GATEWAY_V4.into(),
        service_cidrs: vec![SERVICE_RANGE.to_owned(), SERVICE_RANGE_V6.to_owned()],
        ..Options::default()
    };
    runtime.block_on(ControlPlane::during(options, async |plane| {
        beside(&lab, plane, effort, cpu).await
    }))
}

async fn beside(
    lab: &Lab,
    plane: &ControlPlane,
    effort: &Effort,
    cpu: usize,
) -> Result<(Vec<Row>, Vec<String>)> {
    let program = Binaries::find_or_build()?;
    let program = program.kube_proxy().context("there is no kube-proxy")?;
    let plain = place(
        lab,
        "plain",
        &["client-a", "client-b", "server-a", "server-b"],
    )?;
    let served = [
        place(lab, MODES[0], &["client", "server"])?,
        place(lab, MODES[1], &["client", "server"])?,
    ];
    let mut sides = Vec::new();
    for (number, way) in [Way::PlainA, Way::PlainB].into_iter().enumerate() {
        let (client, server) = (&plain.pods[number], &plain.pods[2 + number]);
        sides.push(side(way, client, server, server.ipv4.into())?);
    }
    for (number, place) in served.iter().enumerate() {
        let (client, server) = (&place.pods[0], &place.pods[1]);
        sides.push(side(Way::Service, client, server, cluster_ip(number))?);
    }
    let cluster = plane.cluster()?;
    for place in &served {
        cluster
            .create_node(&place.node.name, &place.node.addresses(), &[])
            .await?;
    }
    put_own(&cluster, &served).await?;

    let worker = Worker::start(cpu)?;
    let (mut rows, mut mismatches) = (Vec::new(), Vec::new());
    let mut before = 0;
    for services in SERVICES {
        put_services(&cluster, before, services).await?;
        before = services;
        let mut proxies = Vec::new();
        for (number, place) in served.iter().enumerate() {
            proxies.push(Proxy::start(
                &program,
                plane,
                lab.dir(),
                place,
                MODES[number],
            )?);
        }
        for (number, (proxy, place)) in proxies.iter().zip(&served).enumerate() {
            proxy.wait(place.pods[0].netns(), cluster_ip(number))?;
        }
        let pods: Vec<&Pod> = std::iter::once(&plain)
            .chain(&served)
            .flat_map(|place| &place.pods)
            .collect();
        mismatches.extend(check(&pods, &sides, &worker)?);
        let figures = rounds(&sides, &worker, effort.rounds, effort.window)?;
        rows.extend(told(&sides, &figures, services));
    }
    Ok((rows, mismatches))
}

/// The ClusterIP of the service whose server is on node `number`.
fn cluster_ip(number: usize) -> IpAddr {
    let last = u8::try_from(100 + number).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 96, 0, last).into()
}

fn place(lab: &Lab, name: &str, pods: &[&str]) -> Result<Place> {
    let node = lab.node(name)?;
    let pods = pods.iter().map(|name| node.pod(name));
    Ok(Place {
        pods: pods.collect::<Result<_>>()?,
        node,
    })
}

fn side(way: Way, client: &Pod, server: &Pod, to: IpAddr) -> Result<Side> {
    Ok(Side {
        place: Where::Same,
        way,
        cluster: None,
        client: Arc::clone(client.netns()),
        to,
        servers: Arc::new(Servers::bind(server.netns(), server.ipv4.into())?),
    })
}

/// None of our programs may be on the way, neither of plain packets nor of kube-proxy's.
fn check(pods: &[&Pod], sides: &[Side], worker: &Worker) -> Result<Vec<String>> {
    let _counting = runs::count()?;
    let mut mismatches = Vec::new();
    for side in sides {
        for work in Work::ALL {
            let job = job(side, work, CHECK);
            let wrong = check_plain(pods, worker, &job)?;
            mismatches
                .extend(wrong.map(|what| format!("kube-proxy, {work}, {}: {what}", side.way)));
        }
    }
    Ok(mismatches)
}

fn told(sides: &[Side], figures: &Figures, services: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, work) in Work::ALL.into_iter().enumerate() {
        let (mean, noise) = plain(figures.of(0, number), figures.of(1, number));
        for (at, side) in sides.iter().enumerate() {
            let Some(value) = Summary::of(figures.of(at, number)) else {
                continue;
            };
            let (title, ratio) = match side.way {
                Way::PlainA => (format!("plain, beside {services} services"), None),
                Way::PlainB => (side.way.to_string(), noise),
                _ => {
                    let of_plain = ratios(figures.of(at, number), &mean);
                    let mode = MODES.get(at - 2).unwrap_or(&"kube-proxy");
                    (
                        format!("{mode}, {services} services"),
                        Summary::of(&of_plain),
                    )
                }
            };
            rows.push(Row::new(GROUP, &work.to_string(), &title, value, work.unit()).ratio(ratio));
        }
    }
    rows
}

/// A running kube-proxy.
struct Proxy {
    _process: Process,
    mode: &'static str,
    log: std::path::PathBuf,
    began: Instant,
}

impl Proxy {
    fn start(
        program: &Path,
        plane: &ControlPlane,
        dir: &Path,
        place: &Place,
        mode: &'static str,
    ) -> Result<Self> {
        let log = dir.join(format!("kube-proxy-{mode}.log"));
        let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .arg(format!(
                "--kubeconfig={}",
                plane.admin_kubeconfig().display()
            ))
            .arg(format!("--hostname-override={}", place.node.name))
            .arg(format!("--proxy-mode={mode}"))
            // The kernel's own sizes of its table are the machine's, not a namespace's.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .arg("--cluster-cidr=10.244.0.0/16,fd00:244::/32")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("sharing a log")?)
            .stderr(file);
        Ok(Self {
            _process: Process::spawn(command, place.node.netns(), None)?,
            mode,
            log,
            began: Instant::now(),
        })
    }

    /// Waits until the service answers.
    fn wait(&self, client: &Netns, to: IpAddr) -> Result<()> {
        let to = SocketAddr::new(to, FIRST_PORT);
        let answers = client.run(|| {
            while self.began.elapsed() < PATIENCE {
                if TcpStream::connect_timeout(&to, TRY).is_ok() {
                    return true;
                }
                std::thread::sleep(TRY);
            }
            false
        })?;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        ensure!(
            answers,
            "kube-proxy ({}) does not serve {to} after {PATIENCE:?}; the end of its log:\n{}",
            self.mode,
            lines[lines.len().saturating_sub(20)..].join("\n")
        );
        Ok(())
    }
}

/// The services of the bench's own servers.
async fn put_own(cluster: &Cluster, served: &[Place]) -> Result<()> {
    let servers: Vec<Own> = served
        .iter()
        .map(|place| Own {
            name: "server".to_owned(),
            node: place.node.name.clone(),
            addresses: vec![place.pods[1].ipv4.into()],
        })
        .collect();
    let names = MODES.map(|mode| format!("bench-{mode}"));
    let services: Vec<OwnService<'_>> = servers
        .iter()
        .enumerate()
        .map(|(number, server)| OwnService {
            name: &names[number],
            address: cluster_ip(number),
            server,
        })
        .collect();
    // Without pods: kube-proxy never looks at them.
    put(
        cluster,
        own(
            &Size {
                policies: 0,
                ..Size::SMALL
            },
            &[],
            &services,
        ),
    )
    .await
}

/// Makes the other services from one number to another, with two endpoints each.
async fn put_services(cluster: &Cluster, from: u32, to: u32) -> Result<()> {
    let size = Size {
        services: to,
        endpoints: 2 * to,
        policies: 0,
        pods: 0,
    };
    let mut namespaces = Vec::new();
    let mut objects = Vec::new();
    for object in others(&size) {
        match &object {
            Object::Namespace(_) if from == 0 => namespaces.push(object),
            Object::Namespace(_) => {}
            _ if number_of(&object).is_some_and(|n| n < from) => {}
            _ => objects.push(object),
        }
    }
    // `default` is there.
    put(cluster, namespaces.into_iter().skip(1)).await?;
    put(cluster, objects).await
}

/// The number in `service-NUMBER` and `service-NUMBER-PART`.
fn number_of(object: &Object) -> Option<u32> {
    let id = object.id();
    let mut parts = id.key.name.split('-').skip(1);
    parts.next()?.parse().ok()
}

/// Posts objects, many at a time.
async fn put(cluster: &Cluster, objects: impl IntoIterator<Item = Object>) -> Result<()> {
    let client = cluster.client();
    stream::iter(objects)
        .map(|object| {
            let client = client.clone();
            async move {
                let Some(value) = yaml::manifest(&object) else {
                    bail!("{} has no manifest", object.id());
                };
                let request = http::Request::post(collection(&object)?)
                    .header("content-type", "application/json")
                    .body(serde_json::to_vec(&value)?)?;
                let made: Result<Value, kube::Error> = client.request(request).await;
                made.with_context(|| format!("making {}", object.id()))?;
                Ok(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

/// Where objects of a kind are posted.
fn collection(object: &Object) -> Result<String> {
    let id = object.id();
    let namespace = &id.key.namespace;
    Ok(match object {
        Object::Namespace(_) => "/api/v1/namespaces".to_owned(),
        Object::Service(_) => format!("/api/v1/namespaces/{namespace}/services"),
        Object::EndpointSlice(_) => {
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
        }
        _ => bail!("{id} is nothing that kube-proxy looks at"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_made_once() {
        let all = |from: u32, to: u32| {
            let size = Size {
                services: to,
                endpoints: 2 * to,
                policies: 0,
                pods: 0,
            };
            let new = others(&size).filter(|o| number_of(o).is_some_and(|n| n >= from));
            new.filter(|o| matches!(o, Object::Service(_))).count()
        };
        assert_eq!((all(0, 10), all(10, 30)), (10, 20));
    }

    #[test]
    fn what_kube_proxy_looks_at_has_a_place() {
        let size = Size {
            services: 1,
            endpoints: 2,
            policies: 1,
            pods: 0,
        };
        for object in others(&size) {
            let place = collection(&object);
            match &object {
                Object::NetworkPolicy(_) => assert!(place.is_err()),
                Object::EndpointSlice(_) => {
                    assert!(place.unwrap().ends_with("/ns-0/endpointslices"));
                }
                _ => assert!(place.is_ok()),
            }
        }
    }
}
