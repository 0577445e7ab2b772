//! TCP connections whose packets bear options of IP: IPv4's own (RFC 791 3.1), or IPv6's in an extension header (RFC 8200 4). Of such sockets the kernel
//! leaves the checksum to the device as of any other, which no frame made by hand can show.

use std::fmt;
use std::io::Error;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::Error as Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Outcome;

/// Options that a socket puts into each of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Options {
    /// So many words of IPv4's, 1 to 10.
    Words(u8),
    /// IPv6's destination options, so many units of eight bytes.
    Destination(u8),
    /// IPv6's hop-by-hop options, likewise.
    HopByHop(u8),
}

impl Options {
    /// Some of each kind that the family of an address has, the shortest and longer ones.
    pub const fn of(to: &SocketAddr) -> &'static [Self] {
        match to {
            SocketAddr::V4(_) => &[Self::Words(1), Self::Words(3), Self::Words(10)],
            SocketAddr::V6(_) => &[
                Self::Destination(1),
                Self::Destination(4),
                Self::HopByHop(1),
                Self::HopByHop(4),
            ],
        }
    }

    /// Level and name of the socket's option, and its value: options that mean nothing.
    fn as_sockopt(self) -> (libc::c_int, libc::c_int, Vec<u8>) {
        /// IPv4's "no operation".
        const NOTHING: u8 = 1;
        /// An experimental option of IPv6 that is skipped by whoever does not know it (RFC 4727 3.3). (Of padding Linux takes seven bytes and no more.)
        const SKIPPED: u8 = 0x1e;
        let header = |units: u8| {
            let bytes = units * 8;
            let mut header = vec![0; usize::from(bytes)];
            // The kernel writes the next header; the length is in units behind the first; one option fills the rest.
            header[1..4].copy_from_slice(&[units - 1, SKIPPED, bytes - 4]);
            header
        };
        match self {
            Self::Words(words) => (
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                vec![NOTHING; usize::from(words) * 4],
            ),
            Self::Destination(units) => (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, header(units)),
            Self::HopByHop(units) => (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, header(units)),
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => write!(f, "{words} words of IPv4 options"),
            Self::Destination(units) => write!(f, "{units} units of destination options"),
            Self::HopByHop(units) => write!(f, "{units} units of hop-by-hop options"),
        }
    }
}

/// Connects from the calling thread's own namespace, whose user must have CAP_NET_RAW, and tells what came of it: nothing if the connection stands.
///
/// # Errors
/// The lab failed: no socket, or one that takes no such options.
pub fn connect_here(
    to: SocketAddr,
    options: Options,
    deadline: Duration,
) -> Result<Option<Outcome>> {
    let family = if to.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a TCP socket")?;
    let (level, name, value) = options.as_sockopt();
    let length = libc::socklen_t::try_from(value.len())?;
    // SAFETY: the kernel reads `length` bytes of `value`, which is that long and outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length,
        )
    };
    if set != 0 {
        return Err(Error::last_os_error()).with_context(|| format!("setting {options}"));
    }
    let most = TimeVal::milliseconds(i64::try_from(deadline.as_millis())?);
    setsockopt(&socket.as_fd(), sockopt::SendTimeout, &most).context("setting a deadline")?;
    let begun = Instant::now();
    Ok(
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) => None,
            // What a connect that has a deadline says at its end (socket(7)).
            Err(Errno::EINPROGRESS | Errno::EAGAIN) => Some(Outcome::TimedOut),
            Err(_) if begun.elapsed() >= deadline => Some(Outcome::TimedOut),
            Err(error) => Some(Outcome::from_errno(error, "connect")),
        },
    )
}
