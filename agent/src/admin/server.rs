//! The agent's side of the admin socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::socket::Listening;
pub use super::socket::SocketError;
use super::{Answer, Request, watch};
use crate::observe::state::{Provider, State};
use crate::observe::view::{EndpointList, PolicyList, ServiceList, Status};

/// Clients at a time: people and a few scripts. Each costs a task and at most one document in memory.
const CLIENTS: usize = 32;
/// The longest request in bytes.
const MAX_REQUEST: u64 = 65_536;
/// How long a client may take to ask.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How long a client may take to read a document.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait after a failure to accept (no file descriptors left) before the next try.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// A server that has its socket, and is still to run.
#[derive(Debug)]
pub struct Server {
    listening: Listening,
}

impl Server {
    /// Makes the socket. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// Another agent answers there, or the file cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let listening = Listening::bind(path)?;
        Ok(Self { listening })
    }

    /// Serves until it is dropped, which also removes the socket's file and ends what clients have open.
    pub async fn run(self, provider: Arc<dyn Provider>) {
        let places = Arc::new(Semaphore::new(CLIENTS));
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listening.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the admin socket cannot accept");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
                // Ended clients are let go of.
                Some(_) = clients.join_next() => continue,
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let provider = Arc::clone(&provider);
                    clients.spawn(async move {
                        let _place = place;
                        if let Err(error) = serve(stream, &*provider).await {
                            tracing::debug!(%error, "an admin client went");
                        }
                    });
                }
                Err(_) => refuse(&stream),
            }
        }
    }
}

/// Tells a client that there is no place; at once, or not at all.
fn refuse(stream: &UnixStream) {
    let text = format!("{CLIENTS} clients are connected already: end one of them and try again");
    if let Ok(line) = line(&Answer::<()>::Error(text)) {
        drop(stream.try_write(&line));
    }
}

async fn serve(stream: UnixStream, provider: &dyn Provider) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut text = String::new();
    match timeout(ASK_WITHIN, reader.read_line(&mut text)).await {
        Err(_) => return say(&mut writer, error("no request came in time")).await,
        Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
            return say(&mut writer, error("the request is no UTF-8")).await;
        }
        Ok(Err(e)) => return Err(e),
        Ok(Ok(0)) => return Ok(()),
        Ok(Ok(_)) if !text.ends_with('\n') => {
            let text =
                format!("the request is longer than {MAX_REQUEST} bytes, or its line does not end");
            return say(&mut writer, error(&text)).await;
        }
        Ok(Ok(_)) => {}
    }
    let request = match serde_json::from_str::<Request>(&text) {
        Ok(request) => request,
        Err(e) => {
            let text = format!(
                "this agent ({}) does not know the request: {e}",
                crate::observe::VERSION
            );
            return say(&mut writer, error(&text)).await;
        }
    };
    answer(
        &request,
        provider,
        reader.into_inner().into_inner(),
        &mut writer,
    )
    .await
}

async fn answer(
    request: &Request,
    provider: &dyn Provider,
    reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let Some(state) = provider.state().await else {
        return say(writer, error("the agent is ending")).await;
    };
    let namespace = |name: &Option<String>| name.clone();
    match request {
        Request::Status => {
            let summary = provider.summary();
            document(writer, state, move |s| Status::build(&summary, s)).await
        }
        Request::Services { namespace: n } => {
            let n = namespace(n);
            document(writer, state, move |s| ServiceList::build(s, n.as_deref())).await
        }
        Request::Endpoints { namespace: n } => {
            let n = namespace(n);
            document(writer, state, move |s| EndpointList::build(s, n.as_deref())).await
        }
        Request::Policies { namespace: n } => {
            let (n, summary) = (namespace(n), provider.summary());
            document(writer, state, move |s| {
                PolicyList::build(&summary, s, n.as_deref())
            })
            .await
        }
        Request::Flows(flows) => watch::serve(flows, provider, state, reader, writer).await,
    }
}

/// Builds a document beside the runtime's own work, and writes it.
async fn document<T, F>(writer: &mut OwnedWriteHalf, state: Arc<State>, build: F) -> io::Result<()>
where
    T: Serialize,
    F: FnOnce(&State) -> T + Send + 'static,
{
    let made = tokio::task::spawn_blocking(move || line(&Answer::Ok(build(&state)))).await;
    let bytes = made.map_err(io::Error::other)??;
    say(writer, bytes).await
}

pub(super) async fn say(writer: &mut OwnedWriteHalf, bytes: Vec<u8>) -> io::Result<()> {
    let written = timeout(READ_WITHIN, writer.write_all(&bytes)).await;
    written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A line of JSON.
pub(super) fn line<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

fn error(text: &str) -> Vec<u8> {
    // A string always serializes.
    line(&Answer::<()>::Error(text.to_owned())).unwrap_or_default()
}
