//! How the API server is reached, and with which credentials: shared by the six kinds, and read again when they are not good any more.
//!
//! kube reads a service account's token again each minute. That is not all: the token may be refused before that, and what a
//! kubeconfig holds itself (tokens, certificates, the server's CA) it never reads again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;

use super::client::client;

/// Between two readings because of connections that cannot be had: a CA that was replaced shows so, but so does a server that is gone,
/// and an `exec` plugin is run each time.
const UNREACHED: Duration = Duration::from_secs(30);

/// A reading is shared by kinds whose credentials were refused together; later it is done again, for they may have been written since.
const FRESH: Duration = Duration::from_secs(1);

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
async fn open(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
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
    client(config).map_err(|source| ClientError::Client {
        source: Box::new(source),
    })
}

/// Opens a client anew.
type Open = Box<dyn Fn() -> BoxFuture<'static, Result<Client, ClientError>> + Send + Sync>;

/// A client, and which one it is.
#[derive(Clone)]
pub(super) struct Lent {
    pub(super) client: Client,
    /// Counts how often credentials were read.
    pub(super) generation: u64,
}

struct Current {
    lent: Lent,
    opened: Instant,
}

/// The one client of all kinds.
pub(super) struct Access {
    open: Open,
    current: Mutex<Current>,
    recovered: watch::Sender<()>,
}

impl Access {
    /// Reads the credentials: of a kubeconfig, or of the pod's service account. Whether a server answers shows only when it is asked.
    ///
    /// # Errors
    /// They are missing or unusable.
    pub(super) async fn open(kubeconfig: Option<PathBuf>) -> Result<Self, ClientError> {
        let opener = move || -> BoxFuture<'static, _> {
            let kubeconfig = kubeconfig.clone();
            Box::pin(async move { open(kubeconfig.as_deref()).await })
        };
        Self::by(Box::new(opener)).await
    }

    /// Clients by whatever opens them.
    pub(super) async fn by(open: Open) -> Result<Self, ClientError> {
        let lent = Lent {
            client: open().await?,
            generation: 0,
        };
        let opened = Instant::now();
        Ok(Self {
            open,
            current: Mutex::new(Current { lent, opened }),
            recovered: watch::Sender::new(()),
        })
    }

    /// The client.
    pub(super) async fn lend(&self) -> Lent {
        self.current.lock().await.lent.clone()
    }

    /// A kind is followed again.
    pub(super) fn recovered(&self) {
        self.recovered.send_replace(());
    }

    /// Changes when a kind is followed again: what kept the others from the server may be over.
    pub(super) fn recoveries(&self) -> watch::Receiver<()> {
        self.recovered.subscribe()
    }

    /// The client to try next, after the credentials of `used` were refused: they are read again, unless another kind has just had that
    /// done.
    ///
    /// # Errors
    /// They cannot be read; the client stays what it was.
    pub(super) async fn refused(&self, used: &Lent) -> Result<Lent, ClientError> {
        let current = self.current.lock().await;
        let shared = current.lent.generation != used.generation && current.opened.elapsed() < FRESH;
        self.renew(current, !shared).await
    }

    /// The client to try next, after one whose server could not be reached, or not be trusted.
    ///
    /// # Errors
    /// As [`Access::refused`].
    pub(super) async fn unreached(&self) -> Result<Lent, ClientError> {
        let current = self.current.lock().await;
        let due = current.opened.elapsed() >= UNREACHED;
        self.renew(current, due).await
    }

    async fn renew(
        &self,
        mut current: MutexGuard<'_, Current>,
        due: bool,
    ) -> Result<Lent, ClientError> {
        if !due {
            return Ok(current.lent.clone());
        }
        if crate::mutant::removed("credentials-once") {
            return Ok(current.lent.clone());
        }
        current.opened = Instant::now();
        let client = (self.open)().await?;
        current.lent = Lent {
            client,
            generation: current.lent.generation + 1,
        };
        tracing::debug!("the API server's credentials were read again");
        Ok(current.lent.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: c
clusters: [{ name: c, cluster: { server: 'http://127.0.0.1:1' } }]
contexts: [{ name: c, context: { cluster: c, user: u } }]
users: [{ name: u, user: { token: first } }]
";

    #[tokio::test]
    async fn a_kubeconfig_is_read_again_once_for_all_kinds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, KUBECONFIG).unwrap();
        let access = Access::open(Some(path.clone())).await.unwrap();
        let first = access.lend().await;
        let second = access.refused(&first).await.unwrap();
        assert_eq!(second.generation, 1);
        // Another kind that used the same.
        assert_eq!(access.refused(&first).await.unwrap().generation, 1);
        std::fs::write(&path, "users: [").unwrap();
        let error = access.refused(&second).await.err().unwrap().to_string();
        assert!(error.contains("kubeconfig"), "{error}");
        assert_eq!(access.lend().await.generation, 1, "the old one stays");
        std::fs::write(&path, KUBECONFIG).unwrap();
        assert_eq!(access.refused(&second).await.unwrap().generation, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_gone_has_them_read_again_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, KUBECONFIG).unwrap();
        let access = Access::open(Some(path)).await.unwrap();
        assert_eq!(access.unreached().await.unwrap().generation, 0);
        tokio::time::advance(UNREACHED).await;
        assert_eq!(access.unreached().await.unwrap().generation, 1);
    }
}
