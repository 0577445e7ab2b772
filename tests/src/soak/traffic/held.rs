//! A TCP connection that is held, with a request every now and then: each answer, and its end, is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::{Context, PATIENT};
use crate::lab::traffic::Outcome;
use crate::lab::traffic::answer::Answer;
use crate::soak::flow::{Done, Flow, Kind};

/// From an answer to the next request.
const PAUSE: Duration = Duration::from_millis(150);

/// Opens a connection and holds it for so long, or until it fails.
pub(super) async fn hold(context: &Context, flow: Flow, lasts: Duration) -> Result<()> {
    let end = Instant::now() + lasts;
    let begun = Instant::now();
    let patience = context.patience(&flow, begun);
    // A socket stays where it was made: no await between these.
    flow.client.netns.enter()?;
    let socket = match flow.to.is_ipv6() {
        true => TcpSocket::new_v6(),
        false => TcpSocket::new_v4(),
    };
    let socket = socket.context("making a socket")?;
    let mut began = begun;
    let mut token = context.token('h');
    let tell = |began: Instant, token: &str, kind: Kind, outcome: Outcome| {
        context.tell(Done {
            flow: flow.clone(),
            kind,
            token: token.to_owned(),
            began,
            ended: Instant::now(),
            outcome,
        });
    };
    let connecting = tokio::time::timeout(patience, async {
        let mut stream = socket.connect(flow.to).await?;
        stream.set_nodelay(true)?;
        let answer = ask(&mut stream, &token).await?;
        Ok::<_, std::io::Error>((stream, answer))
    });
    let (mut stream, first) = match connecting.await {
        Ok(Ok((stream, Some(answer)))) => (stream, answer),
        Ok(Ok((_, None))) => {
            tell(began, &token, Kind::Request, Outcome::Closed);
            return Ok(());
        }
        Ok(Err(error)) => {
            tell(began, &token, Kind::Request, of_io(&error));
            return Ok(());
        }
        Err(_) => {
            tell(began, &token, Kind::Request, Outcome::TimedOut);
            return Ok(());
        }
    };
    let backend: SocketAddr = first.local;
    let server = first.by.clone();
    tell(began, &token, Kind::Request, answered(first, began));
    while Instant::now() < end && !context.stopped() && context.lives(&flow.client) {
        began = Instant::now();
        tokio::time::sleep(PAUSE).await;
        token = context.token('h');
        let kind = Kind::Round {
            backend,
            server: server.clone(),
            opened: begun,
        };
        let outcome = match tokio::time::timeout(PATIENT, ask(&mut stream, &token)).await {
            Ok(Ok(Some(answer))) => answered(answer, began),
            Ok(Ok(None)) => Outcome::Closed,
            Ok(Err(error)) => of_io(&error),
            Err(_) => Outcome::TimedOut,
        };
        let goes_on = outcome.is_answered();
        tell(began, &token, kind, outcome);
        if !goes_on {
            break;
        }
    }
    Ok(())
}

fn answered(answer: Answer, began: Instant) -> Outcome {
    Outcome::Answered {
        by: answer.by,
        peer_seen: answer.peer,
        local_seen: answer.local,
        latency: began.elapsed(),
    }
}

async fn ask(stream: &mut TcpStream, token: &str) -> std::io::Result<Option<Answer>> {
    stream.write_all(format!("{token}\n").as_bytes()).await?;
    let mut line = String::new();
    // One answer follows one request: nothing is left in the buffer.
    if BufReader::new(&mut *stream).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let answer = Answer::parse(line.as_bytes()).map_err(std::io::Error::other)?;
    if answer.token != token {
        let words = format!("asked {token}, answered {line:?}");
        return Err(std::io::Error::other(words));
    }
    Ok(Some(answer))
}

fn of_io(error: &std::io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(code) => Outcome::from_errno(nix::Error::from_raw(code), "a held connection"),
        None => Outcome::Broken(error.to_string()),
    }
}
