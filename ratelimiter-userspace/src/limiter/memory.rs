//! Zeroed memory that costs nothing until it is touched: the table and the policy slots.

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

/// Types for which all bits zero is a valid value and that may be shared between threads.
///
/// # Safety
///
/// Zeroed memory of the type's size and alignment must be a valid value of it.
pub(super) unsafe trait Zeroable: Sync + Send {}

/// A slice of `T`, all bits zero at first, in pages of its own that the kernel provides on touch.
pub(super) struct Zeroed<T: Zeroable> {
    start: NonNull<T>,
    len: usize,
    bytes: usize,
    owns: PhantomData<T>,
}

// SAFETY: the memory is owned by this value alone and `T` may be sent and shared.
unsafe impl<T: Zeroable> Send for Zeroed<T> {}
// SAFETY: as above; only `&T` is handed out.
unsafe impl<T: Zeroable> Sync for Zeroed<T> {}

impl<T: Zeroable> Zeroed<T> {
    /// Reserves `len` elements, 1 or more.
    ///
    /// # Errors
    ///
    /// The operating system's error when it has no address space for them.
    pub(super) fn new(len: usize) -> std::io::Result<Self> {
        let bytes = len
            .max(1)
            .checked_mul(size_of::<T>())
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        // SAFETY: a fresh anonymous mapping; no existing memory is affected.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // Large pages keep a table of millions within reach of the TLB; small tables stay small.
        if bytes >= 16 << 20 {
            // SAFETY: the range is the mapping made above. Advice may be refused; nothing depends
            // on it.
            unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
        }
        let start = NonNull::new(start.cast::<T>())
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        Ok(Self {
            start,
            len,
            bytes,
            owns: PhantomData,
        })
    }

    /// Bytes of address space reserved.
    pub(super) fn reserved_bytes(&self) -> usize {
        self.bytes
    }
}

impl<T: Zeroable> Deref for Zeroed<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, page aligned (no `T` here asks for more), and
        // zero is a valid `T` by the trait's contract. It lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Zeroable> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: the range is the one mapped in `new`, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
