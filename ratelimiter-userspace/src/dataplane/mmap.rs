//! A map's memory, shared with the kernel.
//!
//! The kernel changes it at any time, so it is only read and written by atomic operations of
//! aligned words.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The value area of an array map made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(super) struct Mmap {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access is atomic.
unsafe impl Send for Mmap {}
// SAFETY: as above.
unsafe impl Sync for Mmap {}

impl Mmap {
    /// Maps `entries` values of `value_size` bytes (each rounded up to 8 bytes by the kernel).
    pub(super) fn new(
        map: BorrowedFd<'_>,
        value_size: u32,
        entries: u32,
        writable: bool,
    ) -> io::Result<Self> {
        let len = (value_size as usize).next_multiple_of(8) * entries as usize;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new shared mapping at an address of the kernel's choice; `map` is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, len })
            .ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    /// Number of whole words.
    pub(super) fn words(&self) -> usize {
        self.len / 8
    }

    /// Returns word `index`, or 0 beyond the end.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.atomic::<AtomicU64>(index)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Returns word `index` so that everything its writer stored before is seen too.
    pub(super) fn word_acquire(&self, index: usize) -> u64 {
        self.atomic::<AtomicU64>(index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores one word; ignored beyond the end.
    pub(super) fn store_word(&self, index: usize, value: u64) {
        if let Some(word) = self.atomic::<AtomicU64>(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Clears the bits of word `index` that are not in `mask`; ignored beyond the end.
    pub(super) fn and_word(&self, index: usize, mask: u64) {
        if let Some(word) = self.atomic::<AtomicU64>(index) {
            word.fetch_and(mask, Ordering::AcqRel);
        }
    }

    /// Stores the 32 bits at `index` (in units of 4 bytes); ignored beyond the end.
    pub(super) fn store_half(&self, index: usize, value: u32) {
        if let Some(half) = self.atomic::<AtomicU32>(index) {
            half.store(value, Ordering::Release);
        }
    }

    /// Stores one byte; ignored beyond the end.
    pub(super) fn store_byte(&self, index: usize, value: u8) {
        if let Some(byte) = self.atomic::<AtomicU8>(index) {
            byte.store(value, Ordering::Release);
        }
    }

    /// Returns the atomic at `index`, in units of its size.
    fn atomic<T>(&self, index: usize) -> Option<&T> {
        let offset = index.checked_mul(size_of::<T>())?;
        if offset.checked_add(size_of::<T>())? > self.len {
            return None;
        }
        // SAFETY: only called with atomic integers, for which any bits are valid; the place lies
        // inside the mapping (checked above), is aligned (the mapping is page aligned and the
        // offset a multiple of the size) and lives as long as `self`.
        Some(unsafe { self.start.add(offset).cast::<T>().as_ref() })
    }
}

impl Drop for Mmap {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
