//! The only place that reads a clock.
#![allow(
    clippy::disallowed_methods,
    reason = "this is the module the lint sends everyone to"
)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns CLOCK_MONOTONIC in nanoseconds: the time base of `bpf_ktime_get_ns` and of every clock
/// in the kernel's maps. Does not count suspension.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid, writable timespec; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec as u64)
}

/// Returns milliseconds since the Unix epoch, for people and for expiry dates in the store.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis() as u64
}

/// Returns a monotonic instant, for timeouts and durations.
pub fn instant() -> Instant {
    Instant::now()
}
