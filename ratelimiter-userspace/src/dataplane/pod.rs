//! ABI structures as the bytes of a map.

use ratelimiter_common::abi::config::{Coarse, Config};
use ratelimiter_common::abi::counters::{CpuState, Sample};
use ratelimiter_common::abi::crowd::SharedBucket;
use ratelimiter_common::abi::merge::{MergeHeader, MergeOp};
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixKey4, PrefixKey6, PrefixValue, Zone};
use ratelimiter_common::abi::tracked::Tracked;
use ratelimiter_common::vclock::SegmentClock;

/// A structure shared with the kernel.
///
/// # Safety
///
/// The type must be `repr(C)` (or a primitive), have no padding, no pointer, and be valid for any
/// bits.
pub(super) unsafe trait Pod: Copy {}

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `ratelimiter_common::abi` states and asserts that its structures are
            // `repr(C)`, unpadded and valid for any bits; the rest are primitives.
            unsafe impl Pod for $type {}
        )+
    };
}

pod!(
    u8,
    u32,
    u64,
    [u64; 4],
    Coarse,
    Config,
    CpuState,
    MergeHeader,
    MergeOp,
    PolicyEntry,
    PrefixKey4,
    PrefixKey6,
    PrefixValue,
    Sample,
    SegmentClock,
    SharedBucket,
    Tracked,
    Zone,
);

/// The bytes of `value`.
pub(super) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` has no padding, so every byte is initialised; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The bytes of all `values`, one behind the other.
pub(super) fn bytes_of_all<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: as in `bytes_of`; elements of a slice are adjacent.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The writable bytes of `value`.
pub(super) fn bytes_of_mut<T: Pod>(value: &mut T) -> &mut [u8] {
    // SAFETY: `Pod` is valid for any bits and has no padding; the slice borrows `value` mutably.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

/// Reads a value from the front of `bytes`; `None` if they are too short.
pub(super) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: `bytes` holds at least the size of `T` (checked above), any bits are valid for it,
    // and the read does not need alignment.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// A value of zero bytes.
pub(super) fn zeroed<T: Pod>() -> T {
    // SAFETY: `Pod` is valid for any bits, zero included.
    unsafe { std::mem::zeroed() }
}
