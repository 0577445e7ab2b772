//! Walking a map key by key, from any key on.

use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use super::{ElementAttr, address, bpf, raw};

/// The key behind one in the order of the map, or its first; None behind the last. A key that is not there counts as none.
pub(in crate::datapath) fn next_key<K: Pod>(
    map: BorrowedFd<'_>,
    after: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::zeroed();
    let mut attr = ElementAttr {
        map: raw(map),
        _pad: 0,
        key: after.map_or(0, address),
        value: next.as_mut_ptr().addr() as u64,
        flags: 0,
    };
    // SAFETY: both keys outlive the call and have the map's size (`value` is `next_key` in this command).
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        // SAFETY: zeroed, then filled by the kernel; every bit pattern of a Pod is a value.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
