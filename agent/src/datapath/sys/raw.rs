//! Reading maps whose keys and values are not types of this agent: bytes.

use std::io;
use std::os::fd::BorrowedFd;

use aya_obj::generated::bpf_cmd;

use super::elements::{Batch, Cursor, ElementAttr, next_batch};
use super::{MapInfo, bpf, map_info, raw};

/// Keys and values of one map, one behind the other.
#[derive(Debug, Default)]
pub(in crate::datapath) struct Entries {
    keys: Vec<u8>,
    values: Vec<u8>,
    key_size: usize,
    value_size: usize,
}

impl Entries {
    /// Each key with its value.
    pub(in crate::datapath) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let keys = self.keys.chunks_exact(self.key_size.max(1));
        keys.zip(self.values.chunks_exact(self.value_size.max(1)))
    }
}

/// Bytes of an element as the kernel hands it out. (Not of a per-CPU map, which has one for each CPU.)
const fn sizes(info: &MapInfo) -> (usize, usize) {
    (info.key_size as usize, info.value_size as usize)
}

/// Reads the next batch of a hash map, see [`super::batch`]. Returns whether there may be more.
pub(in crate::datapath) fn batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    mut size: usize,
    entries: &mut Entries,
) -> io::Result<bool> {
    let (key_size, value_size) = sizes(&map_info(map)?);
    (entries.key_size, entries.value_size) = (key_size, value_size);
    loop {
        entries.keys.clear();
        entries.keys.resize(size * key_size, 0);
        entries.values.clear();
        entries.values.resize(size * value_size, 0);
        let (keys, values) = (entries.keys.as_mut_ptr(), entries.values.as_mut_ptr());
        let (keys, values) = (keys.addr() as u64, values.addr() as u64);
        // SAFETY: both buffers have room for `size` elements of the sizes that the kernel has just told.
        let Some(Batch { count, more }) = (unsafe { next_batch(map, cursor, size, keys, values) })?
        else {
            size = size.saturating_mul(2);
            continue;
        };
        entries.keys.truncate(count * key_size);
        entries.values.truncate(count * value_size);
        return Ok(more);
    }
}

fn element(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> ElementAttr {
    ElementAttr {
        map: raw(map),
        _pad: 0,
        key: key.as_ptr().addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        flags: 0,
    }
}

/// Reads every element of any map that nobody changes meanwhile, one by one.
pub(in crate::datapath) fn all(map: BorrowedFd<'_>) -> io::Result<Entries> {
    let (key_size, value_size) = sizes(&map_info(map)?);
    let mut entries = Entries {
        key_size,
        value_size,
        ..Entries::default()
    };
    let mut key = vec![0; key_size];
    let mut value = vec![0; value_size];
    let mut next = vec![0; key_size];
    // Without a key the kernel tells the first.
    let mut attr = element(map, &key, &mut next);
    attr.key = 0;
    loop {
        // SAFETY: key and next key have the size that the kernel has told.
        match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
            Err(error) => return Err(error),
        }
        key.copy_from_slice(&next);
        let mut read = element(map, &key, &mut value);
        // SAFETY: key and value have the sizes that the kernel has told.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut read) } {
            Ok(_) => {
                entries.keys.extend_from_slice(&key);
                entries.values.extend_from_slice(&value);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        attr = element(map, &key, &mut next);
    }
}

/// Reads an element into `value`; false where there is none. Both must have the map's sizes, or the call is refused.
pub(in crate::datapath) fn lookup(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &mut [u8],
) -> io::Result<bool> {
    let (key_size, value_size) = sizes(&map_info(map)?);
    if (key.len(), value.len()) != (key_size, value_size) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut attr = element(map, key, value);
    // SAFETY: key and value have the sizes that the kernel has told.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a whole array of a multiple of eight bytes an element through a mapping: every element that is not all zero.
pub(in crate::datapath) fn array(map: BorrowedFd<'_>) -> io::Result<Entries> {
    let info = map_info(map)?;
    let value_size = info.value_size as usize;
    let stride = value_size.next_multiple_of(size_of::<u64>());
    let length = stride * info.max_entries as usize;
    let mut entries = Entries {
        key_size: size_of::<u32>(),
        value_size,
        ..Entries::default()
    };
    let file = std::os::fd::AsRawFd::as_raw_fd(&map);
    // SAFETY: a new mapping, for reading only, at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut element = Vec::with_capacity(stride);
    for index in 0..info.max_entries {
        element.clear();
        for offset in (0..stride).step_by(size_of::<u64>()) {
            // SAFETY: inside the mapping, which is page-aligned and made of aligned words. The writer, an agent, has ended, so nobody
            // writes; volatile, because the compiler does not know.
            let word = unsafe {
                start
                    .cast::<u8>()
                    .add(index as usize * stride + offset)
                    .cast::<u64>()
                    .read_volatile()
            };
            element.extend_from_slice(&word.to_ne_bytes());
        }
        if element.iter().any(|byte| *byte != 0) {
            entries.keys.extend_from_slice(&index.to_ne_bytes());
            entries.values.extend_from_slice(&element[..value_size]);
        }
    }
    // SAFETY: the mapping was made above with this length, and nothing refers to it any more.
    unsafe { libc::munmap(start, length) };
    Ok(entries)
}
