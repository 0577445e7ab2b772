//! What a process of the node itself asks, one question after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Context;
use crate::dice::Dice;
use crate::lab::host::HostProcess;
use crate::lab::node::Node;
use crate::lab::traffic::Proto;
use crate::soak::flow::{Client, Done, Flow, Kind, Place};

/// From an answer to the next question.
const PAUSE: Duration = Duration::from_millis(60);

/// Asks until it is stopped.
///
/// # Errors
/// The process is gone.
pub(in crate::soak) fn keep_asking(
    context: &Context,
    node: &Node,
    number: usize,
    mut process: HostProcess,
) -> Result<()> {
    let mut dice = Dice::of(context.seed, 4000 + number as u64);
    let client = Client {
        name: format!("node {}", node.name).into(),
        place: Place::Host(number),
        addresses: node.addresses(),
        netns: Arc::clone(node.netns()),
    };
    while !context.stopped() {
        std::thread::sleep(PAUSE);
        let proto = *dice.pick(&Proto::ALL);
        let Some(to) = context.target(&mut dice, &client, proto) else {
            continue;
        };
        let flow = Flow {
            client: client.clone(),
            proto,
            to,
        };
        let began = Instant::now();
        let patience = context.patience(&flow, began);
        let outcome = match proto {
            // As resolvers do it: an answer from another address than was asked is no answer.
            Proto::Udp if dice.chance(50) => process.send_to(to, patience)?,
            _ => process.ask(proto, to, patience)?,
        };
        context.tell(Done {
            flow,
            kind: Kind::Request,
            token: context.token('n'),
            began,
            ended: Instant::now(),
            outcome,
        });
    }
    Ok(())
}
