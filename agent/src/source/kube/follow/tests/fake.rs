//! An API server in this process, without a socket: the test answers each request, and the clock may stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tower::{BoxError, ServiceBuilder, service_fn};

use super::super::super::access::Access;
use super::super::super::client::asked_to_wait;
use super::super::follow;
use super::{event, namespace, status};
use crate::source::Event;

/// Of the paused clock: far more than anything waits.
const PATIENCE: std::time::Duration = std::time::Duration::from_hours(1);
type Reply = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>;

/// A request that waits for its answer.
pub(super) struct Ask {
    /// Path and query.
    pub(super) path: String,
    /// How often the client was opened before the one that asks.
    pub(super) credentials: u64,
    answer: oneshot::Sender<Result<Reply, BoxError>>,
}

impl Ask {
    pub(super) fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }

    /// A parameter of the query.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let query = self.path.split_once('?')?.1;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn reply(self, response: Response<Full<Bytes>>) {
        let response = response.map(|body| body.map_err(BoxError::from).boxed_unsync());
        // A client that gave up does not hear it.
        let _ = self.answer.send(Ok(response));
    }

    /// An answer of this code.
    pub(super) fn json(self, code: u16, value: &Value) {
        let body = Full::from(value.to_string());
        self.reply(Response::builder().status(code).body(body).unwrap());
    }

    /// A failure, with seconds to wait where there are any.
    pub(super) fn fail(self, code: u16, message: &str, wait: Option<u32>) {
        let mut response = Response::builder().status(code);
        if let Some(wait) = wait {
            response = response.header(http::header::RETRY_AFTER, wait);
        }
        let body = Full::from(status(code, message).to_string());
        self.reply(response.body(body).unwrap());
    }

    /// A page of a list.
    pub(super) fn page(self, names: &[&str], version: &str, more: &str) {
        assert!(!self.is_watch(), "{}", self.path);
        let items: Vec<Value> = names.iter().map(|name| namespace(name, version)).collect();
        let metadata = json!({ "resourceVersion": version, "continue": more });
        let list = json!({ "apiVersion": "v1", "kind": "NamespaceList", "metadata": metadata, "items": items });
        self.json(200, &list);
    }

    /// A watch that is open.
    pub(super) fn watch(self) -> Watch {
        assert!(self.is_watch(), "{}", self.path);
        let (pieces, mut sent) = mpsc::unbounded_channel();
        let body = StreamBody::new(futures::stream::poll_fn(move |cx| sent.poll_recv(cx)));
        let _ = self.answer.send(Ok(Response::new(body.boxed_unsync())));
        Watch { pieces }
    }

    /// The connection cannot be had.
    pub(super) fn refuse(self) {
        let _ = self.answer.send(Err("connection refused".into()));
    }
}

/// An open watch. Dropped, it ends as servers end watches.
pub(super) struct Watch {
    pieces: mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>,
}

impl Watch {
    fn line(&self, event: &Value) {
        let line = format!("{event}\n");
        // A client that gave up does not hear it.
        let _ = self.pieces.send(Ok(Frame::data(line.into())));
    }

    pub(super) fn tell(&self, kind: &str, name: &str, version: &str) {
        self.line(&event(kind, namespace(name, version)));
    }

    pub(super) fn bookmark(&self, version: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "resourceVersion": version } });
        self.line(&event("BOOKMARK", object));
    }

    /// The server says that the place is lost.
    pub(super) fn gone(self) {
        self.line(&event("ERROR", status(410, "too old")));
    }

    /// The connection breaks.
    pub(super) fn breaks(self) {
        let _ = self.pieces.send(Err("connection reset".into()));
    }
}

/// Follows Namespaces of a server that answers as the test says.
pub(super) struct Fake {
    asks: mpsc::UnboundedReceiver<Ask>,
    pub(super) events: mpsc::Receiver<Event>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        Self::followed_by(1).await
    }

    /// As many followers with one access; the events of the first are told.
    pub(super) async fn followed_by(followers: usize) -> Self {
        let (asked, asks) = mpsc::unbounded_channel();
        let opened = Arc::new(AtomicU64::new(0));
        let open = move || -> futures::future::BoxFuture<'static, _> {
            let client = client(asked.clone(), opened.fetch_add(1, Ordering::Relaxed));
            Box::pin(async move { Ok(client) })
        };
        let access = Arc::new(Access::by(Box::new(open)).await.unwrap());
        let (sender, events) = mpsc::channel(64);
        for _ in 1..followers {
            let (sender, mut others) = mpsc::channel(64);
            tokio::spawn(follow::<Namespace>(Arc::clone(&access), sender));
            tokio::spawn(async move { while others.recv().await.is_some() {} });
        }
        tokio::spawn(follow::<Namespace>(access, sender));
        Self { asks, events }
    }

    /// The next request.
    pub(super) async fn asked(&mut self) -> Ask {
        let ask = timeout(PATIENCE, self.asks.recv()).await;
        ask.expect("a request comes").expect("the client lives")
    }

    /// The next request, and how long it took to come.
    pub(super) async fn asked_after(&mut self) -> (Ask, std::time::Duration) {
        let began = Instant::now();
        let ask = self.asked().await;
        (ask, began.elapsed())
    }

    /// The next events, in short: `+a`, `-a`, `synced`, `stale: reason`.
    pub(super) async fn told(&mut self, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..count {
            told.push(self.next().await.0);
        }
        told
    }

    /// The next event in short, and since when the kind is stale where it is.
    pub(super) async fn next(&mut self) -> (String, Option<std::time::SystemTime>) {
        let event = timeout(PATIENCE, self.events.recv()).await;
        match event.expect("an event comes").expect("it runs") {
            Event::Upsert(object) => (format!("+{}", object.id().key.name), None),
            Event::Delete(id) => (format!("-{}", id.key.name), None),
            Event::Synced(_) => ("synced".to_owned(), None),
            Event::Stale { since, reason, .. } => (format!("stale: {reason}"), Some(since)),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing was told that was not taken.
    pub(super) fn nothing_told(&mut self) {
        let event = self.events.try_recv();
        assert!(event.is_err(), "{event:?}");
    }

    /// A list of these, told, and the watch behind it.
    pub(super) async fn synced(names: &[&str]) -> (Self, Watch) {
        let mut fake = Self::start().await;
        fake.asked().await.page(names, "5", "");
        let mut expected: Vec<String> = names.iter().map(|name| format!("+{name}")).collect();
        expected.push("synced".to_owned());
        assert_eq!(fake.told(expected.len()).await, expected);
        let watch = fake.asked().await.watch();
        (fake, watch)
    }
}

fn client(asked: mpsc::UnboundedSender<Ask>, credentials: u64) -> Client {
    let service = service_fn(move |request: Request<Body>| {
        let (answer, answered) = oneshot::channel();
        let path = request.uri().to_string();
        let ask = Ask {
            path,
            credentials,
            answer,
        };
        // Where the test is over, nobody answers.
        let _ = asked.send(ask);
        async move {
            match answered.await {
                Ok(reply) => reply,
                Err(_) => std::future::pending().await,
            }
        }
    });
    let service = ServiceBuilder::new()
        .and_then(asked_to_wait)
        .service(service);
    Client::new(service, "default")
}
