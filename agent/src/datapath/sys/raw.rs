//! Reading maps whose keys and values are not types of this agent: bytes.

use std::io;
use std::os::fd::BorrowedFd;

use aya_obj::generated::bpf_cmd;

use super::{BatchAttr, Cursor, ElementAttr, MapInfo, address, address_mut, bpf, map_info, raw};

/// Keys and values of one map, one behind the other.
#[derive(Debug, Default)]
pub(in super::super) struct Entries {
    keys: Vec<u8>,
    values: Vec<u8>,
    key_size: usize,
    value_size: usize,
}

impl Entries {
    /// Each key with its value.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let keys = self.keys.chunks_exact(self.key_size.max(1));
        keys.zip(self.values.chunks_exact(self.value_size.max(1)))
    }
}

/// Bytes of an element as the kernel hands it out. (Not of a per-CPU map, which has one for each CPU.)
const fn sizes(info: &MapInfo) -> (usize, usize) {
    (info.key_size as usize, info.value_size as usize)
}

/// Reads the next batch of a hash map, see [`super::batch`]. Returns whether there may be more.
pub(in super::super) fn batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    mut count: usize,
    entries: &mut Entries,
) -> io::Result<bool> {
    let (key_size, value_size) = sizes(&map_info(map)?);
    (entries.key_size, entries.value_size) = (key_size, value_size);
    loop {
        entries.keys.clear();
        entries.keys.resize(count * key_size, 0);
        entries.values.clear();
        entries.values.resize(count * value_size, 0);
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: cursor.0.as_ref().map_or(0, address),
            out_batch: address_mut(&mut next),
            keys: entries.keys.as_mut_ptr().addr() as u64,
            values: entries.values.as_mut_ptr().addr() as u64,
            count: u32::try_from(count).map_err(io::Error::other)?,
            map: raw(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both buffers have room for `count` elements of the sizes that the kernel has just told; the cursor of a hash
        // map is a u32.
        let more = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                count = count.saturating_mul(2);
                continue;
            }
            Err(error) => return Err(error),
        };
        let read = (attr.count as usize).min(count);
        entries.keys.truncate(read * key_size);
        entries.values.truncate(read * value_size);
        cursor.0 = Some(next);
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
pub(in super::super) fn all(map: BorrowedFd<'_>) -> io::Result<Entries> {
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
pub(in super::super) fn lookup(
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
pub(in super::super) fn array(map: BorrowedFd<'_>) -> io::Result<Entries> {
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
