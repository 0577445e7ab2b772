//! A server's work: bind, accept, answer, on the runtime of its thread.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::RECEIVE_BUFFER;
use super::record::Record;
use crate::lab::traffic::Proto;
use crate::lab::traffic::answer::{Answer, MAX_LINE};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// A bound socket.
pub(super) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Socket {
    pub(super) fn address(&self) -> Result<(Proto, SocketAddr)> {
        Ok(match self {
            Self::Tcp(listener) => (Proto::Tcp, listener.local_addr()?),
            Self::Udp(socket) => (Proto::Udp, socket.local_addr()?),
        })
    }
}

/// What a server's thread does.
pub(super) struct Job {
    pub(super) name: Arc<str>,
    pub(super) binds: Vec<(Proto, SocketAddr)>,
    pub(super) record: Arc<Record>,
}

impl Job {
    pub(super) fn bind(&self) -> Result<Vec<Socket>> {
        let bind = |&(proto, address): &(Proto, SocketAddr)| {
            let socket = match proto {
                Proto::Tcp => listen(address).map(Socket::Tcp),
                Proto::Udp => datagrams(address).map(Socket::Udp),
            };
            socket.with_context(|| format!("binding {proto} {address}"))
        };
        self.binds.iter().map(bind).collect()
    }

    /// Serves one socket on the current runtime. An error of one client ends that client's connection only: what it
    /// means is the client's to say.
    pub(super) fn serve(&self, socket: Socket) {
        let (name, record) = (Arc::clone(&self.name), Arc::clone(&self.record));
        match socket {
            Socket::Tcp(listener) => tokio::spawn(async move {
                loop {
                    let Ok((stream, peer)) = listener.accept().await else {
                        continue;
                    };
                    tokio::spawn(converse(
                        stream,
                        peer,
                        Arc::clone(&name),
                        Arc::clone(&record),
                    ));
                }
            }),
            Socket::Udp(socket) => tokio::spawn(async move {
                let mut buffer = [0; MAX_LINE];
                loop {
                    // An error is the ICMP echo of an earlier answer; the socket goes on.
                    let Ok((n, peer)) = socket.recv_from(&mut buffer).await else {
                        continue;
                    };
                    let Ok(local) = socket.local_addr() else {
                        continue;
                    };
                    let token = String::from_utf8_lossy(&buffer[..n]).trim_end().to_owned();
                    record.note(Proto::Udp, peer, local, Some(&token));
                    let answer = Answer {
                        by: name.to_string(),
                        peer,
                        local,
                        token,
                    };
                    let _ = socket.send_to(answer.encode().as_bytes(), peer).await;
                }
            }),
        };
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    name: Arc<str>,
    record: Arc<Record>,
) -> Result<()> {
    let local = stream.local_addr()?;
    record.note(Proto::Tcp, peer, local, None);
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut read)
            .take(MAX_LINE as u64)
            .read_line(&mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        let token = line.trim_end();
        record.note(Proto::Tcp, peer, local, Some(token));
        let answer = Answer {
            by: name.to_string(),
            peer,
            local,
            token: token.to_owned(),
        };
        write.write_all(answer.encode().as_bytes()).await?;
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    if address.is_ipv6() {
        setsockopt(&socket.as_fd(), sockopt::Ipv6V6Only, &true)?;
    }
    // A server started again takes its port although old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

fn datagrams(address: SocketAddr) -> Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(UdpSocket::from_std(socket)?)
}
