//! Filters of the clsact qdisc, for kernels without tcx.
//!
//! Filters have no pins. Ours are known by kind, priority, handle and name together, and by the number of the pinned stub, all of
//! which the kernel tells; so a restart finds them and keeps them.
//!
//! A qdisc is ours where one of our filters on it says that Sluice made it ([`MADE`], in the filter's name). Nothing else can say so:
//! a qdisc has no name, and a note elsewhere would be lost with its pins. It goes with the last filter, ours or another's; where
//! somebody else made it, or that cannot be told, it stays.

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

use super::super::held::Held;
use super::{AttachError, Place, Side, StubName};

/// Priority of our filters: after what a person or another agent puts first (1 and up), before what lets the kernel choose (49152 and down).
const PRIORITY: u16 = 1_000;
/// Handle of our filters: "SL".
const HANDLE: u32 = 0x534c;
/// The protocol that a filter is asked for: all (`ETH_P_ALL`, network order in the message).
const PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Names of our filters begin so; the program's name follows.
const NAME: &str = "sluice_";
/// Names of our filters end so where Sluice made the qdisc too.
const MADE: &str = "/qdisc";

/// Talks to the kernel when asked; keeps no state.
#[derive(Debug)]
pub(in crate::datapath) struct Clsact {
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

/// A filter of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::datapath) struct Filter {
    /// Its program's number.
    pub(in crate::datapath) program: u32,
    /// Whether it says that Sluice made the qdisc.
    pub(in crate::datapath) made_qdisc: bool,
}

/// What a filter says if it is one of ours.
fn ours(message: &TcMessage) -> Option<Filter> {
    let priority = message.header.info >> 16;
    if priority != u32::from(PRIORITY) || u32::from(message.header.handle) != HANDLE {
        return None;
    }
    let options = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let mut name = None;
    let mut id = None;
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(told)) => name = Some(told),
            TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => id = Some(*number),
            _ => {}
        }
    }
    let name = name.filter(|name| name.starts_with(NAME))?;
    Some(Filter {
        program: id?,
        made_qdisc: name.ends_with(MADE),
    })
}

impl Clsact {
    pub(in crate::datapath) const fn new() -> Self {
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
    pub(in crate::datapath) fn qdiscs(&self) -> Result<BTreeSet<u32>, AttachError> {
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

    /// Our filters by place.
    pub(in crate::datapath) fn attached(
        &self,
        qdiscs: &BTreeSet<u32>,
    ) -> Result<BTreeMap<Place, Filter>, AttachError> {
        let mut found = BTreeMap::new();
        for &ifindex in qdiscs {
            for side in [Side::Ingress, Side::Egress] {
                for filter in self.filters(ifindex, side)? {
                    if let Some(filter) = ours(&filter) {
                        found.insert(Place { ifindex, side }, filter);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Everybody's filters at one side of an interface; none where the interface or its qdisc has just gone.
    fn filters(&self, ifindex: u32, side: Side) -> Result<Vec<TcMessage>, AttachError> {
        let request = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, side));
        let answers = match self.request(request, NLM_F_DUMP) {
            Ok(answers) => answers,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(interface(ifindex, "listing filters")(error)),
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
                _ => None,
            })
            .collect())
    }

    /// Adds our filter to the qdisc, or replaces the program of the one that is there.
    pub(super) fn attach(
        &self,
        place: Place,
        name: StubName,
        stub: &Held,
        replaces: bool,
        made_qdisc: bool,
    ) -> Result<(), AttachError> {
        let made = if made_qdisc { MADE } else { "" };
        let mut request = filter(place);
        request.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(
                stub.fd.as_raw_fd().cast_unsigned(),
            )),
            TcOption::Bpf(TcFilterBpfOption::ProgName(format!(
                "{NAME}{}{made}",
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

    fn qdisc(ifindex: u32) -> TcMessage {
        let mut request = TcMessage::with_index(ifindex.cast_signed());
        request.header.handle = TcHandle {
            major: 0xffff,
            minor: 0,
        };
        request.header.parent = TcHandle::CLSACT;
        request
    }

    /// Adds the qdisc; false where somebody else was faster.
    pub(super) fn add_qdisc(&self, ifindex: u32) -> Result<bool, AttachError> {
        let mut request = Self::qdisc(ifindex);
        request
            .attributes
            .push(TcAttribute::Kind("clsact".to_owned()));
        match self.request(
            RouteNetlinkMessage::NewQueueDiscipline(request),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        ) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(interface(ifindex, "adding the clsact qdisc")(error)),
            Ok(_) => Ok(true),
        }
    }

    /// Removes a qdisc that Sluice made, unless somebody has a filter on it. Whether it was removed.
    pub(in crate::datapath) fn remove_qdisc(&self, ifindex: u32) -> Result<bool, AttachError> {
        if crate::mutant::removed("cleanup-leaves-qdisc") {
            return Ok(true);
        }
        for side in [Side::Ingress, Side::Egress] {
            if !self.filters(ifindex, side)?.is_empty() {
                return Ok(false);
            }
        }
        match self.request(
            RouteNetlinkMessage::DelQueueDiscipline(Self::qdisc(ifindex)),
            NLM_F_ACK,
        ) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(interface(ifindex, "removing the clsact qdisc")(error)),
            Ok(_) => Ok(true),
        }
    }

    /// Removes our filter.
    pub(in crate::datapath) fn detach(&self, place: Place) -> Result<(), AttachError> {
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
