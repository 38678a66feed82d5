//! Whose clock counts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A caller's `request_timestamp`: time since the Unix epoch, or since whatever the caller counts
/// from. Made from whole seconds (`u64`), decimal seconds (`f64`), a [`Duration`] or a
/// [`SystemTime`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A timestamp of nanoseconds.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }
    /// The timestamp in nanoseconds.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.0
    }
}

impl From<u64> for Timestamp {
    fn from(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }
}

impl From<f64> for Timestamp {
    /// Negative and NaN read as 0.
    fn from(seconds: f64) -> Self {
        // Whole seconds and the rest apart: 53 bits do not hold nanoseconds of today.
        let whole = seconds.floor();
        Self((whole as u64).saturating_mul(1_000_000_000)).plus(((seconds - whole) * 1e9) as u64)
    }
}

impl From<Duration> for Timestamp {
    fn from(since: Duration) -> Self {
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .into()
    }
}

impl Timestamp {
    const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// Whose clock decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeMode {
    /// This host's. A caller's stamp moves the moment of the check by at most `skew` either way;
    /// what lies further off is clamped, and the answer says so. A caller that lies can so gain at
    /// most what `skew` is worth, once.
    System {
        /// Largest difference that is believed, at most 5 s.
        skew: Duration,
    },
    /// The caller's: `request_timestamp` is the only clock, per client monotone; a stamp older than
    /// the client's newest counts as the newest. Histories replay exactly.
    Caller,
}

/// Largest skew bound.
pub const MAX_SKEW: Duration = Duration::from_secs(5);

impl Default for TimeMode {
    fn default() -> Self {
        Self::System {
            skew: Duration::from_secs(2),
        }
    }
}

/// Returns the moment a check counts at, and whether the stamp was clamped.
pub(super) fn clamp(stamp: Timestamp, unix_ns: u64, now_ns: u64, skew: Duration) -> (u64, bool) {
    let skew = u64::try_from(skew.min(MAX_SKEW).as_nanos()).unwrap_or(0);
    let ahead = stamp.0.saturating_sub(unix_ns);
    let behind = unix_ns.saturating_sub(stamp.0);
    let moment = now_ns
        .saturating_add(ahead.min(skew))
        .saturating_sub(behind.min(skew));
    (moment, ahead.max(behind) > skew)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_beyond_the_skew_are_clamped_and_reported() {
        let skew = Duration::from_secs(2);
        let unix = 1_700_000_000_000_000_000;
        let at = |seconds: f64| {
            clamp(
                Timestamp((unix as f64 + seconds * 1e9) as u64),
                unix,
                1_000_000_000_000,
                skew,
            )
        };
        assert_eq!(at(0.0), (1_000_000_000_000, false));
        assert_eq!(at(3.0), (1_002_000_000_000, true));
        assert_eq!(at(-100.0), (998_000_000_000, true));
        assert!(!at(-1.5).1);
    }

    #[test]
    fn decimal_seconds_keep_their_nanoseconds() {
        assert_eq!(Timestamp::from(1_000.5).as_ns(), 1_000_500_000_000);
        assert_eq!(Timestamp::from(-1.0).as_ns(), 0);
        assert_eq!(Timestamp::from(f64::NAN).as_ns(), 0);
        assert_eq!(Timestamp::from(f64::INFINITY).as_ns(), u64::MAX);
        assert_eq!(
            Timestamp::from(1_000_u64),
            Timestamp::from(Duration::from_secs(1_000))
        );
    }
}
