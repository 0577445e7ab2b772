//! A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager, on loopback or
//! on any address of the network namespace that it is started in.
//!
//! Real where it decides what an agent sees: RBAC is on, ServiceAccount tokens are issued and checked,
//! validation and admission are the server's own, and the real controllers make pods of Deployments and
//! EndpointSlices of Services. There is no kubelet and no scheduler: tests play those with [`Cluster`].
//!
//! Everything ends with the [`ControlPlane`] value, or with the process, however that ends.

mod arguments;
mod binaries;
mod certificates;
mod cluster;
mod go;
mod kubeconfig;
mod ports;
mod process;
mod wait;
mod workdir;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

pub use binaries::{ASSETS_VARIABLE, Binaries};
use certificates::Certificates;
pub use cluster::Cluster;
use process::{NetworkNamespace, Process};
use workdir::Workdir;

/// How often readiness is asked for, and the pause between: together two minutes, for machines that build and
/// test at once. Alone, a server is ready in four seconds.
const READY_TRIES: u32 = 1200;
const READY_PAUSE: Duration = Duration::from_millis(100);
/// One readiness request's share.
const READY_REQUEST: Duration = Duration::from_secs(5);
/// How long the API server may take to end its watches and itself, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a ServiceAccount's token lives: longer than any test, in seconds.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// How a control plane is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that the API server listens on; the calling thread's network namespace must own it. An agent
    /// in another namespace needs one that routes there. etcd always listens on that namespace's loopback.
    pub listen: IpAddr,
    /// The Service CIDRs, one or one for each family; the first must be of the family of `listen`.
    pub service_cidrs: Vec<String>,
    /// More flags for kube-apiserver, which win over the harness's own.
    pub apiserver_arguments: Vec<String>,
}

impl Default for Options {
    /// Loopback and dual stack.
    fn default() -> Self {
        Self {
            listen: Ipv4Addr::LOCALHOST.into(),
            service_cidrs: vec!["10.96.0.0/16".into(), "fd00:10:96::/112".into()],
            apiserver_arguments: Vec::new(),
        }
    }
}

/// A running control plane.
pub struct ControlPlane {
    // Dropped in this order: whoever talks to a process goes before it, and the files last.
    controller_manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Process,
    programs: Binaries,
    options: Options,
    certificates: Certificates,
    netns: NetworkNamespace,
    server: SocketAddr,
    etcd_port: u16,
    admin_kubeconfig: PathBuf,
    admin: Config,
    folder: Workdir,
}

impl ControlPlane {
    /// Starts one and returns when the API server is ready and the controllers work. Finds or builds the
    /// programs first ([`Binaries::find_or_build`]).
    ///
    /// # Errors
    /// When the programs are missing, or one of them ends or does not become ready; the text then holds the end
    /// of its log.
    pub async fn start(options: Options) -> Result<Self> {
        // Before the first await: later this task may be on another thread.
        let netns = NetworkNamespace::current()?;
        let programs = tokio::task::spawn_blocking(Binaries::find_or_build).await??;
        let folder = Workdir::create()?;
        let certificates = Certificates::create(
            &folder,
            &[
                options.listen,
                Ipv4Addr::LOCALHOST.into(),
                Ipv6Addr::LOCALHOST.into(),
            ],
        )?;
        let [etcd_port, peer_port] = ports::free(Ipv4Addr::LOCALHOST.into())?;
        let [port] = ports::free(options.listen)?;
        let server = SocketAddr::new(options.listen, port);
        let url = format!("https://{server}");
        let kubeconfig =
            kubeconfig::with_certificate(&url, &certificates.authority, &certificates.admin)?;
        let admin_kubeconfig = folder.write("admin.kubeconfig", &kubeconfig)?;
        let admin = client_config(&kubeconfig).await?;
        let etcd = Process::spawn(
            "etcd",
            &programs.program("etcd"),
            &arguments::etcd(&folder.path().join("etcd"), etcd_port, peer_port),
            &folder.path().join("etcd.log"),
            &netns,
        )?;
        let mut this = Self {
            controller_manager: None,
            apiserver: None,
            etcd,
            programs,
            options,
            certificates,
            netns,
            server,
            etcd_port,
            admin_kubeconfig,
            admin,
            folder,
        };
        this.start_apiserver().await?;
        this.start_controller_manager()?;
        // The first thing the controllers make, and what every pod needs.
        this.cluster()?
            .wait_for_default_service_account("default")
            .await
            .map_err(|error| {
                let log = this
                    .controller_manager
                    .as_ref()
                    .map(Process::log_tail)
                    .unwrap_or_default();
                error.context(format!(
                    "kube-controller-manager does not work; the end of its log:\n{log}"
                ))
            })?;
        Ok(this)
    }

