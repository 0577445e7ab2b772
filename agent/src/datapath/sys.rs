//! The few bpf(2) calls that aya 0.14 does not offer: reading what lies at a pin, updating and detaching links, attaching tcx by
//! index, elements by a borrowed descriptor, batches, and a map of maps to wait with. Each attribute struct is the part of the kernel's
//! `union bpf_attr` or info struct (`include/uapi/linux/bpf.h`) that the call reads; the kernel takes what is missing as zero.

mod elements;
mod links;
pub(super) mod raw;

pub(super) use elements::{Cursor, EXIST, NO_EXIST, batch, lookup, next_key, take, update};
pub(super) use links::{LinkInfo, LinkTarget, link_create, link_detach, link_info, link_update};

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

const _: () = {
    assert!(size_of::<MapInfo>() == 24);
    assert!(size_of::<RawProgramInfo>() == 64);
};
