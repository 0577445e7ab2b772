//! The endpoint that Prometheus scrapes, `GET /metrics`, and that kubelet asks for readiness, `GET /readyz`: HTTP/1.1, one request a
//! connection. Written out, because a web framework would be the agent's biggest dependency for its smallest part.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Metrics;
use crate::observe::state::Provider;

/// Scrapes at a time; further ones wait.
const CLIENTS: usize = 8;
/// The longest request head in bytes.
const MAX_HEAD: usize = 8_192;
/// How long a scrape may take.
const WITHIN: Duration = Duration::from_secs(10);
/// How long to wait after a failure to accept (no file descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// The format's own content type.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An endpoint that has its port, and is still to run.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: {source}; choose another with --metrics-address")]
pub struct EndpointError {
    address: SocketAddr,
    source: io::Error,
}

impl Endpoint {
    /// Takes the port.
    ///
    /// # Errors
    /// It is taken, or not to be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens: the port that was found where port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub async fn run(self, provider: Arc<dyn Provider>, metrics: Arc<Metrics>) {
        let places = Arc::new(Semaphore::new(CLIENTS));
        let mut clients = tokio::task::JoinSet::new();
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the metrics endpoint cannot accept");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            while clients.try_join_next().is_some() {}
            let (provider, metrics) = (Arc::clone(&provider), Arc::clone(&metrics));
            clients.spawn(async move {
                let _place = place;
                if let Ok(Err(error)) = timeout(WITHIN, serve(stream, provider, metrics)).await {
                    tracing::debug!(%error, "a scrape failed");
                }
            });
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    provider: Arc<dyn Provider>,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let mut words = head.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            let render = move || metrics.render(&provider.summary(), SystemTime::now());
            let text = tokio::task::spawn_blocking(render).await;
            ("200 OK", text.map_err(io::Error::other)?)
        }
        ("GET" | "HEAD", "/readyz") => {
            let waiting_for = move || provider.summary().waiting_for;
            let waiting_for = tokio::task::spawn_blocking(waiting_for).await;
            readyz(&waiting_for.map_err(io::Error::other)?)
        }
        ("GET" | "HEAD", _) => (
            "404 Not Found",
            "only /metrics and /readyz are served here\n".to_owned(),
        ),
        _ => (
            "405 Method Not Allowed",
            "only GET is served here\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TEXT}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// One line for each thing that is missing. What is in force stays in force meanwhile: this is for people and for rollouts, which should
/// not go on where agents do not see the cluster.
fn readyz(waiting_for: &[String]) -> (&'static str, String) {
    if waiting_for.is_empty() {
        return ("200 OK", "ready\n".to_owned());
    }
    let lines = waiting_for.iter().map(|what| format!("waits for {what}\n"));
    ("503 Service Unavailable", lines.collect())
}

/// Up to the empty line that ends a head (RFC 9112 2.1); all of it is read, or closing would reset the connection.
async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1_024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || head.len() + read > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fixture::Shop;
    use crate::observe::flows::FlowHub;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_scrape_and_what_is_none() {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = endpoint.address();
        let taken = Endpoint::bind(address).await.unwrap_err();
        assert!(
            taken
                .to_string()
                .starts_with(&format!("cannot serve metrics at {address}"))
        );
        let provider = Shop::new(FlowHub::default());
        let task = tokio::spawn(endpoint.run(provider, Arc::default()));
        let text = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        let line = "sluice_drop_packets_total{hook=\"from-pod\",reason=\"policy-ingress\"} 12\n";
        assert!(body.contains(line), "{body}");
        let ready = ask(address, "GET /readyz HTTP/1.1\r\n\r\n").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(
            ready.ends_with(
                "\r\n\r\nwaits for manifests, lost since 2026-11-21T14:38:35.000Z (Pod)\n"
            ),
            "{ready}"
        );
        assert_eq!(readyz(&[]), ("200 OK", "ready\n".to_owned()));
        let lost = ask(address, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(lost.starts_with("HTTP/1.1 404 "), "{lost}");
        let post = ask(address, "POST /metrics HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        let head = ask(address, "HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        task.abort();
    }
}
