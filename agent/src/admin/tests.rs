//! Server and client over a socket of their own.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_common::event_kind;
use tokio::task::JoinHandle;

use super::client::{Client, ClientError};
use super::server::{Server, SocketError};
use super::*;
use crate::observe::fixture::{self, Shop};
use crate::observe::flows::FlowHub;
use crate::observe::view::*;

/// A server on a socket in a directory of its own.
struct Served {
    _directory: tempfile::TempDir,
    path: PathBuf,
    shop: Arc<Shop>,
    task: JoinHandle<()>,
}

fn serve() -> Served {
    serve_with(FlowHub::default())
}

fn serve_with(hub: FlowHub) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/sluice.sock");
    let shop = Shop::new(hub);
    let server = Server::bind(&path).unwrap();
    let task = tokio::spawn(server.run(Arc::clone(&shop) as Arc<_>));
    Served {
        _directory: directory,
        path,
        shop,
        task,
    }
}

/// The client blocks, as the CLI does.
async fn with_client<T: Send + 'static>(
    path: &std::path::Path,
    ask: impl FnOnce(Client) -> T + Send + 'static,
) -> T {
    let client = Client::new(path);
    tokio::task::spawn_blocking(move || ask(client))
        .await
        .unwrap()
}

fn flows(allowed: bool, last: usize) -> FlowRequest {
    FlowRequest {
        allowed,
        last,
        follow: true,
        only: FlowMatch::default(),
    }
}

#[tokio::test]
async fn documents_arrive_as_they_were_built() {
    let served = serve();
    let state = fixture::state();
    let summary = fixture::summary();
    with_client(&served.path, move |client| {
        let namespace = None;
        let status: Status = client.ask(&Request::Status).unwrap();
        assert_eq!(status, Status::build(&summary, &state));
        let services: ServiceList = client.ask(&Request::Services { namespace }).unwrap();
        assert_eq!(services, ServiceList::build(&state, None));
        let namespace = Some("other".to_owned());
        let endpoints: EndpointList = client.ask(&Request::Endpoints { namespace }).unwrap();
        assert_eq!(endpoints, EndpointList::build(&state, Some("other")));
        let namespace = None;
        let policies: PolicyList = client.ask(&Request::Policies { namespace }).unwrap();
        assert_eq!(policies, PolicyList::build(&summary, &state, None));
    })
    .await;
}

#[tokio::test]
async fn flows_are_those_kept_and_then_those_that_come() {
    let served = serve();
    served.shop.hub.publish(fixture::drop_event());
    served.shop.hub.publish(fixture::reject_event());
    let (list, mut stream) =
        with_client(&served.path, |c| c.watch(&flows(false, 1)).unwrap()).await;
    assert_eq!(list.flows.len(), 1);
    assert_eq!(list.flows[0].kind, FlowKind::Reject, "the last one");
    served.shop.hub.publish(fixture::allow_event());
    served.shop.hub.publish(fixture::drop_event());
    let line = tokio::task::spawn_blocking(move || stream.next_line().unwrap())
        .await
        .unwrap();
    let FlowLine::Event(event) = line else {
        panic!("{line:?}")
    };
    assert_eq!(
        event.kind,
        FlowKind::Drop,
        "allowed flows were not asked for"
    );
    assert_eq!(event.source.name.as_deref(), Some("other/stranger"));
}

#[tokio::test]
async fn allowed_flows_are_reported_while_a_client_watches_them() {
    let served = serve();
    let mut wanted = served.shop.hub.allowed_watchers();
    let (_, stream) = with_client(&served.path, |c| c.watch(&flows(true, 0)).unwrap()).await;
    wanted.wait_for(|n| *n == 1).await.unwrap();
    served.shop.hub.publish(fixture::allow_event());
    let (line, stream) = tokio::task::spawn_blocking(move || {
        let mut stream = stream;
        (stream.next_line().unwrap(), stream)
    })
    .await
    .unwrap();
    assert!(matches!(line, FlowLine::Event(e) if e.kind == FlowKind::Allow));
    drop(stream);
    wanted.wait_for(|n| *n == 0).await.unwrap();
}

#[tokio::test]
async fn a_slow_client_loses_events_and_is_told_how_many() {
    const QUEUE: usize = 16;
    const EVENTS: u64 = 20_000;
    let served = serve_with(FlowHub::with_queue(QUEUE));
    let (_, mut stream) = with_client(&served.path, |c| c.watch(&flows(false, 0)).unwrap()).await;
    // Far more than the socket's buffer holds, while nobody reads; the server's task runs between them.
    for n in 0..EVENTS {
        let mut event = fixture::drop_event();
        event.length = u32::try_from(n).unwrap();
        served.shop.hub.publish(event);
        tokio::task::yield_now().await;
    }
    let (seen, lost) = tokio::task::spawn_blocking(move || {
        let (mut seen, mut lost) = (0, 0);
        while seen + lost < EVENTS {
            match stream.next_line().unwrap() {
                FlowLine::Event(event) => {
                    assert_eq!(
                        u64::from(event.length),
                        seen + lost,
                        "none is missing without a word"
                    );
                    seen += 1;
                }
                FlowLine::Lost(l) if l.at == LostAt::Client => lost += l.events,
                FlowLine::Lost(l) => panic!("{l:?}"),
            }
        }
        (seen, lost)
    })
    .await
    .unwrap();
    assert!(seen > 0 && lost > 0, "seen {seen}, lost {lost}");
}

