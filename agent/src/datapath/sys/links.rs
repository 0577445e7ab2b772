//! Links: what one is attached to, and attaching, replacing and detaching by one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_cmd;

use super::{bpf, info, owned, raw};

/// The start of `struct bpf_link_info`, whose union holds what the link is attached to.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _pad: u32,
    union: [u64; 2],
}

/// What a link is attached to, as far as Sluice makes such links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::datapath) enum LinkTarget {
    /// tcx: interface (0 once it is gone) and attach type.
    Tcx { ifindex: u32, attach_type: u32 },
    /// cgroup: number of the cgroup (0 once it is gone) and attach type.
    Cgroup { cgroup: u64, attach_type: u32 },
    /// Anything else.
    Other,
}

/// A link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::datapath) struct LinkInfo {
    /// Its own number.
    pub(in crate::datapath) id: u32,
    /// Number of its program.
    pub(in crate::datapath) program: u32,
    pub(in crate::datapath) target: LinkTarget,
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_CGROUP: u32 = aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_CGROUP as u32;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TCX: u32 = aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_TCX as u32;

pub(in crate::datapath) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut value = RawLinkInfo::default();
    // SAFETY: the struct is the start of bpf_link_info.
    unsafe { info(fd, &mut value) }?;
    let target = match value.kind {
        LINK_TCX => {
            let [a, b, c, d, e, f, g, h] = value.union[0].to_ne_bytes();
            LinkTarget::Tcx {
                ifindex: u32::from_ne_bytes([a, b, c, d]),
                attach_type: u32::from_ne_bytes([e, f, g, h]),
            }
        }
        LINK_CGROUP => {
            let [a, b, c, d, ..] = value.union[1].to_ne_bytes();
            LinkTarget::Cgroup {
                cgroup: value.union[0],
                attach_type: u32::from_ne_bytes([a, b, c, d]),
            }
        }
        _ => LinkTarget::Other,
    };
    Ok(LinkInfo {
        id: value.id,
        program: value.program,
        target,
    })
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    /// A cgroup's descriptor, or an interface's index.
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program by a link: to a cgroup (its descriptor), or by tcx to an interface (its index in the calling
/// thread's network namespace), behind what is there.
pub(in crate::datapath) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        target,
        attach_type,
        flags: 0,
    };
    // SAFETY: the attribute holds no address.
    owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces a link's program atomically.
pub(in crate::datapath) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: raw(link),
        program: raw(program),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(|_| ())
}

#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

/// Takes a link's program away at once, whoever else holds the link (Linux 5.9; tcx since it exists). The link stays as a husk
/// until its last descriptor and pin are gone.
pub(in crate::datapath) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: raw(link) };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(|_| ())
}

const _: () = assert!(size_of::<RawLinkInfo>() == 32);
