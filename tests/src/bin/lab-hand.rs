//! The lab's hand: what must be a process of its own to be true.
//!
//! - `lab-hand serve`: a host process; see `tests::lab::host`.
//! - `lab-hand agent ...`: stands in for `sluice agent` where the lab's own handling of an agent is tested.
//! - `lab-hand hold NAME`: makes a small lab (one node, two pods, a host process), prints its id, and keeps it until its input ends. Killed
//!   with SIGKILL, it leaves what a crashed run leaves.

use std::io::{BufRead, Write, stdin, stdout};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tests::lab::Lab;
use tests::lab::host::{HostProcess, Reply, Request};
use tests::lab::pod::PodSpec;
use tests::lab::traffic::unconnected::{self, Question};
use tests::lab::traffic::{Server, probe};

/// What to be.
#[derive(Debug, Parser)]
#[command(about = "The lab's helper process; started by the lab itself")]
enum Role {
    /// Play a process of a node: requests on standard input, replies on standard output, JSON a line.
    Serve,
    /// Say that it is ready, as an agent does, and stay until killed; with `--fail` among the arguments, end with an error.
    Agent {
        /// The agent's arguments, which are shown and otherwise ignored.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make a small lab and keep it until standard input ends.
    Hold {
        /// The lab's name.
        name: String,
    },
}

fn main() -> Result<()> {
    match Role::parse() {
        Role::Serve => serve(),
        Role::Agent { args } => stand_in(&args),
        Role::Hold { name } => hold(&name),
    }
}

fn serve() -> Result<()> {
    let mut keeps = Keeps::default();
    for line in stdin().lock().lines() {
        let line = line.context("reading a request")?;
        let request =
            serde_json::from_str(&line).with_context(|| format!("the request {line:?}"))?;
        let reply =
            act(request, &mut keeps).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        let mut out = stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    Ok(())
}

/// What outlives a request.
#[derive(Default)]
struct Keeps {
    servers: Vec<Server>,
    questions: Vec<Question>,
}

fn act(request: Request, Keeps { servers, questions }: &mut Keeps) -> Result<Reply> {
    Ok(match request {
        Request::Ask {
            proto,
            to,
            token,
            deadline,
        } => Reply::Outcome(probe::run_here(proto, to, &token, deadline)?),
        Request::SendTo {
            to,
            token,
            deadline,
        } => Reply::Outcome(unconnected::ask_here(to, &token, deadline)?),
        Request::Post { to, token } => match Question::ask_here(to, &token)? {
            Ok(question) => {
                questions.push(question);
                Reply::Posted(questions.len() - 1)
            }
            Err(refused) => Reply::Outcome(refused),
        },
        Request::Answer { question, deadline } => {
            let question = questions.get(question).context("no such question")?;
            Reply::Outcome(question.answer(deadline)?)
        }
        Request::Serve { name, binds } => {
            let server = Server::start_here(&name, &binds)?;
            let addresses = server.addresses().to_vec();
            servers.push(server);
            Reply::Serving(addresses)
        }
        Request::Counts => Reply::Counts {
            accepted: servers.iter().map(Server::accepted).sum(),
            requests: servers.iter().map(Server::requests).sum(),
        },
    })
}

fn stand_in(args: &[String]) -> Result<()> {
    println!("{}", args.join(" "));
    ensure!(!args.iter().any(|arg| arg == "--fail"), "told to fail");
    let notify = std::env::var_os("NOTIFY_SOCKET").context("NOTIFY_SOCKET is not set")?;
    UnixDatagram::unbound()?
        .send_to(b"STATUS=standing in\nREADY=1\n", notify)
        .context("saying READY=1")?;
    loop {
        std::thread::park();
    }
}

fn hold(name: &str) -> Result<()> {
    let lab = Lab::new(name)?;
    let node = lab.node("node")?;
    let _pods = node.pods([PodSpec::new("one"), PodSpec::new("two")])?;
    // A process in the lab's cgroup, so that a crash leaves a cgroup that was in use.
    let _host = HostProcess::start(&node)?;
    println!("{}", lab.id());
    for line in stdin().lock().lines() {
        line.context("waiting for the input's end")?;
    }
    Ok(())
}
