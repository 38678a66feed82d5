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

/// Writes a date as RFC 3339 in UTC, to the second: `2026-11-21T10:00:00Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-compatible low-level date
    // algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Returns nanoseconds since the Unix epoch, for stamps of callers.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns monotonic nanoseconds from the processor's time stamp counter where it is reliable: a
/// third of the cost of [`monotonic_ns`], for what is read per check. Not comparable with it.
#[inline]
pub fn fast_ns() -> u64 {
    static CLOCK: std::sync::LazyLock<(quanta::Clock, u64)> = std::sync::LazyLock::new(|| {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        (clock, start)
    });
    let (clock, start) = &*CLOCK;
    // Far from 0, so that what happened before this process began has a time too: twice the longest
    // window there may be.
    (1 << 56) + clock.delta_as_nanos(*start, clock.raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_255_199_999), "2026-11-21T09:59:59Z");
    }
}
