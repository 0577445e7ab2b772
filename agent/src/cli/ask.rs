//! The commands that ask a running agent.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::color::Color;
use super::text::{self, flows};
use super::{
    Command, EndpointCommand, FlowArgs, Global, ListArgs, Output, PolicyCommand, ServiceCommand,
};
use crate::admin::client::Client;
use crate::admin::{FlowLine, FlowRequest, Request};
use crate::observe::time::Time;
use crate::observe::view::{EndpointList, FlowList, FlowMatch, PolicyList, ServiceList, Status};

/// Asks, and prints the answer.
pub(super) fn ask(
    global: &Global,
    command: &Command,
    out: &mut impl Write,
    color: Color,
) -> Result<()> {
    let client = Client::new(&global.socket);
    let (output, now) = (global.output, Time::now());
    let namespace = |args: &ListArgs| args.namespace.clone();
    match command {
        Command::Status => print(&client, &Request::Status, output, out, |status: &Status| {
            text::status::render(status, now, color)
        }),
        Command::Service(ServiceCommand::List(args)) => {
            let namespace = namespace(args);
            let request = Request::Services { namespace };
            print(&client, &request, output, out, |list: &ServiceList| {
                text::services::render(list, color)
            })
        }
        Command::Endpoint(EndpointCommand::List(args)) => {
            let namespace = namespace(args);
            let request = Request::Endpoints { namespace };
            print(&client, &request, output, out, |list: &EndpointList| {
                text::endpoints::render(list, color)
            })
        }
        Command::Policy(PolicyCommand::List(args)) => {
            let namespace = namespace(args);
            let request = Request::Policies { namespace };
            print(&client, &request, output, out, |list: &PolicyList| {
                text::policies::render(list, color)
            })
        }
        Command::Flows(args) => watch(&client, args, output, out, color),
        // These ask no agent; `Cli::run` and `main` take them.
        Command::Agent(_) | Command::Cleanup(_) | Command::Version => Ok(()),
    }
}

fn print<T: DeserializeOwned + Serialize>(
    client: &Client,
    request: &Request,
    output: Output,
    out: &mut impl Write,
    render: impl FnOnce(&T) -> String,
) -> Result<()> {
    let document: T = client.ask(request)?;
    match output {
        Output::Text => out.write_all(render(&document).as_bytes())?,
        Output::Json => json(&document, out)?,
    }
    Ok(())
}

fn json<T: Serialize>(document: &T, out: &mut impl Write) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, document).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// With `--last` alone a document; else a stream, in JSON one line for each event.
fn watch(
    client: &Client,
    args: &FlowArgs,
    output: Output,
    out: &mut impl Write,
    color: Color,
) -> Result<()> {
    let request = FlowRequest {
        allowed: args.allowed,
        last: args.last.unwrap_or(0),
        follow: args.follow || args.last.is_none(),
        only: FlowMatch {
            object: args.object.clone(),
            reason: args.reason.clone(),
        },
    };
    if !request.follow {
        let render = |list: &FlowList| flows::render(list, color);
        return print(client, &Request::Flows(request), output, out, render);
    }
    let (list, mut stream) = client.watch(&request)?;
    let mut lines = list
        .flows
        .into_iter()
        .map(|event| FlowLine::Event(Box::new(event)));
    loop {
        let line = match lines.next() {
            Some(line) => line,
            None => {
                // Nobody waits for what is in the buffer while nothing happens.
                out.flush()?;
                stream.next_line()?
            }
        };
        match output {
            Output::Text => writeln!(out, "{}", flows::line(&line, color))?,
            Output::Json => {
                serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from)?;
                writeln!(out)?;
            }
        }
    }
}
