//! The client of the API server: kube's parts, put together so that a dead connection is noticed.
//!
//! kube's own builder opens connections without TCP keepalives, and HTTP/1.1 has no ping: behind a partition that says nothing,
//! a watch would look alive until nothing had come for longer than bookmarks take. It also tries a request that was answered
//! with 429, 503 or 504 again by itself, fifteen times, in silence: here such an answer is a failure like others, so that the kind is stale
//! at once and the follower's backoff decides.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::client::legacy::Builder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::config::Config;
use kube::core::Status;
use kube::core::response::StatusDetails;
use kube::{Client, Error};
use tower::{BoxError, ServiceBuilder};
use tower_http::decompression::DecompressionLayer;

/// How long a connection says nothing before it is probed. client-go's HTTP/2 waits 30 s; Go's TCP default is 15 s.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Between two probes that are not answered.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes after which the connection is dead.
pub(super) const KEEPALIVE_PROBES: u32 = 3;
/// The same bound for what was sent and not acknowledged, where no probes are sent: a request into a dead connection.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(25);
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection that no request uses is kept: for the next page of a list. One that is older may have been forgotten by what
/// lies on the way.
const POOLED: Duration = Duration::from_secs(10);
/// Bytes of a failed request's answer that are read at most.
const ANSWER_MAX: usize = 64 * 1024;

/// The client for a configuration.
///
/// # Errors
/// A certificate, key or other credential cannot be used, or the configuration asks for a proxy.
pub(super) fn client(config: Config) -> Result<Client, Error> {
    if config.proxy_url.is_some() {
        // kube was built without proxies, and says so.
        return Client::try_from(config);
    }
    let tls = config.rustls_https_connector_with_connector(connector())?;
    let mut pool = Builder::new(TokioExecutor::new());
    pool.pool_timer(TokioTimer::new()).pool_idle_timeout(POOLED);
    let decompression = DecompressionLayer::new().gzip(!config.disable_compression);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(decompression)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .and_then(asked_to_wait)
        .service(pool.build::<_, Body>(tls));
    Ok(Client::new(service, config.default_namespace))
}

/// Opens connections whose death the kernel finds.
pub(super) fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // TLS comes on top.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    connector
}

/// A failure with a `Retry-After` becomes the error that kube makes of it, with the time in it: kube drops the header, and what turns
/// requests away first (priority and fairness) says it nowhere else.
pub(super) async fn asked_to_wait<B>(response: Response<B>) -> Result<Response<B>, BoxError>
where
    B: http_body_util::BodyExt + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let code = response.status();
    let wait = match retry_after(response.headers()) {
        Some(wait) if !code.is_success() => wait,
        _ => return Ok(response),
    };
    let body = Limited::new(response.into_body(), ANSWER_MAX);
    // What it says besides is worth less than the time.
    let bytes = body
        .collect()
        .await
        .map(|all| all.to_bytes())
        .unwrap_or_default();
    let mut status = serde_json::from_slice::<Status>(&bytes).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(&bytes).trim().to_owned(),
        reason: code.canonical_reason().unwrap_or_default().to_owned(),
        ..Status::default()
    });
    status.code = code.as_u16();
    let details = status.details.get_or_insert_with(|| StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    });
    details.retry_after_seconds = details.retry_after_seconds.max(wait);
    Err(Error::Api(Box::new(status)).into())
}

/// Seconds of the header (RFC 9110 10.2.3). The other form, a date, is none that the API server writes.
fn retry_after(headers: &HeaderMap) -> Option<u32> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(u32::try_from(seconds).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use nix::sys::socket::{getsockopt, sockopt};
    use tower::Service as _;

    use super::*;

    /// Without these, nobody notices that the way to the server is gone.
    #[tokio::test]
    async fn a_connection_is_probed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("https://{}", listener.local_addr().unwrap());
        let io = connector().call(uri.parse().unwrap()).await.unwrap();
        let socket = io.inner();
        assert!(getsockopt(socket, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(socket, sockopt::TcpKeepIdle).unwrap(), 10);
        assert_eq!(getsockopt(socket, sockopt::TcpKeepInterval).unwrap(), 5);
        assert_eq!(getsockopt(socket, sockopt::TcpKeepCount).unwrap(), 3);
        assert_eq!(getsockopt(socket, sockopt::TcpUserTimeout).unwrap(), 25_000);
    }

    async fn answered(code: u16, wait: Option<&str>, body: &'static str) -> Option<Status> {
        let mut response = Response::builder().status(code);
        if let Some(wait) = wait {
            response = response.header(RETRY_AFTER, wait);
        }
        let response = response.body(Full::<bytes::Bytes>::from(body)).unwrap();
        match asked_to_wait(response).await {
            Ok(_) => None,
            Err(error) => match *error.downcast::<Error>().unwrap() {
                Error::Api(status) => Some(*status),
                other => panic!("{other}"),
            },
        }
    }

    #[tokio::test]
    async fn the_time_that_a_server_asks_for_is_part_of_the_error() {
        let plain = answered(429, Some("7"), "Too many requests\n")
            .await
            .unwrap();
        assert_eq!(
            (plain.code, plain.message.as_str()),
            (429, "Too many requests")
        );
        assert_eq!(plain.details.unwrap().retry_after_seconds, 7);
        let object = r#"{"kind":"Status","message":"busy","reason":"TooManyRequests","code":429,"details":{"retryAfterSeconds":9}}"#;
        let status = answered(503, Some("1"), object).await.unwrap();
        assert_eq!((status.code, status.message.as_str()), (503, "busy"));
        assert_eq!(status.details.unwrap().retry_after_seconds, 9);
        let endless = answered(429, Some("99999999999999"), "").await.unwrap();
        assert_eq!(endless.details.unwrap().retry_after_seconds, u32::MAX);
        assert!(answered(500, None, "broken").await.is_none());
        assert!(answered(429, Some("a while"), "").await.is_none());
        assert!(answered(200, Some("5"), "").await.is_none());
    }
}
