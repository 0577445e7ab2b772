//! A stream of numbered datagrams from one port: each number is answered or not, and told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket;

use super::{Context, PATIENT};
use crate::lab::traffic::Outcome;
use crate::lab::traffic::answer::{Answer, MAX_LINE};
use crate::soak::flow::{Done, Flow, Kind};

/// From one datagram to the next.
const PACE: Duration = Duration::from_millis(120);

/// Runs a stream for so long, then waits for the last answers.
pub(super) async fn run(context: &Context, flow: Flow, lasts: Duration) -> Result<()> {
    // A socket stays where it was made: no await between these.
    flow.client.netns.enter()?;
    let any: SocketAddr = match flow.to.is_ipv6() {
        true => (Ipv6Addr::UNSPECIFIED, 0).into(),
        false => (Ipv4Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any).context("binding a UDP socket")?;
    socket.set_nonblocking(true)?;
    if socket.connect(flow.to).is_err() {
        // No route: a pod that is going.
        return Ok(());
    }
    let socket = UdpSocket::from_std(socket).context("watching a socket")?;
    let mut open: BTreeMap<String, Instant> = BTreeMap::new();
    let mut tick = tokio::time::interval(PACE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = Instant::now() + lasts;
    let mut buffer = [0; MAX_LINE];
    loop {
        let goes_on = Instant::now() < end && !context.stopped() && context.lives(&flow.client);
        if !goes_on && open.is_empty() {
            return Ok(());
        }
        tokio::select! {
            _ = tick.tick() => {
                expire(context, &flow, &mut open);
                if goes_on {
                    let token = context.token('s');
                    let line = format!("{token}\n");
                    // The first send may report the ICMP error that an earlier datagram met; this one has not gone then.
                    let began = Instant::now();
                    let sent = match socket.try_send(line.as_bytes()) {
                        Err(_) => socket.try_send(line.as_bytes()),
                        sent => sent,
                    };
                    if sent.is_ok() {
                        open.insert(token, began);
                    }
                }
            }
            received = socket.recv(&mut buffer) => {
                // An error is what an earlier datagram met: that one stays unanswered.
                let Ok(length) = received else { continue };
                let Ok(answer) = Answer::parse(&buffer[..length]) else { continue };
                if let Some(began) = open.remove(&answer.token) {
                    let token = answer.token.clone();
                    tell(context, &flow, token, began, Outcome::Answered {
                        by: answer.by,
                        peer_seen: answer.peer,
                        local_seen: answer.local,
                        latency: began.elapsed(),
                    });
                }
            }
        }
    }
}

fn expire(context: &Context, flow: &Flow, open: &mut BTreeMap<String, Instant>) {
    open.retain(|token, began| {
        let waits = began.elapsed() < PATIENT;
        if !waits {
            tell(context, flow, token.clone(), *began, Outcome::TimedOut);
        }
        waits
    });
}

fn tell(context: &Context, flow: &Flow, token: String, began: Instant, outcome: Outcome) {
    context.tell(Done {
        flow: flow.clone(),
        kind: Kind::Datagram,
        token,
        began,
        ended: Instant::now(),
        outcome,
    });
}
