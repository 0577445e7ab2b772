//! One client's attempt: connect, ask, read the answer, close. Nonblocking, for loops that hold thousands.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::Error as Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, recv,
    send, setsockopt, socket, sockopt,
};

use super::answer::{Answer, MAX_LINE};
use super::{Outcome, Proto};

/// A socket on its way to an answer.
#[derive(Debug)]
pub(crate) struct Attempt {
    socket: OwnedFd,
    proto: Proto,
    token: String,
    started: Instant,
    asked: bool,
    answer: Vec<u8>,
}

impl Attempt {
    /// Starts an attempt in the calling thread's namespace; `source` is the client's own address and port (0: any), if it
    /// matters. An error that came at once is its outcome.
    pub(crate) fn start(
        proto: Proto,
        to: SocketAddr,
        source: Option<SocketAddr>,
        token: &str,
    ) -> Result<Self, Outcome> {
        let started = Instant::now();
        let socket = open(proto, to.is_ipv6())?;
        if let Some(source) = source {
            bind(socket.as_raw_fd(), &SockaddrStorage::from(source))
                .map_err(|e| Outcome::from_errno(e, "bind"))?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(Outcome::from_errno(e, "connect")),
        }
        Ok(Self {
            socket,
            proto,
            token: token.to_owned(),
            started,
            asked: false,
            answer: Vec::new(),
        })
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// TCP segments of this connection that this end had to send again so far, SYNs included: those that the other end says it had got
    /// already (RFC 2883) were only late, by a machine that stood still for the 200 ms after which TCP tries again.
    pub(crate) fn retransmits(&self) -> u32 {
        if self.proto == Proto::Udp {
            return 0;
        }
        tcp_info(self.socket.as_fd()).map_or(0, |info| {
            let again = info.tcpi_total_retrans;
            again.saturating_sub(info.tcpi_dsack_dups)
        })
    }

    /// Goes on after the socket became ready; answers the outcome once there is one.
    pub(crate) fn advance(&mut self) -> Option<Outcome> {
        match self.try_advance() {
            Ok(outcome) => outcome,
            Err((Errno::EAGAIN, _)) => None,
            Err((error, doing)) => Some(Outcome::from_errno(error, doing)),
        }
    }

    fn try_advance(&mut self) -> Result<Option<Outcome>, (Errno, &'static str)> {
        let fd = self.socket.as_raw_fd();
        let pending =
            getsockopt(&self.socket, sockopt::SocketError).map_err(|e| (e, "getsockopt"))?;
        if pending != 0 {
            return Err((Errno::from_raw(pending), "the socket"));
        }
        if !self.asked {
            let line = format!("{}\n", self.token);
            match send(fd, line.as_bytes(), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => self.asked = true,
                // The handshake goes on.
                Err(Errno::ENOTCONN) => return Ok(None),
                Err(e) => return Err((e, "send")),
            }
        }
        let mut buffer = [0; MAX_LINE];
        loop {
            let n = recv(fd, &mut buffer, MsgFlags::empty()).map_err(|e| (e, "recv"))?;
            if n == 0 && self.proto == Proto::Tcp {
                return Ok(Some(Outcome::Closed));
            }
            self.answer.extend_from_slice(&buffer[..n]);
            if self.answer.ends_with(b"\n") || self.answer.len() > MAX_LINE {
                return Ok(Some(self.finish()));
            }
        }
    }

    fn finish(&self) -> Outcome {
        match Answer::parse(&self.answer) {
            Ok(answer) if answer.token == self.token => Outcome::Answered {
                by: answer.by,
                peer_seen: answer.peer,
                local_seen: answer.local,
                latency: self.started.elapsed(),
            },
            Ok(answer) => Outcome::Broken(format!(
                "asked {:?}, answered {:?}",
                self.token, answer.token
            )),
            Err(error) => Outcome::Broken(format!("{error:#}")),
        }
    }
}

impl AsRawFd for Attempt {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Attempt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A nonblocking socket of this protocol and family.
pub(super) fn open(proto: Proto, ipv6: bool) -> Result<OwnedFd, Outcome> {
    let family = if ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let kind = if proto == Proto::Tcp {
        SockType::Stream
    } else {
        SockType::Datagram
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, kind, flags, None).map_err(|e| Outcome::from_errno(e, "socket"))?;
    if proto == Proto::Udp {
        // Without it Linux keeps the softer ICMP errors (host and network unreachable) from a UDP socket.
        let told = match ipv6 {
            true => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
            false => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        };
        told.map_err(|e| Outcome::from_errno(e, "setsockopt"))?;
    }
    Ok(socket)
}

/// The kernel's `TCP_INFO` of a socket (tcp(7)).
pub(super) fn tcp_info(fd: BorrowedFd<'_>) -> nix::Result<libc::tcp_info> {
    // SAFETY: tcp_info is plain numbers, for which all zero bits are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is that large; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    Errno::result(result).map(|_| info)
}
