//! What is done over sockets: by one thread that is client and server in turns, so that nobody waits for a scheduler. The kernel handles
//! a packet where it is sent, in the sender's own call: client, server and all between them are on the thread's CPU.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::population::{FIRST_PORT, PORTS};
use crate::lab::netns::Netns;
use crate::lab::traffic::affinity::pin_thread;

/// How long one call may wait for what its own thread has sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the clock, in units of work.
const LOOK: u64 = 16;
/// A request and an answer, in bytes: what fits any packet.
const MESSAGE: usize = 64;
/// What a stream is written and read by: as much as one segment for offload holds.
const CHUNK: usize = 64 << 10;

/// One kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Work {
    /// TCP: connect, a request, an answer, close; the client closes first.
    Connect,
    /// TCP: a request and an answer on a connection that stands.
    RoundTrips,
    /// TCP: as many bytes one way as go.
    Stream,
    /// UDP: a request and an answer from a socket that stands.
    Datagrams,
    /// UDP: the same from a new socket each time.
    FreshPorts,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::RoundTrips,
        Self::Stream,
        Self::Datagrams,
        Self::FreshPorts,
    ];

    /// The unit of [`Done::rate`].
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            _ => "1/s",
        }
    }

    /// Packets that the client sends for a unit of it, at least.
    pub const fn least_packets(self) -> u64 {
        match self {
            // SYN, the request, FIN.
            Self::Connect => 3,
            Self::RoundTrips | Self::Datagrams | Self::FreshPorts => 1,
            // Offload: one packet has as many bytes as it holds.
            Self::Stream => 0,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "TCP connect-request-close",
            Self::RoundTrips => "TCP request-response",
            Self::Stream => "TCP stream",
            Self::Datagrams => "UDP request-response",
            Self::FreshPorts => "UDP from a fresh port",
        })
    }
}

/// A pod's servers: sockets that its namespace owns, and the worker uses.
#[derive(Debug)]
pub struct Servers {
    tcp: Vec<TcpListener>,
    udp: UdpSocket,
}

impl Servers {
    /// Binds them in a namespace.
    ///
    /// # Errors
    /// The address is not there, or a port is taken.
    pub fn bind(netns: &Netns, address: IpAddr) -> Result<Self> {
        netns.run(|| -> Result<Self> {
            let tcp = (FIRST_PORT..FIRST_PORT + PORTS).map(|port| {
                TcpListener::bind((address, port)).with_context(|| format!("binding port {port}"))
            });
            let udp = UdpSocket::bind((address, FIRST_PORT)).context("binding a port for UDP")?;
            udp.set_read_timeout(Some(PATIENCE))?;
            Ok(Self {
                tcp: tcp.collect::<Result<_>>()?,
                udp,
            })
        })?
    }
}

/// Some work to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// What.
    pub work: Work,
    /// From where.
    pub client: Arc<Netns>,
    /// The address that is called: the server's, or a service's.
    pub to: IpAddr,
    /// Who answers.
    pub servers: Arc<Servers>,
    /// For how long.
    pub time: Duration,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Connections, round trips, or bytes.
    pub units: u64,
    /// In how long.
    pub took: Duration,
}

impl Done {
    /// Units a second; of bytes, Gbit a second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn rate(&self, work: Work) -> f64 {
        let rate = self.units as f64 / self.took.as_secs_f64();
        match work {
            Work::Stream => rate * 8.0 / 1e9,
            _ => rate,
        }
    }
}

type Answer = mpsc::Sender<Result<Done>>;

/// The thread that does all work.
#[derive(Debug)]
pub struct Worker(mpsc::Sender<(Job, Answer)>);

impl Worker {
    /// Starts it on a CPU.
    ///
    /// # Errors
    /// There is no such CPU, or no thread.
    pub fn start(cpu: usize) -> Result<Self> {
        let (sender, jobs) = mpsc::channel::<(Job, Answer)>();
        let (tell, pinned) = mpsc::channel();
        thread::Builder::new()
            .name("bench-worker".to_owned())
            .spawn(move || {
                // Nobody may be waiting any more, here and below.
                let _ = tell.send(pin_thread(Some(cpu)));
                for (job, answer) in jobs {
                    let _ = answer.send(job.run());
                }
            })
            .context("starting the thread that does the work")?;
        pinned.recv().context("the worker ended at once")??;
        Ok(Self(sender))
    }

    /// Does a job.
    ///
    /// # Errors
    /// A call failed, or the job did not end in time: then the worker hangs, and the run is over.
    pub fn run(&self, job: &Job) -> Result<Done> {
        let (answer, answered) = mpsc::channel();
        let gone = || anyhow!("the thread that does the work is gone");
        self.0.send((job.clone(), answer)).map_err(|_| gone())?;
        let done = answered.recv_timeout(job.time + 2 * PATIENCE);
        let done = done.map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                anyhow!("nothing came back for {:?}", 2 * PATIENCE)
            }
            mpsc::RecvTimeoutError::Disconnected => gone(),
        })?;
        done.with_context(|| format!("{} to {}", job.work, job.to))
    }
}

