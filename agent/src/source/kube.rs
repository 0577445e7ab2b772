//! The API server as the source: lists and watches the six kinds, each on its own, and cuts every object to the model at once.
//!
//! The server's address is used as it is given: the kubeconfig's `server`, or in a cluster `KUBERNETES_SERVICE_HOST`. In a
//! cluster that is a ClusterIP, which on a node without kube-proxy only Sluice itself could serve: the DaemonSet must set
//! `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` to the API server's own address, because the agent must never
//! need its own datapath to start.

mod access;
mod client;
mod follow;
mod known;
mod trouble;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use self::access::Access;
pub use self::access::ClientError;
use self::follow::follow;
use super::objects::Pod;
use super::{Events, Source};
use crate::model::Kind;

/// The API server.
pub struct KubeSource {
    access: Arc<Access>,
}

impl KubeSource {
    /// A source of everything that may be seen with a kubeconfig's current context, or in the cluster with the pod's service account.
    ///
    /// # Errors
    /// The configuration is missing or unusable. Whether a server answers shows only when the source runs.
    pub async fn open(kubeconfig: Option<PathBuf>) -> Result<Self, ClientError> {
        let access = Arc::new(Access::open(kubeconfig).await?);
        Ok(Self { access })
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
            let access = || Arc::clone(&self.access);
            let kinds: [BoxFuture<'_, ()>; Kind::ALL.len()] = [
                Box::pin(follow::<Namespace>(access(), events.clone())),
                Box::pin(follow::<Node>(access(), events.clone())),
                Box::pin(follow::<Pod>(access(), events.clone())),
                Box::pin(follow::<Service>(access(), events.clone())),
                Box::pin(follow::<EndpointSlice>(access(), events.clone())),
                Box::pin(follow::<NetworkPolicy>(access(), events.clone())),
            ];
            tokio::select! {
                () = events.closed() => {}
                _ = join_all(kinds) => {}
            }
        })
    }
}
