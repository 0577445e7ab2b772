//! The API server's own comings and goings, while etcd keeps its data.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;

use super::process::Process;
use super::{ControlPlane, arguments};

/// How often readiness is asked for, and the pause between: together two minutes, for machines that build and
/// test at once. Alone, a server is ready in four seconds.
const READY_TRIES: u32 = 1200;
const READY_PAUSE: Duration = Duration::from_millis(100);
/// One readiness request's share.
const READY_REQUEST: Duration = Duration::from_secs(5);
/// How long the API server may take to end in order. It stops listening at once, and then would wait up to a
/// minute for clients to end their watches, which they never do.
const STOP_GRACE: Duration = Duration::from_secs(1);

impl ControlPlane {
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
}

/// One readiness request.
async fn ready(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    tokio::time::timeout(READY_REQUEST, client.request_text(request))
        .await
        .context("no answer")??;
    Ok(())
}
