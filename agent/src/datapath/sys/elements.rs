//! Elements of maps: reading, writing, taking, and walking key by key or in batches.

use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use super::{address, address_mut, bpf, raw};

/// `BPF_NOEXIST` of [`update`]: only where no element is.
pub(in crate::datapath) const NO_EXIST: u64 = 1;
/// `BPF_EXIST` of [`update`]: only where one is.
pub(in crate::datapath) const EXIST: u64 = 2;

#[repr(C)]
pub(super) struct ElementAttr {
    pub(super) map: u32,
    pub(super) _pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

fn element<K>(map: BorrowedFd<'_>, key: Option<&K>, value: u64, flags: u64) -> ElementAttr {
    ElementAttr {
        map: raw(map),
        _pad: 0,
        key: key.map_or(0, address),
        value,
        flags,
    }
}

/// Writes an element. `K` and `V` must have the map's sizes, which every caller of this module has checked at the pin.
pub(in crate::datapath) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = element(map, Some(key), address(value), flags);
    // SAFETY: key and value outlive the call and have the map's sizes; the kernel only reads them.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
}

/// Reads an element, by one of the two look-up commands.
fn read<K: Pod, V: Pod>(cmd: bpf_cmd, map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let mut attr = element(map, Some(key), value.as_mut_ptr().addr() as u64, 0);
    // SAFETY: key and value outlive the call and have the map's sizes (not a per-CPU map).
    match unsafe { bpf(cmd, &mut attr) } {
        // SAFETY: zeroed, then filled by the kernel; every bit pattern of a Pod is a value.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an element.
pub(in crate::datapath) fn lookup<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    read(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Deletes an element and returns what it held at that moment (hash maps, since Linux 5.14).
pub(in crate::datapath) fn take<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    read(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// The key behind one in the order of the map, or its first; None behind the last. A key that is not there counts as none.
pub(in crate::datapath) fn next_key<K: Pod>(
    map: BorrowedFd<'_>,
    after: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::zeroed();
    let mut attr = element(map, after, next.as_mut_ptr().addr() as u64, 0);
    // SAFETY: both keys outlive the call and have the map's size (`value` is `next_key` in this command).
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        // SAFETY: zeroed, then filled by the kernel; every bit pattern of a Pod is a value.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
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
pub(in crate::datapath) struct Cursor(Option<u32>);

/// What one call for a batch read.
pub(super) struct Batch {
    /// Elements.
    pub(super) count: usize,
    /// Whether there may be more behind them.
    pub(super) more: bool,
}

/// Reads the next whole buckets of a hash map (Linux 5.6) to where `keys` and `values` point, and moves the cursor. None: the next bucket has
/// more than `count` elements, and nothing was read.
///
/// # Safety
/// Both addresses have room for `count` elements of the map's sizes.
pub(super) unsafe fn next_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    count: usize,
    keys: u64,
    values: u64,
) -> io::Result<Option<Batch>> {
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: cursor.0.as_ref().map_or(0, address),
        out_batch: address_mut(&mut next),
        keys,
        values,
        count: u32::try_from(count).map_err(io::Error::other)?,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as the caller promises; the cursor of a hash map is a u32.
    let more = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(None),
        Err(error) => return Err(error),
    };
    cursor.0 = Some(next);
    let count = (attr.count as usize).min(count);
    Ok(Some(Batch { count, more }))
}

/// Reads the next batch of a hash map into `entries`. Returns whether there may be more. Where a bucket does not fit, the batch grows.
pub(in crate::datapath) fn batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    mut size: usize,
    entries: &mut Vec<(K, V)>,
) -> io::Result<bool> {
    entries.clear();
    loop {
        let mut keys = Vec::<K>::with_capacity(size);
        let mut values = Vec::<V>::with_capacity(size);
        let (to_keys, to_values) = (keys.as_mut_ptr().addr(), values.as_mut_ptr().addr());
        // SAFETY: both arrays have room for `size` elements of the map's sizes.
        let read = unsafe { next_batch(map, cursor, size, to_keys as u64, to_values as u64) }?;
        let Some(Batch { count, more }) = read else {
            size = size.saturating_mul(2);
            continue;
        };
        // SAFETY: the kernel filled `count` elements of each.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        entries.extend(keys.into_iter().zip(values));
        return Ok(more);
    }
}

const _: () = {
    assert!(size_of::<BatchAttr>() == 56);
    assert!(size_of::<ElementAttr>() == 32);
};
