//! The API server as the source: lists and watches the six kinds, each on its own, and cuts every object to the model at once.
//!
//! The server's address is used as it is given: the kubeconfig's `server`, or in a cluster `KUBERNETES_SERVICE_HOST`. In a
//! cluster that is a ClusterIP, which on a node without kube-proxy only Sluice itself could serve: the DaemonSet must set
//! `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` to the API server's own address, because the agent must never
//! need its own datapath to start.

mod follow;
mod known;
mod trouble;

use std::path::Path;

use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use self::follow::follow;
use super::{Events, Source};
use crate::model::Kind;

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be read or used.
    #[error(
        "kubeconfig {path}: {source}; check the file, its current-context and the files it names"
    )]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig was given, and this is no pod with a service account.
    #[error(
        "no API server: {source}; give --kubeconfig FILE, or run as a pod with a service account (KUBERNETES_SERVICE_HOST and its token)"
    )]
    InCluster {
        /// Why.
        source: Box<kube::config::InClusterError>,
    },
    /// What the configuration says cannot be used (a certificate, a key, a proxy).
    #[error(
        "the API server's client cannot be set up: {source}; check the certificates and credentials of the kubeconfig"
    )]
    Client {
        /// Why.
        source: Box<kube::Error>,
    },
}

/// A client: from a kubeconfig file and its current context, or in the cluster from the pod's service account.
///
/// # Errors
/// The configuration is missing or unusable. Whether a server answers shows only when the source runs.
pub async fn client_from(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        Some(path) => {
            let wrap = |source| ClientError::Kubeconfig {
                path: path.display().to_string(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(wrap)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(wrap)?
        }
        None => Config::incluster_env().map_err(|source| ClientError::InCluster {
            source: Box::new(source),
        })?,
    };
    Client::try_from(config).map_err(|source| ClientError::Client {
        source: Box::new(source),
    })
}

/// The API server.
pub struct KubeSource {
    client: Client,
}

impl KubeSource {
    /// A source of everything that a client can see.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Source for KubeSource {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn kinds(&self) -> &[Kind] {
        &Kind::ALL
    }

    fn run(self: Box<Self>, events: Events) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let client = || self.client.clone();
            let kinds: [BoxFuture<'_, ()>; Kind::ALL.len()] = [
                Box::pin(follow::<Namespace>(client(), events.clone())),
                Box::pin(follow::<Node>(client(), events.clone())),
                Box::pin(follow::<Pod>(client(), events.clone())),
                Box::pin(follow::<Service>(client(), events.clone())),
                Box::pin(follow::<EndpointSlice>(client(), events.clone())),
                Box::pin(follow::<NetworkPolicy>(client(), events.clone())),
            ];
            tokio::select! {
                () = events.closed() => {}
                _ = join_all(kinds) => {}
            }
        })
    }
}
