//! Filters of the clsact qdisc, for kernels without tcx.
//!
//! Filters have no pins. Ours are known by kind, priority, handle and name together, and by the number of the pinned stub, all of
//! which the kernel tells; so a restart finds them and keeps them. The qdisc is left in place: others may have filters there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::stub::Stub;
use super::{AttachError, Place, Side, StubName};

/// Priority of our filters: after what a person or another agent puts first (1 and up), before what lets the kernel choose (49152 and down).
const PRIORITY: u16 = 1_000;
/// Handle of our filters: "SL".
const HANDLE: u32 = 0x534c;
/// The protocol that a filter is asked for: all (`ETH_P_ALL`, network order in the message).
const PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Names of our filters begin so; the program's name follows.
const NAME: &str = "sluice_";

/// Talks to the kernel when asked; keeps no state.
#[derive(Debug)]
pub(super) struct Clsact {
    /// Longest answer that a dump sends in one datagram (`NLMSG_GOODSIZE` and more).
    buffer: usize,
}

fn interface(ifindex: u32, what: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Interface {
        ifindex,
        what,
        source,
    }
}

const fn parent(side: Side) -> TcHandle {
    TcHandle {
        major: 0xffff,
        minor: match side {
            Side::Ingress => TcHandle::MIN_INGRESS,
            Side::Egress => TcHandle::MIN_EGRESS,
        },
    }
}

fn message(ifindex: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = parent(side);
    message
}

/// The message that names our filter at a place.
fn filter(place: Place) -> TcMessage {
    let mut message = message(place.ifindex, place.side);
    message.header.handle = HANDLE.into();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(PROTOCOL);
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message
}

/// The program's number if a filter is one of ours.
fn ours(message: &TcMessage) -> Option<u32> {
    let priority = message.header.info >> 16;
    if priority != u32::from(PRIORITY) || u32::from(message.header.handle) != HANDLE {
        return None;
    }
    let options = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let mut named = false;
    let mut id = None;
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => named = name.starts_with(NAME),
            TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => id = Some(*number),
            _ => {}
        }
    }
    id.filter(|_| named)
}

impl Clsact {
    pub(super) const fn new() -> Self {
        Self { buffer: 64 * 1024 }
    }

    /// Sends one request and collects its answers until the kernel says that it is done.
    fn request(
        &self,
        payload: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut request = NetlinkMessage::from(payload);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = 1;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let mut datagram = bytes::BytesMut::with_capacity(self.buffer);
            socket.recv(&mut datagram, 0)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// Interfaces that have a clsact qdisc.
    pub(super) fn qdiscs(&self) -> Result<BTreeSet<u32>, AttachError> {
        let answers = self
            .request(
                RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
                NLM_F_DUMP,
            )
            .map_err(AttachError::io("listing qdiscs"))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(message)
                    if message
                        .attributes
                        .contains(&TcAttribute::Kind("clsact".to_owned())) =>
                {
                    Some(message.header.index.cast_unsigned())
                }
                _ => None,
            })
            .collect())
    }

    /// Our filters by place, with their program's number.
    pub(super) fn attached(
        &self,
        qdiscs: &BTreeSet<u32>,
    ) -> Result<BTreeMap<Place, u32>, AttachError> {
        let mut found = BTreeMap::new();
        for &ifindex in qdiscs {
            for side in [Side::Ingress, Side::Egress] {
                let answers = match self.request(
                    RouteNetlinkMessage::GetTrafficFilter(message(ifindex, side)),
                    NLM_F_DUMP,
                ) {
                    Ok(answers) => answers,
                    // The interface, or its qdisc, has just gone.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) =>
                    {
                        continue;
                    }
                    Err(error) => {
                        return Err(interface(ifindex, "listing filters")(error));
                    }
                };
                for answer in answers {
                    if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer
                        && let Some(id) = ours(&filter)
                    {
                        found.insert(Place { ifindex, side }, id);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Adds our filter, with the qdisc where that is missing, or replaces the program of the one that is there.
    pub(super) fn attach(
        &self,
        place: Place,
        name: StubName,
        stub: &Stub,
        replaces: bool,
        has_qdisc: bool,
    ) -> Result<(), AttachError> {
        if !has_qdisc {
            self.add_qdisc(place.ifindex)?;
        }
        let mut request = filter(place);
        request.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(
                stub.fd.as_raw_fd().cast_unsigned(),
            )),
            TcOption::Bpf(TcFilterBpfOption::ProgName(format!(
                "{NAME}{}",
                name.program()
            ))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let how = if replaces {
            0
        } else {
            NLM_F_CREATE | NLM_F_EXCL
        };
        self.request(
            RouteNetlinkMessage::NewTrafficFilter(request),
            NLM_F_ACK | how,
        )
        .map(|_| ())
        .map_err(interface(place.ifindex, "attaching a clsact filter"))
    }

    fn add_qdisc(&self, ifindex: u32) -> Result<(), AttachError> {
        let mut request = TcMessage::with_index(ifindex.cast_signed());
        request.header.handle = TcHandle {
            major: 0xffff,
            minor: 0,
        };
        request.header.parent = TcHandle::CLSACT;
        request
            .attributes
            .push(TcAttribute::Kind("clsact".to_owned()));
        match self.request(
            RouteNetlinkMessage::NewQueueDiscipline(request),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        ) {
            // Its other side, or somebody else, made it meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(interface(ifindex, "adding the clsact qdisc")(error)),
            Ok(_) => Ok(()),
        }
    }

    /// Removes our filter.
    pub(super) fn detach(&self, place: Place) -> Result<(), AttachError> {
        match self.request(
            RouteNetlinkMessage::DelTrafficFilter(filter(place)),
            NLM_F_ACK,
        ) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(())
            }
            Err(error) => Err(interface(place.ifindex, "removing a clsact filter")(error)),
            Ok(_) => Ok(()),
        }
    }
}
