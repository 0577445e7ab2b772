//! The real control plane does what the cluster tier stands on, and `deploy/rbac.yaml` grants what it says.
//!
//! The tests share no server: each starts its own, as those of the cluster tier do. One needs root.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Error};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tests::controlplane::{Cluster, ControlPlane, Options};

const NAMESPACE: &str = "shop";
const NODE: &str = "node-a";
/// How long a watch may take to deliver what already happened.
const WATCH_ANSWER: Duration = Duration::from_secs(20);
/// What the server answers to a user without the right (RFC 9110, 15.5.4).
const FORBIDDEN: u16 = 403;
/// What a watch gets whose version the server no longer holds: list again.
const GONE: u16 = 410;
/// Changes between a client's last word and a restart.
const CHANGES: u16 = 3;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: http }]
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers: [{ name: web, image: web, ports: [{ name: http, containerPort: 8080 }] }]
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: by-hand, namespace: shop, labels: { app: web } }
spec:
  nodeName: node-a
  containers: [{ name: web, image: web, ports: [{ name: http, containerPort: 8081 }] }]
";

fn ip(text: &str) -> Result<IpAddr> {
    text.parse()
        .with_context(|| format!("{text} is no address"))
}

fn both(v4: &str, v6: &str) -> Result<[IpAddr; 2]> {
    Ok([ip(v4)?, ip(v6)?])
}

async fn shop(control_plane: &ControlPlane) -> Result<Cluster> {
    let cluster = control_plane.cluster()?;
    cluster
        .create_namespace(NAMESPACE, &[("team", "shop")])
        .await?;
    cluster
        .create_node(NODE, &both("192.0.2.10", "2001:db8::10")?, &[])
        .await?;
    Ok(cluster)
}

/// Pods of a Deployment and a pod made by hand become endpoints, follow readiness, scaling and deletion, and
/// all of it outlives the API server.
#[tokio::test]
async fn pods_become_endpoints_and_outlive_a_restart() -> Result<()> {
    ControlPlane::during(Options::default(), pods_become_endpoints).await
}

