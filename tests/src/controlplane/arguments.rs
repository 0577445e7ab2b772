//! The command lines of etcd, kube-apiserver and kube-controller-manager.

use std::path::Path;

use super::Options;
use super::certificates::Certificates;

/// Who issues ServiceAccount tokens, as clusters made by kubeadm call it.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What the tests need made, and nothing that acts on nodes without a kubelet: node-lifecycle and
/// taint-eviction would call the nodes dead and evict their pods, pod-garbage-collector would delete pods of
/// nodes that a test has not made.
const CONTROLLERS: [&str; 13] = [
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "service-cidr-controller",
    "serviceaccount-controller",
    "statefulset-controller",
];

/// Requests a second that the controllers may send. Their default of 20 would be what a test of latency
/// measures.
const CONTROLLER_QPS: u32 = 1000;
const CONTROLLER_BURST: u32 = 2000;

/// etcd for one, on loopback, with its data in `data`.
pub(super) fn etcd(data: &Path, client_port: u16, peer_port: u16) -> Vec<String> {
    let client = etcd_url(client_port);
    let peer = format!("http://127.0.0.1:{peer_port}");
    vec![
        "--name=sluice".into(),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=sluice={peer}"),
        // The data need not outlive the machine, only the API server.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn etcd_url(client_port: u16) -> String {
    format!("http://127.0.0.1:{client_port}")
}

/// The API server: TLS with its own certificate, RBAC, and nothing that a real one lacks.
pub(super) fn apiserver(
    options: &Options,
    certificates: &Certificates,
    port: u16,
    etcd_port: u16,
) -> Vec<String> {
    let mut arguments = vec![
        format!("--etcd-servers={}", etcd_url(etcd_port)),
        format!("--bind-address={}", options.listen),
        format!("--advertise-address={}", options.listen),
        format!("--secure-port={port}"),
        format!(
            "--service-cluster-ip-range={}",
            options.service_cidrs.join(",")
        ),
        "--authorization-mode=RBAC".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", certificates.authority_file.display()),
        format!(
            "--tls-cert-file={}",
            certificates.serving_certificate_file.display()
        ),
        format!(
            "--tls-private-key-file={}",
            certificates.serving_key_file.display()
        ),
        format!("--service-account-issuer={ISSUER}"),
        format!(
            "--service-account-signing-key-file={}",
            certificates.token_key_file.display()
        ),
        format!(
            "--service-account-key-file={}",
            certificates.token_public_key_file.display()
        ),
    ];
    if options.listen.is_loopback() {
        // The endpoints of `kubernetes.default` may not be loopback addresses: leave them out.
        arguments.push("--endpoint-reconciler-type=none".into());
    }
    arguments.extend(options.apiserver_arguments.iter().cloned());
    arguments
}

/// The controllers of [`CONTROLLERS`], with the administrator's rights and without a port of their own.
pub(super) fn controller_manager(kubeconfig: &Path, certificates: &Certificates) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers={}", CONTROLLERS.join(",")),
        format!("--root-ca-file={}", certificates.authority_file.display()),
        format!("--kube-api-qps={CONTROLLER_QPS}"),
        format!("--kube-api-burst={CONTROLLER_BURST}"),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
    ]
}
