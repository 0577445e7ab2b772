//! Following the network namespace by netlink: subscribe, then dump, then apply what comes. Nothing is polled; a dump happens at
//! the start and when the kernel says that messages were lost.

use std::collections::BTreeSet;
use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::Local;
use super::network::{Network, UplinkChoice};

/// Receive buffer of the socket: some thousand messages, so that a burst of pods does not ask for a dump. The kernel may give less.
const BUFFER_BYTES: usize = 4 << 20;
/// What is followed.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// Why the network cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No socket.
    #[error("cannot open netlink: {0}")]
    Socket(#[source] io::Error),
    /// A dump failed.
    #[error("cannot read the network's state by netlink: {0}")]
    Dump(#[source] io::Error),
    /// The connection ended; nothing ends it but a failure.
    #[error("the netlink connection ended")]
    Ended,
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Follows the network. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    state: watch::Receiver<Local>,
    touched: watch::Receiver<u64>,
    choice: watch::Sender<UplinkChoice>,
    tasks: [JoinHandle<()>; 2],
    ended: tokio::sync::oneshot::Receiver<WatchError>,
}

impl Watcher {
    /// The state, whole from the first value on; it changes only when something that matters changed.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Local> {
        self.state.clone()
    }

    /// Raised when something at an interface that is served was taken away by others, and the state may be as before: a filter or qdisc was
    /// removed, or the interface was made again with all that it had.
    #[must_use]
    pub fn touched(&self) -> watch::Receiver<u64> {
        self.touched.clone()
    }

    /// Says which interfaces are uplinks; the state follows at once.
    pub fn choose(&self, choice: UplinkChoice) {
        self.choice.send_if_modified(|current| {
            let differs = *current != choice;
            *current = choice;
            differs
        });
    }

    /// Waits until the watch fails, which it only does when netlink does. Cancel-safe.
    pub async fn failed(&mut self) -> WatchError {
        (&mut self.ended).await.unwrap_or(WatchError::Ended)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Starts to follow the network namespace of the calling thread; returns when its state is known.
///
/// # Errors
/// Netlink cannot be opened or read.
pub async fn watch(choice: UplinkChoice) -> Result<Watcher, WatchError> {
    let (mut connection, handle, messages) =
        new_multicast_connection(&GROUPS).map_err(WatchError::Socket)?;
    connection
        .socket_mut()
        .socket_mut()
        .set_rx_buf_sz(BUFFER_BYTES)
        .map_err(WatchError::Socket)?;
    let connection = tokio::spawn(connection);
    let network = match dump(&handle).await {
        Ok(network) => network,
        Err(error) => {
            connection.abort();
            return Err(error);
        }
    };
    let (choose, chosen) = watch::channel(choice);
    let (publish, state) = watch::channel(network.local(&chosen.borrow()));
    let (touch, touched) = watch::channel(0);
    let (end, ended) = tokio::sync::oneshot::channel();
    let follower = tokio::spawn(async move {
        let error = follow(handle, messages, network, chosen, publish, touch).await;
        // Nobody may be waiting any more.
        let _ = end.send(error);
    });
    Ok(Watcher {
        state,
        touched,
        choice: choose,
        tasks: [connection, follower],
        ended,
    })
}

/// Applies what comes, and publishes. All messages that are there already are applied before anything is published.
async fn follow(
    handle: Handle,
    mut messages: Messages,
    mut network: Network,
    mut chosen: watch::Receiver<UplinkChoice>,
    publish: watch::Sender<Local>,
    touch: watch::Sender<u64>,
) -> WatchError {
    loop {
        let (mut lost, mut losses) = (false, BTreeSet::new());
        tokio::select! {
            message = messages.next() => {
                let Some((message, _)) = message else { return WatchError::Ended };
                losses.extend(loss(&message));
                lost |= apply(&mut network, &message);
                while let Ok((message, _)) = messages.try_recv() {
                    losses.extend(loss(&message));
                    lost |= apply(&mut network, &message);
                }
            }
            changed = chosen.changed() => {
                if changed.is_err() {
                    return WatchError::Ended;
                }
            }
        }
        if lost {
            warn!("netlink messages were lost; reading the whole state again");
            match dump(&handle).await {
                Ok(whole) => network = whole,
                Err(error) => return error,
            }
        }
        let local = network.local(&chosen.borrow_and_update());
        let served =
            |ifindex: &u32| local.pods.contains_key(ifindex) || local.uplinks.contains_key(ifindex);
        let touched = lost || losses.iter().any(served);
        publish.send_if_modified(|current| {
            let differs = *current != local;
            *current = local;
            differs
        });
        if touched {
            touch.send_modify(|count| *count += 1);
        }
    }
}

/// The interface that loses something by a message: itself, its qdisc, or a filter.
fn loss(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<u32> {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => Some(link.header.index),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::DelTrafficFilter(tc) | RouteNetlinkMessage::DelQueueDiscipline(tc),
        ) => Some(tc.header.index.cast_unsigned()),
        _ => None,
    }
}

/// Applies one message; returns whether the kernel says that others were lost.
fn apply(network: &mut Network, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(inner) => {
            network.apply(inner);
            false
        }
        NetlinkPayload::Overrun(_) => true,
        other => {
            debug!(?other, "netlink message without content");
            false
        }
    }
}

/// Reads the whole state. Messages that come meanwhile wait, and are applied after it; applying what the dump already shows
/// changes nothing. A dump that a change interrupted is read again.
async fn dump(handle: &Handle) -> Result<Network, WatchError> {
    loop {
        let mut network = Network::default();
        let mut whole = true;
        for request in [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetRoute(route_dump(AddressFamily::Inet)),
            RouteNetlinkMessage::GetRoute(route_dump(AddressFamily::Inet6)),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        ] {
            let answers = ask(handle, request)?;
            whole &= take(&mut network, answers).await?;
        }
        if whole {
            return Ok(network);
        }
        debug!("a netlink dump was interrupted by a change; reading again");
    }
}

fn route_dump(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message
}

fn ask(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, WatchError> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    handle
        .clone()
        .request(request)
        .map_err(|error| WatchError::Dump(io::Error::other(error)))
}

/// Applies the answers of one dump; returns whether it is whole.
async fn take(
    network: &mut Network,
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<bool, WatchError> {
    futures::pin_mut!(answers);
    let mut whole = true;
    while let Some(answer) = answers.next().await {
        whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => network.apply(&inner),
            NetlinkPayload::Error(error) => return Err(WatchError::Dump(error.to_io())),
            NetlinkPayload::Overrun(_) => whole = false,
            _ => {}
        }
    }
    Ok(whole)
}
