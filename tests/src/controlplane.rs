//! A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager, on loopback or
//! on any address of the network namespace that it is started in.
//!
//! Real where it decides what an agent sees: RBAC is on, ServiceAccount tokens are issued and checked,
//! validation and admission are the server's own, and the real controllers make pods of Deployments and
//! EndpointSlices of Services. There is no kubelet and no scheduler: tests play those with [`Cluster`].
//!
//! Everything ends with the [`ControlPlane`] value, or with the process, however that ends.

mod apiserver;
mod arguments;
mod binaries;
mod certificates;
mod cluster;
mod etcd;
mod fingerprint;
mod go;
mod kubeconfig;
mod module;
mod options;
mod ports;
mod process;
mod tokens;
mod wait;
mod workdir;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use binaries::{ASSETS_VARIABLE, Binaries};
use certificates::Certificates;
pub use cluster::Cluster;
pub use etcd::Closed;
pub use options::Options;
use process::{NetworkNamespace, Process};
use workdir::Workdir;

/// How long the controllers may take to end, before they are killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

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

    /// Starts one for the length of `test`. Where that fails, the ends of the servers' logs are printed, and the
    /// folder stays for a day.
    ///
    /// # Errors
    /// As [`ControlPlane::start`], and those of `test`.
    pub async fn during<T>(
        options: Options,
        test: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut this = Self::start(options).await?;
        let result = test(&mut this).await;
        if result.is_err() {
            this.show_failure();
        }
        result
    }

    /// Prints the ends of the servers' logs and leaves the folder with all of them for a day. A panic does this
    /// by itself.
    pub fn show_failure(&mut self) {
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
        if std::thread::panicking() {
            self.show_failure();
        }
    }
}

/// The client's side of a kubeconfig; no proxy of the environment stands between a test and its server.
async fn client_config(kubeconfig: &str) -> Result<Config> {
    let parsed = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}
