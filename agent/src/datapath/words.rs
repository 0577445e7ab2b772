//! Arrays mapped into the agent, written word by word.
//!
//! The update call copies a whole value and may tear; a store through the mapping is one machine word, so a program that
//! reads the word once sees the old one or the new. Elements are `round_up(value_size, 8)` bytes apart (`array_map_alloc`).

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Pod;
use aya::maps::MapData;

use super::DatapathError;
use super::pins::Pins;
use super::sys;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// A mapped array of `T`.
#[derive(Debug)]
pub(super) struct Words<T> {
    name: &'static str,
    start: NonNull<u8>,
    capacity: u32,
    stride: usize,
    /// Keeps the map alive beside the mapping.
    _map: MapData,
    _element: PhantomData<T>,
}

// SAFETY: the mapping is shared memory that is accessed by atomics only, and belongs to this value until it is dropped.
unsafe impl<T> Send for Words<T> {}

impl<T: Pod> Words<T> {
    /// Maps a pinned array once more; it must have been checked already.
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        let map = MapData::from_pin(pins.map(name)).map_err(|error| DatapathError::Kernel {
            map: name,
            source: std::io::Error::other(error),
        })?;
        Self::new(name, map)
    }

    /// Maps an array that was created with BPF_F_MMAPABLE.
    pub(super) fn new(name: &'static str, map: MapData) -> Result<Self, DatapathError> {
        let kernel = |source| DatapathError::Kernel { map: name, source };
        let info = sys::map_info(map.fd().as_fd()).map_err(kernel)?;
        if info.value_size as usize != size_of::<T>() {
            return Err(kernel(std::io::Error::other(format!(
                "values of {} bytes, {} expected",
                info.value_size,
                size_of::<T>()
            ))));
        }
        let stride = size_of::<T>().next_multiple_of(WORD);
        let length = stride * info.max_entries as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel rounds the length up to pages.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(kernel(std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| kernel(std::io::Error::other("mapped at address zero")))?;
        Ok(Self {
            name,
            start,
            capacity: info.max_entries,
            stride,
            _map: map,
            _element: PhantomData,
        })
    }

    /// Where `size` bytes at `offset` of an element lie.
    fn place(&self, index: u32, offset: usize, size: usize) -> Result<NonNull<u8>, DatapathError> {
        if index >= self.capacity {
            return Err(DatapathError::Range {
                map: self.name,
                index,
                capacity: self.capacity,
            });
        }
        assert!(offset.is_multiple_of(size) && offset + size <= self.stride);
        // SAFETY: index and offset are inside the mapping, as was just checked.
        Ok(unsafe { self.start.add(index as usize * self.stride + offset) })
    }

    fn word(&self, index: u32, offset: usize) -> Result<&AtomicU64, DatapathError> {
        let place = self.place(index, offset, WORD)?;
        // SAFETY: the mapping is page-aligned, strides and offsets are multiples of the word, and it lives as long as self.
        Ok(unsafe { place.cast::<AtomicU64>().as_ref() })
    }

    fn half(&self, index: u32, offset: usize) -> Result<&AtomicU32, DatapathError> {
        let place = self.place(index, offset, size_of::<u32>())?;
        // SAFETY: as for words, with half their alignment.
        Ok(unsafe { place.cast::<AtomicU32>().as_ref() })
    }

    /// Stores one aligned word at a byte offset of an element, after everything stored before.
    pub(super) fn store(&self, index: u32, offset: usize, word: u64) -> Result<(), DatapathError> {
        self.word(index, offset)?.store(word, Ordering::Release);
        Ok(())
    }

    /// Stores one aligned half word.
    pub(super) fn store_half(
        &self,
        index: u32,
        offset: usize,
        half: u32,
    ) -> Result<(), DatapathError> {
        self.half(index, offset)?.store(half, Ordering::Release);
        Ok(())
    }

    /// Reads an element, word by word.
    pub(super) fn read(&self, index: u32) -> Result<T, DatapathError> {
        let mut value = std::mem::MaybeUninit::<T>::zeroed();
        let target = value.as_mut_ptr().cast::<u8>();
        for offset in (0..size_of::<T>()).step_by(WORD) {
            let bytes = self
                .word(index, offset)?
                .load(Ordering::Acquire)
                .to_ne_bytes();
            let count = WORD.min(size_of::<T>() - offset);
            // SAFETY: offset + count is at most the size of T.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.add(offset), count) };
        }
        // SAFETY: every bit pattern of a Pod is a value.
        Ok(unsafe { value.assume_init() })
    }

    /// How many elements there are.
    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Every element that is not all zero.
    pub(super) fn used(&self) -> Result<Vec<(u32, T)>, DatapathError> {
        self.used_of(0..self.capacity)
    }

    /// Every element of some that is not all zero.
    pub(super) fn used_of(
        &self,
        indices: std::ops::Range<u32>,
    ) -> Result<Vec<(u32, T)>, DatapathError> {
        let mut used = Vec::new();
        for index in indices {
            for offset in (0..self.stride).step_by(WORD) {
                if self.word(index, offset)?.load(Ordering::Relaxed) != 0 {
                    used.push((index, self.read(index)?));
                    break;
                }
            }
        }
        Ok(used)
    }
}

impl<T> Drop for Words<T> {
    fn drop(&mut self) {
        let length = self.stride * self.capacity as usize;
        // SAFETY: the mapping was made by `new` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), length) };
    }
}

/// The words of a value, in memory order.
pub(super) fn words_of<T: Pod, const N: usize>(value: &T) -> [u64; N] {
    const {
        assert!(size_of::<T>() == N * WORD);
    }
    // SAFETY: T is plain data without padding (Pod), of exactly N words.
    unsafe {
        std::ptr::from_ref(value)
            .cast::<[u64; N]>()
            .read_unaligned()
    }
}