#[tokio::test]
async fn the_end_of_the_agent_is_told() {
    let served = serve();
    let (_, mut stream) = with_client(&served.path, |c| c.watch(&flows(false, 0)).unwrap()).await;
    served.task.abort();
    drop(served.task.await);
    let gone = tokio::task::spawn_blocking(move || stream.next_line())
        .await
        .unwrap();
    assert!(matches!(gone, Err(ClientError::Gone(_))), "{gone:?}");
    assert!(!served.path.exists(), "the socket went with the server");
    let asked = with_client(&served.path, |c| c.ask::<Status>(&Request::Status)).await;
    assert!(
        matches!(asked, Err(ClientError::NotRunning(_))),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sluice.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "as kill -9 leaves it");
    let asked = with_client(&path, |c| c.ask::<Status>(&Request::Status)).await;
    assert!(
        matches!(asked, Err(ClientError::NotRunning(_))),
        "{asked:?}"
    );
    let server = Server::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_living_agents_socket_is_refused() {
    let served = serve();
    let second = Server::bind(&served.path).unwrap_err();
    assert!(
        matches!(&second, SocketError::Taken(p) if *p == served.path),
        "{second}"
    );
    assert!(!second.to_string().contains('\n'));
    with_client(&served.path, |c| c.ask::<Status>(&Request::Status).unwrap()).await;
    // Somebody who keeps no lock is left alone too.
    let other = served.path.with_file_name("other.sock");
    let _listener = UnixListener::bind(&other).unwrap();
    assert!(matches!(Server::bind(&other), Err(SocketError::Taken(_))));
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(Server::bind(&path), Err(SocketError::NoSocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn a_dropped_server_leaves_its_successors_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sluice.sock");
    let server = Server::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}

/// Sends bytes, and reads until the server closes.
async fn raw(path: &std::path::Path, bytes: Vec<u8>) -> String {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        drop(stream.write_all(&bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut text = String::new();
        drop(stream.read_to_string(&mut text));
        text
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn nonsense_is_answered_in_one_line() {
    let served = serve();
    for bytes in [
        b"hello\n".to_vec(),
        b"{\"command\":\"make-coffee\"}\n".to_vec(),
        b"{\"command\":\"status\"}".to_vec(),
        vec![0xff, 0xfe, b'\n'],
    ] {
        let answer = raw(&served.path, bytes.clone()).await;
        assert!(answer.starts_with("{\"error\":"), "{bytes:?}: {answer}");
        assert_eq!(answer.lines().count(), 1);
    }
    // Too long: the answer may be lost with the bytes that nobody reads, but the server lives.
    raw(&served.path, vec![b'x'; 200_000]).await;
    assert_eq!(raw(&served.path, Vec::new()).await, "");
    with_client(&served.path, |c| c.ask::<Status>(&Request::Status).unwrap()).await;
}

#[tokio::test]
async fn one_client_too_many_is_told_so_and_the_others_stay() {
    let served = serve();
    let path = served.path.clone();
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(with_client(&path, |c| c.watch(&flows(false, 0)).unwrap()).await);
    }
    let refused = with_client(&path, |c| c.ask::<Status>(&Request::Status)).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused(text)) if text.contains("32 clients")),
        "{refused:?}"
    );
    streams.pop();
    // The place is free as soon as the server has seen the client go, which nothing tells from outside.
    while with_client(&path, |c| c.ask::<Status>(&Request::Status))
        .await
        .is_err()
    {}
    served.shop.hub.publish(fixture::drop_event());
    let (_, mut first) = streams.swap_remove(0);
    let line = tokio::task::spawn_blocking(move || first.next_line().unwrap())
        .await
        .unwrap();
    assert!(matches!(line, FlowLine::Event(e) if e.kind == FlowKind::Drop));
    assert_eq!(fixture::drop_event().kind, event_kind::DROP);
}

#[tokio::test]
async fn only_what_is_asked_for_comes() {
    let served = serve();
    for event in [
        fixture::drop_event(),
        fixture::reject_event(),
        fixture::audit_event(),
    ] {
        served.shop.hub.publish(event);
    }
    let request = FlowRequest {
        last: 10,
        only: FlowMatch {
            reason: Some("no-endpoint".to_owned()),
            object: None,
        },
        ..FlowRequest::default()
    };
    let list = with_client(&served.path, move |c| {
        c.ask::<FlowList>(&Request::Flows(request)).unwrap()
    })
    .await;
    let reasons: Vec<_> = list
        .flows
        .iter()
        .filter_map(|f| f.reason.as_deref())
        .collect();
    assert_eq!(reasons, ["no-endpoint"]);
}