async fn pods_become_endpoints(control_plane: &mut ControlPlane) -> Result<()> {
    let cluster = shop(control_plane).await?;
    cluster.apply(&format!("{SERVICE}---{DEPLOYMENT}")).await?;

    let services: Api<Service> = Api::namespaced(control_plane.client()?, NAMESPACE);
    let addresses = services
        .get("web")
        .await?
        .spec
        .and_then(|spec| spec.cluster_ips)
        .unwrap_or_default();
    assert!(
        addresses.len() == 2 && addresses[0].starts_with("10.96."),
        "{addresses:?}"
    );
    assert!(addresses[1].starts_with("fd00:10:96:"), "{addresses:?}");

    let pods = cluster.wait_for_pods(NAMESPACE, "app=web", 2).await?;
    let names: Vec<String> = pods
        .into_iter()
        .filter_map(|pod| pod.metadata.name)
        .collect();
    let first = both("10.1.0.1", "fd00:1::1")?;
    let second = both("10.1.0.2", "fd00:1::2")?;
    cluster.run_pod(NAMESPACE, &names[0], NODE, &first).await?;
    cluster.run_pod(NAMESPACE, &names[1], NODE, &second).await?;
    cluster
        .wait_for_endpoints(NAMESPACE, "web", &[first, second].concat())
        .await?;

    // A pod by hand, whose container port of the same name is another: the controller makes slices of its own.
    cluster.apply(POD).await?;
    let third = both("10.1.0.3", "fd00:1::3")?;
    let pod = cluster.run_pod(NAMESPACE, "by-hand", NODE, &third).await?;
    let status = pod.status.context("a status")?;
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.10"));
    assert_eq!(status.pod_ips.map(|ips| ips.len()), Some(2));
    cluster
        .wait_for_endpoints(NAMESPACE, "web", &[first, second, third].concat())
        .await?;

    cluster.set_pod_ready(NAMESPACE, &names[0], false).await?;
    cluster
        .wait_for_endpoints(NAMESPACE, "web", &[second, third].concat())
        .await?;
    cluster.set_pod_ready(NAMESPACE, &names[0], true).await?;
    cluster
        .wait_for_endpoints(NAMESPACE, "web", &[first, second, third].concat())
        .await?;

    // Terminating: still an endpoint, serving but not ready, until its kubelet has removed it.
    cluster.terminate_pod(NAMESPACE, "by-hand").await?;
    let slices = cluster
        .wait_for_slices(NAMESPACE, "web", |slices| {
            let endpoints = slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten());
            let conditions = endpoints.filter_map(|endpoint| endpoint.conditions.as_ref());
            conditions
                .filter(|c| c.terminating == Some(true) && c.serving == Some(true))
                .count()
                == 2
        })
        .await?;
    assert!(slices.iter().all(|slice| slice.metadata.name.is_some()));
    assert_eq!(cluster.reap_terminating_pods(NAMESPACE).await?, ["by-hand"]);
    cluster
        .wait_for_endpoints(NAMESPACE, "web", &[first, second].concat())
        .await?;

    // Stopped is stopped; started again it holds the same objects, and the controllers go on. What happened
    // before the restart is not told again: a watch from then must list anew.
    let seen = services
        .list(&ListParams::default())
        .await?
        .metadata
        .resource_version
        .context("a version")?;
    for round in 0..CHANGES {
        cluster
            .create_node(
                NODE,
                &both("192.0.2.10", "2001:db8::10")?,
                &[("round", &round.to_string())],
            )
            .await?;
        cluster
            .apply(&SERVICE.replace("port: 80,", &format!("port: {},", 81 + round)))
            .await?;
    }
    cluster.apply(SERVICE).await?;
    let server = control_plane.server();
    control_plane.stop_apiserver().await?;
    assert!(
        services.get("web").await.is_err(),
        "a stopped server answers"
    );
    control_plane.start_apiserver().await?;
    assert_eq!(control_plane.server(), server);
    let after = services
        .get("web")
        .await?
        .spec
        .and_then(|spec| spec.cluster_ips)
        .unwrap_or_default();
    assert_eq!(after, addresses, "the Service is another");
    let gone = watch_error(&services, &seen).await?;
    assert_eq!(gone, GONE, "a watch from before the restart went on");
    control_plane.restart_controller_manager().await?;
    cluster.scale(NAMESPACE, "web", 1).await?;
    let left = cluster.wait_for_pods(NAMESPACE, "app=web", 1).await?;
    cluster.reap_terminating_pods(NAMESPACE).await?;
    let kept = if left[0].metadata.name.as_ref() == Some(&names[0]) {
        first
    } else {
        second
    };
    cluster.wait_for_endpoints(NAMESPACE, "web", &kept).await?;

    cluster.delete(SERVICE).await?;
    cluster
        .delete(SERVICE)
        .await
        .context("deleting what is gone already")?;
    cluster
        .wait_for_slices(NAMESPACE, "web", <[_]>::is_empty)
        .await?;
    let deployments: Api<Deployment> = Api::namespaced(control_plane.client()?, NAMESPACE);
    assert_eq!(
        deployments.list(&ListParams::default()).await?.items.len(),
        1
    );
    Ok(())
}

/// The code of the error that a watch from `version` on begins with.
async fn watch_error(services: &Api<Service>, version: &str) -> Result<u16> {
    let mut changes = std::pin::pin!(services.watch(&WatchParams::default(), version).await?);
    match tokio::time::timeout(WATCH_ANSWER, changes.try_next())
        .await
        .context("no event")?
    {
        Ok(Some(WatchEvent::Error(status))) => Ok(status.code),
        Err(Error::Api(status)) => Ok(status.code),
        other => bail!("the watch went on with {other:?}"),
    }
}

