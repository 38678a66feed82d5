//! What a person configures ([`Quota`]) and its compiled form ([`Limit`]).

use crate::vclock::Speed;

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Unit {
    /// Network packets of a source, counted in the kernel.
    Packets = 0,
    /// Bytes of frames as seen by XDP (link header included), counted in the kernel.
    Bytes = 1,
    /// New TCP connections (SYN without ACK), counted in the kernel.
    Connections = 2,
    /// Checks of a client, counted in the agent.
    Requests = 3,
}

/// Number of units the kernel program limits: packets, bytes, connections.
pub const KERNEL_UNITS: usize = 3;

impl Unit {
    /// Fraction bits a bucket keeps of one unit. The clock carries the rate's own fraction, so this
    /// is only the resolution of `retry_after`: 1/256 packet, one byte, 1/65536 request.
    #[must_use]
    pub const fn fraction_bits(self) -> u32 {
        match self {
            Self::Packets | Self::Connections => 8,
            Self::Bytes => 0,
            Self::Requests => 16,
        }
    }

    /// Returns the word used in configuration and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Connections => "connections",
            Self::Requests => "requests",
        }
    }
}

/// Shortest legal `time_window`, in nanoseconds: one second.
pub const MIN_WINDOW_NS: u64 = 1_000_000_000;
/// Longest legal `time_window`, in nanoseconds: 366 days.
pub const MAX_WINDOW_NS: u64 = 366 * 86_400 * 1_000_000_000;
/// Largest legal `burst`, in whole units, so that debt and its cap fit a crowd word of 45 bits.
pub const MAX_BURST: u64 = 1 << 36;
/// Fastest legal rate, in whole units per second.
pub const MAX_RATE_PER_S: u64 = 1_000_000_000;
/// Fastest legal rate of a byte quota, in bytes per second (400 Gbit/s).
pub const MAX_BYTES_PER_S: u64 = 50_000_000_000;

/// What a person configures: `rate_limit` units per `window_ns`, and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Units per window, 1 or more.
    pub rate_limit: u64,
    /// The window in nanoseconds, between [`MIN_WINDOW_NS`] and [`MAX_WINDOW_NS`].
    pub window_ns: u64,
    /// Largest number of units admitted at one instant, 1 or more.
    pub burst: u64,
    /// What is counted.
    pub unit: Unit,
}

/// Why a quota cannot be compiled. Carries the value and the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaError {
    /// `rate_limit` is 0: use a block instead.
    ZeroRate,
    /// `burst` is 0: nothing would ever pass.
    ZeroBurst,
    /// The window, in nanoseconds, is outside [`MIN_WINDOW_NS`]..=[`MAX_WINDOW_NS`].
    Window(u64),
    /// The rate, in whole units per second, exceeds the bound given second.
    TooFast(u64, u64),
    /// The burst exceeds [`MAX_BURST`].
    BurstTooLarge(u64),
}

impl core::fmt::Display for QuotaError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ZeroRate => write!(
                f,
                "`rate_limit` is 0; it must be 1 or more (to refuse everything, use a block)"
            ),
            Self::ZeroBurst => write!(f, "`burst` is 0; it must be between 1 and {MAX_BURST}"),
            Self::Window(ns) => write!(
                f,
                "`time_window` is {}.{:03} s; it must be between 1 s and 366 days (31622400 s)",
                ns / 1_000_000_000,
                ns / 1_000_000 % 1_000
            ),
            Self::TooFast(rate, bound) => write!(
                f,
                "the rate is {rate} per second; it must be at most {bound} per second"
            ),
            Self::BurstTooLarge(burst) => {
                write!(
                    f,
                    "`burst` is {burst}; it must be between 1 and {MAX_BURST}"
                )
            }
        }
    }
}

#[cfg(feature = "std")]
impl std::error::Error for QuotaError {}

/// The compiled form of a quota: how fast its unit clock runs, and how deep the bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Fractions of a unit per nanosecond at the nominal rate.
    pub speed: Speed,
    /// Bucket depth in fractions of a unit.
    pub burst: u64,
}

impl Quota {
    /// Compiles the quota.
    ///
    /// # Errors
    ///
    /// [`QuotaError`] names the field, its value and the bound when the quota cannot be
    /// represented within 0.1 % of its rate.
    pub const fn compile(&self) -> Result<Limit, QuotaError> {
        if self.rate_limit == 0 {
            return Err(QuotaError::ZeroRate);
        }
        if self.burst == 0 {
            return Err(QuotaError::ZeroBurst);
        }
        if self.burst > MAX_BURST {
            return Err(QuotaError::BurstTooLarge(self.burst));
        }
        if self.window_ns < MIN_WINDOW_NS || self.window_ns > MAX_WINDOW_NS {
            return Err(QuotaError::Window(self.window_ns));
        }
        let bound = if matches!(self.unit, Unit::Bytes) {
            MAX_BYTES_PER_S
        } else {
            MAX_RATE_PER_S
        };
        let per_s = self.rate_limit as u128 * 1_000_000_000 / self.window_ns as u128;
        if per_s > bound as u128 {
            let shown = if per_s > u64::MAX as u128 {
                u64::MAX
            } else {
                per_s as u64
            };
            return Err(QuotaError::TooFast(shown, bound));
        }
        let bits = self.unit.fraction_bits();
        match Speed::from_ratio((self.rate_limit as u128) << bits, self.window_ns) {
            Some(speed) => Ok(Limit {
                speed,
                burst: self.burst << bits,
            }),
            None => Err(QuotaError::TooFast(self.rate_limit, bound)),
        }
    }

    /// Time between two conforming units at the nominal rate, in nanoseconds, rounded down. For
    /// people; no arithmetic uses it.
    #[must_use]
    pub const fn emission_interval_ns(&self) -> u64 {
        match self.window_ns.checked_div(self.rate_limit) {
            Some(interval_ns) => interval_ns,
            None => u64::MAX,
        }
    }
}
