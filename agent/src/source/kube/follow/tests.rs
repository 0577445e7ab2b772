//! Following against a server that plays a script, request by request: over HTTP here, in this process and with a paused clock in `outage`.

mod fake;
mod outage;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// However busy the machine is.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the server does with one request.
enum Reply {
    /// An answer of this code.
    Json(u16, Value),
    /// Watch events, and the end of the watch.
    Watch(Vec<Value>),
}

/// Follows Namespaces of a server that gives these replies, and then takes requests and never answers them.
struct Script {
    events: mpsc::Receiver<Event>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut replies: VecDeque<Reply> = replies.into_iter().collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let path = request(&mut stream).await;
                seen.lock().unwrap().push(path);
                match replies.pop_front() {
                    Some(reply) => answer(&mut stream, reply).await,
                    None => unanswered.push(stream),
                }
            }
        });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let client = super::super::client::client(config).unwrap();
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(follow::<Namespace>(access(client).await, sender));
        Self { events, requests }
    }

    /// The next events, in short.
    async fn told(&mut self, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..count {
            let event = timeout(DEADLINE, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("nothing after {told:?}"));
            told.push(match event.unwrap() {
                Event::Upsert(object) => format!("+{}", object.id().key.name),
                Event::Delete(id) => format!("-{}", id.key.name),
                Event::Synced(_) => "synced".to_owned(),
                Event::Stale { reason, .. } => format!("stale: {reason}"),
                other => format!("{other:?}"),
            });
        }
        told
    }

    /// Waits until so many requests have come, and gives their paths.
    async fn requests(&self, count: usize) -> Vec<String> {
        let enough = async {
            loop {
                let requests = self.requests.lock().unwrap().clone();
                if requests.len() >= count {
                    return requests;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, enough).await.unwrap()
    }
}

/// Access that always gives this client.
async fn access(client: Client) -> Arc<Access> {
    let open = move || -> futures::future::BoxFuture<'static, _> {
        let client = client.clone();
        Box::pin(async move { Ok(client) })
    };
    Arc::new(Access::by(Box::new(open)).await.unwrap())
}

/// The path of a request.
async fn request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

async fn answer(stream: &mut TcpStream, reply: Reply) {
    let (code, body) = match reply {
        Reply::Json(code, value) => (code, value.to_string()),
        Reply::Watch(events) => (200, events.iter().map(|e| format!("{e}\n")).collect()),
    };
    let text = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn namespace(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "resourceVersion": version },
    })
}

fn page(names: &[&str], version: &str, more: &str) -> Reply {
    let items: Vec<Value> = names.iter().map(|name| namespace(name, version)).collect();
    let metadata = json!({ "resourceVersion": version, "continue": more });
    Reply::Json(
        200,
        json!({ "apiVersion": "v1", "kind": "NamespaceList", "metadata": metadata, "items": items }),
    )
}

fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

fn status(code: u16, message: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "" })
}

#[tokio::test]
async fn pages_are_one_list_and_each_watch_begins_where_the_last_ended() {
    let bookmark =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "resourceVersion": "9" } });
    let mut script = Script::start([
        page(&["a"], "5", "token"),
        page(&["b"], "5", ""),
        Reply::Watch(vec![
            event("ADDED", namespace("c", "6")),
            event("DELETED", namespace("a", "7")),
        ]),
        Reply::Watch(vec![event("BOOKMARK", bookmark)]),
    ])
    .await;
    assert_eq!(script.told(5).await, ["+a", "+b", "synced", "+c", "-a"]);
    let requests = script.requests(5).await;
    assert!(requests[0].contains("limit=500") && !requests[0].contains("continue="));
    assert!(requests[1].contains("continue=token"), "{requests:?}");
    for (request, version) in [(2, "5"), (3, "7"), (4, "9")] {
        let request = &requests[request];
        let from = format!("resourceVersion={version}");
        assert!(
            request.contains("watch=true")
                && request.contains("allowWatchBookmarks=true")
                && request.split(['&', '?']).any(|part| part == from),
            "{request}"
        );
    }
}

#[tokio::test]
async fn a_lost_history_is_a_list_whose_difference_is_told() {
    let mut script = Script::start([
        page(&["a", "b"], "5", ""),
        Reply::Watch(vec![event(
            "ERROR",
            status(410, "too old resource version"),
        )]),
        page(&["b", "c"], "8", ""),
    ])
    .await;
    assert_eq!(
        script.told(7).await,
        ["+a", "+b", "synced", "+b", "+c", "-a", "synced"]
    );
    let requests = script.requests(4).await;
    assert!(!requests[2].contains("watch"), "{requests:?}");
    assert!(requests[3].contains("resourceVersion=8"), "{requests:?}");
}

#[tokio::test]
async fn a_list_whose_pages_expired_begins_again_and_deletes_nothing_meanwhile() {
    let mut script = Script::start([
        page(&["a"], "5", "token"),
        Reply::Json(410, status(410, "the continue parameter is too old")),
        page(&["a", "b"], "6", ""),
    ])
    .await;
    assert_eq!(script.told(4).await, ["+a", "+a", "+b", "synced"]);
    assert!(!script.requests(3).await[2].contains("continue="));
}

#[tokio::test]
async fn a_forbidden_kind_is_stale_with_its_mend_until_it_is_allowed() {
    let mut script = Script::start([
        Reply::Json(403, status(403, "namespaces is forbidden")),
        page(&["a"], "5", ""),
    ])
    .await;
    let told = script.told(3).await;
    assert!(
        told[0].starts_with("stale: ") && told[0].contains("get, list and watch namespaces"),
        "{told:?}"
    );
    assert_eq!(told[1..], ["+a", "synced"]);
}

/// A watch that opens is no proof: the server opens it also to say that the place is lost.
#[tokio::test]
async fn a_kind_stays_stale_until_the_watch_goes_on_or_a_list_is_whole() {
    let mut script = Script::start([
        page(&["a"], "5", ""),
        Reply::Json(500, status(500, "etcd is away")),
        Reply::Watch(vec![event(
            "ERROR",
            status(410, "too old resource version"),
        )]),
        page(&["b"], "8", ""),
        Reply::Json(500, status(500, "etcd is away again")),
        Reply::Watch(vec![event("MODIFIED", namespace("b", "9"))]),
    ])
    .await;
    let told = script.told(8).await;
    assert!(told[2].contains("etcd is away (500)"), "{told:?}");
    assert_eq!(told[3..6], ["+b", "-a", "synced"]);
    assert!(told[6].contains("etcd is away again"), "{told:?}");
    assert_eq!(told[7], "synced");
    assert_eq!(script.told(1).await, ["+b"]);
}