/// One object of each kind that the agent reads, named `web` and in `shop` where it has a namespace.
const READ_KINDS: [(&str, &str, &str, bool); 6] = [
    ("", "v1", "Service", true),
    ("", "v1", "Pod", true),
    ("", "v1", "Namespace", false),
    ("", "v1", "Node", false),
    ("discovery.k8s.io", "v1", "EndpointSlice", true),
    ("networking.k8s.io", "v1", "NetworkPolicy", true),
];

const ONE_OF_EACH: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop }
spec: { nodeName: node-a, containers: [{ name: web, image: web }] }
---
apiVersion: v1
kind: Namespace
metadata: { name: web }
---
apiVersion: v1
kind: Node
metadata: { name: web }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints: [{ addresses: [192.0.2.80] }]
ports: [{ port: 80 }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: shop }
spec: { podSelector: {} }
";

fn refused<T>(what: &str, answer: kube::Result<T>) -> Result<()> {
    match answer {
        Err(Error::Api(status)) if status.code == FORBIDDEN => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{what}: refused, but not by RBAC")),
        Ok(_) => bail!("{what} was allowed"),
    }
}

/// The agent's ServiceAccount may get, list and watch the six kinds, and may do nothing else.
#[tokio::test]
async fn the_agents_account_reads_six_kinds_and_writes_nothing() -> Result<()> {
    ControlPlane::during(Options::default(), account_reads_only).await
}

async fn account_reads_only(control_plane: &mut ControlPlane) -> Result<()> {
    let cluster = shop(control_plane).await?;
    cluster.apply(ONE_OF_EACH).await?;
    let rbac = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac.yaml");
    cluster.apply(&std::fs::read_to_string(rbac)?).await?;
    let agent = control_plane
        .service_account_client("kube-system", "sluice")
        .await?;

    for (group, version, kind, namespaced) in READ_KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let everywhere: Api<DynamicObject> = Api::all_with(agent.clone(), &resource);
        let own = if namespaced {
            Api::namespaced_with(agent.clone(), NAMESPACE, &resource)
        } else {
            everywhere.clone()
        };
        reads(kind, &everywhere, &own).await?;
        writes_nothing(kind, &own).await?;
    }

    // Nothing was changed by the refused requests, and other kinds are not even to be read.
    let web: Api<Service> = Api::namespaced(control_plane.client()?, NAMESPACE);
    assert_eq!(web.get("web").await?.metadata.labels, None);
    let secrets: Api<Secret> = Api::all(agent.clone());
    refused(
        "listing Secrets",
        secrets.list(&ListParams::default()).await,
    )?;
    let maps: Api<ConfigMap> = Api::namespaced(agent, "kube-system");
    refused(
        "listing ConfigMaps",
        maps.list(&ListParams::default()).await,
    )
}

/// Lists and watches in the whole cluster, as the agent does, and gets the one named `web`.
async fn reads(
    kind: &str,
    everywhere: &Api<DynamicObject>,
    own: &Api<DynamicObject>,
) -> Result<()> {
    own.get("web")
        .await
        .with_context(|| format!("getting {kind}"))?;
    let list = everywhere
        .list(&ListParams::default())
        .await
        .with_context(|| format!("listing {kind}"))?;
    let named_web = |object: &DynamicObject| object.metadata.name.as_deref() == Some("web");
    ensure!(
        list.items.iter().any(named_web),
        "the list of {kind} lacks web"
    );
    // From the beginning: the server first sends what exists.
    let mut changes = std::pin::pin!(everywhere.watch(&WatchParams::default(), "0").await?);
    let first = tokio::time::timeout(WATCH_ANSWER, changes.try_next()).await;
    match first.with_context(|| format!("watching {kind}: no event"))?? {
        Some(WatchEvent::Added(_)) => Ok(()),
        other => bail!("watching {kind}: {other:?}"),
    }
}

