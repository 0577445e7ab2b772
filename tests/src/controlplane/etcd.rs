//! etcd refuses the API server for a while: whatever must be read there is then answered with 500.
//!
//! By etcd's own authentication, which the API server does not know of. To stop etcd would not do: the API server waits for it, as long as
//! a request may take.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ControlPlane;

/// The user that etcd's authentication cannot be without.
const USER: &str = "root";
/// On loopback, for seconds.
const PASSWORD: &str = "tests";

/// What opens etcd again.
#[must_use = "etcd refuses the API server until it is opened"]
pub struct Closed {
    token: String,
}

impl ControlPlane {
    /// From now on etcd refuses all but its administrator. What the API server has in its caches it still tells, above all to watches.
    /// Call it in the control plane's network namespace.
    ///
    /// # Errors
    /// etcd cannot be asked, or refuses.
    pub async fn close_etcd(&self) -> Result<Closed> {
        let user = json!({ "name": USER, "password": PASSWORD });
        self.ask_etcd("auth/user/add", &user, None).await?;
        let grant = json!({ "user": USER, "role": USER });
        self.ask_etcd("auth/user/grant", &grant, None).await?;
        self.ask_etcd("auth/enable", &json!({}), None).await?;
        let answer = self.ask_etcd("auth/authenticate", &user, None).await?;
        let token = answer["token"].as_str().context("etcd gave no token")?;
        Ok(Closed {
            token: token.to_owned(),
        })
    }

    /// etcd answers everybody again, as before.
    ///
    /// # Errors
    /// As [`ControlPlane::close_etcd`].
    pub async fn open_etcd(&self, closed: Closed) -> Result<()> {
        let token = Some(closed.token.as_str());
        self.ask_etcd("auth/disable", &json!({}), token).await?;
        let user = json!({ "name": USER });
        self.ask_etcd("auth/user/delete", &user, None).await?;
        Ok(())
    }

    /// One request of etcd's JSON gateway, as HTTP/1.0: its answer ends with its connection.
    async fn ask_etcd(&self, path: &str, body: &Value, token: Option<&str>) -> Result<Value> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.etcd_port));
        let body = body.to_string();
        let authorization = token.map_or(String::new(), |t| format!("Authorization: {t}\r\n"));
        let request = format!(
            "POST /v3/{path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(address)
            .await
            .context("connecting to etcd")?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("etcd's answer has no end of its head")?;
        ensure!(
            head.split(' ').nth(1) == Some("200"),
            "etcd's answer to {path}: {answer}"
        );
        serde_json::from_str(body).with_context(|| format!("etcd's answer to {path}: {body}"))
    }
}