    /// Where the API server listens. A restart keeps it.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The folder of logs (`NAME.log`), kubeconfigs and etcd's data. It goes with this value.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.folder.path()
    }

    /// A kubeconfig file that may do everything.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// A client that may do everything. It belongs to the runtime that this is called in.
    ///
    /// # Errors
    /// When the TLS stack cannot be set up.
    pub fn client(&self) -> Result<Client> {
        Client::try_from(self.admin.clone()).context("making an administrator's client")
    }

    /// The helpers that make and change objects. They belong to the runtime that this is called in.
    ///
    /// # Errors
    /// When the TLS stack cannot be set up.
    pub fn cluster(&self) -> Result<Cluster> {
        Ok(Cluster::new(self.client()?))
    }

    /// Writes a kubeconfig file with a token of this ServiceAccount, which must exist. The token lives a day.
    ///
    /// # Errors
    /// When there is no such ServiceAccount, or the server cannot be reached.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..Default::default()
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client()?, namespace);
        let token = api
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("asking for a token of ServiceAccount {namespace}/{name}"))?
            .status
            .and_then(|status| status.token)
            .context("the token request was answered without a token")?;
        let url = format!("https://{}", self.server);
        let kubeconfig = kubeconfig::with_token(&url, &self.certificates.authority, &token)?;
        self.folder
            .write(&format!("{namespace}-{name}.kubeconfig"), &kubeconfig)
    }

    /// A client with the rights of this ServiceAccount, which must exist.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_kubeconfig`].
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        let file = self.service_account_kubeconfig(namespace, name).await?;
        let config = client_config(&std::fs::read_to_string(file)?).await?;
        Ok(Client::try_from(config)?)
    }

    /// Starts the API server, at the same address and with the same data, and returns when it is ready. Does
    /// nothing if it runs. The controllers come back by themselves, after up to thirty seconds where it was away
    /// for long; [`ControlPlane::restart_controller_manager`] does not wait for that.
    ///
    /// # Errors
    /// When it ends or does not become ready; the text then holds the end of its log.
    pub async fn start_apiserver(&mut self) -> Result<()> {
        if self.apiserver.is_some() {
            return Ok(());
        }
        let started = Process::spawn(
            "kube-apiserver",
            &self.programs.program("kube-apiserver"),
            &arguments::apiserver(
                &self.options,
                &self.certificates,
                self.server.port(),
                self.etcd_port,
            ),
            &self.folder.path().join("kube-apiserver.log"),
            &self.netns,
        )?;
        let apiserver = self.apiserver.insert(started);
        let client = Client::try_from(self.admin.clone())?;
        let mut last = String::new();
        for _ in 0..READY_TRIES {
            self.etcd.check_running()?;
            apiserver.check_running()?;
            match ready(&client).await {
                Ok(()) => return Ok(()),
                Err(error) => last = format!("{error:#}"),
            }
            // Readiness cannot be waited for, only asked.
            tokio::time::sleep(READY_PAUSE).await;
        }
        bail!(
            "kube-apiserver at {} is not ready after {READY_TRIES} tries ({last}); the end of its log:\n{}",
            self.server,
            apiserver.log_tail()
        )
    }

    /// Stops the API server (watches end, connections are refused); its data stays. Does nothing if it is
    /// stopped.
    ///
    /// # Errors
    /// When its end cannot be awaited.
    pub async fn stop_apiserver(&mut self) -> Result<()> {
        match self.apiserver.take() {
            Some(apiserver) => apiserver.stop(STOP_GRACE).await,
            None => Ok(()),
        }
    }

    /// [`ControlPlane::stop_apiserver`], then [`ControlPlane::start_apiserver`].
    ///
    /// # Errors
    /// As those two.
    pub async fn restart_apiserver(&mut self) -> Result<()> {
        self.stop_apiserver().await?;
        self.start_apiserver().await
    }

    /// Ends the controllers and starts them again, without the pauses that they make after failures.
    ///
    /// # Errors
    /// When they cannot be started.
    pub async fn restart_controller_manager(&mut self) -> Result<()> {
        if let Some(running) = self.controller_manager.take() {
            running.stop(STOP_GRACE).await?;
        }
        self.start_controller_manager()
    }

    fn start_controller_manager(&mut self) -> Result<()> {
        self.controller_manager = Some(Process::spawn(
            "kube-controller-manager",
            &self.programs.program("kube-controller-manager"),
            &arguments::controller_manager(&self.admin_kubeconfig, &self.certificates),
            &self.folder.path().join("kube-controller-manager.log"),
            &self.netns,
        )?);
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A failing test: show what the servers said, and leave their logs.
        self.folder.keep();
        let running = [
            Some(&self.etcd),
            self.apiserver.as_ref(),
            self.controller_manager.as_ref(),
        ];
        for process in running.into_iter().flatten() {
            eprintln!(
                "--- the end of {}\n{}",
                process.log().display(),
                process.log_tail()
            );
        }
    }
}

/// One readiness request.
async fn ready(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    tokio::time::timeout(READY_REQUEST, client.request_text(request))
        .await
        .context("no answer")??;
    Ok(())
}

/// The client's side of a kubeconfig; no proxy of the environment stands between a test and its server.
async fn client_config(kubeconfig: &str) -> Result<Config> {
    let parsed = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}