/// Tries every verb that writes.
async fn writes_nothing(kind: &str, api: &Api<DynamicObject>) -> Result<()> {
    let post = PostParams::default();
    let mut existing = api.get("web").await?;
    let label = json!({ "metadata": { "labels": { "written": "by-the-agent" } } });
    let (patch, apply) = (PatchParams::default(), PatchParams::apply("agent").force());
    refused(
        &format!("patching {kind}"),
        api.patch("web", &patch, &Patch::Merge(&label)).await,
    )?;
    refused(
        &format!("applying {kind}"),
        api.patch("web", &apply, &Patch::Apply(&existing)).await,
    )?;
    let status = api.patch_status("web", &patch, &Patch::Merge(&label)).await;
    refused(&format!("patching the status of {kind}"), status)?;
    refused(
        &format!("updating {kind}"),
        api.replace("web", &post, &existing).await,
    )?;
    refused(
        &format!("deleting {kind}"),
        api.delete("web", &DeleteParams::default()).await,
    )?;
    let every = api
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await;
    refused(&format!("deleting every {kind}"), every)?;
    existing.metadata = kube::api::ObjectMeta {
        name: Some("another".into()),
        ..Default::default()
    };
    refused(
        &format!("creating {kind}"),
        api.create(&post, &existing).await,
    )
}

/// A control plane has its own ports, data and authority, and takes its files with it.
#[tokio::test]
async fn two_at_once_share_nothing() -> Result<()> {
    let (first, second) = tokio::try_join!(
        ControlPlane::start(Options::default()),
        ControlPlane::start(Options::default())
    )?;
    assert_ne!(first.server(), second.server());
    first.cluster()?.create_namespace("only-here", &[]).await?;
    let elsewhere: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(second.client()?);
    assert!(elsewhere.get_opt("only-here").await?.is_none());

    // The other's administrator is a stranger here: another authority signed the certificate.
    let mut config = kube::Config::from_custom_kubeconfig(
        kube::config::Kubeconfig::read_from(first.admin_kubeconfig())?,
        &kube::config::KubeConfigOptions::default(),
    )
    .await?;
    config.cluster_url = format!("https://{}", second.server()).parse()?;
    assert!(
        Client::try_from(config)?.apiserver_version().await.is_err(),
        "a stranger was let in"
    );

    let folder = first.directory().to_owned();
    drop(first);
    assert!(!folder.exists(), "{} was left", folder.display());
    assert!(
        second
            .client()?
            .apiserver_version()
            .await?
            .git_version
            .starts_with("v1.")
    );
    Ok(())
}

/// In a network namespace of its own, at an address that others can reach: the server names that address in the
/// endpoints of `kubernetes`, and a restart finds the namespace again from any thread.
#[tokio::test]
async fn listens_where_a_lab_reaches_it() -> Result<()> {
    // This thread only; the runtime has no other, and the threads it makes later inherit the namespace.
    let outside = std::fs::File::open("/proc/thread-self/ns/net")?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (needs root)")?;
    let inside = std::fs::File::open("/proc/thread-self/ns/net")?;
    let listen = ip("192.0.2.1")?;
    ip_command("link set lo up")?;
    ip_command("link add lab type veth peer name far")?;
    ip_command("link set far up")?;
    ip_command("link set lab up")?;
    ip_command(&format!("address add {listen}/24 dev lab"))?;

    let options = Options {
        listen,
        ..Options::default()
    };
    ControlPlane::during(options, async |control_plane| {
        let cluster = control_plane.cluster()?;
        cluster
            .wait_for_endpoints("default", "kubernetes", &[listen])
            .await?;
        control_plane.restart_apiserver().await?;
        setns(&outside, CloneFlags::CLONE_NEWNET)?;
        let restarted = control_plane.restart_controller_manager().await;
        setns(&inside, CloneFlags::CLONE_NEWNET)?;
        restarted?;
        // Only inside do the controllers reach the server.
        cluster.create_namespace(NAMESPACE, &[]).await?;
        Ok(())
    })
    .await
}

fn ip_command(arguments: &str) -> Result<()> {
    let status = std::process::Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .context("running ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}
