//! The few bpf(2) calls that aya 0.14 does not offer: reading what lies at a pin, updating a cgroup link, attaching tcx by
//! index, batches, and a map of maps to wait with. Each attribute struct is the part of the kernel's `union bpf_attr` or info
//! struct (`include/uapi/linux/bpf.h`) that the call reads; the kernel takes what is missing as zero.

mod walk;

pub(super) use walk::next_key;
pub(super) mod raw;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::bpf_cmd;

/// Runs one bpf(2) command.
///
/// # Safety
/// `attr` must be a prefix of the kernel's attribute for `cmd`, and every address in it valid for what the command reads and writes.
unsafe fn bpf<T>(cmd: bpf_cmd, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the attribute is as the caller promises, and its size is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes the descriptor that a command returned.
fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).addr() as u64
}

fn address_mut<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).addr() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// What kind of object a descriptor stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ObjectKind {
    Map,
    Program,
    Link,
}

impl ObjectKind {
    /// As a person calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Program => "program",
            Self::Link => "link",
        }
    }

    /// The kind of a descriptor, by the name of its anonymous inode.
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        match name.as_os_str().as_bytes() {
            b"anon_inode:bpf-map" => Ok(Self::Map),
            b"anon_inode:bpf-prog" => Ok(Self::Program),
            b"anon_inode:bpf_link" | b"anon_inode:bpf-link" => Ok(Self::Link),
            other => Err(io::Error::other(format!(
                "unknown object {}",
                String::from_utf8_lossy(other)
            ))),
        }
    }
}

/// Opens what is pinned at a path; None where nothing is.
pub(super) fn open_pin(path: &Path) -> io::Result<Option<(ObjectKind, OwnedFd)>> {
    let name = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: name.as_ptr().addr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the path is a C string that outlives the call.
    match unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => {
            let fd = owned(fd)?;
            Ok(Some((ObjectKind::of(fd.as_fd())?, fd)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens what is pinned at a path, where something must be.
pub(super) fn open_pinned(path: &Path) -> io::Result<(ObjectKind, OwnedFd)> {
    open_pin(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Pins an object at a path that does not exist yet.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: name.as_ptr().addr() as u64,
        bpf_fd: raw(fd),
        file_flags: 0,
    };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(|_| ())
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Fills an info struct, a prefix of the kernel's, from an own descriptor (no CAP_SYS_ADMIN needed).
///
/// # Safety
/// `T` must be a prefix of the kernel's info struct for this kind of object, and addresses in it valid.
unsafe fn info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        bpf_fd: raw(fd),
        info_len: size_of::<T>() as u32,
        info: address_mut(info),
    };
    // SAFETY: as the caller promises; the kernel writes no more than info_len bytes.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(|_| ())
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut value = MapInfo::default();
    // SAFETY: the struct is the start of bpf_map_info.
    unsafe { info(fd, &mut value) }?;
    Ok(value)
}

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
}

/// A program's number, and those of the maps it uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ProgramInfo {
    pub(super) id: u32,
    pub(super) maps: Vec<u32>,
}

/// More maps than any of our programs uses; the kernel cuts a longer list to this.
const MAP_IDS: usize = 64;

pub(super) fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut ids = [0u32; MAP_IDS];
    let mut value = RawProgramInfo {
        map_count: MAP_IDS as u32,
        map_ids: address_mut(&mut ids),
        ..RawProgramInfo::default()
    };
    // SAFETY: the struct is the start of bpf_prog_info, and the array holds map_count numbers.
    unsafe { info(fd, &mut value) }?;
    let count = (value.map_count as usize).min(MAP_IDS);
    Ok(ProgramInfo {
        id: value.id,
        maps: ids[..count].to_vec(),
    })
}

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
pub(super) enum LinkTarget {
    /// tcx: interface (0 once it is gone) and attach type.
    Tcx { ifindex: u32, attach_type: u32 },
    /// cgroup: number of the cgroup (0 once it is gone) and attach type.
    Cgroup { cgroup: u64, attach_type: u32 },
    /// Anything else.
    Other,
}

/// A link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    /// Its own number.
    pub(super) id: u32,
    /// Number of its program.
    pub(super) program: u32,
    pub(super) target: LinkTarget,
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_CGROUP: u32 = aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_CGROUP as u32;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TCX: u32 = aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_TCX as u32;

pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
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
pub(super) fn link_create(
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
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
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
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: raw(link) };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(|_| ())
}

#[repr(C)]
struct MapCreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
}

/// Creates a map of one `u32` key, for [`super::grace`].
pub(super) fn create_array(kind: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr {
        kind,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<u32>() as u32,
        max_entries: 1,
        flags: 0,
        inner: inner.map_or(0, raw),
    };
    // SAFETY: the attribute holds no address.
    owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?)
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element<K, V>(map: BorrowedFd<'_>, key: &K, value: u64, flags: u64) -> ElementAttr {
    let _: std::marker::PhantomData<V> = std::marker::PhantomData;
    ElementAttr {
        map: raw(map),
        _pad: 0,
        key: address(key),
        value,
        flags,
    }
}

/// Writes an element. `K` and `V` must have the map's sizes, which every caller of this module has checked at the pin.
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = element::<K, V>(map, key, address(value), flags);
    // SAFETY: key and value outlive the call and have the map's sizes; the kernel only reads them.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
}

/// Reads an element, by one of the two look-up commands.
fn read<K: Pod, V: Pod>(cmd: bpf_cmd, map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let mut attr = element::<K, V>(map, key, value.as_mut_ptr().addr() as u64, 0);
    // SAFETY: key and value outlive the call and have the map's sizes (not a per-CPU map).
    match unsafe { bpf(cmd, &mut attr) } {
        // SAFETY: zeroed, then filled by the kernel; every bit pattern of a Pod is a value.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an element.
pub(super) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Deletes an element and returns what it held at that moment (hash maps, since Linux 5.14).
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Where a walk in batches stands: the bucket of a hash map to go on from.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor(Option<u32>);

/// Reads the next batch of a hash map into `entries` (Linux 5.6). Returns whether there may be more.
///
/// A batch is whole buckets; where one does not fit, the kernel says ENOSPC, and the batch grows.
pub(super) fn batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    mut size: usize,
    entries: &mut Vec<(K, V)>,
) -> io::Result<bool> {
    entries.clear();
    loop {
        let mut keys = Vec::<K>::with_capacity(size);
        let mut values = Vec::<V>::with_capacity(size);
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: cursor.0.as_ref().map_or(0, address),
            out_batch: address_mut(&mut next),
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(size).map_err(io::Error::other)?,
            map: raw(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both arrays have room for `count` elements of the map's sizes; the cursor of a hash map is a u32.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let more = match result {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                size = size.saturating_mul(2);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(size);
        // SAFETY: the kernel filled `count` elements of each.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        entries.extend(keys.into_iter().zip(values));
        cursor.0 = Some(next);
        return Ok(more);
    }
}

const _: () = {
    assert!(size_of::<MapInfo>() == 24);
    assert!(size_of::<RawProgramInfo>() == 64);
    assert!(size_of::<RawLinkInfo>() == 32);
    assert!(size_of::<BatchAttr>() == 56);
    assert!(size_of::<ElementAttr>() == 32);
};