impl Job {
    fn run(&self) -> Result<Done> {
        self.client.enter()?;
        match self.work {
            Work::Connect => self.connect(),
            Work::RoundTrips => self.round_trips(),
            Work::Stream => self.stream(),
            Work::Datagrams => self.datagrams(),
            Work::FreshPorts => self.fresh_ports(),
        }
    }

    /// Does units of work until the time is over.
    fn repeat(&self, mut unit: impl FnMut(u64) -> Result<()>) -> Result<Done> {
        let began = Instant::now();
        let mut units = 0;
        loop {
            for _ in 0..LOOK {
                unit(units)?;
                units += 1;
            }
            let took = began.elapsed();
            if took >= self.time {
                return Ok(Done { units, took });
            }
        }
    }

    fn called(&self, port: u16) -> SocketAddr {
        (self.to, port).into()
    }

    /// A connection through one of the listeners, and its far end.
    fn open(&self, number: u64) -> Result<(TcpStream, TcpStream)> {
        let place = u16::try_from(number % u64::from(PORTS))?;
        let listener = &self.servers.tcp[usize::from(place)];
        let client = TcpStream::connect(self.called(FIRST_PORT + place)).context("connecting")?;
        let (server, _) = listener.accept().context("accepting")?;
        Ok((client, server))
    }

    fn connect(&self) -> Result<Done> {
        let mut message = [0; MESSAGE];
        self.repeat(|number| {
            let (mut client, mut server) = self.open(number)?;
            exchange(&mut client, &mut server, &mut message)?;
            drop(client);
            drop(server);
            Ok(())
        })
    }

    fn round_trips(&self) -> Result<Done> {
        let (mut client, mut server) = self.open(0)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
        }
        let mut message = [0; MESSAGE];
        self.repeat(|_| exchange(&mut client, &mut server, &mut message))
    }

    fn stream(&self) -> Result<Done> {
        let (mut client, mut server) = self.open(0)?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        let (out, mut into) = (vec![0; CHUNK], vec![0; CHUNK]);
        let began = Instant::now();
        let mut last = began;
        let mut units = 0;
        loop {
            let mut moved = unless_it_would_block(client.write(&out))? > 0;
            loop {
                let read = unless_it_would_block(server.read(&mut into))?;
                if read == 0 {
                    break;
                }
                units += read as u64;
                moved = true;
            }
            let now = Instant::now();
            if now - began >= self.time {
                return Ok(Done {
                    units,
                    took: now - began,
                });
            }
            if moved {
                last = now;
            } else {
                ensure!(now - last < PATIENCE, "the stream stands still");
                // The kernel's own thread on this CPU has packets to handle.
                thread::yield_now();
            }
        }
    }

    fn datagrams(&self) -> Result<Done> {
        let client = UdpSocket::bind(self.any())?;
        client.connect(self.called(FIRST_PORT))?;
        client.set_read_timeout(Some(PATIENCE))?;
        let mut message = [0; MESSAGE];
        self.repeat(|_| ask(&client, &self.servers.udp, &mut message))
    }

    fn fresh_ports(&self) -> Result<Done> {
        let mut message = [0; MESSAGE];
        self.repeat(|_| {
            let client = UdpSocket::bind(self.any())?;
            client.connect(self.called(FIRST_PORT))?;
            // No timeout: setting it would be a call a datagram. Who asked for the work does not wait for ever.
            ask(&client, &self.servers.udp, &mut message)
        })
    }

    /// The unspecified address of the family, with any port.
    fn any(&self) -> SocketAddr {
        let address = match self.to {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        (address, 0).into()
    }
}

/// A request and an answer.
fn exchange(client: &mut TcpStream, server: &mut TcpStream, message: &mut [u8]) -> Result<()> {
    client.write_all(message).context("asking")?;
    server.read_exact(message).context("reading the request")?;
    server.write_all(message).context("answering")?;
    client.read_exact(message).context("reading the answer")
}

/// The same by datagrams.
fn ask(client: &UdpSocket, server: &UdpSocket, message: &mut [u8]) -> Result<()> {
    client.send(message).context("asking")?;
    let (length, from) = server.recv_from(message).context("reading the request")?;
    ensure!(length == message.len(), "a request of {length} bytes came");
    server.send_to(message, from).context("answering")?;
    let length = client.recv(message).context("reading the answer")?;
    ensure!(length == message.len(), "an answer of {length} bytes came");
    Ok(())
}

/// Bytes that went or came; 0 where the call would have to wait.
fn unless_it_would_block(result: std::io::Result<usize>) -> Result<usize> {
    match result {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => bail!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_their_unit() {
        let done = Done {
            units: 1_000_000_000,
            took: Duration::from_secs(2),
        };
        assert!((done.rate(Work::RoundTrips) - 5e8).abs() < 1.0);
        assert!((done.rate(Work::Stream) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn waiting_is_nothing_and_an_error_is_one() {
        assert_eq!(unless_it_would_block(Ok(3)).unwrap(), 3);
        assert_eq!(
            unless_it_would_block(Err(ErrorKind::WouldBlock.into())).unwrap(),
            0
        );
        assert!(unless_it_would_block(Err(ErrorKind::ConnectionReset.into())).is_err());
    }
}
